//! What would become of a packet, by the functions that decide on frames; nothing is sent or remembered.

use std::net::IpAddr;

use super::{Core, NotSent, Way, way};
use crate::{
    errand::{Explanation, Kind, Question},
    forward::{DropReason, decide::foresee, flow::Tick},
    packet::{self, FlowPacket, Fragment, Mac, Packet, Protocol, arp, ndp},
};

impl Core {
    /// What would become of a packet now.
    pub(super) fn explain(&self, question: &Question) -> Explanation {
        let frame = match question {
            Question::Flow(tuple) => return self.explain_flow(Kind::Flow, &FlowPacket::of(*tuple), 0),
            Question::Frame(frame) => frame,
        };
        // In a capture the tag stands in the frame; a socket gets it beside the frame.
        match packet::vlan(frame) {
            Some((0, untagged)) => self.explain_frame(&untagged),
            Some(_) => self.dropped(Kind::Other, None, DropReason::VlanTagged),
            None => self.explain_frame(frame),
        }
    }

    fn explain_frame(&self, frame: &[u8]) -> Explanation {
        let parsed = packet::parse(frame);
        // A capture does not say whether a long TCP segment leaves as several.
        let wire_len = match &parsed {
            Packet::Flow(packet) if packet.tuple.protocol == Protocol::Tcp => packet.headers_len.into(),
            _ => frame.len(),
        };
        match parsed {
            Packet::Flow(packet) => self.explain_flow(Kind::Flow, &packet, wire_len),
            Packet::Fragment(Fragment { flow: Some(packet), .. }) => {
                self.explain_flow(Kind::Fragment, &packet, wire_len)
            }
            Packet::Fragment(fragment) => {
                self.explain_address(Kind::Fragment, Some(fragment.datagram.destination.into()))
            }
            Packet::Error(error) => {
                let explained = self.explain_flow(Kind::IcmpError, &FlowPacket::of(error.tuple), wire_len);
                match explained.dropped {
                    Some(DropReason::NoService) => {
                        Explanation { dropped: Some(DropReason::IcmpUnrelated), ..explained }
                    }
                    _ => explained,
                }
            }
            Packet::Echo(echo) => self.answered(Kind::Echo, echo.destination.into(), DropReason::EchoNotOurs),
            Packet::Arp(arp) => self.explain_arp(&arp),
            Packet::Neighbor(message) => self.explain_neighbor(&message),
            Packet::Other(reason, destination) => self.dropped(Kind::Other, destination.map(IpAddr::from), reason),
        }
    }

    fn dropped(&self, kind: Kind, destination: Option<IpAddr>, reason: DropReason) -> Explanation {
        Explanation { dropped: Some(reason), ..self.explain_address(kind, destination) }
    }

    /// A question about an address, which this node answers, or is silent.
    fn answered(&self, kind: Kind, address: IpAddr, silent: DropReason) -> Explanation {
        let explained = self.explain_address(kind, Some(address));
        match (explained.answers, explained.is_vip, kind) {
            (true, ..) | (_, false, Kind::Echo) => explained,
            _ => Explanation { dropped: Some(silent), ..explained },
        }
    }

    fn explain_arp(&self, arp: &arp::Arp) -> Explanation {
        let sender = IpAddr::V4(arp.sender);
        match arp.operation {
            _ if self.is_claimed(sender, arp.sender_mac) => {
                self.dropped(Kind::Arp, Some(sender), DropReason::ArpConflict)
            }
            arp::Operation::Request => self.answered(Kind::Arp, arp.target.into(), DropReason::ArpNotOurs),
            _ => self.dropped(Kind::Arp, Some(arp.target.into()), DropReason::ArpNotOurs),
        }
    }

    fn explain_neighbor(&self, message: &ndp::Message) -> Explanation {
        let target = IpAddr::V6(message.target);
        let claimed = message.mac.is_some_and(|mac| self.is_claimed(target, mac));
        match message.kind {
            ndp::Kind::Advertisement { .. } if claimed => {
                self.dropped(Kind::Neighbor, Some(target), DropReason::NdpConflict)
            }
            ndp::Kind::Advertisement { .. } => self.dropped(Kind::Neighbor, Some(target), DropReason::NdpNotOurs),
            ndp::Kind::Solicitation if message.source.is_unspecified() && self.owns(target) => {
                self.dropped(Kind::Neighbor, Some(target), DropReason::NdpConflict)
            }
            ndp::Kind::Solicitation => self.answered(Kind::Neighbor, target, DropReason::NdpNotOurs),
        }
    }

    fn owns(&self, address: IpAddr) -> bool {
        self.snapshot.vip(address).is_some_and(|vip| vip.owned.is_some())
    }

    /// Another station says that it has an owned VIP.
    fn is_claimed(&self, address: IpAddr, mac: Mac) -> bool {
        self.owns(address) && !self.is_ours(mac)
    }

    /// Whether this node may answer for an address at this moment.
    fn answers(&self, address: IpAddr) -> bool {
        self.owns(address) && self.speaker.announcer.is_active(address) && self.shared.lease.is_valid()
    }

    fn explain_address(&self, kind: Kind, destination: Option<IpAddr>) -> Explanation {
        let is_vip = destination.is_some_and(|address| self.snapshot.vip(address).is_some());
        Explanation {
            kind,
            tuple: None,
            destination,
            is_vip,
            answers: destination.is_some_and(|address| self.answers(address)),
            service: None,
            backend: None,
            why: None,
            table_size: None,
            mac: None,
            interface: None,
            dropped: (destination.is_some() && !is_vip).then_some(DropReason::NotVip),
        }
    }

    /// By the functions that decide on frames.
    fn explain_flow(&self, kind: Kind, packet: &FlowPacket, wire_len: usize) -> Explanation {
        let snapshot = &*self.snapshot;
        let tuple = &packet.tuple;
        let at = self.explain_address(kind, Some(tuple.destination.into()));
        let vip = snapshot.vip(tuple.destination);
        let service = vip.and_then(|vip| vip.service(tuple.protocol, tuple.destination_port));
        let service = service.map(|at| &snapshot.services[at as usize]);
        let explained = Explanation { tuple: Some(*tuple), service: service.map(|s| s.name.clone()), ..at };
        let to = match foresee(snapshot, &self.flows, packet, Tick::from_ns(self.now_ns)) {
            Ok(to) => to,
            Err(reason) => return Explanation { dropped: Some(reason), ..explained },
        };
        let way = way(snapshot, Mac::ZERO, wire_len, to.backend);
        let interface = way.as_ref().ok().map(|way| match way {
            Way::Port(port, _) => snapshot.ports[*port].name.clone(),
            Way::OwnKernel => "lo".to_owned(),
        });
        Explanation {
            backend: Some(to.backend.address),
            why: Some(to.why),
            table_size: service.and_then(|service| service.maglev.as_ref()).map(|maglev| maglev.size()),
            mac: to.backend.mac(),
            interface,
            dropped: way.err().map(NotSent::reason),
            ..explained
        }
    }
}
