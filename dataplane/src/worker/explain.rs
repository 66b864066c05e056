//! What would become of a packet, by the decision tree that frames are judged by; nothing is sent or remembered.

use std::net::IpAddr;

use etherparse::PacketBuilder;

use super::{
    classify::{Arrival, Intent, Judge, Peek, Rare, Reading},
    handoff::Came,
    pipeline::Pipeline,
};
use crate::{
    forward::{
        decide::{Place, Unchanged, decide},
        egress::Egress,
        flow::Tick,
    },
    packet::{self, FlowPacket, Fragment, FrameMeta, Mac, Packet, Protocol, Tuple, VnetHeader, arp, ndp},
    query::{Explanation, Kind, Outcome, Question},
    speaker::answers::{Answer, Reaction, Voice},
    verdict::DropReason,
};

/// The station that a question's packet is said to come from: a host of the documentation range (RFC 7042 2.1.2).
const ASKER: Mac = Mac([0x02, 0x00, 0x5e, 0x00, 0x53, 0x01]);

impl Pipeline {
    /// What would become of a packet now. It is taken to have been sent to this node, by a station that is no backend, and
    /// no load balancer unless the packet is that one's own.
    pub(super) fn explain(&self, question: &Question) -> Explanation {
        let frame = match question {
            Question::Flow(tuple) => frame_of(tuple),
            Question::Frame(frame) => frame.clone(),
        };
        // In a capture the tag stands in the frame; a socket gets it beside the frame.
        let (vlan_tagged, mut frame) = match packet::vlan(&frame) {
            Some((number, untagged)) => (number != 0, untagged),
            None => (false, frame),
        };
        let port = self.asked_at(&frame);
        let own = self.snapshot.ports.get(port).map_or(Mac::ZERO, |port| port.mac);
        let station = packet::flow(&frame).map_or(ASKER, |flow| self.station_of(flow.tuple.source.into()));
        address(&mut frame, own, station);
        // A capture does not say whether a long TCP segment leaves as several: it does, if it is too long.
        let mtu = self.snapshot.ports.get(port).map_or(0, |port| port.mtu as usize);
        let leaves_in_segments = frame.len() > mtu + packet::ETHERNET_HEADER_LEN
            && packet::flow(&frame).is_some_and(|flow| flow.tuple.protocol == Protocol::Tcp);
        let vnet = if leaves_in_segments { VnetHeader::tcp_segments_of(1) } else { VnetHeader::default() };
        self.explain_frame(port, FrameMeta { vlan_tagged, vnet }, &frame)
    }

    /// Who sends a client's frames here: another load balancer those that it sends itself, a router those of all others.
    fn station_of(&self, client: IpAddr) -> Mac {
        let peer = self.snapshot.peers.iter().find(|peer| peer.spec.address == client);
        peer.and_then(|peer| peer.spec.mac).unwrap_or(ASKER)
    }

    /// The interface at which a frame would ask for what it asks for.
    fn asked_at(&self, frame: &[u8]) -> usize {
        let target = match packet::parse(frame) {
            Packet::Arp(arp) => IpAddr::V4(arp.target),
            Packet::Neighbor(message) => IpAddr::V6(message.target),
            _ => return 0,
        };
        self.snapshot.vip(target).and_then(|vip| self.snapshot.ports_of(vip).next()).map_or(0, |(port, _)| port)
    }

    /// What would become of a frame that comes by this port now.
    pub(super) fn explain_frame(&self, port: usize, meta: FrameMeta, frame: &[u8]) -> Explanation {
        let judge = Judge {
            snapshot: &self.snapshot,
            handoff: self.handoff.as_ref(),
            permit: &self.permit,
            speaker: self.speaker.as_ref(),
            now_ns: self.now_ns,
        };
        let mut memory = Reading { flows: Unchanged(&self.flows), fragments: &self.fragments };
        // Whoever asks has found the worker that owns the flow.
        let arrival = Arrival { port, meta, frame, peek: &Peek::NOTHING, came: Came::FromWorker };
        let intent = judge.classify(&arrival, &mut memory);
        let mut explained = self.about(port, frame);
        explained.outcome = self.outcome(&intent);
        if let Intent::Forward { backend, why, egress, .. } | Intent::Reformed { backend, why, egress, .. } = intent {
            explained.backend = Some(backend.address);
            explained.why = why.or(explained.why);
            explained.mac = backend.mac();
            explained.interface = Some(match egress {
                Egress::Port(port, _) => self.snapshot.ports[port].name.clone(),
                Egress::Local => "lo".to_owned(),
            });
        }
        explained
    }

