//! What starts in a moment of its own: the dataplane, and what is said when all runs.

use std::sync::Arc;

use lb_dataplane::{Config as DataplaneConfig, Dataplane, LinkKeeper, Scheduling, end_links_of_before};
use lb_raft_store::Consensus;

use crate::{config::Config, exit::Failure, link::Link, supervise::Parent};

/// The dataplane of a node that forwards; a witness has none.
pub(super) fn dataplane(config: &Config, links: &[Link], parent: &Parent) -> Result<Option<Arc<Dataplane>>, Failure> {
    let link_keeper: Arc<dyn LinkKeeper> = Arc::new(parent.clone());
    let Some(section) = &config.dataplane else {
        end_links_of_before(&link_keeper);
        return Ok(None);
    };
    let dataplane = Dataplane::start(&DataplaneConfig {
        ports: links.iter().map(Link::port_config).collect(),
        engine: section.engine,
        workers: section.workers,
        realtime: section.realtime,
        busy_poll: section.busy_poll,
        cpus: section.cpus.clone(),
        accelerate: section.accelerator,
        link_keeper: Some(link_keeper),
        flow_capacity: section.flows,
        guard: parent.guard(),
    })?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if dataplane.worker_count() > cores {
        tracing::warn!(workers = dataplane.worker_count(), cores, "more workers than cores: they take turns");
    }
    if let refused @ Scheduling::Refused(_) = dataplane.scheduling() {
        tracing::warn!(scheduling = %refused, "dataplane.realtime has no effect");
    }
    match dataplane.engine_reason() {
        None => tracing::info!(engine = %dataplane.engine(), "the dataplane runs"),
        Some(reason) => tracing::warn!(engine = %dataplane.engine(), reason, "the dataplane runs on its second choice"),
    }
    Ok(Some(Arc::new(dataplane)))
}

/// Says that the node serves, or what it waits for.
pub(super) fn announce_readiness(config: &Config, consensus: &Consensus) {
    let listens: Vec<String> = config.api.iter().map(ToString::to_string).collect();
    match consensus.status().node {
        Some(node) => tracing::info!(name = %config.name, node, api = listens.join(", "), "ready"),
        None => tracing::info!(
            api = listens.join(", "),
            "waiting to be added: run 'lbctl node add {} {}' on a node of the cluster",
            config.name,
            config.cluster.advertise
        ),
    }
    // Outside of systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}
