//! What follows the table, the links and the clock while the node runs. None of it ends by itself.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
};

use lb_dataplane::Dataplane;
use lb_raft_store::Consensus;
use tokio::{signal::unix::Signal, sync::watch, task::JoinSet};

use crate::{
    config::Config,
    control::{Answered, Conflicts, PublishGrants, PublishNode, PublishTable, reload, run_leader_tasks},
    link::{self, Link},
    ownership::Ownership,
};

/// What they work with.
pub(super) struct Parts {
    pub(super) config: Arc<Config>,
    /// Read again on SIGHUP.
    pub(super) file: PathBuf,
    pub(super) hangup: Signal,
    pub(super) consensus: Consensus,
    pub(super) ownership: Ownership,
    pub(super) dataplane: Option<Arc<Dataplane>>,
    pub(super) links: Vec<Link>,
    /// The revision by which the dataplane forwards.
    pub(super) in_force: Arc<AtomicU64>,
}

/// Starts them all.
pub(super) fn start(parts: Parts) -> JoinSet<()> {
    let Parts { config, file, hangup, consensus, ownership, dataplane, links, in_force } = parts;
    let mut followers = JoinSet::new();
    followers.spawn(ownership.clone().run());
    followers.spawn(ownership.clone().release_silent());
    let (links_as_they_are, links) = watch::channel(links);
    followers.spawn(link::follow(links_as_they_are));
    let publish_grants = PublishGrants {
        consensus: consensus.clone(),
        ownership: ownership.clone(),
        dataplane: dataplane.clone(),
        answered: Answered::default(),
    };
    followers.spawn(publish_grants.run());
    if let Some(dataplane) = dataplane.clone() {
        let (consensus, links) = (consensus.clone(), links.clone());
        followers.spawn(PublishTable { consensus, dataplane, links, in_force }.run());
    }
    let publish_node = PublishNode {
        consensus: consensus.clone(),
        dataplane: dataplane.clone(),
        links,
        config: config.clone(),
        heartbeat: Vec::new(),
        asked: None,
        conflicts: Conflicts::default(),
    };
    followers.spawn(publish_node.run());
    followers.spawn(run_leader_tasks(consensus.clone()));
    followers.spawn(reload(hangup, file, config.clone(), dataplane.clone()));
    followers
}
