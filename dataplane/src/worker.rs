//! The worker: a thread with an engine, a flow table, and its part of the counters. [`Core::look`] and [`Core::judge`]
//! are the whole way of a frame, top to bottom; they are free of system calls but for the clock before an answer.
//! Rarer frames go on in [`answers`], [`fragments`] and [`handover`].

mod answers;
mod chores;
mod explain;
mod following;
mod fragments;
mod handover;

use std::{
    collections::HashSet,
    hash::Hasher as _,
    io,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use following::Following;
use siphasher::sip::SipHasher13;

use crate::{
    announce::{Announcer, Claim},
    crew::{Crew, Member, Shared},
    errand::Errand,
    forward::{
        DropReason, Verdict,
        decide::{Place, decide, foresee},
        flow::{FlowTable, Tick},
        fragment::Fragments,
        hash::TupleHash,
        table::{Backend, Snapshot, Vip},
    },
    io::{Engine, EngineFactory, FrameMeta, OwnKernel, PortConfig, memory::prefetch},
    lease::boottime_ns,
    limit::Limiter,
    mailbox::Inbox,
    neighbor::Neighbors,
    packet::{
        self, ETHERNET_HEADER_LEN, FlowPacket, IcmpError, Mac, Packet, VnetHeader,
        icmp::{self, Reply},
        rewrite,
    },
    segment::Prober,
};

/// The longest sleep: counters are brought up to date at least this often.
const MAX_WAIT_NS: u64 = 100_000_000;
/// Before an announcement that the lease did not allow is tried again.
const LEASE_RETRY_NS: u64 = 5_000_000;
/// ICMP errors of our own, and refusals, a second (Linux has the same in icmp_msgs_per_sec).
const REPLIES_PER_S: u64 = 1000;

/// How a frame left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    Forwarded,
    Answered,
}

/// Where a frame is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Port(usize),
    OwnKernel,
}

/// A frame that the worker sends beside those that the engine has in hand.
struct Outgoing {
    to: To,
    vnet: VnetHeader,
    frame: Vec<u8>,
    kind: Origin,
}

impl Outgoing {
    fn own(port: usize, frame: Vec<u8>) -> Self {
        Self { to: To::Port(port), vnet: VnetHeader::default(), frame, kind: Origin::Own }
    }

    fn claim(port: usize, frame: Vec<u8>) -> Self {
        Self { kind: Origin::Claim, ..Self::own(port, frame) }
    }
}

/// Whose frame it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It came, waited or was handed over, and goes on.
    Received,
    /// One that was handed over has become an answer.
    Answer,
    /// Our own.
    Own,
    /// Our own, and it says that this node has a VIP.
    Claim,
}

/// What a look at a frame has found. Good for as long as the worker keeps its snapshot.
#[derive(Clone, Copy)]
pub(crate) struct Sight {
    /// `None` if it is none of a flow: all others are rare, and only taken apart when they are judged.
    flow: Option<FlowPacket>,
    /// Of a flow to a VIP: where that stands, and the hash of the tuple.
    found: Option<(u32, TupleHash)>,
    /// What the second look has found.
    place: Option<Result<Place, DropReason>>,
}

impl Sight {
    /// Before the first look.
    pub(crate) const NOTHING: Self = Self { flow: None, found: None, place: None };
}

/// From where a frame came to this worker.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Came {
    FromWire,
    /// Another worker handed it over, because its flow is here.
    FromWorker,
}

/// Why a frame does not go to the backend that was chosen for it.
#[derive(Clone, Copy)]
enum NotSent {
    For(DropReason),
    TooBig { mtu: u32 },
}

impl NotSent {
    fn reason(self) -> DropReason {
        match self {
            Self::For(reason) => reason,
            Self::TooBig { .. } => DropReason::TooBig,
        }
    }
}

impl From<DropReason> for NotSent {
    fn from(reason: DropReason) -> Self {
        Self::For(reason)
    }
}

