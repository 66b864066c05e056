//! The worker: a thread with an engine, a flow table, and its part of the counters. [`Core::judge`] is
//! the whole way of a frame, top to bottom; it is free of system calls but for the clock before an
//! answer.

mod explain;
mod following;

use std::{
    collections::HashSet,
    hash::Hasher as _,
    io,
    net::IpAddr,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use following::Following;
use siphasher::sip::SipHasher13;

use crate::{
    announce::{Announcer, Claim, Due},
    errand::Errand,
    forward::{
        DropReason, Verdict,
        decide::{decide, foresee},
        flow::{FlowTable, Tick},
        fragment::{Fragments, Step, Waiting},
        table::{Backend, BackendRef, BackendState, Snapshot, Vip},
    },
    handle::Shared,
    io::{Engine, EngineFactory, FrameMeta, PortConfig},
    lease::boottime_ns,
    limit::Limiter,
    neighbor::Neighbors,
    packet::{
        self, ETHERNET_HEADER_LEN, Echo, FlowPacket, Fragment, IcmpError, Mac, Packet, arp,
        icmp::{self, Reply},
        ndp, rewrite,
    },
    segment::{self, PeerSpec, Prober},
};

/// The longest sleep: counters are brought up to date at least this often.
const MAX_WAIT_NS: u64 = 100_000_000;
/// Before an announcement that the lease did not allow is tried again.
const LEASE_RETRY_NS: u64 = 5_000_000;
/// ICMP errors and refusals of our own, a second (Linux has the same in icmp_msgs_per_sec).
const REPLIES_PER_S: u64 = 1000;

/// How a frame left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    Forwarded,
    Answered,
}

/// A frame that the worker sends beside those that the engine has in hand.
struct Outgoing {
    port: usize,
    frame: Vec<u8>,
    kind: Origin,
}

/// Whose frame it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It came, waited, and goes on.
    Received,
    /// Our own.
    Own,
    /// Our own, and it says that this node has a VIP.
    Claim,
}

/// Why a frame does not go to the backend that was chosen for it.
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

/// What a worker knows and decides; the engine moves its frames.
pub struct Core {
    snapshot: Arc<Snapshot>,
    flows: FlowTable,
    fragments: Fragments,
    announcer: Announcer,
    neighbors: Neighbors,
    prober: Prober,
    replies: Limiter,
    /// Sent at the end of the turn.
    outbox: Vec<Outgoing>,
    /// VIPs that others have claimed since the lease ran out: not answered, even where it is held.
    yielded: HashSet<IpAddr>,
    shared: Arc<Shared>,
    /// Of the last look at the clock, once a turn.
    now_ns: u64,
    /// When to bring the counters up to date that are not counted frame by frame.
    count_at_ns: u64,
}

impl Core {
    pub(crate) fn new(shared: Arc<Shared>, flows: FlowTable) -> Self {
        let mut core = Self {
            snapshot: shared.snapshot.load_full(),
            flows,
            fragments: Fragments::default(),
            announcer: Announcer::default(),
            neighbors: Neighbors::default(),
            prober: Prober::default(),
            replies: Limiter::new(REPLIES_PER_S),
            outbox: Vec::new(),
            yielded: HashSet::new(),
            shared,
            now_ns: boottime_ns(),
            count_at_ns: 0,
        };
        core.adopt(core.snapshot.clone());
        core
    }

    /// The whole way of a frame. Rewritten in place if it goes anywhere.
    pub(crate) fn judge(&mut self, port: usize, meta: FrameMeta, frame: &mut [u8]) -> Verdict {
        let verdict = self.consider(port, meta, frame);
        let stats = &self.shared.stats;
        stats.received.add(1);
        match verdict {
            Verdict::Forward { .. } => stats.forwarded.add(1),
            Verdict::Answer => stats.answered.add(1),
            Verdict::Hold => {}
            Verdict::Drop(reason) => stats.dropped(reason).add(1),
        }
        verdict
    }

