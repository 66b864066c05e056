//! One owner's voice: which VIPs this node may speak for ([`permit`]), when it announces them ([`announce`]), whom it asks
//! ([`neighbor`] for backends, [`peers`] for the other load balancers), what it answers ([`answers`]), and which groups it
//! listens to ([`multicast`]). Pure but for [`permit`], which alone reads the lease's clock, and [`multicast`], which joins.
//!
//! The worker drives it: what is due comes out as values, and is sent by [`crate::worker`].

pub mod announce;
pub(crate) mod answers;
pub(crate) mod multicast;
pub mod neighbor;
pub(crate) mod peers;
pub mod permit;
pub(crate) mod routers;

use std::{hash::Hasher as _, net::IpAddr};

use siphasher::sip::SipHasher13;

use crate::{
    forward::{runtime::Peer, snapshot::Snapshot, spec::PeerSpec},
    packet::{self, Mac, arp, ndp},
};
use announce::{Announcer, Claim, Due};
use neighbor::{Change, Claim as NeighborClaim, Heard, Neighbors};
use peers::Prober;
use permit::{Grant, Permit};
use routers::Routers;

/// What the node's one speaker knows, and carries over to the worker that speaks next.
#[derive(Debug, Default)]
pub(crate) struct Speaker {
    pub(crate) announcer: Announcer,
    neighbors: Neighbors,
    prober: Prober,
}

/// A frame that the speaker wants sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Saying {
    /// A question.
    Question { port: usize, frame: Vec<u8> },
    /// It says that this node has a VIP: only with a permit at the moment of its sending.
    Claim { port: usize, frame: Vec<u8> },
    /// An announcement is due, and there is no permit for it.
    Withheld,
    /// A backend has another MAC address.
    Changed(Change),
    /// A backend answers no more.
    Silent,
}

/// By what a speaker judges what it hears.
#[derive(Clone, Copy)]
pub(crate) struct Ear<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) routers: &'a Routers,
    /// Where the frame came by, from whom, and whether it was sent to this node alone.
    pub(crate) port: usize,
    pub(crate) source: Mac,
    pub(crate) to_us: bool,
    pub(crate) now_ns: u64,
}

impl Ear<'_> {
    /// Whether a station may be a backend: not one that sends back here what it is sent.
    /// `is_answer`: to a question of this node, which a router only gives that is a backend, too.
    fn believes(&self, claim: &NeighborClaim, is_answer: bool, is_known: bool) -> bool {
        let Self { snapshot, routers, port, now_ns, .. } = *self;
        let is_peer_of_another_address =
            snapshot.is_peer(claim.mac) && !snapshot.peer_addresses.contains(&(claim.mac, claim.address));
        let is_router = (is_known || !is_answer) && routers.contains(port, claim.mac, now_ns);
        !snapshot.is_own_mac(claim.mac) && !is_peer_of_another_address && !is_router
    }
}

impl Speaker {
    /// Works with another table, or with other grants, from now on.
    pub(crate) fn adopt(&mut self, snapshot: &Snapshot, permit: &Permit, now_ns: u64) {
        let claim = |grant: &Grant| {
            let vip = snapshot.vip(grant.vip)?;
            let mut place = SipHasher13::new();
            for (_, port) in snapshot.ports.iter().enumerate().filter(|(at, _)| vip.answers_on(*at)) {
                place.write(&port.mac.0);
                // A link that comes back is announced on again: whoever is behind it may have missed the last one.
                place.write_u8(port.carrier.into());
            }
            Some((grant.vip, Claim { epoch: grant.epoch, place: place.finish(), first: grant.first }))
        };
        self.announcer.set_owned(permit.grants().filter_map(claim), now_ns);
    }

    /// Asks for the backends of another table from now on.
    pub(crate) fn adopt_backends(&mut self, snapshot: &Snapshot, now_ns: u64) {
        self.neighbors.set_backends(snapshot, now_ns);
    }

    /// Learns from an ARP packet who has which address.
    pub(crate) fn hear_arp(&mut self, ear: Ear<'_>, arp: &arp::Arp) -> Heard {
        let (port, address) = (ear.port, IpAddr::V4(arp.sender));
        let is_answer = arp.operation == arp::Operation::Reply && arp.target_mac == ear.snapshot.ports[port].mac;
        if is_answer && arp.sender_mac == ear.source {
            peers::heard(&ear.snapshot.peers, port, address, ear.now_ns);
        }
        self.consider(ear, NeighborClaim { port, address, mac: arp.sender_mac, overrides: true }, is_answer)
    }

    /// Learns from neighbour discovery who has which address.
    pub(crate) fn hear_neighbor(&mut self, ear: Ear<'_>, message: &ndp::Message) -> Heard {
        let (solicited, overrides) = match message.kind {
            ndp::Kind::Advertisement { solicited, overrides } => (solicited, overrides),
            ndp::Kind::Solicitation => (false, true),
        };
        let (port, address, is_answer) = (ear.port, IpAddr::V6(message.of()), solicited && ear.to_us);
        let mac = match message.mac {
            Some(mac) => mac,
            // A station that is asked alone need not say where it is (RFC 4861 4.4), and Linux does not: such an answer
            // shows that whoever was asked is there, and nothing else.
            None if is_answer && self.is_known_as(ear, address) => ear.source,
            None => return Heard::Taken,
        };
        if is_answer && mac == ear.source {
            peers::heard(&ear.snapshot.peers, port, address, ear.now_ns);
        }
        self.consider(ear, NeighborClaim { port, address, mac, overrides }, is_answer)
    }