/// What speaks for the node, by one worker: announcements, questions, answers.
#[derive(Default)]
pub(crate) struct Speaker {
    announcer: Announcer,
    neighbors: Neighbors,
    prober: Prober,
    /// VIPs that others have claimed since the lease ran out: not answered, even where it is held.
    yielded: HashSet<IpAddr>,
}

/// What a worker knows and decides; the engine moves its frames.
pub struct Core {
    snapshot: Arc<Snapshot>,
    flows: FlowTable,
    fragments: Fragments,
    speaker: Speaker,
    /// Of ICMP errors that senders need to go on, and of refusals that only spare them waiting: apart, so that whoever
    /// scans ports does not stop the discovery of path MTUs.
    complaints: Limiter,
    refusals: Limiter,
    /// Sent at the end of the turn.
    outbox: Vec<Outgoing>,
    own_kernel: OwnKernel,
    shared: Arc<Shared>,
    crew: Arc<Crew>,
    /// This worker, as the others see it.
    own: Arc<Member>,
    /// Of the last look at the clock, once a turn.
    now_ns: u64,
    /// When to bring the counters up to date that are not counted frame by frame.
    count_at_ns: u64,
}

impl Core {
    /// A worker of a crew, and what the one that spoke for the node before it knew.
    pub(crate) fn new(
        shared: Arc<Shared>,
        crew: Arc<Crew>,
        own: Arc<Member>,
        flows: FlowTable,
        speaker: Option<Speaker>,
    ) -> Self {
        let workers = crew.members.len() as u64;
        let mut core = Self {
            snapshot: shared.snapshot.load_full(),
            flows,
            fragments: Fragments::default(),
            speaker: speaker.unwrap_or_default(),
            complaints: Limiter::new(REPLIES_PER_S / workers),
            refusals: Limiter::new(REPLIES_PER_S / workers),
            outbox: Vec::new(),
            own_kernel: OwnKernel::default(),
            shared,
            crew,
            own,
            now_ns: boottime_ns(),
            count_at_ns: 0,
        };
        core.adopt(core.snapshot.clone());
        core
    }

    /// The first look at a frame. Engines look at several, and closer at all of them, before they have the first one
    /// judged: what has to come from memory comes meanwhile.
    #[inline]
    pub(crate) fn look(&self, frame: &[u8], sight: &mut Sight) {
        // Into its place: a copy of what was written just now, piece by piece, costs as much as the parsing.
        *sight = Sight::NOTHING;
        if let Some(flow) = packet::flow(frame) {
            let hash = self.snapshot.hash_key.tuple(&flow.tuple);
            self.flows.prefetch(hash);
            let vip = self.snapshot.vip_at(flow.tuple.destination);
            sight.found = vip.inspect(|at| prefetch(&self.snapshot.vips[*at as usize])).map(|vip| (vip, hash));
            sight.flow = Some(flow);
        }
    }

    /// The second look at a frame.
    #[inline]
    pub(crate) fn look_closer(&self, sight: &mut Sight) {
        if let (Some(flow), Some((vip, hash))) = (&sight.flow, sight.found) {
            let place = Place::at(&self.snapshot, vip, &flow.tuple, hash);
            if let Ok(place) = &place {
                place.prefetch(&self.snapshot, &self.flows);
            }
            sight.place = Some(place);
        }
    }

    /// The whole way of a frame that was looked at. Rewritten in place if it goes anywhere.
    pub(crate) fn judge(&mut self, port: usize, meta: FrameMeta, frame: &mut [u8], sight: &Sight) -> Verdict {
        self.own.stats.received.add(1);
        let verdict = self.consider(port, meta, frame, sight, Came::FromWire);
        self.count(verdict, &meta.vnet);
        if verdict == Verdict::Deliver {
            let frame = frame.to_vec();
            self.outbox.push(Outgoing { to: To::OwnKernel, vnet: meta.vnet, frame, kind: Origin::Received });
        }
        verdict
    }