    /// Counts a frame that never was whole.
    pub(crate) fn count_unseen(&mut self, verdict: Verdict) {
        self.shared.stats.received.add(1);
        if let Verdict::Drop(reason) = verdict {
            self.shared.stats.dropped(reason).add(1);
        }
    }

    /// The outgoing queue did not take a frame that was counted as sent.
    pub(crate) fn send_failed(&mut self, sent: Sent) {
        let stats = &self.shared.stats;
        match sent {
            Sent::Forwarded => stats.forwarded.add(u64::MAX),
            Sent::Answered => stats.answered.add(u64::MAX),
        }
        stats.dropped(DropReason::SendFailed).add(1);
    }

    fn consider(&mut self, port: usize, meta: FrameMeta, frame: &mut [u8]) -> Verdict {
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
        let forwarded = |sent: Result<usize, DropReason>| match sent {
            Ok(port) => Verdict::Forward { port },
            Err(reason) => Verdict::Drop(reason),
        };
        match packet::parse(frame) {
            Packet::Arp(arp) if for_us || destination == Mac::BROADCAST => self.arp(port, own, frame, &arp),
            Packet::Neighbor(message) if for_us || destination.is_group() => {
                self.neighbor(port, own, source, frame, &message)
            }
            _ if !for_us => Verdict::Drop(DropReason::NotForUs),
            Packet::Flow(flow) => forwarded(self.flow(port, source, meta, frame, &flow)),
            Packet::Fragment(fragment) => self.fragment(port, source, frame, &fragment),
            Packet::Error(error) => forwarded(self.icmp_error(source, frame, &error)),
            Packet::Echo(echo) => self.echo(own, frame, &echo),
            Packet::Other(reason, destination) => {
                let for_vip = destination.is_none_or(|address| self.snapshot.vip(address).is_some());
                Verdict::Drop(if for_vip { reason } else { DropReason::NotVip })
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
    ) -> Result<usize, DropReason> {
        if self.snapshot.is_peer(source) {
            return Err(DropReason::BalancedTwice);
        }
        // A super-frame leaves as segments of this size.
        let wire_len = match meta.gso_size {
            Some(size) => flow.headers_len + usize::from(size),
            None => frame.len(),
        };
        let now = Tick::from_ns(self.now_ns);
        let sent = decide(&self.snapshot, &mut self.flows, flow, now)
            .map_err(NotSent::For)
            .and_then(|to| dispatch(&self.snapshot, source, wire_len, frame, (to.vip, to.backend)));
        match sent {
            Ok(out) => Ok(out),
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
        if icmp::may_be_fragmented(frame, flow) || !self.replies.admits(self.now_ns) {
            return;
        }
        let ports = &self.snapshot.ports;
        let near = ports[port].address_like(flow.tuple.source);
        let own = near.or_else(|| ports.iter().find_map(|port| port.address_like(flow.tuple.source)));
        let reply = Reply { to: frame, packet: flow, mac: ports[port].mac };
        if let Some(frame) = own.and_then(|own| reply.too_big(own, mtu)) {
            self.outbox.push(Outgoing { port, frame, kind: Origin::Own });
        }
    }

    /// Nobody serves the port: the VIP's owner says so, if it shall.
    fn refuse(&mut self, port: usize, frame: &[u8], flow: &FlowPacket) -> DropReason {
        let vip = self.snapshot.vip(flow.tuple.destination);
        let rejects = vip.is_some_and(|vip| vip.rejects && vip.owned.is_some());
        if !rejects || !self.shared.lease.is_valid() || !self.replies.admits(self.now_ns) {
            return DropReason::NoService;
        }
        let reply = Reply { to: frame, packet: flow, mac: self.snapshot.ports[port].mac };
        match reply.refusal() {
            Some(frame) => {
                self.outbox.push(Outgoing { port, frame, kind: Origin::Own });
                DropReason::Rejected
            }
            None => DropReason::NoService,
        }
    }

    /// Every fragment of a datagram goes to the backend of the first.
    fn fragment(&mut self, port: usize, source: Mac, frame: &mut [u8], fragment: &Fragment) -> Verdict {
        let id = fragment.datagram;
        if self.snapshot.vip(id.destination).is_none() {
            return Verdict::Drop(DropReason::NotVip);
        }
        if self.snapshot.is_peer(source) {
            return Verdict::Drop(DropReason::BalancedTwice);
        }
        let followed = match (self.fragments.arrive(fragment, self.now_ns), &fragment.flow) {
            (Step::Follow(backend), _) => self.follow(source, frame, id.destination, backend),
            (Step::Decide, Some(flow)) => {
                let now = Tick::from_ns(self.now_ns);
                let outcome = decide(&self.snapshot, &mut self.flows, flow, now).map(|to| to.backend.reference);
                // The first goes first.
                let followed = outcome.and_then(|backend| self.follow(source, frame, id.destination, backend));
                for waiting in self.fragments.decided(id, outcome) {
                    self.let_go(waiting, id.destination, outcome);
                }
                followed
            }
            (Step::Wait | Step::Decide, _) => {
                let held = self.fragments.hold(id, port, frame, self.now_ns);
                self.count_held();
                return if held { Verdict::Hold } else { Verdict::Drop(DropReason::FragmentNoRoom) };
            }
            (Step::Drop(reason), _) => Err(reason),
        };
        followed.map_or_else(Verdict::Drop, |port| Verdict::Forward { port })
    }

    fn follow(&self, source: Mac, frame: &mut [u8], vip: IpAddr, backend: BackendRef) -> Result<usize, DropReason> {
        let vip = self.snapshot.vip(vip).ok_or(DropReason::NotVip)?;
        let backend = self.snapshot.backend(backend).filter(|backend| backend.state != BackendState::Down);
        let backend = backend.ok_or(DropReason::NoBackend)?;
        let sent = dispatch(&self.snapshot, source, frame.len(), frame, (vip, backend));
        sent.map_err(NotSent::reason)
    }

    /// A fragment has waited for the first one, and this is what became of it.
    fn let_go(&mut self, waiting: Waiting, vip: IpAddr, outcome: Result<BackendRef, DropReason>) {
        let mut frame = waiting.frame;
        let source = packet::source(&frame).unwrap_or_default();
        match outcome.and_then(|backend| self.follow(source, &mut frame, vip, backend)) {
            Ok(port) => {
                self.shared.stats.forwarded.add(1);
                self.outbox.push(Outgoing { port, frame, kind: Origin::Received });
            }
            Err(reason) => self.shared.stats.dropped(reason).add(1),
        }
        self.count_held();
    }

    fn count_held(&self) {
        self.shared.stats.held.set(self.fragments.waiting() as u64);
    }

    /// An error about a packet that a backend sent from the VIP is for that backend.
    fn icmp_error(&self, source: Mac, frame: &mut [u8], error: &IcmpError) -> Result<usize, DropReason> {
        if self.snapshot.is_peer(source) {
            return Err(DropReason::BalancedTwice);
        }
        let (packet, now) = (FlowPacket::of(error.tuple), Tick::from_ns(self.now_ns));
        let to = foresee(&self.snapshot, &self.flows, &packet, now).map_err(|reason| match reason {
            DropReason::NoService => DropReason::IcmpUnrelated,
            reason => reason,
        })?;
        let sent = dispatch(&self.snapshot, source, frame.len(), frame, (to.vip, to.backend));
        sent.map_err(NotSent::reason)
    }

    /// An echo request to a VIP is answered by its owner.
    fn echo(&mut self, own: Mac, frame: &mut [u8], echo: &Echo) -> Verdict {
        let Some(vip) = self.snapshot.vip(echo.destination) else {
            return Verdict::Drop(DropReason::NotVip);
        };
        if vip.owned.is_none() || !self.announcer.is_active(vip.address) || !self.may_answer(vip.address) {
            return Verdict::Drop(DropReason::EchoNotOurs);
        }
        rewrite::echo_reply(frame, echo, own);
        Verdict::Answer
    }

    /// The lease is valid at this moment. Past its end only where the operator wants it, for what nobody else claims.
    fn may_answer(&mut self, vip: IpAddr) -> bool {
        if self.shared.lease.is_valid() {
            self.yielded.clear();
            return true;
        }
        self.shared.lease.is_held() && !self.yielded.contains(&vip)
    }

    /// A VIP that this node owns and answers on an interface.
    fn is_owned(&self, port: usize, address: IpAddr) -> bool {
        self.snapshot.vip(address).is_some_and(|vip| vip.owned.is_some() && vip.answers_on(port))
    }

    /// Another station says that it has an owned VIP.
    fn conflict(&mut self, vip: IpAddr, mac: Mac) {
        self.announcer.conflict(vip, self.now_ns);
        if !self.shared.lease.is_valid() {
            self.yielded.insert(vip);
        }
        self.shared.stats.conflict(vip, mac);
    }

    fn is_ours(&self, mac: Mac) -> bool {
        self.snapshot.ports.iter().any(|port| port.mac == mac)
    }

    fn arp(&mut self, port: usize, own: Mac, frame: &mut [u8], arp: &arp::Arp) -> Verdict {
        let (sender, target) = (IpAddr::V4(arp.sender), IpAddr::V4(arp.target));
        self.neighbors.heard(port, sender, arp.sender_mac, self.now_ns);
        if arp.operation == arp::Operation::Reply && arp.target_mac == own {
            segment::heard(&self.snapshot.peers, port, sender, self.now_ns);
        }
        if self.is_owned(port, sender) && !self.is_ours(arp.sender_mac) {
            self.conflict(sender, arp.sender_mac);
            return Verdict::Drop(DropReason::ArpConflict);
        }
        // The clock is read last, right before the answer.
        let answer = arp.operation == arp::Operation::Request
            && frame.len() >= arp::FRAME_LEN
            && self.is_owned(port, target)
            && self.announcer.is_active(target)
            && self.may_answer(target);
        if !answer {
            return Verdict::Drop(DropReason::ArpNotOurs);
        }
        arp::answer_in_place(frame, arp, own);
        Verdict::Answer
    }

    fn neighbor(&mut self, port: usize, own: Mac, source: Mac, frame: &mut [u8], message: &ndp::Message) -> Verdict {
        let target = IpAddr::V6(message.target);
        let ndp::Kind::Advertisement { solicited } = message.kind else {
            return self.solicitation(port, own, source, frame, message);
        };
        let Some(mac) = message.mac else { return Verdict::Drop(DropReason::NdpNotOurs) };
        self.neighbors.heard(port, target, mac, self.now_ns);
        if solicited && packet::destination(frame) == Some(own) {
            segment::heard(&self.snapshot.peers, port, target, self.now_ns);
        }
        if self.is_owned(port, target) && !self.is_ours(mac) {
            self.conflict(target, mac);
            return Verdict::Drop(DropReason::NdpConflict);
        }
        Verdict::Drop(DropReason::NdpNotOurs)
    }

    fn solicitation(
        &mut self,
        port: usize,
        own: Mac,
        source: Mac,
        frame: &mut [u8],
        message: &ndp::Message,
    ) -> Verdict {
        if let Some(mac) = message.mac {
            self.neighbors.heard(port, message.source.into(), mac, self.now_ns);
        }
        let vip = IpAddr::V6(message.target);
        if !self.is_owned(port, vip) || self.is_ours(source) {
            return Verdict::Drop(DropReason::NdpNotOurs);
        }
        // Another station wants the address for itself (RFC 4862 5.4.3).
        let contested = message.source.is_unspecified();
        if contested {
            self.shared.stats.conflict(vip, source);
        }
        if !self.announcer.is_active(vip) || !self.may_answer(vip) {
            return Verdict::Drop(DropReason::NdpNotOurs);
        }
        let answer = ndp::advertisement(own, message.mac.unwrap_or(source), message);
        match frame.first_chunk_mut() {
            // What an option more leaves behind the advertisement is padding.
            Some(place) if !contested => {
                *place = answer;
                Verdict::Answer
            }
            // A question without an option is shorter than the answer.
            _ => {
                self.outbox.push(Outgoing { port, frame: answer.to_vec(), kind: Origin::Claim });
                Verdict::Drop(if contested { DropReason::NdpConflict } else { DropReason::NdpNotOurs })
            }
        }
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
        self.announcer.set_owned(snapshot.vips.iter().filter_map(claim), self.now_ns);
        self.flows.set_timeouts(snapshot.timeouts);
        self.neighbors.set_backends(&snapshot, self.now_ns);
        self.snapshot = snapshot;
    }

    /// What is due: announcements, questions for neighbours, and the end of what has waited too long.
    fn tick(&mut self) {
        let given_up = self.fragments.expire(self.now_ns);
        if given_up > 0 {
            self.shared.stats.dropped(DropReason::FragmentTimeout).add(given_up as u64);
            self.count_held();
        }
        for due in self.announcer.due(self.now_ns) {
            match due {
                Due::Announce(vip) => self.announce(vip),
                Due::Probe(vip) => self.probe(vip),
            }
        }
        let mut questions = Vec::new();
        if self.prober.is_due(self.now_ns) {
            let peers = self.snapshot.peers.iter().map(|peer| &peer.spec);
            questions.extend(peers.map(|PeerSpec { port, address, mac }| (*port, *address, Some(*mac))));
        }
        let probes = self.neighbors.due(self.now_ns);
        questions.extend(probes.into_iter().map(|probe| (probe.port, probe.target, probe.last_known)));
        for (at, target, last_known) in questions {
            let port = &self.snapshot.ports[at];
            let sender = port.address_towards(target);
            if let Some(frame) = sender.and_then(|own| packet::question(port.mac, own, target, last_known)) {
                self.outbox.push(Outgoing { port: at, frame, kind: Origin::Own });
            }
        }
    }

    fn announce(&mut self, address: IpAddr) {
        let Some(vip) = self.snapshot.vip(address) else { return };
        if !self.shared.lease.is_valid() {
            self.shared.stats.announcements_withheld.add(1);
            return;
        }
        for (at, port) in self.snapshot.ports.iter().enumerate().filter(|(at, _)| vip.answers_on(*at)) {
            for frame in packet::announcements(port.mac, address) {
                self.outbox.push(Outgoing { port: at, frame, kind: Origin::Claim });
            }
        }
        self.announcer.announced(address, self.now_ns);
    }

    /// Asks whether anybody has a VIP that this node is the first to own.
    fn probe(&mut self, address: IpAddr) {
        let Some(vip) = self.snapshot.vip(address) else { return };
        for (at, port) in self.snapshot.ports.iter().enumerate().filter(|(at, _)| vip.answers_on(*at)) {
            self.outbox.push(Outgoing { port: at, frame: packet::probe(port.mac, address), kind: Origin::Own });
        }
    }

    /// Sends what has gathered beside the frames of the engine.
    fn send_outbox(&mut self, engine: &mut dyn Engine) {
        let mut outbox = std::mem::take(&mut self.outbox);
        for Outgoing { port, frame, kind } in outbox.drain(..) {
            // Right before each announcement, as before each answer.
            if kind == Origin::Claim && !self.shared.lease.is_valid() {
                self.shared.stats.announcements_withheld.add(1);
                continue;
            }
            match (engine.send(port, &frame), kind) {
                (Ok(()), Origin::Received) => {}
                (Ok(()), Origin::Own | Origin::Claim) => self.shared.stats.originated.add(1),
                (Err(_), Origin::Received) => self.send_failed(Sent::Forwarded),
                // Announcements and questions are repeated anyway.
                (Err(error), Origin::Own | Origin::Claim) => {
                    tracing::debug!(%error, "a frame of our own was not sent");
                }
            }
        }
        // Its room is used again.
        self.outbox = outbox;
    }

    /// Answers what the control plane has asked for.
    fn run_errands(&mut self) {
        if !self.shared.errands_wait.swap(false, Ordering::AcqRel) {
            return;
        }
        let errands = std::mem::take(&mut *self.shared.errands.lock().unwrap_or_else(PoisonError::into_inner));
        for errand in errands {
            match errand {
                Errand::Explain(question, reply) => reply.give(self.explain(&question)),
                Errand::ListFlows(slots, reply) => {
                    let now = Tick::from_ns(self.now_ns);
                    let entries = self.flows.entries(slots, now).collect();
                    reply.give((entries, self.flows.slots()));
                }
            }
        }
    }

    /// How long there is nothing to do but frames.
    fn idle(&self) -> Duration {
        let announcements = self.announcer.next_due_ns().map(|at| {
            let withheld = at <= self.now_ns && !self.shared.lease.is_valid();
            if withheld { self.now_ns + LEASE_RETRY_NS } else { at }
        });
        let probes = (!self.snapshot.peers.is_empty()).then(|| self.prober.next_due_ns());
        let due = [announcements, self.neighbors.next_due_ns(), probes, self.fragments.next_due_ns()];
        let next = due.into_iter().flatten().min();
        let wait = next.map_or(MAX_WAIT_NS, |at| at.saturating_sub(self.now_ns)).min(MAX_WAIT_NS);
        Duration::from_nanos(wait.max(1000))
    }
}

/// Rewrites a frame for its backend and counts it, if it can go there. The interface that it leaves by.
#[inline]
fn dispatch(
    snapshot: &Snapshot,
    source: Mac,
    wire_len: usize,
    frame: &mut [u8],
    (vip, backend): (&Vip, &Backend),
) -> Result<usize, NotSent> {
    let (out, mac) = way(snapshot, source, wire_len, backend)?;
    vip.traffic.count(frame.len());
    backend.runtime.traffic.count(frame.len());
    rewrite::to_backend(frame, mac, snapshot.ports[out].mac);
    Ok(out)
}

/// By which interface and to which hardware address a frame gets to a backend.
#[inline]
fn way(snapshot: &Snapshot, source: Mac, wire_len: usize, backend: &Backend) -> Result<(usize, Mac), NotSent> {
    let out = backend.port.ok_or(DropReason::BackendUnreachable)?;
    let mac = backend.mac().ok_or(DropReason::BackendUnresolved)?;
    if mac == source {
        return Err(DropReason::Hairpin.into());
    }
    let mtu = snapshot.ports[out].mtu;
    if wire_len > ETHERNET_HEADER_LEN + mtu as usize {
        return Err(NotSent::TooBig { mtu });
    }
    Ok((out, mac))
}

/// Runs until it is told to stop.
pub(crate) fn run(
    mut core: Core,
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
        shared.seen_generation.store(core.snapshot.generation, Ordering::Release);
        core.now_ns = boottime_ns();
        following.follow(&core.snapshot, core.now_ns);
        core.tick();
        core.run_errands();
        core.send_outbox(&mut *following.engine);
        let idle = core.idle();
        following.engine.turn(idle, &mut core)?;
        core.send_outbox(&mut *following.engine);
        if core.now_ns >= core.count_at_ns {
            core.count_at_ns = core.now_ns + MAX_WAIT_NS;
            core.shared.stats.ring_full.add(following.engine.lost());
            let (remembered, not_remembered) = core.flows.inserted();
            core.shared.stats.flows_remembered.set(remembered);
            core.shared.stats.flows_not_remembered.set(not_remembered);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
