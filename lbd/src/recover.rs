//! `lbd recover`: a single survivor becomes a new cluster.

use std::process::ExitCode;

use lb_raft_store::Position;

use crate::{
    config::Config,
    exit::{Exit, Failure},
    terminal,
};

/// `confirmed`: the operator says that the other nodes are gone; else it only shows what there is.
pub(crate) fn run(config: &Config, confirmed: bool) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::System("starting the runtime", error))?;
    if !confirmed {
        let position = runtime.block_on(lb_raft_store::position(&config.data_dir))?;
        terminal::say(&shown(config, &position));
        terminal::complain(
            "lbd: nothing was changed. If all other voters are lost for good, and no survivor's log has come further, add \
             --i-know-the-others-are-gone",
        );
        return Ok(Exit::Usage.into());
    }
    let recovered = runtime.block_on(lb_raft_store::recover(&config.data_dir, &config.cluster.advertise))?;
    let lb_raft_store::Recovered { cluster, previous, lost, counts: (vips, services, backends), kept } = recovered;
    let told = format!(
        "{} is a cluster of its own now.\n\
         new cluster id   {cluster} (was {previous})\n\
         table            {vips} VIPs, {services} services, {backends} backends\n\
         forgotten nodes  {}\n\
         old store        {}\n\
         Next: start lbd here. On each other machine empty data_dir, see that 'bootstrap' is not set, start lbd, and \
         run 'lbctl node add' on this one. A forgotten node must not be started with its old data.",
        config.name,
        if lost.is_empty() { "none".to_owned() } else { lost.join(", ") },
        kept.display()
    );
    terminal::say(&told);
    Ok(ExitCode::SUCCESS)
}

fn shown(config: &Config, position: &Position) -> String {
    let last = position.last.map_or("none".to_owned(), |(term, index)| format!("term {term}, index {index}"));
    let vote = position.vote.map_or("none".to_owned(), |term| format!("term {term}"));
    format!("node        {}\ncluster id  {}\nlast entry  {last}\nlast vote   {vote}", config.name, position.cluster)
}
