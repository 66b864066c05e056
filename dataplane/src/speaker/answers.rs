//! What the owner of a VIP answers: ARP, neighbour discovery and echo requests. Pure: what a frame asks comes in, what is to
//! become of it comes out; the frame is turned into the answer by [`Answer::write`].

use std::net::IpAddr;

use super::{Speaker, permit::Permit};
use crate::{
    forward::snapshot::Snapshot,
    packet::{Address, Echo, Mac, arp, ndp, rewrite},
    verdict::DropReason,
};

/// What becomes of a frame that asks this node itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// It is turned into its answer.
    Answer(Answer),
    /// It is dropped.
    Drop {
        reason: DropReason,
        /// What is sent all the same: the frame is too short to become its answer, or is more than a question.
        aside: Option<Answer>,
        /// It says that a VIP of this node is another station's.
        conflict: Option<Contest>,
    },
}

impl From<DropReason> for Reaction {
    fn from(reason: DropReason) -> Self {
        Self::Drop { reason, aside: None, conflict: None }
    }
}

/// Another station and a VIP that this node owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Contest {
    pub(crate) vip: IpAddr,
    pub(crate) mac: Mac,
    /// It says that it has the address; else it is about to take it (RFC 4862 5.4.3), and is told that it is taken.
    pub(crate) is_claim: bool,
    /// It asks for somebody else with the VIP as its own address (ARP alone).
    pub(crate) is_question: bool,
}

/// An answer, to be written over the frame that asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Arp(arp::Arp),
    /// `to`: where the advertisement goes.
    Neighbor {
        message: ndp::Message,
        to: Mac,
    },
    Echo(Echo),
}

impl Answer {
    /// Turns the frame that asked, which is long enough, into the answer of a port with the MAC address `own`.
    pub(crate) fn write(&self, frame: &mut [u8], own: Mac) {
        match self {
            Self::Arp(arp) => arp::answer_in_place(frame, arp, own),
            Self::Echo(echo) => rewrite::echo_reply(frame, echo, own),
            // What an option more leaves behind the advertisement is padding.
            Self::Neighbor { message, to } => {
                frame[..ndp::FRAME_LEN].copy_from_slice(&ndp::advertisement(own, *to, message));
            }
        }
    }

    /// The answer as a frame of its own, where the frame that asked does not become it.
    pub(crate) fn apart(&self, own: Mac) -> Option<Vec<u8>> {
        match self {
            Self::Neighbor { message, to } => Some(ndp::advertisement(own, *to, message).to_vec()),
            Self::Arp(_) | Self::Echo(_) => None,
        }
    }
}

/// Who speaks, on which port, by which table.
#[derive(Clone, Copy)]
pub(crate) struct Voice<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) permit: &'a Permit,
    /// `None` in a worker that does not speak for the node.
    pub(crate) speaker: Option<&'a Speaker>,
    pub(crate) port: usize,
}

