//! Says in the table where this node is attached, whom it hears there, where its heartbeat is reached, and whether it does
//! its work.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lb_dataplane::{Dataplane, boottime_ns};
use lb_raft_store::{
    Consensus, View,
    table::{Attachment, Body, Cidr, NodeId, Silence, feature_level},
};
use tokio::{sync::watch, time::Instant};

use crate::{
    config::Config,
    health::{GATEWAYS_LEVEL, Silences, VERDICTS_LEVEL},
    link::Link,
    ownership::{self, Backoff, Ownership},
};

/// For the name that this node advertises to be resolved; it is tried again.
const LOOK_UP: Duration = Duration::from_millis(500);
/// Whom this node hears on its segments is published as soon as it changes.
const LOOK_AT_PEERS: Duration = Duration::from_millis(200);
const PROPOSAL: Duration = Duration::from_secs(1);
/// Between two proposals of what has no effect.
const AGAIN_AT_MOST: Duration = Duration::from_secs(30);
/// A node that was heard is said not to be only after so long, so that a single lost answer moves nothing.
const NOT_HEARD_FOR: Duration = Duration::from_millis(500);
/// The feature level that knows of nodes that do not do their work.
const UNFIT_LEVEL: u32 = 3;
/// From this feature level on a node says how often it was started.
const STARTS_LEVEL: u32 = 4;

/// Keeps the table's row of this node as it is.
pub(crate) struct PublishNode {
    pub(crate) consensus: Consensus,
    pub(crate) ownership: Ownership,
    /// Absent on a witness.
    pub(crate) dataplane: Option<Arc<Dataplane>>,
    pub(crate) links: watch::Receiver<Vec<Link>>,
    pub(crate) config: Arc<Config>,
    /// Where the other nodes reach this node's heartbeat; empty until that is known.
    pub(crate) heartbeat: Vec<SocketAddr>,
    /// What was proposed to be said of this node last, how often, and by which table it was needed.
    pub(crate) asked: Option<(Body, Backoff, u64)>,
    pub(crate) hysteresis: Hysteresis,
    /// Where most backends are silent.
    pub(crate) silences: watch::Sender<Silences>,
}

/// Since when a node that is published as heard is not heard any more, by interface and segment: one address family of a link
/// may be dead beside the other.
#[derive(Debug, Default)]
pub(crate) struct Hysteresis(BTreeMap<(String, Cidr, NodeId), Instant>);

impl Hysteresis {
    /// Whether a node still counts as heard.
    fn holds(&mut self, (interface, segment): (&str, Cidr), node: NodeId, is_heard: bool, was_heard: bool) -> bool {
        let key = (interface.to_owned(), segment, node);
        if is_heard || !was_heard {
            self.0.remove(&key);
            return is_heard;
        }
        self.0.entry(key).or_insert_with(Instant::now).elapsed() < NOT_HEARD_FOR
    }
}

impl PublishNode {
    /// Runs until it is aborted.
    pub(crate) async fn run(mut self) {
        let mut table = self.consensus.watch();
        let mut unfit = self.ownership.unfit();
        let mut silences = self.silences.subscribe();
        let mut look_at_peers = tokio::time::interval(LOOK_AT_PEERS);
        loop {
            // What changes comes at once; peers are looked for.
            tokio::select! {
                changed = table.changed() => if changed.is_err() { return },
                changed = self.links.changed() => if changed.is_err() { return },
                changed = unfit.changed() => if changed.is_err() { return },
                changed = silences.changed() => if changed.is_err() { return },
                _ = look_at_peers.tick() => {}
            }
            if let Some(me) = self.consensus.status().node {
                self.find_heartbeat_addresses().await;
                let view = table.borrow_and_update().clone();
                let links = self.links.borrow_and_update().clone();
                let unfit = unfit.borrow_and_update().clone();
                let silences = silences.borrow_and_update().clone();
                self.publish_node(me, &view, &links, (unfit, &silences));
            }
        }
    }

