//! What is due without a frame: announcements, questions for neighbours, and the end of what has waited too long.

use std::net::IpAddr;

use super::{Core, Outgoing};
use crate::{announce::Due, forward::DropReason, packet, segment::PeerSpec};

impl Core {
    /// What is due: announcements, questions for neighbours, and the end of what has waited too long.
    pub(super) fn tick(&mut self) {
        let given_up = self.fragments.expire(self.now_ns);
        if given_up > 0 {
            self.own.stats.dropped(DropReason::FragmentTimeout).add(given_up as u64);
            self.count_held();
        }
        if !self.is_speaker() {
            return;
        }
        for due in self.speaker.announcer.due(self.now_ns) {
            match due {
                Due::Announce(vip) => self.announce(vip),
                Due::Probe(vip) => self.probe(vip),
            }
        }
        let mut questions = Vec::new();
        if self.speaker.prober.is_due(self.now_ns) {
            let peers = self.snapshot.peers.iter().map(|peer| &peer.spec);
            questions.extend(peers.map(|PeerSpec { port, address, mac }| (*port, *address, Some(*mac))));
        }
        let probes = self.speaker.neighbors.due(self.now_ns);
        questions.extend(probes.into_iter().map(|probe| (probe.port, probe.target, probe.last_known)));
        for (at, target, last_known) in questions {
            let port = &self.snapshot.ports[at];
            let sender = port.address_towards(target);
            if let Some(frame) = sender.and_then(|own| packet::question(port.mac, own, target, last_known)) {
                self.outbox.push(Outgoing::own(at, frame));
            }
        }
    }

    fn announce(&mut self, address: IpAddr) {
        let Some(vip) = self.snapshot.vip(address) else { return };
        if !self.shared.lease.is_valid() {
            self.own.stats.announcements_withheld.add(1);
            return;
        }
        for (at, port) in self.snapshot.ports.iter().enumerate().filter(|(at, _)| vip.answers_on(*at)) {
            for frame in packet::announcements(port.mac, address) {
                self.outbox.push(Outgoing::claim(at, frame));
            }
        }
        self.speaker.announcer.announced(address, self.now_ns);
    }

    /// Asks whether anybody has a VIP that this node is the first to own.
    fn probe(&mut self, address: IpAddr) {
        let Some(vip) = self.snapshot.vip(address) else { return };
        for (at, port) in self.snapshot.ports.iter().enumerate().filter(|(at, _)| vip.answers_on(*at)) {
            self.outbox.push(Outgoing::own(at, packet::probe(port.mac, address)));
        }
    }
}
