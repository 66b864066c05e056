//! Publishes the table to the dataplane: follows the changes, and looks again every second, so that a
//! missed event heals. Everything runs on one task, so a table is never overtaken by an older one.

use std::{
    net::SocketAddr,
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
use tokio::time::Instant;

use super::compile::compile;
use crate::{
    config::Config,
    link::{self, Link},
    ownership::{self, Held, Ownership},
};

const LOOK_AGAIN: Duration = Duration::from_secs(1);
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
    pub(crate) links: Vec<Link>,
    pub(crate) config: Arc<Config>,
    /// Where the other nodes reach this node's heartbeat; empty until that is known.
    pub(crate) heartbeat: Vec<SocketAddr>,
    /// The revision by which the dataplane forwards.
    pub(crate) in_force: Arc<AtomicU64>,
}

impl Control {
    /// Runs until it is aborted.
    pub(crate) async fn run(mut self) {
        let mut table = self.consensus.watch();
        let mut held = self.ownership.held();
        let mut published = None;
        loop {
            if let Some(me) = self.consensus.status().node {
                self.refresh_links().await;
                self.find_heartbeat_addresses().await;
                let view = table.borrow_and_update().clone();
                let holding = held.borrow_and_update().clone();
                self.publish_node(me, &view);
                self.publish_table(me, &view, &holding, &mut published).await;
            }
            tokio::select! {
                changed = table.changed() => if changed.is_err() { return },
                changed = held.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    async fn publish_table(&self, me: NodeId, view: &Arc<View>, held: &Held, published: &mut Option<TableSpec>) {
        let Some(dataplane) = self.dataplane.clone() else {
            // A witness owns nothing; what it was given by mistake it gives back at once.
            self.ownership.table_in_force(held.lease);
            self.ownership.silence(&self.ownership.leaving(me, view), view);
            return;
        };
        let spec = compile(&view.table, me, &self.links, held);
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
                Ok(Ok(true)) => *published = Some(spec),
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

    /// Says in the table where this node is attached, if it says something else.
    fn publish_node(&self, me: NodeId, view: &View) {
        let attachments: Vec<Attachment> = self.links.iter().flat_map(Link::attachments).collect();
        let Some(node) = view.table.node(me) else { return };
        let heartbeat = &self.heartbeat;
        if node.attachments == attachments && node.heartbeat == *heartbeat && node.feature_level == FEATURE_LEVEL {
            return;
        }
        let consensus = self.consensus.clone();
        let command =
            Command::PublishNode { node: me, attachments, heartbeat: heartbeat.clone(), feature_level: FEATURE_LEVEL };
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
        let advertised = match tokio::net::lookup_host(&cluster.advertise).await {
            Ok(addresses) => addresses.map(|address| address.ip()).collect(),
            Err(_) => Vec::new(),
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

    /// Addresses and MTUs as they are now. An interface that is gone keeps what it had.
    async fn refresh_links(&mut self) {
        let names: Vec<String> = self.links.iter().map(|link| link.name.clone()).collect();
        if names.is_empty() {
            return;
        }
        match link::read(&names).await {
            Ok(links) => self.links = links,
            Err(error) => tracing::debug!(%error, "an interface cannot be read"),
        }
    }
}

/// Falls silent for every VIP, hands them over, and goes on forwarding until their clients have found
/// the new owners.
pub(crate) async fn retire(retiring: &Retiring) {
    let lease = retiring.ownership.stop().await;
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

/// What a graceful stop needs.
pub(crate) struct Retiring {
    pub(crate) consensus: Consensus,
    pub(crate) ownership: Ownership,
    pub(crate) dataplane: Option<Arc<Dataplane>>,
    pub(crate) links: Vec<Link>,
}