    fn count(&self, verdict: Verdict, vnet: &VnetHeader) {
        let stats = &self.own.stats;
        if let (Verdict::Forward { port }, true) = (verdict, vnet.is_super())
            && !self.snapshot.ports[port].segments
        {
            stats.segmented.add(1);
        }
        match verdict {
            Verdict::Forward { .. } | Verdict::Deliver => stats.forwarded.add(1),
            Verdict::Answer => stats.answered.add(1),
            Verdict::Hold => {}
            Verdict::HandOver => stats.handed_over.add(1),
            Verdict::Drop(reason) => stats.dropped(reason).add(1),
        }
    }

    /// Counts a frame that never was whole.
    pub(crate) fn count_unseen(&mut self, verdict: Verdict) {
        self.own.stats.received.add(1);
        self.count(verdict, &VnetHeader::default());
    }

    /// The outgoing queue did not take a frame that was counted as sent.
    pub(crate) fn send_failed(&mut self, sent: Sent) {
        let stats = &self.own.stats;
        match sent {
            Sent::Forwarded => stats.forwarded.add(u64::MAX),
            Sent::Answered => stats.answered.add(u64::MAX),
        }
        stats.dropped(DropReason::SendFailed).add(1);
    }

    fn consider(&mut self, port: usize, meta: FrameMeta, frame: &mut [u8], sight: &Sight, came: Came) -> Verdict {
        if meta.vlan_tagged {
            return Verdict::Drop(DropReason::VlanTagged);
        }
        let (Some(destination), Some(source)) = (packet::destination(frame), packet::source(frame)) else {
            return Verdict::Drop(DropReason::Malformed);
        };
        let own = self.snapshot.ports[port].mac;
        let for_us = destination == own;
        if source == own || !source.is_host() {
            return Verdict::Drop(if for_us { DropReason::BadSource } else { DropReason::NotForUs });
        }
        let packet = sight.flow.map_or_else(|| packet::parse(frame), Packet::Flow);
        // What a switch flooded is dropped here, whoever has its flow.
        let other_home = if for_us || destination.is_group() { self.other_home(&packet, came) } else { None };
        if let Some(home) = other_home {
            return self.hand_over(home, port, meta, frame);
        }
        match &packet {
            Packet::Arp(arp) if for_us || destination == Mac::BROADCAST => self.arp(port, own, frame, arp),
            Packet::Neighbor(message) if for_us || destination.is_group() => {
                self.neighbor(port, own, source, frame, message)
            }
            _ if !for_us => Verdict::Drop(DropReason::NotForUs),
            Packet::Flow(flow) => self.flow(port, source, meta, frame, flow, sight.place).unwrap_or_else(Verdict::Drop),
            Packet::Fragment(fragment) => self.fragment(port, meta, frame, fragment),
            Packet::Error(error) => self.icmp_error(source, frame, error).unwrap_or_else(Verdict::Drop),
            Packet::Echo(echo) => self.echo(own, frame, echo),
            Packet::Other(reason, destination) => {
                let for_vip = destination.is_none_or(|address| self.snapshot.vip(address).is_some());
                Verdict::Drop(if for_vip { *reason } else { DropReason::NotVip })
            }
            Packet::Arp(_) | Packet::Neighbor(_) => Verdict::Drop(DropReason::NotForUs),
        }
    }

