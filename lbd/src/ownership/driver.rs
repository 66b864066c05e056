//! Feeds the lease's state machines: with the table, the clock, and the messages of the other nodes.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use lb_dataplane::lease::{LeaseClock, boottime_ns};
use lb_raft_store::{
    Application, Consensus, Lane, View,
    table::{Command, Epoch, Evidence, LeaseId, NodeId},
};
use prost::Message as _;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    RENEW_EVERY, VALID,
    fencing::Fencing,
    holder::{Action, Holder},
    message::{Renew, Renewed},
};

/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(25);
/// For one proposal; a new one follows if it is still needed.
const PROPOSAL: Duration = Duration::from_millis(1000);
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
    holder: Mutex<Holder>,
    fencing: Mutex<Fencing>,
    held: watch::Sender<Held>,
    /// The lease for which the dataplane's table was compiled; under another one it would answer for VIPs
    /// that have gone elsewhere.
    in_dataplane: Mutex<Option<LeaseId>>,
    nonce: u64,
}

impl Ownership {
    /// Of this process; `clock` is what the dataplane looks at.
    pub(crate) fn new(consensus: Consensus, clock: Arc<LeaseClock>) -> Self {
        let nonce = uuid::Uuid::new_v4().as_u64_pair().0;
        let inner = Inner {
            consensus,
            clock,
            holder: Mutex::new(Holder::new(nonce)),
            fencing: Mutex::default(),
            held: watch::Sender::default(),
            in_dataplane: Mutex::default(),
            nonce,
        };
        let ownership = Self { inner: Arc::new(inner) };
        ownership.inner.consensus.set_application(Arc::new(ownership.clone()));
        ownership
    }

    /// What this process holds.
    pub(crate) fn held(&self) -> watch::Receiver<Held> {
        self.inner.held.subscribe()
    }

    /// The dataplane has taken up a table that was compiled for this lease: from now on it may be used.
    pub(crate) fn table_in_force(&self, lease: Option<LeaseId>) {
        *self.inner.in_dataplane.lock().unwrap_or_else(PoisonError::into_inner) = lease;
    }

    /// For how long this node may still answer, in milliseconds.
    pub(crate) fn valid_ms(&self) -> u64 {
        self.inner.clock.deadline_ns().saturating_sub(boottime_ns()) / 1_000_000
    }

