//! The worker: a thread with an engine, a flow table, and its part of the counters. [`Core::judge`] is
//! the whole way of a frame, top to bottom; it is free of system calls but for the clock before an
//! answer.

use std::{
    collections::HashSet,
    hash::Hasher as _,
    io,
    net::Ipv4Addr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use siphasher::sip::SipHasher13;

use crate::{
    announce::{Announcer, Claim, Due},
    forward::{
        DropReason, Verdict,
        decide::decide,
        flow::{FlowTable, Tick},
        table::{Backend, Snapshot, Vip},
    },
    handle::Shared,
    io::{Engine, FrameMeta},
    lease::boottime_ns,
    neighbor::Neighbors,
    packet::{self, ETHERNET_HEADER_LEN, Echo, FlowPacket, Mac, Packet, arp, rewrite},
    segment::{self, PeerSpec, Prober},
};

/// The longest sleep: counters are brought up to date at least this often.
const MAX_WAIT_NS: u64 = 100_000_000;
/// Before an announcement that the lease did not allow is tried again.
const LEASE_RETRY_NS: u64 = 5_000_000;

/// How a frame left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    Forwarded,
    Answered,
}

/// What a worker knows and decides; the engine moves its frames.
pub struct Core {
    snapshot: Arc<Snapshot>,
    flows: FlowTable,
    announcer: Announcer,
    neighbors: Neighbors,
    prober: Prober,
    /// VIPs that others have claimed since the lease ran out: not answered, even where it is held.
    yielded: HashSet<Ipv4Addr>,
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
            announcer: Announcer::default(),
            neighbors: Neighbors::default(),
            prober: Prober::default(),
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
        match packet::parse(frame) {
            Packet::Arp(arp) if for_us || destination == Mac::BROADCAST => self.arp(port, own, frame, &arp),
            _ if !for_us => Verdict::Drop(DropReason::NotForUs),
            Packet::Flow(flow) => match self.flow(source, meta, frame, &flow) {
                Ok(port) => Verdict::Forward { port },
                Err(reason) => Verdict::Drop(reason),
            },
            Packet::Echo(echo) => self.echo(own, frame, &echo),
            Packet::Arp(_) => Verdict::Drop(DropReason::NotForUs),
            Packet::Other(reason, destination) => {
                let for_vip = destination.is_none_or(|address| self.snapshot.vip(address).is_some());
                Verdict::Drop(if for_vip { reason } else { DropReason::NotVip })
            }
        }
    }

    /// TCP and UDP: to the backend, by the interface on whose segment it is.
    fn flow(&mut self, source: Mac, meta: FrameMeta, frame: &mut [u8], flow: &FlowPacket) -> Result<usize, DropReason> {
        if self.snapshot.is_peer(source) {
            return Err(DropReason::BalancedTwice);
        }
        let now = Tick::from_ns(self.now_ns);
        let decision = decide(&self.snapshot, &mut self.flows, flow, now)?;
        let backend: &Backend = decision.backend;
        let out = backend.port.ok_or(DropReason::BackendUnreachable)?;
        let mac = backend.mac().ok_or(DropReason::BackendUnresolved)?;
        if mac == source {
            return Err(DropReason::Hairpin);
        }
        let leaving = &self.snapshot.ports[out];
        // A super-frame leaves as segments of this size.
        let wire_len = match meta.gso_size {
            Some(size) => flow.headers_len + usize::from(size),
            None => frame.len(),
        };
        if wire_len > ETHERNET_HEADER_LEN + leaving.mtu as usize {
            return Err(DropReason::TooBig);
        }
        decision.vip.traffic.count(frame.len());
        backend.runtime.traffic.count(frame.len());
        rewrite::to_backend(frame, mac, leaving.mac);
        Ok(out)
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
    fn may_answer(&mut self, vip: Ipv4Addr) -> bool {
        if self.shared.lease.is_valid() {
            self.yielded.clear();
            return true;
        }
        self.shared.lease.is_held() && !self.yielded.contains(&vip)
    }

    fn arp(&mut self, port: usize, own: Mac, frame: &mut [u8], arp: &arp::Arp) -> Verdict {
        self.neighbors.heard(port, arp.sender, arp.sender_mac, self.now_ns);
        segment::heard(&self.snapshot.peers, port, own, arp, self.now_ns);
        let owned = |address: Ipv4Addr| {
            let vip = self.snapshot.vip(address)?;
            vip.owned.filter(|_| vip.answers_on(port))
        };
        let is_ours = self.snapshot.ports.iter().any(|port| port.mac == arp.sender_mac);
        if owned(arp.sender).is_some() && !is_ours {
            self.announcer.conflict(arp.sender, self.now_ns);
            if !self.shared.lease.is_valid() {
                self.yielded.insert(arp.sender);
            }
            self.shared.stats.conflict(arp.sender, arp.sender_mac);
            return Verdict::Drop(DropReason::ArpConflict);
        }
        // The clock is read last, right before the answer.
        let answer = arp.operation == arp::Operation::Request
            && frame.len() >= arp::FRAME_LEN
            && owned(arp.target).is_some()
            && self.announcer.is_active(arp.target)
            && self.may_answer(arp.target);
        if !answer {
            return Verdict::Drop(DropReason::ArpNotOurs);
        }
        arp::answer_in_place(frame, arp, own);
        Verdict::Answer
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
        self.neighbors.set_backends(&snapshot, self.now_ns);
        self.snapshot = snapshot;
    }

    /// What is due: announcements and questions for backends.
    fn tick(&mut self, engine: &mut dyn Engine) {
        for due in self.announcer.due(self.now_ns) {
            match due {
                Due::Announce(vip) => self.announce(engine, vip),
                Due::Probe(vip) => self.probe(engine, vip),
            }
        }
        if self.prober.is_due(self.now_ns) {
            for peer in &self.snapshot.peers {
                let (PeerSpec { address, mac, .. }, port) = (&peer.spec, &self.snapshot.ports[peer.spec.port]);
                if let Some(sender) = port.address_towards(*address) {
                    self.originate(engine, peer.spec.port, &arp::request(port.mac, sender, *address, Some(*mac)));
                }
            }
        }
        for probe in self.neighbors.due(self.now_ns) {
            let port = &self.snapshot.ports[probe.port];
            if let Some(sender) = port.address_towards(probe.target) {
                let frame = arp::request(port.mac, sender, probe.target, probe.last_known);
                self.originate(engine, probe.port, &frame);
            }
        }
    }

    fn announce(&mut self, engine: &mut dyn Engine, address: Ipv4Addr) {
        let Some(vip) = self.snapshot.vip(address) else { return };
        for (at, port) in self.snapshot.ports.iter().enumerate().filter(|(at, _)| vip.answers_on(*at)) {
            for frame in arp::announcements(port.mac, address) {
                // Right before each announcement, as before each answer.
                if !self.shared.lease.is_valid() {
                    self.shared.stats.announcements_withheld.add(1);
                    return;
                }
                self.originate(engine, at, &frame);
            }
        }
        self.announcer.announced(address, self.now_ns);
    }

    /// Asks whether anybody has a VIP that this node is the first to own.
    fn probe(&self, engine: &mut dyn Engine, address: Ipv4Addr) {
        let Some(vip) = self.snapshot.vip(address) else { return };
        for (at, port) in self.snapshot.ports.iter().enumerate().filter(|(at, _)| vip.answers_on(*at)) {
            self.originate(engine, at, &arp::probe(port.mac, address));
        }
    }

    fn originate(&self, engine: &mut dyn Engine, port: usize, frame: &[u8]) {
        match engine.send(port, frame) {
            Ok(()) => self.shared.stats.originated.add(1),
            // It is repeated anyway.
            Err(error) => tracing::debug!(%error, "a frame of our own was not sent"),
        }
    }

    /// How long there is nothing to do but frames.
    fn idle(&self) -> Duration {
        let announcements = self.announcer.next_due_ns().map(|at| {
            let withheld = at <= self.now_ns && !self.shared.lease.is_valid();
            if withheld { self.now_ns + LEASE_RETRY_NS } else { at }
        });
        let probes = (!self.snapshot.peers.is_empty()).then(|| self.prober.next_due_ns());
        let next = [announcements, self.neighbors.next_due_ns(), probes].into_iter().flatten().min();
        let wait = next.map_or(MAX_WAIT_NS, |at| at.saturating_sub(self.now_ns)).min(MAX_WAIT_NS);
        Duration::from_nanos(wait.max(1000))
    }
}

