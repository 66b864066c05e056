//! What a worker sends beside the frames that the engine has in hand: at the end of its turn.

use crate::{
    packet::VnetHeader,
    verdict::{DropReason, Sent},
};

/// A frame to be sent.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) to: To,
    pub(super) vnet: VnetHeader,
    pub(super) frame: Vec<u8>,
    pub(super) origin: Origin,
}

/// Where a frame is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    Port(usize),
    /// Local delivery: this node is the backend.
    Local,
}

/// Whose frame it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// It came, waited or was handed off, and goes on.
    Received,
    /// One that was handed off has become an answer.
    Answer,
    /// Our own.
    Own,
    /// Our own, and it says that this node has a VIP.
    Claim,
}

impl Outgoing {
    pub(super) fn own(port: usize, frame: Vec<u8>) -> Self {
        Self { to: To::Port(port), vnet: VnetHeader::default(), frame, origin: Origin::Own }
    }

    pub(super) fn claim(port: usize, frame: Vec<u8>) -> Self {
        Self { origin: Origin::Claim, ..Self::own(port, frame) }
    }

    /// What it was counted as, if it was.
    pub(super) fn counted_as(&self) -> Option<Sent> {
        match self.origin {
            Origin::Received => Some(Sent::Forwarded),
            Origin::Answer => Some(Sent::Answered),
            Origin::Own | Origin::Claim => None,
        }
    }
}

/// Why a frame that was counted as sent was not.
pub(super) const NOT_TAKEN: DropReason = DropReason::SendFailed;