    /// TCP and UDP: to the backend, by the interface on whose segment it is.
    fn flow(
        &mut self,
        port: usize,
        source: Mac,
        meta: FrameMeta,
        frame: &mut [u8],
        flow: &FlowPacket,
        place: Option<Result<Place, DropReason>>,
    ) -> Result<Verdict, DropReason> {
        if self.snapshot.is_peer(source) {
            let place = place.unwrap_or_else(|| Place::find(&self.snapshot, &flow.tuple))?;
            return Ok(balanced_before(frame, place.service(&self.snapshot).is_served_here));
        }
        // A super-frame leaves as segments of this size.
        let wire_len = match meta.vnet.gso_size() {
            Some(size) => usize::from(flow.headers_len) + usize::from(size),
            None => frame.len(),
        };
        let now = Tick::from_ns(self.now_ns);
        let sent = place
            .unwrap_or_else(|| Place::find(&self.snapshot, &flow.tuple))
            .and_then(|place| decide(&self.snapshot, &mut self.flows, flow, &place, now))
            .map_err(NotSent::For)
            .and_then(|to| dispatch(&self.snapshot, self.own.index, source, wire_len, frame, (to.vip, to.backend)));
        match sent {
            Ok(sent) => Ok(sent),
            Err(NotSent::TooBig { mtu }) => {
                self.say_too_big(port, frame, flow, mtu);
                Err(DropReason::TooBig)
            }
            Err(NotSent::For(DropReason::NoService)) => Err(self.refuse(port, frame, flow)),
            Err(NotSent::For(reason)) => Err(reason),
        }
    }

    /// Only a sender who asked for it is told; for everybody else the datagram is lost, as on any router that does
    /// not fragment.
    fn say_too_big(&mut self, port: usize, frame: &[u8], flow: &FlowPacket, mtu: u32) {
        if icmp::may_be_fragmented(frame, flow) || !self.complaints.admits(self.now_ns) {
            return;
        }
        let ports = &self.snapshot.ports;
        let near = ports[port].address_like(flow.tuple.source.into());
        let own = near.or_else(|| ports.iter().find_map(|port| port.address_like(flow.tuple.source.into())));
        // A node without an address of the family speaks for the VIP, as the backends do.
        let own = own.unwrap_or(flow.tuple.destination.into());
        let reply = Reply { to: frame, packet: flow, mac: ports[port].mac };
        if let Some(frame) = reply.too_big(own, mtu) {
            self.outbox.push(Outgoing::own(port, frame));
        }
    }

    /// Nobody serves the port: the VIP's owner says so, if it shall.
    fn refuse(&mut self, port: usize, frame: &[u8], flow: &FlowPacket) -> DropReason {
        let vip = self.snapshot.vip(flow.tuple.destination);
        let rejects = vip.is_some_and(|vip| vip.rejects && vip.owned.is_some());
        if !rejects || !self.shared.lease.is_valid() || !self.refusals.admits(self.now_ns) {
            return DropReason::NoService;
        }
        let reply = Reply { to: frame, packet: flow, mac: self.snapshot.ports[port].mac };
        match reply.refusal() {
            Some(frame) => {
                self.outbox.push(Outgoing::own(port, frame));
                DropReason::Rejected
            }
            None => DropReason::NoService,
        }
    }

    /// An error about a packet that a backend sent from the VIP is for that backend.
    fn icmp_error(&self, source: Mac, frame: &mut [u8], error: &IcmpError) -> Result<Verdict, DropReason> {
        if self.snapshot.is_peer(source) {
            let vip = self.snapshot.vip(error.destination).ok_or(DropReason::NotVip)?;
            return Ok(balanced_before(frame, vip.is_served_here));
        }
        let (packet, now) = (FlowPacket::of(error.tuple), Tick::from_ns(self.now_ns));
        let to = foresee(&self.snapshot, &self.flows, &packet, now).map_err(|reason| match reason {
            DropReason::NoService => DropReason::IcmpUnrelated,
            reason => reason,
        })?;
        let sent = dispatch(&self.snapshot, self.own.index, source, frame.len(), frame, (to.vip, to.backend));
        sent.map_err(NotSent::reason)
    }

