//! The heartbeat: one thread that owns the protocol's state, its sockets and the dataplane's deadline.
//! Neither the disk nor the runtime nor a large table delays it; what others have to tell it waits in a
//! mailbox.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use lb_dataplane::{LeaseClock, boottime_ns};
use lb_raft_store::{
    Lead, View,
    table::{Body, LeaseId, NodeId},
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};
use tokio::sync::{mpsc as reports, oneshot};
use uuid::Uuid;

use super::{
    distance::RoundTrips,
    filter,
    fitness::{Fitness, Part, Unfit},
    last_heard::LastHeard,
    member::{Answered, Member, Output},
    message::{Envelope, Message},
    pairs::{Pairs, SharedPairs},
};
use crate::connection::{Refusal, Refusals};

/// Longer than any datagram of a cluster of nine.
const MAX_DATAGRAM: usize = 2048;
/// Datagrams read in a row before the clock is looked at again: a flood must not stop the heartbeats.
const MAX_BATCH: usize = 256;
/// A key that was replaced is accepted for so long, and still used at first: not everybody has the new one.
const OLD_KEY_ACCEPTED_NS: u64 = 10_000_000_000;
const OLD_KEY_USED_NS: u64 = 1_000_000_000;
/// A look that comes so much later than the one before was not made in time: looks come with each heartbeat, of 80 ms at the
/// slowest named timing.
const AWAY_NS: u64 = 120_000_000;
/// The round trips to the others are told so often.
const MEASURE_EVERY_NS: u64 = 1_000_000_000;
/// Among the real-time priorities of 1 to 99.
const PRIORITY: u8 = 20;

/// What the thread is told.
pub(super) enum Input {
    View(Arc<View>),
    Lead(Lead),
    /// The dataplane works by the table of this lease.
    InForce(Option<LeaseId>),
    /// The process behind that node's listener is gone.
    Refused(NodeId),
    /// There is another key: what is signed by it shall be let in before it is signed by.
    Keys,
    /// Let go of the lease, and say which it was.
    Stop(oneshot::Sender<Option<LeaseId>>),
}

/// What the thread has to say.
pub(super) enum Report {
    Propose(Body),
    ProposeInTerm(u64, Body),
    Elect(NodeId),
    /// Whether callers' writes wait: another node must catch up.
    HoldBack(bool),
    /// The lease that this process holds now.
    Holds(Option<LeaseId>),
    /// What the parent process shall send when this one is dead.
    Obituary(Vec<(SocketAddr, Vec<u8>)>),
    /// Why the node does not do its work, or that it does.
    Unfit(Option<Unfit>),
    /// The lease has run out, and what the others answered last; or it is valid again.
    Valid(bool, Vec<Answered>),
    /// Which nodes answer heartbeats, and whether those are enough.
    Heard(Heard),
    /// How far away they are.
    RoundTrips(RoundTrips),
    /// Not needed any more. Taking it apart takes time, and locks that others may hold: not on this thread.
    Spent(Arc<View>),
}

/// Who answers this node's heartbeats.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// By node.
    pub(crate) peers: BTreeMap<NodeId, bool>,
    /// So many that a lease can be valid.
    pub(crate) majority: bool,
}

impl Input {
    /// Whether nothing is lost with this one when the other comes later.
    fn is_replaced_by(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::View(_), Self::View(_)) | (Self::Lead(_), Self::Lead(_)) | (Self::InForce(_), Self::InForce(_)) => {
                true
            }
            (Self::Refused(node), Self::Refused(other)) => node == other,
            (Self::Keys, Self::Keys) => true,
            _ => false,
        }
    }
}

/// What the thread was told and has not taken yet. What is replaced by something later goes, so that it stays small
/// however long the thread is stopped.
#[derive(Default)]
struct Inputs {
    /// In the order in which they were said.
    waiting: Vec<Input>,
    /// Nobody will say anything any more.
    is_over: bool,
}

impl Inputs {
    /// What it replaces: whoever tells drops it, and not while the thread waits for the lock.
    #[must_use]
    fn put(&mut self, input: Input) -> Vec<Input> {
        let replaced = self.waiting.extract_if(.., |before| before.is_replaced_by(&input)).collect();
        self.waiting.push(input);
        replaced
    }
}

type Inbox = Arc<Mutex<Inputs>>;

fn lock(inbox: &Inbox) -> std::sync::MutexGuard<'_, Inputs> {
    inbox.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread, as others see it; it ends with this.
pub(super) struct Heartbeat {
    inbox: Inbox,
    wake: OwnedFd,
    thread: Option<thread::JoinHandle<()>>,
}

