//! Publishes the table to the dataplane: follows the changes, and looks again every second, so that a
//! missed event heals. Everything runs on one task, so a table is never overtaken by an older one.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lb_dataplane::{Dataplane, forward::table::TableSpec};
use lb_raft_store::{
    Consensus, View,
    table::{Attachment, Command, FEATURE_LEVEL, NodeId},
};
use tokio::{sync::watch, time::Instant};

use super::{answered::Answered, compile::compile, conflicts::Conflicts};
use crate::{
    config::Config,
    link::Link,
    ownership::{self, Held, Ownership},
};

const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// For the name that this node advertises to be resolved; it is tried again.
const LOOK_UP: Duration = Duration::from_millis(500);
/// Whom this node hears on its segments is published as soon as it changes.
const LOOK_AT_PEERS: Duration = Duration::from_millis(200);
/// For the worker to take a new table up: a batch takes microseconds.
const TAKE_UP: Duration = Duration::from_secs(1);
const PROPOSAL: Duration = Duration::from_secs(1);
/// No frame for so long means that the clients have found the new owner.
const QUIET: Duration = Duration::from_secs(1);
const QUIET_AT_MOST: Duration = Duration::from_secs(5);

/// Keeps the dataplane as the table says.
pub(crate) struct Control {
    pub(crate) consensus: Consensus,
    pub(crate) ownership: Ownership,
    /// Absent on a witness.
    pub(crate) dataplane: Option<Arc<Dataplane>>,
    pub(crate) links: watch::Receiver<Vec<Link>>,
    pub(crate) config: Arc<Config>,
    /// Where the other nodes reach this node's heartbeat; empty until that is known.
    pub(crate) heartbeat: Vec<SocketAddr>,
    /// The revision by which the dataplane forwards.
    pub(crate) in_force: Arc<AtomicU64>,
    /// What was proposed to be said of this node last, and when.
    pub(crate) asked: Option<(Command, Instant)>,
    /// Claims of others to VIPs of ours.
    pub(crate) conflicts: Conflicts,
    /// The VIPs for which this node answers.
    pub(crate) answered: Answered,
}

/// What a table for the dataplane is compiled from.
type LookedAt = (Arc<View>, Held, Vec<Link>);

impl Control {
    /// Runs until it is aborted.
    pub(crate) async fn run(mut self) {
        let mut table = self.consensus.watch();
        let mut held = self.ownership.held();
        let mut published = None;
        let mut last = None;
        let mut look_again = tokio::time::interval(LOOK_AGAIN);
        let mut look_at_peers = tokio::time::interval(LOOK_AT_PEERS);
        loop {
            // What changes comes at once; conflicts and peers are looked for.
            tokio::select! {
                changed = table.changed() => if changed.is_err() { return },
                changed = held.changed() => if changed.is_err() { return },
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
                let holding = held.borrow_and_update().clone();
                let links = self.links.borrow_and_update().clone();
                self.publish_node(me, &view, &links);
                let looked_at = (view, holding, links);
                // Compiling takes time, and of the same nothing else comes.
                let same = |last: &LookedAt| {
                    Arc::ptr_eq(&last.0, &looked_at.0) && last.1 == looked_at.1 && last.2 == looked_at.2
                };
                if published.is_none() || !last.as_ref().is_some_and(same) {
                    self.publish_table(me, &looked_at, &mut published).await;
                    last = Some(looked_at);
                }
            }
        }
    }