    /// Where this node is attached, and whom it hears there.
    fn attachments(&mut self, me: NodeId, view: &View, links: &[Link], silences: &Silences) -> Vec<Attachment> {
        let level = view.table.feature_level();
        let heard = self.dataplane.as_ref().map(|dataplane| dataplane.heard_peers()).unwrap_or_default();
        let before = view.table.node(me).map(|node| node.attachments.clone()).unwrap_or_default();
        let hysteresis = &mut self.hysteresis;
        let mut attachments = Vec::new();
        for (port, link) in links.iter().enumerate() {
            let of_link = link.attachments(|segment| {
                let was_heard = |id: NodeId| {
                    let same = |a: &&Attachment| a.interface == link.name && a.segment() == Some(segment);
                    before.iter().filter(same).any(|a| a.hears.contains(&id))
                };
                let there = |a: &Attachment| a.segment() == Some(segment);
                let is_heard = |a: &Attachment| there(a) && heard.iter().any(|h| h.0 == port && h.1 == a.address);
                let others = view.table.nodes().filter(|node| node.id != me && node.attachments.iter().any(there));
                others
                    .filter(|node| {
                        let is_heard = node.attachments.iter().any(is_heard);
                        hysteresis.holds((&link.name, segment), node.id, is_heard, was_heard(node.id))
                    })
                    .map(|node| node.id)
                    .collect()
            });
            // A VIP on an interface is a mistake, and tells nothing of where the node is.
            let of_link = of_link.into_iter().filter(|a| view.table.vip(a.address).is_none());
            attachments.extend(of_link.map(|attachment| {
                let at = attachment.segment().map(|segment| (link.name.clone(), segment));
                let of = |all: &BTreeMap<_, Silence>, knows: bool| {
                    at.as_ref().filter(|_| knows).and_then(|at| all.get(at)).copied().unwrap_or_default()
                };
                let silence = of(&silences.backends, level >= VERDICTS_LEVEL);
                let gateway_silence = of(&silences.gateways, level >= GATEWAYS_LEVEL);
                Attachment { silence, gateway_silence, ..attachment }
            }));
        }
        attachments
    }

    /// Says in the table what this node is, if it says something else.
    fn publish_node(
        &mut self,
        me: NodeId,
        view: &View,
        links: &[Link],
        (unfit, silences): (Option<String>, &Silences),
    ) {
        let attachments = self.attachments(me, view, links, silences);
        let Some(node) = view.table.node(me) else { return };
        let heartbeat = &self.heartbeat;
        // Before all nodes know it, the lease alone tells: it is given back.
        let unfit = unfit.filter(|_| view.table.feature_level() >= UNFIT_LEVEL).unwrap_or_default();
        let starts = self.consensus.starts().filter(|_| view.table.feature_level() >= STARTS_LEVEL).unwrap_or_default();
        let same = node.attachments == attachments && node.heartbeat == *heartbeat && node.unfit == unfit;
        let same = same && node.starts >= starts;
        if same && node.feature_level == feature_level() {
            return;
        }
        let consensus = self.consensus.clone();
        let heartbeat = heartbeat.clone();
        let command =
            Body::PublishNode { node: me, attachments, heartbeat, feature_level: feature_level(), unfit, starts };
        let fresh = |asked: &(Body, Backoff, u64)| asked.0 == command && asked.2 == view.applied;
        if !self.asked.as_ref().is_some_and(fresh) {
            let mut backoff = self.asked.as_ref().filter(|asked| asked.0 == command).map(|asked| asked.1);
            // The log reaches this node: what is still needed is proposed without a long pause.
            backoff.iter_mut().for_each(Backoff::begin_anew);
            self.asked = Some((command.clone(), backoff.unwrap_or_default(), view.applied));
        }
        let pauses_ns = PROPOSAL.as_nanos() as u64..=AGAIN_AT_MOST.as_nanos() as u64;
        let due = self.asked.as_mut().is_some_and(|asked| asked.1.is_due(pauses_ns, boottime_ns()));
        if !due {
            return;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_is_dead_beside_a_living_one_is_noticed() {
        let segments: [Cidr; 2] = ["192.0.2.0/24".parse().unwrap(), "2001:db8::/64".parse().unwrap()];
        let mut hysteresis = Hysteresis::default();
        let mut look = |of_v6: bool| {
            hysteresis.holds(("eth0", segments[0]), 2, true, true);
            hysteresis.holds(("eth0", segments[1]), 2, of_v6, true)
        };
        assert!(look(true));
        assert!(look(false), "a single answer may be lost");
        let key = ("eth0".to_owned(), segments[1], 2);
        let long_ago = Instant::now().checked_sub(NOT_HEARD_FOR);
        assert!(look(false), "and the other family's does not begin the time anew");
        if let Some(since) = long_ago {
            hysteresis.0.insert(key, since);
            assert!(!hysteresis.holds(("eth0", segments[1]), 2, false, true));
        }
    }
}
