//! What follows the table, the links and the clock while the node runs. None of it ends by itself.

use std::{io, path::PathBuf, sync::Arc};

use lb_dataplane::Dataplane;
use lb_raft_store::Consensus;
use tokio::{
    signal::unix::Signal,
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::watchdog;
use crate::{
    alarms::Alarms,
    config::Config,
    connection::{Security, Watched, renew},
    control::{
        Conflicts, Hysteresis, InForce, LocalNews, LookOut, PublishGrants, PublishNode, PublishTable, Takeovers,
        raise_feature_level, reload, run_leader_tasks, share_flow_key,
    },
    events::{self, Events},
    flow_key::FlowKey,
    health,
    link::{self, Link},
    ownership::Ownership,
    peers::Peers,
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
    pub(super) flow_key: FlowKey,
    pub(super) peers: Peers,
    /// The revision by which the dataplane forwards.
    pub(super) in_force: InForce,
    pub(super) takeovers: Takeovers,
    pub(super) alarms: Alarms,
    pub(super) events: Events,
    pub(super) security: Security,
    /// The nodes that watch this process.
    pub(super) watched: mpsc::UnboundedReceiver<Watched>,
}

/// Starts them all.
pub(super) fn start(parts: Parts) -> io::Result<JoinSet<()>> {
    let Parts {
        config,
        file,
        hangup,
        consensus,
        ownership,
        dataplane,
        links,
        flow_key,
        peers,
        in_force,
        takeovers,
        alarms,
        events,
        security,
        watched,
    } = parts;
    let mut followers = JoinSet::new();
    followers.spawn(ownership.clone().run());
    followers.spawn(ownership.clone().release_silent());
    followers.spawn(ownership.clone().be_watched(watched));
    let (links_as_they_are, links) = watch::channel(links);
    followers.spawn(link::follow(links_as_they_are));
    let publish_grants = PublishGrants {
        consensus: consensus.clone(),
        ownership: ownership.clone(),
        dataplane: dataplane.clone(),
        takeovers,
    };
    followers.spawn(publish_grants.run());
    followers.spawn(share_flow_key(consensus.clone(), peers, flow_key.clone()));
    let silences = watch::Sender::default();
    if let Some(dataplane) = dataplane.clone() {
        let (consensus, links, fitness) = (consensus.clone(), links.clone(), ownership.fitness().clone());
        let report = health::Report::new(
            consensus.clone(),
            ownership.clone(),
            dataplane.clone(),
            links.clone(),
            silences.clone(),
            alarms.clone(),
        )?;
        followers.spawn(report.run());
        followers.spawn(PublishTable { consensus, dataplane, links, flow_key, in_force, fitness }.run());
    }
    let publish_node = PublishNode {
        consensus: consensus.clone(),
        ownership: ownership.clone(),
        dataplane: dataplane.clone(),
        links: links.clone(),
        config: config.clone(),
        heartbeat: Vec::new(),
        asked: None,
        hysteresis: Hysteresis::default(),
        silences,
    };
    followers.spawn(publish_node.run());
    let look_out = LookOut {
        consensus: consensus.clone(),
        ownership: ownership.clone(),
        dataplane: dataplane.clone(),
        links,
        config: config.clone(),
        alarms: alarms.clone(),
        conflicts: Conflicts::default(),
        events: events.clone(),
        news: LocalNews::default(),
    };
    followers.spawn(look_out.run());
    followers.spawn(watchdog::feed(ownership.fitness().clone()));
    followers.spawn(events::follow(consensus.clone(), events));
    followers.spawn(run_leader_tasks(consensus.clone()));
    followers.spawn(raise_feature_level(consensus.clone()));
    let (ask_for_credentials, asked) = watch::channel(());
    followers.spawn(renew(security, asked, alarms));
    followers.spawn(reload(hangup, file, config.clone(), dataplane.clone(), ask_for_credentials));
    Ok(followers)
}