impl Voice<'_> {
    /// Whether this node answers for a VIP at this moment. The clock is read last, right before the answer.
    pub(crate) fn answers(&self, vip: IpAddr) -> bool {
        self.speaker.is_some_and(|speaker| speaker.announcer.is_active(vip)) && self.permit.to_answer(vip)
    }

    /// A VIP that this node owns and answers on this port.
    fn is_owned(&self, address: IpAddr) -> bool {
        self.permit.owns(address) && self.snapshot.vip(address).is_some_and(|vip| vip.answers_on(self.port))
    }

    /// Whether a VIP of this node is not answered yet, because others are asked whether they have it.
    fn is_probed_for(&self, address: IpAddr) -> bool {
        let is_active = |speaker: &Speaker| speaker.announcer.is_active(address);
        self.is_owned(address) && self.speaker.is_some_and(|speaker| !is_active(speaker))
    }

    /// An echo request to a VIP is answered by its owner.
    pub(crate) fn echo(&self, echo: &Echo) -> Reaction {
        match self.snapshot.vip(echo.destination) {
            None => DropReason::NotVip.into(),
            Some(_) if self.snapshot.is_bad_source(echo.source) => DropReason::BadSource.into(),
            Some(vip) if self.answers(vip.address) => Reaction::Answer(Answer::Echo(*echo)),
            Some(_) => DropReason::EchoNotOurs.into(),
        }
    }

    /// `len`: of the frame, which becomes the answer.
    pub(crate) fn arp(&self, len: usize, arp: &arp::Arp) -> Reaction {
        let (sender, target) = (IpAddr::V4(arp.sender), IpAddr::V4(arp.target));
        // An answer goes to the one, and tells the other: neither may be a group's.
        if !arp.sender_mac.is_host() || Address::from(sender).is_never_a_source() && !arp.sender.is_unspecified() {
            return DropReason::BadSource.into();
        }
        // Two that probe for one address: it is for neither (RFC 5227 2.1.1).
        let probes_too = arp.operation == arp::Operation::Request && arp.sender.is_unspecified();
        if probes_too && self.is_probed_for(target) && !self.snapshot.is_own_mac(arp.sender_mac) {
            let conflict = Some(Contest { vip: target, mac: arp.sender_mac, is_claim: true, is_question: false });
            return Reaction::Drop { reason: DropReason::ArpConflict, aside: None, conflict };
        }
        if self.is_owned(sender) && !self.snapshot.is_own_mac(arp.sender_mac) {
            let conflict = Some(Contest {
                vip: sender,
                mac: arp.sender_mac,
                is_claim: true,
                is_question: arp.operation == arp::Operation::Request && arp.target != arp.sender,
            });
            return Reaction::Drop { reason: DropReason::ArpConflict, aside: None, conflict };
        }
        let is_question = arp.operation == arp::Operation::Request && len >= arp::FRAME_LEN;
        match is_question && self.is_owned(target) && self.answers(target) {
            true => Reaction::Answer(Answer::Arp(*arp)),
            false => DropReason::ArpNotOurs.into(),
        }
    }

    /// `source`: the MAC address of the station that the frame came from.
    pub(crate) fn neighbor(&self, len: usize, source: Mac, message: &ndp::Message) -> Reaction {
        let vip = IpAddr::V6(message.target);
        if let ndp::Kind::Advertisement { .. } = message.kind {
            return match message.mac {
                Some(mac) if self.is_owned(vip) && !self.snapshot.is_own_mac(mac) => {
                    let conflict = Some(Contest { vip, mac, is_claim: true, is_question: false });
                    Reaction::Drop { reason: DropReason::NdpConflict, aside: None, conflict }
                }
                _ => DropReason::NdpNotOurs.into(),
            };
        }
        if !self.is_owned(vip) || self.snapshot.is_own_mac(source) {
            return DropReason::NdpNotOurs.into();
        }
        let (may, to, contested) = (self.answers(vip), message.mac.unwrap_or(source), message.source.is_unspecified());
        if !to.is_host() || !contested && self.snapshot.is_bad_source(message.source.into()) {
            return DropReason::BadSource.into();
        }
        // Two that probe for one address: it is for neither (RFC 4862 5.4.3).
        if contested && self.is_probed_for(vip) {
            let conflict = Some(Contest { vip, mac: source, is_claim: true, is_question: false });
            return Reaction::Drop { reason: DropReason::NdpConflict, aside: None, conflict };
        }
        let answer = Answer::Neighbor { message: *message, to };
        if may && !contested && len >= ndp::FRAME_LEN {
            return Reaction::Answer(answer);
        }
        Reaction::Drop {
            reason: if may && contested { DropReason::NdpConflict } else { DropReason::NdpNotOurs },
            aside: may.then_some(answer),
            conflict: contested.then_some(Contest { vip, mac: source, is_claim: false, is_question: false }),
        }
    }
}
