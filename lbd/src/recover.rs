//! `lbd recover`: a single survivor becomes a new cluster.

use std::process::ExitCode;

use crate::{
    cli::{Output, StoreCommand},
    config::Config,
    exit::{Exit, Failure},
    store, terminal,
};

/// `confirmed`: the operator says that the other nodes are gone; else it only shows what there is.
pub(crate) fn run(config: &Config, confirmed: bool) -> Result<ExitCode, Failure> {
    if !confirmed {
        let shown = store::run(config, &StoreCommand::Show { output: Output::Text })?;
        if shown != ExitCode::SUCCESS {
            return Ok(shown);
        }
        terminal::complain(
            "lbd: nothing was changed. If all other voters are lost for good, and no survivor's log has come further, add \
             --i-know-the-others-are-gone",
        );
        return Ok(Exit::Usage.into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::System("starting the runtime", error))?;
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
