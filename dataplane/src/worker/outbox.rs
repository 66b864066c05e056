//! What a worker sends beside the frames that the engine has in hand: at the end of its turn.

use crate::{
    packet::OwnedFrame,
    verdict::{DropReason, Sent},
};

/// A frame to be sent.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) to: To,
    pub(super) frame: OwnedFrame,
    /// As what it was counted.
    pub(super) sent: Sent,
    /// It says that this node has a VIP.
    pub(super) is_claim: bool,
}

/// Where a frame is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    Port(usize),
    /// Local delivery: this node is the backend.
    Local,
}

impl Outgoing {
    /// One that came, and goes on.
    pub(super) fn on(to: To, frame: OwnedFrame, sent: Sent) -> Self {
        Self { to, frame, sent, is_claim: false }
    }

    /// Our own.
    pub(super) fn own(port: usize, frame: &[u8]) -> Self {
        Self::on(To::Port(port), OwnedFrame::whole(frame), Sent::Originated)
    }

    /// Our own, and it says that this node has a VIP.
    pub(super) fn claim(port: usize, frame: &[u8]) -> Self {
        Self { is_claim: true, ..Self::own(port, frame) }
    }
}

/// Why a frame that was counted as sent was not.
pub(super) const NOT_TAKEN: DropReason = DropReason::SendFailed;