/// What the thread starts with.
pub(super) struct Start {
    pub(super) me: NodeId,
    pub(super) cluster: Uuid,
    pub(super) nonce: u64,
    pub(super) sockets: Vec<UdpSocket>,
    pub(super) clock: Arc<LeaseClock>,
    pub(super) fitness: Fitness,
    /// By which datagrams are signed; `None` is for the table's keys.
    pub(super) pairs: Option<SharedPairs>,
    pub(super) refusals: Refusals,
    pub(super) last_heard: LastHeard,
    pub(super) reports: reports::UnboundedSender<Report>,
}

impl Heartbeat {
    pub(super) fn start(start: Start) -> io::Result<Self> {
        let inbox = Inbox::default();
        let of_thread = inbox.clone();
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let woken = wake.try_clone()?;
        for socket in &start.sockets {
            socket.set_nonblocking(true)?;
        }
        let thread = thread::Builder::new().name("heartbeat".into()).spawn(move || {
            raise_priority();
            Runner::new(start, of_thread, woken).run();
        })?;
        Ok(Self { inbox, wake, thread: Some(thread) })
    }

    pub(super) fn tell(&self, input: Input) {
        let replaced = lock(&self.inbox).put(input);
        self.wake();
        drop(replaced);
    }

    fn wake(&self) {
        // It fails only when the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        lock(&self.inbox).is_over = true;
        self.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the heartbeat's thread panicked");
        }
    }
}

fn raise_priority() {
    let Ok(priority) = PRIORITY.try_into() else { return };
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    match set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Crossplatform(priority), policy) {
        Ok(()) => tracing::debug!("the heartbeat runs with real-time priority"),
        Err(error) => tracing::info!(
            ?error,
            "the heartbeat runs without real-time priority (CAP_SYS_NICE): a busy machine may cost false takeovers"
        ),
    }
}

struct Runner {
    me: NodeId,
    cluster: Uuid,
    nonce: u64,
    member: Member,
    sockets: Vec<UdpSocket>,
    clock: Arc<LeaseClock>,
    fitness: Fitness,
    refusals: Refusals,
    last_heard: LastHeard,
    inbox: Inbox,
    wake: OwnedFd,
    reports: reports::UnboundedSender<Report>,
    view: Arc<View>,
    keys: Keys,
    holds: Option<LeaseId>,
    unfit: Option<Unfit>,
    /// When that was last looked at, and until when nobody is judged by being late.
    looked_ns: u64,
    indulgent_until_ns: u64,
    /// The lease was valid at the last look.
    valid: bool,
    heard: Heard,
    /// When the round trips were last told.
    measured_ns: u64,
    obituary: Vec<(SocketAddr, Vec<u8>)>,
    /// The version of the keys that signed it.
    obituary_keys: u64,
    /// The version of the keys that the sockets let in.
    admitted_keys: u64,
}

/// A datagram's way back.
type Path = (usize, SocketAddr);

impl Runner {
    fn new(start: Start, inbox: Inbox, wake: OwnedFd) -> Self {
        let Start { me, cluster, nonce, sockets, clock, fitness, pairs, refusals, last_heard, reports } = start;
        Self {
            me,
            cluster,
            nonce,
            member: Member::new(me, nonce, boottime_ns()),
            sockets,
            clock,
            fitness,
            inbox,
            wake,
            reports,
            view: Arc::default(),
            refusals,
            last_heard,
            keys: pairs.map_or_else(|| Keys::OfTable(TableKeys::default()), Keys::OfPairs),
            holds: None,
            unfit: None,
            looked_ns: boottime_ns(),
            indulgent_until_ns: 0,
            valid: false,
            heard: Heard::default(),
            measured_ns: 0,
            obituary: Vec::new(),
            obituary_keys: 0,
            admitted_keys: 0,
        }
    }

    fn run(mut self) {
        loop {
            self.wait();
            // What has been received is read first: deadlines are judged on all that is known.
            self.receive();
            if !self.take_inputs() {
                self.clock.revoke();
                return;
            }
            let now = boottime_ns();
            self.fitness.vitals().show(Part::Heartbeat);
            self.look_at_fitness(now);
            self.member.on_time(now);
            self.settle(None);
            self.tell_changes(boottime_ns());
            let keys = self.keys.version(now);
            if keys != self.admitted_keys {
                self.keys.admit(&self.sockets);
                self.admitted_keys = keys;
            }
            if keys != self.obituary_keys {
                self.write_obituary();
            }
        }
    }