/// Runs until it is told to stop.
pub(crate) fn run(mut core: Core, mut engine: Box<dyn Engine>) -> io::Result<()> {
    let shared = core.shared.clone();
    engine.set_filter(&core.snapshot.filter)?;
    while !shared.stop.load(Ordering::Acquire) {
        let published = shared.snapshot.load();
        if published.generation != core.snapshot.generation {
            let snapshot = published.clone();
            // A table whose VIPs the filter would not let by is not taken up: it is tried again next turn.
            match snapshot.filter != core.snapshot.filter {
                true => match engine.set_filter(&snapshot.filter) {
                    Ok(()) => core.adopt(snapshot),
                    Err(error) => tracing::error!(%error, "the socket filter cannot be replaced"),
                },
                false => core.adopt(snapshot),
            }
        }
        // Whatever was judged before this line was judged by an older table.
        shared.seen_generation.store(core.snapshot.generation, Ordering::Release);
        core.now_ns = boottime_ns();
        core.tick(&mut *engine);
        let idle = core.idle();
        engine.turn(idle, &mut core)?;
        if core.now_ns >= core.count_at_ns {
            core.count_at_ns = core.now_ns + MAX_WAIT_NS;
            core.shared.stats.ring_full.add(engine.lost());
            let (remembered, not_remembered) = core.flows.inserted();
            core.shared.stats.flows_remembered.set(remembered);
            core.shared.stats.flows_not_remembered.set(not_remembered);
        }
    }
    Ok(())
}
