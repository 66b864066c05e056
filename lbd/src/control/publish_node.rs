//! Says in the table where this node is attached, whom it hears there, and where its heartbeat is reached; and tells the log
//! of other stations that claim its VIPs.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lb_dataplane::Dataplane;
use lb_raft_store::{
    Consensus, View,
    table::{Attachment, Body, FEATURE_LEVEL, NodeId},
};
use tokio::{sync::watch, time::Instant};

use super::conflicts::Conflicts;
use crate::{config::Config, link::Link, ownership};

const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// For the name that this node advertises to be resolved; it is tried again.
const LOOK_UP: Duration = Duration::from_millis(500);
/// Whom this node hears on its segments is published as soon as it changes.
const LOOK_AT_PEERS: Duration = Duration::from_millis(200);
const PROPOSAL: Duration = Duration::from_secs(1);

/// Keeps the table's row of this node as it is.
pub(crate) struct PublishNode {
    pub(crate) consensus: Consensus,
    /// Absent on a witness.
    pub(crate) dataplane: Option<Arc<Dataplane>>,
    pub(crate) links: watch::Receiver<Vec<Link>>,
    pub(crate) config: Arc<Config>,
    /// Where the other nodes reach this node's heartbeat; empty until that is known.
    pub(crate) heartbeat: Vec<SocketAddr>,
    /// What was proposed to be said of this node last, and when.
    pub(crate) asked: Option<(Body, Instant)>,
    /// Claims of others to VIPs of ours.
    pub(crate) conflicts: Conflicts,
}

impl PublishNode {
    /// Runs until it is aborted.
    pub(crate) async fn run(mut self) {
        let mut table = self.consensus.watch();
        let mut look_again = tokio::time::interval(LOOK_AGAIN);
        let mut look_at_peers = tokio::time::interval(LOOK_AT_PEERS);
        loop {
            // What changes comes at once; conflicts and peers are looked for.
            tokio::select! {
                changed = table.changed() => if changed.is_err() { return },
                changed = self.links.changed() => if changed.is_err() { return },
                _ = look_again.tick() => {
                    if let Some(dataplane) = &self.dataplane {
                        self.conflicts.tell(dataplane, &self.consensus.view().table);
                    }
                }
                _ = look_at_peers.tick() => {}
            }
            if let Some(me) = self.consensus.status().node {
                self.find_heartbeat_addresses().await;
                let view = table.borrow_and_update().clone();
                let links = self.links.borrow_and_update().clone();
                self.publish_node(me, &view, &links);
            }
        }
    }

    /// Where this node is attached, and whom it hears there.
    fn attachments(&self, view: &View, links: &[Link]) -> Vec<Attachment> {
        let heard = self.dataplane.as_ref().map(|dataplane| dataplane.heard_peers()).unwrap_or_default();
        let of_link = |(port, link): (usize, &Link)| {
            link.attachments(|segment| {
                let is_heard = |a: &Attachment| {
                    a.segment() == Some(segment) && heard.iter().any(|h| h.0 == port && h.1 == a.address)
                };
                let nodes = view.table.nodes().filter(|node| node.attachments.iter().any(is_heard));
                nodes.map(|node| node.id).collect()
            })
        };
        links.iter().enumerate().flat_map(of_link).collect()
    }

    /// Says in the table where this node is attached, if it says something else.
    fn publish_node(&mut self, me: NodeId, view: &View, links: &[Link]) {
        let attachments = self.attachments(view, links);
        let Some(node) = view.table.node(me) else { return };
        let heartbeat = &self.heartbeat;
        if node.attachments == attachments && node.heartbeat == *heartbeat && node.feature_level == FEATURE_LEVEL {
            return;
        }
        let consensus = self.consensus.clone();
        let command =
            Body::PublishNode { node: me, attachments, heartbeat: heartbeat.clone(), feature_level: FEATURE_LEVEL };
        let asked = self.asked.as_ref().is_some_and(|(asked, at)| *asked == command && at.elapsed() < PROPOSAL);
        if asked {
            return;
        }
        self.asked = Some((command.clone(), Instant::now()));
        tokio::spawn(async move {
            if let Err(error) = consensus.propose(&command.into(), Instant::now() + PROPOSAL).await {
                tracing::debug!(%error, "this node's addresses are not published yet");
            }
        });
    }

    /// Where the others reach this node's heartbeat; a name may not be known yet when the machine starts.
    async fn find_heartbeat_addresses(&mut self) {
        if !self.heartbeat.is_empty() {
            return;
        }
        let cluster = &self.config.cluster;
        // A name server that does not answer must not hold the table up for long.
        let found = tokio::time::timeout(LOOK_UP, tokio::net::lookup_host(&cluster.advertise)).await;
        let advertised: Vec<IpAddr> = match found {
            Ok(Ok(addresses)) => addresses.map(|address| address.ip()).collect(),
            _ => Vec::new(),
        };
        self.heartbeat = ownership::addresses(&cluster.listen, &advertised);
        if self.heartbeat.is_empty() {
            tracing::warn!(
                advertise = %cluster.advertise,
                "cluster.advertise names no address of the family of cluster.listen that other nodes can reach: \
                 this node gets no heartbeats and owns nothing; name its address there"
            );
        }
    }
}
