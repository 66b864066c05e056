//! What would become of a packet, by the functions that decide on frames; nothing is sent or remembered.

use std::net::IpAddr;

use super::{Core, NotSent, Way, way};
use crate::{
    errand::{Explanation, Kind, Question},
    forward::{DropReason, decide::foresee, flow::Tick},
    packet::{self, FlowPacket, Fragment, Mac, Packet},
};

impl Core {
    /// What would become of a packet now.
    pub(super) fn explain(&self, question: &Question) -> Explanation {
        let answered = |kind, address: IpAddr, silent| Explanation {
            dropped: Some(silent).filter(|_| !self.answers(address)),
            ..self.explain_address(kind, Some(address))
        };
        let frame = match question {
            Question::Flow(tuple) => return self.explain_flow(Kind::Flow, &FlowPacket::of(*tuple)),
            Question::Frame(frame) => frame,
        };
        match packet::parse(frame) {
            Packet::Flow(packet) => self.explain_flow(Kind::Flow, &packet),
            Packet::Fragment(Fragment { flow: Some(packet), .. }) => self.explain_flow(Kind::Fragment, &packet),
            Packet::Fragment(fragment) => {
                self.explain_address(Kind::Fragment, Some(fragment.datagram.destination.into()))
            }
            Packet::Error(error) => self.explain_flow(Kind::IcmpError, &FlowPacket::of(error.tuple)),
            Packet::Echo(echo) => answered(Kind::Echo, echo.destination.into(), DropReason::EchoNotOurs),
            Packet::Arp(arp) => answered(Kind::Arp, arp.target.into(), DropReason::ArpNotOurs),
            Packet::Neighbor(message) => answered(Kind::Neighbor, message.target.into(), DropReason::NdpNotOurs),
            Packet::Other(reason, destination) => Explanation {
                dropped: Some(reason),
                ..self.explain_address(Kind::Other, destination.map(IpAddr::from))
            },
        }
    }

    /// Whether this node may answer for an address at this moment.
    fn answers(&self, address: IpAddr) -> bool {
        let owned = self.snapshot.vip(address).is_some_and(|vip| vip.owned.is_some());
        owned && self.speaker.announcer.is_active(address) && self.shared.lease.is_valid()
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
    fn explain_flow(&self, kind: Kind, packet: &FlowPacket) -> Explanation {
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
        let way = way(snapshot, Mac::ZERO, packet.headers_len.into(), to.backend);
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