    /// Works with a new table from the next frame on.
    fn adopt(&mut self, snapshot: Arc<Snapshot>) {
        let claim = |vip: &Vip| {
            let mut place = SipHasher13::new();
            for (_, port) in snapshot.ports.iter().enumerate().filter(|(at, _)| vip.answers_on(*at)) {
                place.write(&port.mac.0);
                // A link that comes back is announced on again: whoever is behind it may have missed the last one.
                place.write_u8(port.carrier.into());
            }
            Some((vip.address, Claim { epoch: vip.owned?, place: place.finish(), first: vip.first_grant }))
        };
        self.flows.set_timeouts(snapshot.timeouts);
        if self.is_speaker() {
            self.speaker.announcer.set_owned(snapshot.vips.iter().filter_map(claim), self.now_ns);
            self.speaker.neighbors.set_backends(&snapshot, self.now_ns);
        }
        self.snapshot = snapshot;
    }

    /// Sends what has gathered beside the frames of the engine.
    fn send_outbox(&mut self, engine: &mut dyn Engine) {
        let mut outbox = std::mem::take(&mut self.outbox);
        for Outgoing { to, vnet, frame, kind } in outbox.drain(..) {
            // Right before each announcement, as before each answer.
            if kind == Origin::Claim && !self.shared.lease.is_valid() {
                self.own.stats.announcements_withheld.add(1);
                continue;
            }
            let sent = match to {
                To::Port(port) => engine.send(port, &vnet, &frame),
                To::OwnKernel => self.own_kernel.deliver(&vnet, &frame),
            };
            match (sent, kind) {
                (Ok(()), Origin::Received | Origin::Answer) => {}
                (Ok(()), Origin::Own | Origin::Claim) => self.own.stats.originated.add(1),
                (Err(_), Origin::Received) => self.send_failed(Sent::Forwarded),
                (Err(_), Origin::Answer) => self.send_failed(Sent::Answered),
                // Announcements and questions are repeated anyway.
                (Err(error), Origin::Own | Origin::Claim) => {
                    tracing::debug!(%error, "a frame of our own was not sent");
                }
            }
        }
        // Its room is used again.
        self.outbox = outbox;
    }

    /// Takes what others have put into the mailbox.
    fn open_mail(&mut self, inbox: &Inbox) {
        let own = self.own.clone();
        if let Some((frames, errands)) = own.mailbox.take(inbox) {
            frames.for_each(|handed| self.take_over(handed));
            errands.into_iter().for_each(|errand| self.run_errand(errand));
        }
    }

    /// Answers what the control plane has asked for.
    fn run_errand(&self, errand: Errand) {
        match errand {
            Errand::Explain(question, reply) => reply.give(self.explain(&question)),
            Errand::ListFlows(slots, reply) => {
                let now = Tick::from_ns(self.now_ns);
                let entries = self.flows.entries(slots, now).collect();
                reply.give((entries, self.flows.slots()));
            }
        }
    }

    /// How long there is nothing to do but frames.
    fn idle(&self) -> Duration {
        let announcements = self.speaker.announcer.next_due_ns().map(|at| {
            let withheld = at <= self.now_ns && !self.shared.lease.is_valid();
            if withheld { self.now_ns + LEASE_RETRY_NS } else { at }
        });
        let has_peers = self.is_speaker() && !self.snapshot.peers.is_empty();
        let probes = has_peers.then(|| self.speaker.prober.next_due_ns());
        let due = [announcements, self.speaker.neighbors.next_due_ns(), probes, self.fragments.next_due_ns()];
        let next = due.into_iter().flatten().min();
        let wait = next.map_or(MAX_WAIT_NS, |at| at.saturating_sub(self.now_ns)).min(MAX_WAIT_NS);
        Duration::from_nanos(wait.max(1000))
    }
}

