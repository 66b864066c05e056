//! Connects the heartbeat to the log and to the dataplane: brings it the table, proposes what it asks for,
//! takes the lead when it says so, and gives grants up once the dataplane has fallen silent for them.

use std::{
    collections::BTreeMap,
    net::UdpSocket,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use lb_dataplane::{LeaseClock, boottime_ns};
use lb_raft_store::{
    Consensus, View,
    table::{Body, LeaseId, Node, NodeId},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{
    backoff::Backoff,
    distance::{RoundTrips, longest_round_trip_ns, timing_for},
    fitness::{Fitness, Part, Unfit},
    grants::{Grants, Plan},
    heartbeat::{Heard, Heartbeat, Input, Report, Start},
    last_heard::LastHeard,
    member::{Answered, Member},
    message::Verdict,
    pairs::SharedPairs,
    watchdog::{self, Target},
};
use crate::{
    alarms::{Alarm, Alarms},
    connection::{Refusals, Security, Watched},
    events::name_of,
    supervise::Parent,
    task::AbortOnDrop,
};

/// For one proposal; a new one follows if it is still needed.
const PROPOSAL: Duration = Duration::from_millis(1000);
/// For the proposal by which a stopping node hands over.
const LAST_PROPOSAL: Duration = Duration::from_millis(3000);
/// Between two Released of the same grants; longer while they have no effect.
const RELEASE_AGAIN: Duration = Duration::from_millis(200);
const RELEASE_AGAIN_AT_MOST: Duration = Duration::from_secs(10);
/// Between two signs of life.
const SHOW_EVERY: Duration = Duration::from_millis(200);

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
    heard: watch::Sender<Heard>,
    round_trips: watch::Sender<RoundTrips>,
    unfit: watch::Sender<Option<String>>,
    fitness: Fitness,
    alarms: Alarms,
    security: Security,
    refusals: Refusals,
    last_heard: LastHeard,
    /// What this node shares with each other one, where connections are not plain.
    pairs: SharedPairs,
    nonce: u64,
    parent: Parent,
}

impl Ownership {
    /// Of this process; `clock` is what the dataplane looks at.
    pub(crate) fn new(
        consensus: Consensus,
        clock: Arc<LeaseClock>,
        sockets: Vec<UdpSocket>,
        (fitness, alarms, security, refusals): (Fitness, Alarms, Security, Refusals),
        parent: Parent,
    ) -> Self {
        let nonce = uuid::Uuid::new_v4().as_u64_pair().0;
        let inner = Inner {
            consensus,
            clock,
            sockets: Mutex::new(sockets),
            heartbeat: OnceLock::new(),
            grants: watch::Sender::default(),
            heard: watch::Sender::default(),
            round_trips: watch::Sender::default(),
            unfit: watch::Sender::default(),
            fitness,
            alarms,
            security,
            refusals,
            last_heard: LastHeard::default(),
            pairs: SharedPairs::default(),
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

    /// When other nodes were last heard.
    pub(crate) fn last_heard(&self) -> &LastHeard {
        &self.inner.last_heard
    }

    /// For how long this node may still answer, in milliseconds.
    pub(crate) fn valid_ms(&self) -> u64 {
        self.inner.clock.deadline_ns().saturating_sub(boottime_ns()) / 1_000_000
    }

    /// Why this node does not do its work, if it does not.
    pub(crate) fn unfit(&self) -> watch::Receiver<Option<String>> {
        self.inner.unfit.subscribe()
    }

    /// Who answers this node's heartbeats.
    pub(crate) fn heard(&self) -> Heard {
        self.inner.heard.borrow().clone()
    }

    /// How far away the nodes are that answered lately.
    pub(crate) fn round_trips(&self) -> RoundTrips {
        self.inner.round_trips.borrow().clone()
    }

    /// Where tasks say what keeps them from their work.
    pub(crate) fn fitness(&self) -> &Fitness {
        &self.inner.fitness
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
        let (clock, fitness) = (self.inner.clock.clone(), self.inner.fitness.clone());
        let pairs = (!self.inner.security.is_plain()).then(|| self.inner.pairs.clone());
        let (nonce, refusals, last_heard) =
            (self.inner.nonce, self.inner.refusals.clone(), self.inner.last_heard.clone());
        let start = Start { me, cluster, nonce, sockets, clock, fitness, pairs, refusals, last_heard, reports };
        match Heartbeat::start(start) {
            Ok(heartbeat) => drop(self.inner.heartbeat.set(heartbeat)),
            Err(error) => return tracing::error!(%error, "the heartbeat does not start"),
        }
        let mut table = consensus.watch();
        let mut lead = consensus.lead();
        lead.mark_changed();
        let mut watched: BTreeMap<NodeId, (Target, AbortOnDrop)> = BTreeMap::new();
        let view = consensus.view();
        self.watch_processes(me, &view, &mut watched);
        self.tell(Input::View(view));
        let mut show = tokio::time::interval(SHOW_EVERY);
        loop {
            tokio::select! {
                biased;
                _ = show.tick() => self.inner.fitness.vitals().show(Part::Driver),
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
                tokio::spawn(async move {
                    consensus.propose_in_term(&command.into(), term, Instant::now() + PROPOSAL).await
                });
            }
            Report::Elect(from) => {
                let name = consensus.view().table.node(from).map(|node| node.name.to_string());
                tracing::warn!(leader = name, "the leader is gone: this node takes its place");
                tokio::spawn(async move { consensus.take_lead(from).await });
            }
            Report::HoldBack(held_back) => consensus.hold_back(held_back),
            Report::Holds(lease) => {
                tracing::debug!(node = me, ?lease, "the lease has changed");
                self.update_grants(|grants| grants.hold(lease));
            }
            Report::Obituary(datagrams) => self.inner.parent.on_death_send(&datagrams),
            Report::Unfit(unfit) => {
                let told = |unfit: &Unfit| format!("this node can own no VIP: {}", unfit.reason);
                // It is told when the reason is another one, which is worth a line.
                self.inner.alarms.set(Alarm::Unfit, None);
                match &unfit {
                    Some(start) if start.is_start() => tracing::info!("{}", told(start)),
                    _ => self.inner.alarms.set(Alarm::Unfit, unfit.as_ref().map(told)),
                }
                self.inner.unfit.send_replace(unfit.map(|unfit| unfit.reason));
            }
            Report::Valid(valid, answers) => self.tell_of_lease(me, valid, &answers),
            Report::Heard(heard) => self.tell_of_peers(me, heard),
            Report::RoundTrips(round_trips) => self.tell_of_distance(round_trips),
            Report::Spent(view) => drop(view),
        }
    }

    /// The lease is valid, or has run out: at that moment, and not when others can be told of it.
    fn tell_of_lease(&self, me: NodeId, valid: bool, answers: &[Answered]) {
        if valid {
            tracing::info!("this node's lease is valid");
            return self.inner.alarms.set(Alarm::Lease, None);
        }
        let view = self.inner.consensus.view();
        let vips: Vec<String> = view.table.vips_of(me).map(|vip| vip.settings.address.to_string()).collect();
        let held = if self.inner.clock.is_held() {
            "it goes on answering (on_quorum_loss=hold), and announces nothing"
        } else {
            "it answers for no VIP any more"
        };
        // Of a lease that the table has ended, or that was given back, there is nothing to be mended.
        let ended = view.table.lease(me).is_none_or(|lease| lease.nonce != self.inner.nonce);
        if ended || self.inner.unfit.borrow().is_some() {
            tracing::info!(vips = vips.join(", "), "this node's lease has ended: {held}");
        } else {
            let heard = self.heard();
            let silent = self.silent_nodes(&view, &heard).map(|node| format!("{} ({})", node.name, node.address));
            let silent: Vec<String> = silent.collect();
            let because = match silent.is_empty() {
                true if answers.is_empty() => "because no other node has answered it yet".to_owned(),
                true => {
                    let answers: Vec<String> = answers.iter().map(|answered| shown(answered, &view)).collect();
                    format!("because the others have not supported it in time ({})", answers.join("; "))
                }
                false => format!("because its heartbeats were not answered by {}", silent.join(", ")),
            };
            let of = if vips.is_empty() { "none".to_owned() } else { vips.join(", ") };
            let problem = format!("this node's lease has run out, {because}: {held} (owned: {of})");
            self.inner.alarms.set(Alarm::Lease, Some(problem));
        }
    }

    fn tell_of_peers(&self, me: NodeId, heard: Heard) {
        let view = self.inner.consensus.view();
        let problem = |node: &Node| {
            format!(
                "no answer to heartbeats (UDP) from {} ({}): is it down, or does a firewall keep UDP from its cluster port?",
                node.name, node.address
            )
        };
        let silent = self.silent_nodes(&view, &heard).map(|node| (node.id, problem(node))).collect();
        let kind = |alarm| match alarm {
            Alarm::SilentPeer(node) => Some(node),
            _ => None,
        };
        self.inner.alarms.set_each(Alarm::SilentPeer, kind, &silent);
        let quorum = (!heard.majority && view.table.node(me).is_some()).then(|| {
            "no majority of the voters answers this node: it can own no VIP, and no change can be agreed on".to_owned()
        });
        self.inner.alarms.set(Alarm::Quorum, quorum);
        self.inner.heard.send_replace(heard);
    }

    /// A timing that does not bear the distance costs leases; the one that does is named.
    fn tell_of_distance(&self, round_trips: RoundTrips) {
        let view = self.inner.consensus.view();
        let timing = view.table.timing();
        let longest_ns = longest_round_trip_ns(timing);
        let ms = |ns: u64| format!("{:.1} ms", ns as f64 / 1e6);
        let farthest_ns = round_trips.values().copied().max().unwrap_or(0);
        let problem = |node: &Node, ns: u64| {
            format!(
                "the round trip to {} ({}) is longer than timing={} bears ({}), so that leases run out: 'lbctl cluster set \
                 {}' bears it, and notices a silent node later",
                node.name,
                ms(ns),
                timing.name().unwrap_or("custom"),
                ms(longest_ns),
                timing_for(farthest_ns)
            )
        };
        let far = round_trips.iter().filter(|(_, ns)| **ns > longest_ns);
        let far = far.filter_map(|(id, ns)| Some((*id, problem(view.table.node(*id)?, *ns)))).collect();
        let kind = |alarm| match alarm {
            Alarm::Distance(node) => Some(node),
            _ => None,
        };
        self.inner.alarms.set_each(Alarm::Distance, kind, &far);
        self.inner.round_trips.send_replace(round_trips);
    }

    /// The nodes that are not heard.
    fn silent_nodes<'a>(&self, view: &'a View, heard: &Heard) -> impl Iterator<Item = &'a Node> {
        heard.peers.iter().filter(|(_, heard)| !**heard).filter_map(|(id, _)| view.table.node(*id))
    }

    /// Keeps a watch over each other node's process.
    fn watch_processes(&self, me: NodeId, view: &View, watched: &mut BTreeMap<NodeId, (Target, AbortOnDrop)>) {
        let target = |node: &Node| Target { by: me, name: node.name.to_string(), address: node.address.clone() };
        let before = watched.len();
        watched.retain(|id, (of, _)| view.table.node(*id).is_some_and(|node| target(node) == *of));
        if watched.len() < before {
            self.inner.pairs.update(|pairs| pairs.retain(|id| view.table.node(id).is_some()));
        }
        for node in view.table.nodes().filter(|node| node.id != me) {
            watched.entry(node.id).or_insert_with(|| {
                let (ownership, id, pairs) = (self.clone(), node.id, self.inner.pairs.clone());
                let gone = move || ownership.tell(Input::Refused(id));
                let told = self.clone();
                let share = move |key| {
                    pairs.update(|pairs| pairs.add(id, key, true));
                    told.tell(Input::Keys);
                };
                let watch = tokio::spawn(watchdog::watch(self.inner.security.clone(), target(node), gone, share));
                (target(node), AbortOnDrop(watch.abort_handle()))
            });
        }
    }

    /// Lets the other nodes watch this process. Runs until it is aborted.
    pub(crate) async fn be_watched(self, watches: mpsc::UnboundedReceiver<Watched>) {
        let share = move |name: &str, key, says: Option<NodeId>| {
            let view = self.inner.consensus.view();
            let node = view.table.node_named(name).map(|node| node.id);
            let Some(node) = node.filter(|node| says.is_none_or(|says| says == *node)) else { return false };
            self.inner.pairs.update(|pairs| pairs.add(node, key, says.is_some()));
            self.tell(Input::Keys);
            true
        };
        watchdog::be_watched(watches, share).await;
    }

    /// Gives up the grants that have fallen silent, again and again until the table has changed.
    pub(crate) async fn release_silent(self) {
        let mut held = self.grants();
        let (mut backoff, mut applied) = (Backoff::default(), 0);
        let pauses_ns = RELEASE_AGAIN.as_nanos() as u64..=RELEASE_AGAIN_AT_MOST.as_nanos() as u64;
        loop {
            let grants = held.borrow_and_update().clone();
            let view = self.inner.consensus.view();
            if let Some(me) = self.inner.consensus.status().node {
                let grants = grants.to_release(me, &view.table);
                if std::mem::replace(&mut applied, view.applied) != view.applied {
                    backoff = Backoff::default();
                }
                if !grants.is_empty() && backoff.is_due(pauses_ns.clone(), boottime_ns()) {
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

    /// Hands everything over, for a stop. The dataplane must have fallen silent before. Whether that is agreed on.
    pub(crate) async fn release(&self, lease: LeaseId) -> bool {
        let Some(node) = self.inner.consensus.status().node else { return true };
        let command = Member::own_release(node, lease);
        let released = self.inner.consensus.propose(&command.into(), Instant::now() + LAST_PROPOSAL).await;
        if let Err(error) = &released {
            tracing::warn!(%error, "the VIPs were not handed over; the other nodes will notice");
        }
        released.is_ok()
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

/// What a node answered last, in words.
fn shown(answered: &Answered, view: &View) -> String {
    let name = name_of(&view.table, answered.node);
    let said = match answered.verdict {
        Verdict::Yes { .. } => "that it supported it then",
        Verdict::Stale => "that its answers come back to it late",
        Verdict::Withdrawn => "that it has withdrawn its support until it hears this node steadily again",
        Verdict::Unknown => "that this node has another lease or an older table",
    };
    format!("{name} said last, {} ms before, {said}", answered.ago_ms)
}