    /// Holds the lease, and ends the others' when this node leads. Runs until it is aborted.
    pub(crate) async fn run(self) {
        let mut table = self.inner.consensus.watch();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = table.changed() => if changed.is_err() { return },
            }
            let Some(me) = self.inner.consensus.status().node else { continue };
            let view = table.borrow_and_update().clone();
            self.hold(me, &view);
            self.fence_the_silent(&view);
        }
    }

    fn hold(&self, me: NodeId, view: &View) {
        let mut holder = self.inner.holder.lock().unwrap_or_else(PoisonError::into_inner);
        // A node that the table does not know yet has nobody to ask.
        if view.table.node(me).is_none() {
            return;
        }
        let actions = holder.poll(view.table.lease(me), boottime_ns());
        let lease = holder.lease();
        drop(holder);
        for action in actions {
            match action {
                Action::Revoke => {
                    self.inner.clock.revoke();
                    self.update_held(|held| held.lease = lease);
                }
                Action::Open { previous } => {
                    self.propose(Command::OpenLease { node: me, nonce: self.inner.nonce, previous });
                }
                Action::Ready { lease } => self.propose(Command::Ready { node: me, lease }),
                Action::Renew { lease } => drop(tokio::spawn(self.clone().renew(me, lease))),
            }
        }
    }

    async fn renew(self, me: NodeId, lease: LeaseId) {
        let consensus = &self.inner.consensus;
        let Some(leader) = consensus.status().leader else { return };
        let message = Renew { lease: lease.0, nonce: self.inner.nonce };
        // Before it is sent, so that the holder never believes longer than the leader.
        let sent_ns = boottime_ns();
        let granted = if leader == me {
            self.grant(me, &message).await
        } else {
            let answer = consensus.tell(leader, Lane::Urgent, message.encode_to_vec(), VALID - RENEW_EVERY).await;
            answer.is_ok_and(|answer| Renewed::decode(&*answer).is_ok_and(|renewed| renewed.granted))
        };
        let in_dataplane = *self.inner.in_dataplane.lock().unwrap_or_else(PoisonError::into_inner);
        if granted && in_dataplane == Some(lease) {
            let mut holder = self.inner.holder.lock().unwrap_or_else(PoisonError::into_inner);
            holder.renewed(lease, sent_ns);
            // Under the holder's lock: a lease that was revoked meanwhile is not extended.
            if holder.lease() == Some(lease) {
                self.inner.clock.extend(holder.valid_until_ns());
            }
        }
    }

    /// The leader's answer to a renewal.
    async fn grant(&self, node: NodeId, renew: &Renew) -> bool {
        let deadline = Instant::now() + VALID - RENEW_EVERY;
        let consensus = &self.inner.consensus;
        // A majority confirms, after the renewal came, that this node is still the leader.
        let Some(index) = consensus.read_index(deadline).await else { return false };
        let Some(view) = consensus.applied(index, deadline).await else { return false };
        let lease = LeaseId(renew.lease);
        let current = view.table.lease(node).is_some_and(|held| held.id == lease && held.nonce == renew.nonce);
        // A node that is no voter may have been cut off from the table while it was removed.
        if !current || !view.voters.contains(&node) {
            return false;
        }
        let mut fencing = self.inner.fencing.lock().unwrap_or_else(PoisonError::into_inner);
        fencing.heard(node, lease, boottime_ns())
    }

    fn fence_the_silent(&self, view: &View) {
        let status = self.inner.consensus.status();
        let term = (status.node.is_some() && status.leader == status.node).then_some(status.term);
        let silent = {
            let mut fencing = self.inner.fencing.lock().unwrap_or_else(PoisonError::into_inner);
            fencing.poll(term, view.table.leases(), boottime_ns())
        };
        for silent in silent {
            let name = view.table.node(silent.node).map(|node| node.name.to_string());
            tracing::warn!(
                node = name,
                silent_ms = silent.silent_ms,
                "a node is silent: its lease ends, its VIPs move"
            );
            let command = Command::Fence {
                node: silent.node,
                lease: silent.lease,
                evidence: Evidence::Silence { silent_ms: silent.silent_ms },
            };
            // Never by way of another leader: that one may have heard what this one has not.
            let (consensus, term) = (self.inner.consensus.clone(), status.term);
            tokio::spawn(async move { consensus.propose_in_term(&command, term, Instant::now() + PROPOSAL).await });
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
            let stands = |(vip, epoch): &(IpAddr, Epoch)| {
                view.table.vip(*vip).and_then(|vip| vip.owner).is_some_and(|owner| owner.epoch == *epoch)
            };
            held.silenced.retain(stands);
        });
    }

    /// Gives up the silenced grants, again and again until the table has changed.
    pub(crate) async fn release_silenced(self) {
        let mut held = self.held();
        loop {
            let silenced: Vec<(IpAddr, Epoch)> = held.borrow_and_update().silenced.iter().copied().collect();
            let view = self.inner.consensus.view();
            for (vip, epoch) in silenced {
                let stands = view.table.vip(vip).and_then(|vip| vip.owner).is_some_and(|owner| owner.epoch == epoch);
                if stands {
                    self.propose(Command::Released { vip, epoch });
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RELEASE_AGAIN) => {}
                changed = held.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Lets go of everything, for a stop. The dataplane must have fallen silent before.
    pub(crate) async fn release_all(&self) {
        let lease = {
            let mut holder = self.inner.holder.lock().unwrap_or_else(PoisonError::into_inner);
            let lease = holder.lease();
            holder.release();
            // Under the lock, as in `renew`: no answer that is still on its way extends it again.
            self.inner.clock.revoke();
            lease
        };
        let (Some(lease), Some(node)) = (lease, self.inner.consensus.status().node) else { return };
        let command = Command::Fence { node, lease, evidence: Evidence::OwnRelease };
        if let Err(error) = self.inner.consensus.propose(&command, Instant::now() + 3 * PROPOSAL).await {
            tracing::warn!(%error, "the VIPs were not handed over; the leader will end the lease");
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

impl Application for Ownership {
    fn answer(&self, from: NodeId, message: Vec<u8>) -> BoxFuture<'static, Vec<u8>> {
        let ownership = self.clone();
        Box::pin(async move {
            let granted = match Renew::decode(&*message) {
                Ok(renew) => ownership.grant(from, &renew).await,
                Err(_) => false,
            };
            Renewed { granted }.encode_to_vec()
        })
    }
}