    fn outcome(&self, intent: &Intent<'_>) -> Outcome {
        let drop = Outcome::Drop;
        match intent {
            Intent::Forward { egress: Egress::Local, .. } | Intent::Other(Rare::Deliver) => Outcome::Deliver,
            Intent::Forward { .. } | Intent::Reformed { .. } => Outcome::Forward,
            Intent::Other(rare) => match rare {
                Rare::HandOff(_) | Rare::Hold(_) => Outcome::WithFirstFragment,
                Rare::React(Reaction::Answer(Answer::Echo(_))) if !self.echoes.would_admit(self.now_ns) => {
                    drop(DropReason::EchoLimited)
                }
                Rare::React(Reaction::Answer(_)) => Outcome::Answer,
                Rare::Refuse(_, refusal) => drop(refusal.reason(self.refusals.would_admit(self.now_ns))),
                Rare::TooBig { .. } => drop(DropReason::TooBig),
                Rare::React(Reaction::Drop { reason, .. }) | Rare::Drop(reason) => drop(*reason),
                Rare::Deliver => Outcome::Deliver,
            },
        }
    }

    /// What a frame is, what it is about, and which backend its flow has, whether it gets there or not.
    fn about(&self, port: usize, frame: &[u8]) -> Explanation {
        let (kind, flow, destination) = match packet::parse(frame) {
            Packet::Flow(packet) => (Kind::Flow, Some(packet), None),
            Packet::Fragment(Fragment { flow: Some(packet), .. }) => (Kind::Fragment, Some(packet), None),
            Packet::Fragment(fragment) => (Kind::Fragment, None, Some(fragment.datagram.destination.into())),
            Packet::Error(error) => (Kind::IcmpError, Some(FlowPacket::of(error.tuple)), None),
            Packet::Echo(echo) => (Kind::Echo, None, Some(echo.destination.into())),
            Packet::Arp(arp) => (Kind::Arp, None, Some(self.asked_for(&arp))),
            Packet::Neighbor(ndp::Message { target, .. }) => (Kind::Neighbor, None, Some(IpAddr::V6(target))),
            Packet::Other(_, destination) => (Kind::Other, None, destination.map(IpAddr::from)),
        };
        let snapshot = &*self.snapshot;
        let destination = flow.map(|flow| flow.tuple.destination.into()).or(destination);
        let vip = destination.and_then(|address| snapshot.vip(address));
        let voice = Voice { snapshot, permit: &self.permit, speaker: self.speaker.as_ref(), port };
        let place = flow.map(|flow| (flow, Place::find(snapshot, &flow.tuple)));
        let (mut service, mut decision) = (None, None);
        if let Some((packet, Ok(place))) = place {
            service = Some(place.service(snapshot));
            let flows = &mut Unchanged(&self.flows);
            decision = decide(snapshot, flows, &packet, &place, Tick::from_ns(self.now_ns)).ok();
        }
        Explanation {
            kind,
            outcome: Outcome::Drop(DropReason::NotVip),
            tuple: flow.map(|flow| flow.tuple),
            destination,
            is_vip: vip.is_some(),
            answers: vip.is_some_and(|vip| voice.answers(vip.address)),
            service: service.map(|service| service.name.clone()),
            backend: decision.map(|decision| decision.backend.address),
            why: decision.map(|decision| decision.why),
            table_size: service.and_then(|service| service.maglev.as_ref()).map(|maglev| maglev.size()),
            mac: decision.and_then(|decision| decision.backend.mac()),
            interface: None,
        }
    }

    /// The address that an ARP packet is about: the VIP that it claims, or what it asks for.
    fn asked_for(&self, arp: &arp::Arp) -> IpAddr {
        let claims = self.permit.owns(arp.sender.into()) && !self.snapshot.is_own_mac(arp.sender_mac);
        IpAddr::V4(if claims { arp.sender } else { arp.target })
    }
}

/// Makes a frame one that a station has sent to this node. Whoever captured it may have stood elsewhere.
fn address(frame: &mut [u8], own: Mac, station: Mac) {
    if packet::destination(frame).is_some_and(|destination| !destination.is_group()) {
        frame[..6].copy_from_slice(&own.0);
    }
    if let Some(source) = frame.get_mut(6..12) {
        source.copy_from_slice(&station.0);
    }
}

/// A packet of a flow, not the first of a TCP connection.
fn frame_of(tuple: &Tuple) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(ASKER.0, Mac::ZERO.0);
    let (ports, mut frame) = ((tuple.source_port, tuple.destination_port), Vec::new());
    let ip = match (tuple.source.into(), tuple.destination.into()) {
        (IpAddr::V4(source), IpAddr::V4(vip)) => ethernet.ipv4(source.octets(), vip.octets(), 64),
        (source, vip) => ethernet.ipv6(v6(source), v6(vip), 64),
    };
    let written = match tuple.protocol {
        Protocol::Tcp => ip.tcp(ports.0, ports.1, 1, 1).ack(1).write(&mut frame, &[]),
        Protocol::Udp => ip.udp(ports.0, ports.1).write(&mut frame, &[]),
    };
    debug_assert!(written.is_ok(), "a frame is written to memory");
    frame
}

fn v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