    async fn publish_table(&mut self, me: NodeId, looked_at: &LookedAt, published: &mut Option<TableSpec>) {
        let (view, held, links) = looked_at;
        let Some(dataplane) = self.dataplane.clone() else {
            // A witness owns nothing; what it was given by mistake it gives back at once.
            self.ownership.table_in_force(held.lease);
            self.ownership.silence(&self.ownership.leaving(me, view), view);
            return;
        };
        let spec = compile(&view.table, me, links, held);
        let leaving = self.ownership.leaving(me, view);
        if published.as_ref() != Some(&spec) {
            let of_worker = spec.clone();
            // Until this is known to be in force nothing is: it may be taken up after it was given up waiting for.
            *published = None;
            // Building Maglev tables takes milliseconds: not on the runtime's threads.
            let seen = tokio::task::spawn_blocking(move || {
                let generation = dataplane.publish(&of_worker)?;
                Ok::<_, lb_dataplane::guard::GuardError>(dataplane.wait_seen(generation, TAKE_UP))
            });
            match seen.await {
                Ok(Ok(true)) => {
                    self.answered.tell(&spec);
                    *published = Some(spec);
                }
                Ok(Ok(false)) => return tracing::error!("the dataplane does not take the new table up"),
                Ok(Err(error)) => return tracing::error!(%error, "the new table is not published"),
                Err(error) => return tracing::error!(%error, "the new table was not built"),
            }
        }
        self.ownership.table_in_force(held.lease);
        self.in_force.store(view.table.revision(), Ordering::Relaxed);
        // From here on the dataplane is silent for what leaves: it may be given up.
        self.ownership.silence(&leaving, view);
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
            Command::PublishNode { node: me, attachments, heartbeat: heartbeat.clone(), feature_level: FEATURE_LEVEL };
        let asked = self.asked.as_ref().is_some_and(|(asked, at)| *asked == command && at.elapsed() < PROPOSAL);
        if asked {
            return;
        }
        self.asked = Some((command.clone(), Instant::now()));
        tokio::spawn(async move {
            if let Err(error) = consensus.propose(&command, Instant::now() + PROPOSAL).await {
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

/// Falls silent for every VIP, hands them over, and goes on forwarding until their clients have found
/// the new owners.
pub(crate) async fn retire(retiring: &Retiring) {
    let lease = retiring.ownership.stop().await.filter(|_| retiring.leave == Leave::HandingOver);
    if retiring.leave == Leave::AtOnce {
        return;
    }
    let release = async || {
        if let Some(lease) = lease {
            retiring.ownership.release(lease).await;
        }
    };
    let Some(dataplane) = retiring.dataplane.clone() else { return release().await };
    let status = retiring.consensus.status();
    let owned_any = if let Some(me) = status.node {
        let view = retiring.consensus.view();
        // The worker may be between its look at the lease and its answer: only when it judges by a table
        // without owned VIPs is it certainly silent.
        let spec = compile(&view.table, me, &retiring.links, &Held::default());
        let worker = dataplane.clone();
        let silent = tokio::task::spawn_blocking(move || {
            worker.publish(&spec).is_ok_and(|generation| worker.wait_seen(generation, TAKE_UP))
        });
        if !silent.await.unwrap_or(false) {
            tracing::error!("the dataplane does not fall silent: the other nodes will end the lease");
            return;
        }
        view.table.vips_of(me).next().is_some()
    } else {
        false
    };
    release().await;
    let started = Instant::now();
    let (mut seen, mut since) = (dataplane.report().forwarded, Instant::now());
    while owned_any && since.elapsed() < QUIET && started.elapsed() < QUIET_AT_MOST {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let forwarded = dataplane.report().forwarded;
        if forwarded != seen {
            (seen, since) = (forwarded, Instant::now());
        }
    }
}

/// How a node goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// It gives its lease back, and forwards until no more frames come.
    HandingOver,
    /// It forwards until no more frames come.
    Forwarding,
    /// It falls silent, and that is all.
    AtOnce,
}

/// What a stop needs.
pub(crate) struct Retiring {
    pub(crate) leave: Leave,
    pub(crate) consensus: Consensus,
    pub(crate) ownership: Ownership,
    pub(crate) dataplane: Option<Arc<Dataplane>>,
    pub(crate) links: Vec<Link>,
}
