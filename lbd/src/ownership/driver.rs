//! Connects the heartbeat to the log and to the dataplane: brings it the table, proposes what it asks for,
//! takes the lead when it says so, and gives grants up once the dataplane has fallen silent for them.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use lb_dataplane::lease::{LeaseClock, boottime_ns};
use lb_raft_store::{
    Consensus, View,
    table::{Command, Epoch, LeaseId, NodeId},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
    time::Instant,
};

use super::{
    heartbeat::{Heartbeat, Input, Report, Start},
    member::Member,
    watchdog,
};
use crate::supervise::Parent;

/// For one proposal; a new one follows if it is still needed.
const PROPOSAL: Duration = Duration::from_millis(1000);
/// For the proposal by which a stopping node hands over.
const LAST_PROPOSAL: Duration = Duration::from_millis(3000);
/// Between two Released of the same grant.
const RELEASE_AGAIN: Duration = Duration::from_millis(200);

/// What this process holds, for `control`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// The lease; VIPs that the table gives to another one are not ours.
    pub(crate) lease: Option<LeaseId>,
    /// Grants for which this process has stopped answering; they stay so until the grant changes.
    pub(crate) silenced: HashSet<(IpAddr, Epoch)>,
}

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
    held: watch::Sender<Held>,
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
            held: watch::Sender::default(),
            nonce,
            parent,
        };
        Self { inner: Arc::new(inner) }
    }

    /// What this process holds.
    pub(crate) fn held(&self) -> watch::Receiver<Held> {
        self.inner.held.subscribe()
    }

    /// The dataplane has taken up a table that was compiled for this lease: from now on it may be used.
    pub(crate) fn table_in_force(&self, lease: Option<LeaseId>) {
        self.tell(Input::InForce(lease));
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
        let mut watched: BTreeMap<NodeId, (String, Guard)> = BTreeMap::new();
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
                if let Command::Fence { node, evidence, .. } = &command {
                    let name = consensus.view().table.node(*node).map(|node| node.name.to_string());
                    tracing::warn!(node = name, ?evidence, "a node is gone: its lease ends, its VIPs move");
                }
                tokio::spawn(async move { consensus.propose_in_term(&command, term, Instant::now() + PROPOSAL).await });
            }
            Report::Elect(from) => {
                let name = consensus.view().table.node(from).map(|node| node.name.to_string());
                tracing::warn!(leader = name, "the leader is gone: this node takes its place");
                tokio::spawn(async move { consensus.take_lead(from).await });
            }
            Report::Holds(lease) => {
                tracing::debug!(node = me, ?lease, "the lease has changed");
                self.update_held(|held| held.lease = lease);
            }
            Report::Obituary(datagrams) => self.inner.parent.on_death_send(&datagrams),
        }
    }

    /// Keeps a watch over each other node's process.
    fn watch_processes(&self, me: NodeId, view: &View, watched: &mut BTreeMap<NodeId, (String, Guard)>) {
        watched.retain(|id, (address, _)| view.table.node(*id).is_some_and(|node| node.address == *address));
        for node in view.table.nodes().filter(|node| node.id != me) {
            watched.entry(node.id).or_insert_with(|| {
                let (ownership, id, address) = (self.clone(), node.id, node.address.clone());
                let gone = move || ownership.tell(Input::Refused(id));
                let watch = tokio::spawn(watchdog::watch(address, gone));
                (node.address.clone(), Guard(watch.abort_handle()))
            });
        }
    }

    /// The grants that this node must let go of: VIPs that move away or are deleted.
    pub(crate) fn leaving(&self, me: NodeId, view: &View) -> HashSet<(IpAddr, Epoch)> {
        let lease = self.inner.held.borrow().lease;
        let vips = view.table.vips_of(me).filter(|vip| vip.intent.is_some() || vip.deleting);
        vips.filter_map(|vip| {
            let owner = vip.owner.filter(|owner| Some(owner.lease) == lease)?;
            Some((vip.settings.address, owner.epoch))
        })
        .collect()
    }

    /// Notes for which grants the dataplane has fallen silent. They are given up from now on, and no
    /// later table wakes them up again.
    pub(crate) fn silence(&self, leaving: &HashSet<(IpAddr, Epoch)>, view: &View) {
        self.update_held(|held| {
            held.silenced.extend(leaving);
            held.silenced.retain(|(vip, epoch)| stands(view, *vip, *epoch));
        });
    }

    /// Gives up the silenced grants, again and again until the table has changed.
    pub(crate) async fn release_silenced(self) {
        let mut held = self.held();
        loop {
            let silenced: Vec<(IpAddr, Epoch)> = held.borrow_and_update().silenced.iter().copied().collect();
            let view = self.inner.consensus.view();
            let standing = silenced.iter().copied().filter(|(vip, epoch)| stands(&view, *vip, *epoch));
            let grants: Vec<(IpAddr, Epoch)> = standing.collect();
            if !grants.is_empty() {
                self.propose(Command::Released { grants });
            }
            tokio::select! {
                () = tokio::time::sleep(RELEASE_AGAIN), if !silenced.is_empty() => {}
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
        if let Err(error) = self.inner.consensus.propose(&command, Instant::now() + LAST_PROPOSAL).await {
            tracing::warn!(%error, "the VIPs were not handed over; the other nodes will notice");
        }
    }

    fn update_held(&self, change: impl FnOnce(&mut Held)) {
        self.inner.held.send_if_modified(|held| {
            let before = held.clone();
            change(held);
            *held != before
        });
    }

    /// Proposes and does not wait: whatever is still needed is proposed again.
    fn propose(&self, command: Command) {
        let consensus = self.inner.consensus.clone();
        tokio::spawn(async move {
            if let Err(error) = consensus.propose(&command, Instant::now() + PROPOSAL).await {
                tracing::debug!(%error, ?command, "not agreed on yet");
            }
        });
    }
}

/// Whether a grant is still the VIP's.
fn stands(view: &View, vip: IpAddr, epoch: Epoch) -> bool {
    view.table.vip(vip).and_then(|vip| vip.owner).is_some_and(|owner| owner.epoch == epoch)
}

/// Ends a task when it is dropped.
pub(crate) struct Guard(pub(crate) AbortHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Binds the heartbeat's sockets.
pub(crate) fn bind(listen: &[SocketAddr]) -> Result<Vec<UdpSocket>, (SocketAddr, std::io::Error)> {
    listen.iter().map(|address| UdpSocket::bind(address).map_err(|error| (*address, error))).collect()
}
