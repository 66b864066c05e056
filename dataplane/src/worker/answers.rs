//! Frames that ask this node itself: ARP, neighbour discovery and echo requests for VIPs. Each answer is the owner's,
//! with a lease that is valid at that moment.

use std::net::IpAddr;

use super::{Core, Outgoing};
use crate::{
    forward::{DropReason, Verdict},
    packet::{self, Echo, Mac, arp, ndp, rewrite},
    segment,
};

impl Core {
    /// An echo request to a VIP is answered by its owner.
    pub(super) fn echo(&mut self, own: Mac, frame: &mut [u8], echo: &Echo) -> Verdict {
        let Some(vip) = self.snapshot.vip(echo.destination) else {
            return Verdict::Drop(DropReason::NotVip);
        };
        if vip.owned.is_none() || !self.speaker.announcer.is_active(vip.address) || !self.may_answer(vip.address) {
            return Verdict::Drop(DropReason::EchoNotOurs);
        }
        rewrite::echo_reply(frame, echo, own);
        Verdict::Answer
    }

    /// The lease is valid at this moment. Past its end only where the operator wants it, for what nobody else claims.
    fn may_answer(&mut self, vip: IpAddr) -> bool {
        if self.shared.lease.is_valid() {
            self.speaker.yielded.clear();
            return true;
        }
        self.shared.lease.is_held() && !self.speaker.yielded.contains(&vip)
    }

    /// A VIP that this node owns and answers on an interface.
    fn is_owned(&self, port: usize, address: IpAddr) -> bool {
        self.snapshot.vip(address).is_some_and(|vip| vip.owned.is_some() && vip.answers_on(port))
    }

    /// Another station says that it has an owned VIP.
    fn conflict(&mut self, vip: IpAddr, mac: Mac) {
        self.speaker.announcer.conflict(vip, self.now_ns);
        if !self.shared.lease.is_valid() {
            self.speaker.yielded.insert(vip);
        }
        self.own.stats.conflict(vip, mac);
    }

    pub(super) fn is_ours(&self, mac: Mac) -> bool {
        self.snapshot.ports.iter().any(|port| port.mac == mac)
    }

    pub(super) fn arp(&mut self, port: usize, own: Mac, frame: &mut [u8], arp: &arp::Arp) -> Verdict {
        let (sender, target) = (IpAddr::V4(arp.sender), IpAddr::V4(arp.target));
        // Nobody else has one of our hardware addresses.
        if !self.is_ours(arp.sender_mac) {
            self.speaker.neighbors.heard(port, sender, arp.sender_mac, self.now_ns);
        }
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
            && self.speaker.announcer.is_active(target)
            && self.may_answer(target);
        if !answer {
            return Verdict::Drop(DropReason::ArpNotOurs);
        }
        arp::answer_in_place(frame, arp, own);
        Verdict::Answer
    }

    pub(super) fn neighbor(
        &mut self,
        port: usize,
        own: Mac,
        source: Mac,
        frame: &mut [u8],
        message: &ndp::Message,
    ) -> Verdict {
        let target = IpAddr::V6(message.target);
        let ndp::Kind::Advertisement { solicited } = message.kind else {
            return self.solicitation(port, own, source, frame, message);
        };
        let Some(mac) = message.mac else { return Verdict::Drop(DropReason::NdpNotOurs) };
        if !self.is_ours(mac) {
            self.speaker.neighbors.heard(port, target, mac, self.now_ns);
        }
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
        if let Some(mac) = message.mac.filter(|mac| !self.is_ours(*mac)) {
            self.speaker.neighbors.heard(port, message.source.into(), mac, self.now_ns);
        }
        let vip = IpAddr::V6(message.target);
        if !self.is_owned(port, vip) || self.is_ours(source) {
            return Verdict::Drop(DropReason::NdpNotOurs);
        }
        // Another station wants the address for itself (RFC 4862 5.4.3).
        let contested = message.source.is_unspecified();
        if contested {
            self.own.stats.conflict(vip, source);
        }
        if !self.speaker.announcer.is_active(vip) || !self.may_answer(vip) {
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
                // The right to it was looked at just now.
                self.outbox.push(Outgoing::own(port, answer.to_vec()));
                Verdict::Drop(if contested { DropReason::NdpConflict } else { DropReason::NdpNotOurs })
            }
        }
    }
}