    fn wait(&self) {
        let now = boottime_ns();
        let wait = Duration::from_nanos(self.member.next_deadline_ns(now).saturating_sub(now));
        let timeout = Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: wait.subsec_nanos().into() };
        let mut fds: Vec<PollFd<'_>> = self.sockets.iter().map(|s| PollFd::new(s, PollFlags::IN)).collect();
        fds.push(PollFd::new(&self.wake, PollFlags::IN));
        // Interrupted or not: everything is looked at again.
        let _ = poll(&mut fds, Some(&timeout));
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.wake, &mut count);
    }

    fn receive(&mut self) {
        let mut buffer = [0; MAX_DATAGRAM];
        let accepted = self.keys.accepted(boottime_ns());
        for socket in 0..self.sockets.len() {
            for _ in 0..MAX_BATCH {
                // Would block, or an ICMP error for something sent before: neither says anything of a peer.
                let (len, from) = match self.sockets[socket].recv_from(&mut buffer) {
                    Ok(received) => received,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                    Err(_) => break,
                };
                let envelope = accepted.open(&buffer[..len]);
                let Some(envelope) = envelope.filter(|envelope| envelope.is_for(self.cluster, self.me)) else {
                    self.refusals.count(Refusal::Datagram);
                    continue;
                };
                self.last_heard.note(envelope.from);
                self.member.on_message(envelope.from, &envelope.message, boottime_ns());
                self.settle(Some((envelope.from, (socket, from))));
            }
        }
    }

    /// Whether there may be more.
    fn take_inputs(&mut self) -> bool {
        let (inputs, goes_on) = {
            let mut inbox = lock(&self.inbox);
            (std::mem::take(&mut inbox.waiting), !inbox.is_over)
        };
        for input in inputs {
            let now = boottime_ns();
            match input {
                Input::View(view) => {
                    self.keys.on_view(&view, now);
                    let spent = std::mem::replace(&mut self.view, view.clone());
                    self.member.on_view(view, now);
                    self.write_obituary();
                    self.report(Report::Spent(spent));
                }
                Input::Lead(lead) => self.member.on_lead(lead, now),
                Input::InForce(lease) => self.member.on_in_force(lease),
                Input::Refused(node) => self.member.on_refused(node, now),
                // All is looked at after this.
                Input::Keys => {}
                Input::Stop(done) => {
                    let lease = self.member.stop();
                    self.clock.revoke();
                    let _ = done.send(lease);
                }
            }
            self.settle(None);
        }
        goes_on
    }

    /// First the deadline, then what is to be said: nothing goes out that the deadline does not know yet.
    fn settle(&mut self, came_from: Option<(NodeId, Path)>) {
        self.clock.set(self.member.valid_until_ns());
        self.clock.hold(self.member.holds_on());
        if self.member.lease() != self.holds {
            self.holds = self.member.lease();
            self.report(Report::Holds(self.holds));
        }
        for output in self.member.take_output() {
            match output {
                Output::Send(to, message) => match came_from {
                    // An acknowledgement takes the way back.
                    Some((from, path)) if from == to && matches!(message, Message::Ack(_)) => {
                        if let Some(datagram) = self.seal(to, message) {
                            self.send(path, &datagram);
                        }
                    }
                    _ => self.send_everywhere(to, message),
                },
                Output::Propose(command) => self.report(Report::Propose(command)),
                Output::ProposeInTerm(term, command) => self.report(Report::ProposeInTerm(term, command)),
                Output::Elect(from) => self.report(Report::Elect(from)),
                Output::HoldBack(held_back) => self.report(Report::HoldBack(held_back)),
            }
        }
    }

    /// A node that does not do its work gives its VIPs away before it says anything else.
    fn look_at_fitness(&mut self, now_ns: u64) {
        // A pause of the whole process, or of the machine, makes everybody late, and says nothing of a worker.
        let stall_ns = self.member.stall_ns();
        if now_ns > self.looked_ns + AWAY_NS {
            self.indulgent_until_ns = now_ns + stall_ns;
        }
        self.looked_ns = now_ns;
        let unfit = self.fitness.unfit((now_ns >= self.indulgent_until_ns).then_some(stall_ns), now_ns);
        let is_same = match (&unfit, &self.unfit) {
            (Some(unfit), Some(before)) => unfit.is_same(before),
            (None, None) => true,
            _ => false,
        };
        if !is_same {
            if unfit.is_some() != self.unfit.is_some() {
                self.member.on_fitness(unfit.is_none(), now_ns);
                self.settle(None);
            }
            self.report(Report::Unfit(unfit.clone()));
            self.unfit = unfit;
        }
    }

    /// What the log should have a line about.
    fn tell_changes(&mut self, now_ns: u64) {
        let valid = self.member.valid_until_ns() > now_ns;
        let peers = self.member.peers_heard(now_ns);
        let heard = Heard { majority: self.member.is_majority(&peers), peers };
        if heard != self.heard {
            self.heard = heard.clone();
            self.report(Report::Heard(heard));
        }
        if now_ns >= self.measured_ns + MEASURE_EVERY_NS {
            self.measured_ns = now_ns;
            self.report(Report::RoundTrips(self.member.round_trips(now_ns)));
        }
        if valid != self.valid {
            self.valid = valid;
            let answers = if valid { Vec::new() } else { self.member.answers(now_ns) };
            self.report(Report::Valid(valid, answers));
        }
    }

    fn report(&self, report: Report) {
        // Nobody listens any more while the daemon stops.
        drop(self.reports.send(report));
    }

    /// Signed for a node; `None` as long as there is no key for it.
    fn seal(&self, to: NodeId, message: Message) -> Option<Vec<u8>> {
        let envelope = Envelope { cluster: self.cluster, from: self.me, to, message };
        self.keys.seal(&envelope, boottime_ns())
    }

    fn send_everywhere(&self, to: NodeId, message: Message) {
        let Some(datagram) = self.seal(to, message) else { return };
        for path in self.paths(to) {
            self.send(path, &datagram);
        }
    }

    /// From which of our addresses to which of theirs: the first to the first, the second to the second.
    fn paths(&self, to: NodeId) -> Vec<Path> {
        let Some(node) = self.view.table.node(to) else { return Vec::new() };
        let family = |socket: &UdpSocket, of: &SocketAddr| {
            socket.local_addr().is_ok_and(|local| local.is_ipv4() == of.is_ipv4())
        };
        let path = |(position, address): (usize, &SocketAddr)| {
            let same = self.sockets.get(position).filter(|socket| family(socket, address)).map(|_| position);
            let socket = same.or_else(|| self.sockets.iter().position(|socket| family(socket, address)))?;
            Some((socket, *address))
        };
        node.heartbeat.iter().enumerate().filter_map(path).collect()
    }

    fn send(&self, (socket, to): Path, datagram: &[u8]) {
        // What is lost here is sent again with the next heartbeat.
        if let Err(error) = self.sockets[socket].send_to(datagram, to) {
            tracing::debug!(%error, %to, "a heartbeat was not sent");
        }
    }

    /// Prepares what the parent process sends when this one is dead.
    fn write_obituary(&mut self) {
        self.obituary_keys = self.keys.version(boottime_ns());
        let others = self.view.table.nodes().filter(|node| node.id != self.me);
        let obituary: Vec<(SocketAddr, Vec<u8>)> = others
            .filter_map(|node| {
                let datagram = self.seal(node.id, Message::Obituary { nonce: self.nonce })?;
                Some(node.heartbeat.iter().map(move |address| (*address, datagram.clone())))
            })
            .flatten()
            .collect();
        if obituary != self.obituary {
            self.obituary = obituary.clone();
            self.report(Report::Obituary(obituary));
        }
    }
}

