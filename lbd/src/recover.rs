//! `lbd recover`: a single survivor becomes a new cluster.

use std::process::ExitCode;

use crate::{config::Config, exit::Failure, terminal};

pub(crate) fn run(config: &Config) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::System("starting the runtime", error))?;
    let recovered = runtime.block_on(lb_raft_store::recover(&config.data_dir, &config.cluster.advertise))?;
    let lb_raft_store::Recovered { cluster, previous, lost, counts: (vips, services, backends), kept } = recovered;
    let lost: Vec<String> = lost.iter().map(ToString::to_string).collect();
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