/// Rewrites a frame for its backend and counts it, if it can go there.
#[inline]
fn dispatch(
    snapshot: &Snapshot,
    worker: usize,
    source: Mac,
    wire_len: usize,
    frame: &mut [u8],
    (vip, backend): (&Vip, &Backend),
) -> Result<Verdict, NotSent> {
    let way = way(snapshot, source, wire_len, backend)?;
    vip.traffic.of(worker).count(frame.len());
    backend.runtime.traffic.of(worker).count(frame.len());
    Ok(match way {
        Way::Port(port, mac) => {
            rewrite::to_backend(frame, mac, snapshot.ports[port].mac);
            Verdict::Forward { port }
        }
        Way::OwnKernel => deliver(frame),
    })
}

/// For the node's own kernel.
fn deliver(frame: &mut [u8]) -> Verdict {
    // The loopback interface's hardware address.
    rewrite::to_backend(frame, Mac::ZERO, Mac::ZERO);
    Verdict::Deliver
}

/// Another load balancer has balanced a frame: it is for this node as a backend, or for nobody.
fn balanced_before(frame: &mut [u8], is_served_here: bool) -> Verdict {
    if is_served_here { deliver(frame) } else { Verdict::Drop(DropReason::BalancedTwice) }
}

/// How a frame gets to a backend.
enum Way {
    /// By this interface and to this hardware address.
    Port(usize, Mac),
    OwnKernel,
}

#[inline]
fn way(snapshot: &Snapshot, source: Mac, wire_len: usize, backend: &Backend) -> Result<Way, NotSent> {
    if backend.is_self {
        return Ok(Way::OwnKernel);
    }
    let out = backend.port.ok_or(DropReason::BackendUnreachable)?;
    let mac = backend.mac().ok_or(DropReason::BackendUnresolved)?;
    if mac == source {
        return Err(DropReason::Hairpin.into());
    }
    let mtu = snapshot.ports[out].mtu;
    if wire_len > ETHERNET_HEADER_LEN + mtu as usize {
        return Err(NotSent::TooBig { mtu });
    }
    Ok(Way::Port(out, mac))
}

/// Runs until it is told to stop.
pub(crate) fn run(
    core: &mut Core,
    inbox: &Inbox,
    engine: Box<dyn Engine>,
    factory: EngineFactory,
    ports: Vec<PortConfig>,
) -> io::Result<()> {
    let shared = core.shared.clone();
    let mut following = Following::new(engine, factory, ports);
    following.engine.set_filter(&core.snapshot.filter)?;
    while !shared.stop.load(Ordering::Acquire) {
        let published = shared.snapshot.load();
        if published.generation != core.snapshot.generation {
            let snapshot = published.clone();
            // A table whose VIPs the filter would not let by is not taken up: it is tried again next turn.
            match snapshot.filter != core.snapshot.filter {
                true => match following.engine.set_filter(&snapshot.filter) {
                    Ok(()) => core.adopt(snapshot),
                    Err(error) => tracing::error!(%error, "the socket filter cannot be replaced"),
                },
                false => core.adopt(snapshot),
            }
        }
        // Whatever was judged before this line was judged by an older table.
        core.own.seen_generation.store(core.snapshot.generation, Ordering::Release);
        core.now_ns = boottime_ns();
        following.follow(&core.snapshot, core.now_ns);
        core.tick();
        core.open_mail(inbox);
        core.send_outbox(&mut *following.engine);
        let idle = core.idle().min(following.patience());
        following.engine.turn(idle, core)?;
        core.send_outbox(&mut *following.engine);
        if core.now_ns >= core.count_at_ns {
            core.count_at_ns = core.now_ns + MAX_WAIT_NS;
            core.own.stats.ring_full.add(following.lost());
            let (remembered, not_remembered) = core.flows.inserted();
            core.own.stats.flows_remembered.set(remembered);
            core.own.stats.flows_not_remembered.set(not_remembered);
        }
    }
    core.own.stats.ring_full.add(following.engine.lost().frames);
    Ok(())
}

#[cfg(test)]
mod tests;