/// By what datagrams are signed.
enum Keys {
    /// By keys that stand in the table, where the connections between the nodes are plain.
    OfTable(TableKeys),
    /// By keys of two nodes each.
    OfPairs(SharedPairs),
}

/// What is taken, for a batch of datagrams.
enum Accepted {
    OfTable(Vec<(u64, u128)>),
    OfPairs(Arc<Pairs>),
}

impl Accepted {
    fn open(&self, datagram: &[u8]) -> Option<Envelope> {
        match self {
            Self::OfTable(keys) => Envelope::open(datagram, keys),
            Self::OfPairs(pairs) => Envelope::open_of_pair(datagram, pairs),
        }
    }
}

impl Keys {
    fn on_view(&mut self, view: &View, now_ns: u64) {
        match self {
            Self::OfTable(keys) => keys.on_view(view, now_ns),
            Self::OfPairs(_) => {}
        }
    }

    fn accepted(&self, now_ns: u64) -> Accepted {
        match self {
            Self::OfTable(keys) => Accepted::OfTable(keys.accepted(now_ns)),
            Self::OfPairs(pairs) => Accepted::OfPairs(pairs.load()),
        }
    }

    fn seal(&self, envelope: &Envelope, now_ns: u64) -> Option<Vec<u8>> {
        match self {
            Self::OfTable(keys) => keys.signing(now_ns).map(|(index, key)| envelope.seal(index, key)),
            Self::OfPairs(pairs) => pairs.load().signing(envelope.to).map(|key| envelope.seal_for_pair(key)),
        }
    }