    /// Whether that is the station that a backend or a peer is known as.
    fn is_known_as(&self, ear: Ear<'_>, address: IpAddr) -> bool {
        let is_peer =
            |peer: &Peer| (peer.spec.port, peer.spec.address, peer.spec.mac) == (ear.port, address, Some(ear.source));
        self.neighbors.known(ear.port, address) == Some(Some(ear.source)) || ear.snapshot.peers.iter().any(is_peer)
    }

    fn consider(&mut self, ear: Ear<'_>, claim: NeighborClaim, is_answer: bool) -> Heard {
        let Some(known) = self.neighbors.known(claim.port, claim.address) else { return Heard::Taken };
        let speaks_for_itself = claim.mac == ear.source;
        let is_believed = known == Some(claim.mac) || ear.believes(&claim, is_answer, known.is_some());
        match speaks_for_itself && is_believed {
            true => self.neighbors.heard(&claim, ear.now_ns),
            false => Heard::Refused { claimed: claim.mac },
        }
    }

    /// Frames were lost here: whoever was heard before may have answered.
    pub(crate) fn excuse_silence(&mut self, snapshot: &Snapshot, now_ns: u64) {
        peers::excuse_silence(&snapshot.peers, now_ns);
        self.neighbors.excuse_silence(now_ns);
    }

    /// The questions whether somebody has a VIP (RFC 5227 2.1, RFC 4862 5.4), and the interfaces by which they go.
    pub(crate) fn probe(snapshot: &Snapshot, vip: IpAddr) -> impl Iterator<Item = (usize, Vec<u8>)> {
        let on = snapshot.vip(vip).into_iter().flat_map(|vip| snapshot.ports_of(vip));
        on.map(move |(port, of)| (port, packet::probe(of.mac, vip)))
    }

    /// What is due now: announcements, and questions for backends and peers.
    pub(crate) fn due(&mut self, snapshot: &Snapshot, permit: &Permit, now_ns: u64) -> Vec<Saying> {
        let mut sayings = Vec::new();
        for due in self.announcer.due(now_ns) {
            match due {
                Due::Announce(vip) => self.announce(snapshot, permit, vip, now_ns, &mut sayings),
                Due::Probe(address) => {
                    let questions = Self::probe(snapshot, address);
                    sayings.extend(questions.map(|(port, frame)| Saying::Question { port, frame }));
                }
            }
        }
        let mut questions: Vec<(usize, IpAddr, Option<Mac>)> = Vec::new();
        if self.prober.is_due(now_ns) {
            let peers = snapshot.peers.iter().map(|peer| &peer.spec);
            questions.extend(peers.map(|PeerSpec { port, address, mac }: &PeerSpec| (*port, *address, *mac)));
        }
        let due = self.neighbors.due(now_ns);
        sayings.extend(due.changes.into_iter().map(Saying::Changed));
        sayings.extend((0..due.silent).map(|_| Saying::Silent));
        questions.extend(due.probes.into_iter().map(|probe| (probe.port, probe.target, probe.last_known)));
        sayings.extend(questions.into_iter().filter_map(|(port, target, last_known)| {
            let of = &snapshot.ports[port];
            // A router may be known by its link-local address alone, and no node has one that it speaks from.
            let own = of.address_towards(target).or_else(|| of.address_like(target))?;
            let frame = packet::question(of.mac, own, target, last_known)?;
            Some(Saying::Question { port, frame })
        }));
        sayings
    }

    fn announce(
        &mut self,
        snapshot: &Snapshot,
        permit: &Permit,
        address: IpAddr,
        now_ns: u64,
        sayings: &mut Vec<Saying>,
    ) {
        let Some(vip) = snapshot.vip(address) else { return };
        if !permit.to_announce() {
            sayings.push(Saying::Withheld);
            return;
        }
        for (port, of) in snapshot.ports_of(vip) {
            let frames = packet::announcements(of.mac, address);
            sayings.extend(frames.into_iter().map(|frame| Saying::Claim { port, frame }));
        }
        self.announcer.announced(address, now_ns);
    }

    /// When [`Self::due`] has something again. `retry_ns`: for how long an announcement waits that has no permit.
    pub(crate) fn next_due_ns(&self, snapshot: &Snapshot, permit: &Permit, now_ns: u64, retry_ns: u64) -> Option<u64> {
        let announcements = self.announcer.next_due_ns().map(|at| {
            let withheld = at <= now_ns && !permit.to_announce();
            if withheld { now_ns + retry_ns } else { at }
        });
        let probes = (!snapshot.peers.is_empty()).then(|| self.prober.next_due_ns());
        [announcements, self.neighbors.next_due_ns(), probes].into_iter().flatten().min()
    }
}
