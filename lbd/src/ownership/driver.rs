//! Connects the heartbeat to the log and to the dataplane: brings it the table, proposes what it asks for,
//! takes the lead when it says so, and gives grants up once the dataplane has fallen silent for them.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use lb_dataplane::{LeaseClock, boottime_ns};
use lb_raft_store::{
    Consensus, View,
    table::{Body, LeaseId, NodeId},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{
    grants::{Grants, Plan},
    heartbeat::{Heartbeat, Input, Report, Start},
    member::Member,
    watchdog,
};
use crate::{supervise::Parent, task::AbortOnDrop};

/// For one proposal; a new one follows if it is still needed.
const PROPOSAL: Duration = Duration::from_millis(1000);
/// For the proposal by which a stopping node hands over.
const LAST_PROPOSAL: Duration = Duration::from_millis(3000);
/// Between two Released of the same grant.
const RELEASE_AGAIN: Duration = Duration::from_millis(200);

/// This node's ownership of VIPs. Clones are handles to the same.
#[derive(Clone)]
pub(crate) struct Ownership {
    inner: Arc<Inner>,
}

struct Inner {
    consensus: Consensus,
    clock: Arc<LeaseClock>,
    /// Bound at the start; the heartbeat takes them when the node has joined.
    sockets: Mutex<Vec<UdpSocket>>,
    heartbeat: OnceLock<Heartbeat>,
    grants: watch::Sender<Grants>,
    nonce: u64,
    parent: Parent,
}

impl Ownership {
    /// Of this process; `clock` is what the dataplane looks at.
    pub(crate) fn new(consensus: Consensus, clock: Arc<LeaseClock>, sockets: Vec<UdpSocket>, parent: Parent) -> Self {
        let nonce = uuid::Uuid::new_v4().as_u64_pair().0;
        let inner = Inner {
            consensus,
            clock,
            sockets: Mutex::new(sockets),
            heartbeat: OnceLock::new(),
            grants: watch::Sender::default(),
            nonce,
            parent,
        };
        Self { inner: Arc::new(inner) }
    }

    /// What this process holds.
    pub(crate) fn grants(&self) -> watch::Receiver<Grants> {
        self.inner.grants.subscribe()
    }

    /// No worker judges by anything older than this plan any more: its lease may be used, and what leaves by it is
    /// given up from now on.
    pub(crate) fn in_force(&self, plan: &Plan, view: &View) {
        self.tell(Input::InForce(plan.lease));
        self.update_grants(|grants| grants.in_force(plan, &view.table));
    }

    /// For how long this node may still answer, in milliseconds.
    pub(crate) fn valid_ms(&self) -> u64 {
        self.inner.clock.deadline_ns().saturating_sub(boottime_ns()) / 1_000_000
    }

    /// Whether it answers although its lease has run out.
    pub(crate) fn is_held(&self) -> bool {
        self.inner.clock.is_held() && !self.inner.clock.is_valid()
    }

    fn tell(&self, input: Input) {
        if let Some(heartbeat) = self.inner.heartbeat.get() {
            heartbeat.tell(input);
        }
    }

    /// Follows the table and the heartbeat from the day on that the node has joined. Runs until it is aborted.
    pub(crate) async fn run(self) {
        let consensus = &self.inner.consensus;
        if consensus.joined().wait_for(|joined| *joined).await.is_err() {
            return;
        }
        let status = consensus.status();
        let (Some(me), Some(cluster)) = (status.node, status.cluster) else { return };
        let (reports, mut inbox) = mpsc::unbounded_channel();
        let sockets = std::mem::take(&mut *self.inner.sockets.lock().unwrap_or_else(PoisonError::into_inner));
        let start = Start { me, cluster, nonce: self.inner.nonce, sockets, clock: self.inner.clock.clone(), reports };
        match Heartbeat::start(start) {
            Ok(heartbeat) => drop(self.inner.heartbeat.set(heartbeat)),
            Err(error) => return tracing::error!(%error, "the heartbeat does not start"),
        }
        let mut table = consensus.watch();
        let mut lead = consensus.lead();
        lead.mark_changed();
        let mut watched: BTreeMap<NodeId, (String, AbortOnDrop)> = BTreeMap::new();
        self.tell(Input::View(consensus.view()));
        loop {
            tokio::select! {
                biased;
                report = inbox.recv() => match report {
                    Some(report) => self.act(me, report),
                    None => return,
                },
                changed = table.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let view = table.borrow_and_update().clone();
                    self.watch_processes(me, &view, &mut watched);
                    self.tell(Input::View(view));
                }
                changed = lead.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = *lead.borrow_and_update();
                    tracing::debug!(leader = now.leader, term = now.term, "the lead has changed");
                    self.tell(Input::Lead(now));
                }
            }
        }
    }

    fn act(&self, me: NodeId, report: Report) {
        let consensus = self.inner.consensus.clone();
        match report {
            Report::Propose(command) => self.propose(command),
            // Never by way of another leader: that one may have heard what this one has not.
            Report::ProposeInTerm(term, command) => {
                if let Body::Fence { node, evidence, .. } = &command {
                    let name = consensus.view().table.node(*node).map(|node| node.name.to_string());
                    tracing::warn!(node = name, ?evidence, "a node is gone: its lease ends, its VIPs move");
                }
                tokio::spawn(async move {
                    consensus.propose_in_term(&command.into(), term, Instant::now() + PROPOSAL).await
                });
            }
            Report::Elect(from) => {
                let name = consensus.view().table.node(from).map(|node| node.name.to_string());
                tracing::warn!(leader = name, "the leader is gone: this node takes its place");
                tokio::spawn(async move { consensus.take_lead(from).await });
            }
            Report::Holds(lease) => {
                tracing::debug!(node = me, ?lease, "the lease has changed");
                self.update_grants(|grants| grants.hold(lease));
            }
            Report::Obituary(datagrams) => self.inner.parent.on_death_send(&datagrams),
        }
    }

    /// Keeps a watch over each other node's process.
    fn watch_processes(&self, me: NodeId, view: &View, watched: &mut BTreeMap<NodeId, (String, AbortOnDrop)>) {
        watched.retain(|id, (address, _)| view.table.node(*id).is_some_and(|node| node.address == *address));
        for node in view.table.nodes().filter(|node| node.id != me) {
            watched.entry(node.id).or_insert_with(|| {
                let (ownership, id, address) = (self.clone(), node.id, node.address.clone());
                let gone = move || ownership.tell(Input::Refused(id));
                let watch = tokio::spawn(watchdog::watch(address, gone));
                (node.address.clone(), AbortOnDrop(watch.abort_handle()))
            });
        }
    }

    /// Gives up the grants that have fallen silent, again and again until the table has changed.
    pub(crate) async fn release_silent(self) {
        let mut held = self.grants();
        loop {
            let grants = held.borrow_and_update().clone();
            if let Some(me) = self.inner.consensus.status().node {
                let grants = grants.to_release(me, &self.inner.consensus.view().table);
                if !grants.is_empty() {
                    self.propose(Body::Released { grants });
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RELEASE_AGAIN), if grants.is_releasing() => {}
                changed = held.changed() => if changed.is_err() { return },
            }
        }
    }

    /// No answer and no announcement from now on. The lease that is to be released once the dataplane has
    /// fallen silent.
    pub(crate) async fn stop(&self) -> Option<LeaseId> {
        let heartbeat = self.inner.heartbeat.get()?;
        let (done, stopped) = oneshot::channel();
        heartbeat.tell(Input::Stop(done));
        stopped.await.ok().flatten()
    }

    /// Hands everything over, for a stop. The dataplane must have fallen silent before.
    pub(crate) async fn release(&self, lease: LeaseId) {
        let Some(node) = self.inner.consensus.status().node else { return };
        let command = Member::own_release(node, lease);
        if let Err(error) = self.inner.consensus.propose(&command.into(), Instant::now() + LAST_PROPOSAL).await {
            tracing::warn!(%error, "the VIPs were not handed over; the other nodes will notice");
        }
    }

    fn update_grants(&self, change: impl FnOnce(&mut Grants)) {
        self.inner.grants.send_if_modified(|grants| {
            let before = grants.clone();
            change(grants);
            *grants != before
        });
    }

    /// Proposes and does not wait: whatever is still needed is proposed again.
    fn propose(&self, command: Body) {
        let consensus = self.inner.consensus.clone();
        tokio::spawn(async move {
            if let Err(error) = consensus.propose(&command.clone().into(), Instant::now() + PROPOSAL).await {
                tracing::debug!(%error, ?command, "not agreed on yet");
            }
        });
    }
}

/// Binds the heartbeat's sockets.
pub(crate) fn bind(listen: &[SocketAddr]) -> Result<Vec<UdpSocket>, (SocketAddr, std::io::Error)> {
    listen.iter().map(|address| UdpSocket::bind(address).map_err(|error| (*address, error))).collect()
}