    /// Has the kernel drop what is signed by no known key.
    fn admit(&self, sockets: &[UdpSocket]) {
        let Self::OfPairs(pairs) = self else { return };
        let pairs = pairs.load();
        for socket in sockets {
            // Without it nothing is wrong: what comes is looked at here.
            if let Err(error) = filter::admit_only(socket, pairs.ids()) {
                tracing::debug!(%error, "the heartbeat's socket has no filter");
            }
        }
    }

    /// Another one whenever something is signed by another key.
    fn version(&self, now_ns: u64) -> u64 {
        match self {
            Self::OfTable(keys) => keys.signing(now_ns).map_or(0, |(index, _)| index),
            Self::OfPairs(pairs) => pairs.load().version(),
        }
    }
}

/// The keys of the table, and when each was first seen.
#[derive(Default)]
struct TableKeys {
    /// By their indices in the log; the last one is the present one.
    keys: Vec<(u64, u128)>,
    replaced_ns: u64,
}

impl TableKeys {
    fn on_view(&mut self, view: &View, now_ns: u64) {
        let keys: Vec<(u64, u128)> = view.table.heartbeat_keys().collect();
        if self.keys != keys {
            // At the start there is nobody who would not have the present one.
            self.replaced_ns = if self.keys.is_empty() { 0 } else { now_ns };
            self.keys = keys;
        }
    }

    fn accepted(&self, now_ns: u64) -> Vec<(u64, u128)> {
        let all = now_ns < self.replaced_ns + OLD_KEY_ACCEPTED_NS;
        let first = if all { 0 } else { self.keys.len().saturating_sub(1) };
        self.keys[first..].to_vec()
    }

    fn signing(&self, now_ns: u64) -> Option<(u64, u128)> {
        let newest = self.keys.len().saturating_sub(1);
        let old = now_ns < self.replaced_ns + OLD_KEY_USED_NS;
        self.keys.get(if old { newest.saturating_sub(1) } else { newest }).copied()
    }
}

/// The addresses at which this node hears heartbeats: where it listens; instead of an unspecified address,
/// what it tells the others, in the same family and not its own loopback (a machine's own name may stand
/// there in /etc/hosts).
pub(crate) fn addresses(listen: &[SocketAddr], advertised: &[IpAddr]) -> Vec<SocketAddr> {
    let reachable = |address: &SocketAddr| {
        let fits = |ip: &&IpAddr| ip.is_ipv4() == address.is_ipv4() && !ip.is_loopback() && !ip.is_unspecified();
        match address.ip().is_unspecified() {
            false => Some(*address),
            true => advertised.iter().find(fits).map(|ip| SocketAddr::new(*ip, address.port())),
        }
    };
    let mut addresses: Vec<SocketAddr> = listen.iter().filter_map(reachable).collect();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_replaced_is_forgotten() {
        let mut inputs = Inputs::default();
        let lead = |term| Input::Lead(Lead { leader: Some(1), term });
        for term in 0..1000 {
            drop(inputs.put(Input::Refused(1)));
            drop(inputs.put(lead(term)));
            drop(inputs.put(Input::InForce(None)));
            drop(inputs.put(Input::Refused(2)));
        }
        drop(inputs.put(lead(1000)));
        let [Input::Refused(1), Input::InForce(None), Input::Refused(2), Input::Lead(last)] = &inputs.waiting[..]
        else {
            panic!("{} wait", inputs.waiting.len());
        };
        assert_eq!(last.term, 1000, "what was said last comes last");
    }

    #[test]
    fn an_unspecified_address_is_replaced_by_one_that_others_can_reach() {
        let listen = |texts: &[&str]| -> Vec<SocketAddr> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let ips = |texts: &[&str]| -> Vec<IpAddr> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let named = ["::1", "127.0.1.1", "2001:db8::1", "192.0.2.1"];
        assert_eq!(addresses(&listen(&["0.0.0.0:7401"]), &ips(&named)), listen(&["192.0.2.1:7401"]));
        assert_eq!(addresses(&listen(&["[::]:7401"]), &ips(&named)), listen(&["[2001:db8::1]:7401"]));
        assert_eq!(addresses(&listen(&["0.0.0.0:7401"]), &ips(&["127.0.1.1"])), []);
        assert_eq!(addresses(&listen(&["10.0.0.1:1", "10.1.0.1:1"]), &[]), listen(&["10.0.0.1:1", "10.1.0.1:1"]));
    }
}
