//! How a frame leaves: what an engine makes of a verdict, and what it is given to send beside its batch.

use std::os::fd::RawFd;

use crate::{
    packet::{OwnedFrame, VnetHeader},
    verdict::{Sent, Verdict},
};

/// The way out of a judged frame.
pub(in crate::io) struct Departure {
    /// The interface.
    pub(in crate::io) port: usize,
    /// Of the frame and its vnet header.
    pub(in crate::io) len: usize,
    pub(in crate::io) is_gso: bool,
    pub(in crate::io) sent: Sent,
}

/// The way out of a judged frame that stands behind its vnet header, if it has one. An answer is complete in itself, whatever
/// the frame was that it has taken the place of.
#[inline]
pub(in crate::io) fn departure(verdict: Verdict, came_by: usize, bytes: &mut [u8]) -> Option<Departure> {
    match verdict {
        Verdict::Forward { port, trailer, backend } => {
            let frame_len = bytes.len() - VnetHeader::LEN;
            let is_gso = VnetHeader::read(bytes).is_some_and(|vnet| vnet.is_gso());
            let sent = Sent::Forwarded { backend, bytes: frame_len as u32 };
            Some(Departure { port: port.into(), len: bytes.len() - usize::from(trailer), is_gso, sent })
        }
        Verdict::Answer => {
            bytes[..VnetHeader::LEN].fill(0);
            Some(Departure { port: came_by, len: bytes.len(), is_gso: false, sent: Sent::Answered })
        }
        Verdict::Apart | Verdict::Deliver { .. } | Verdict::Hold | Verdict::HandOff | Verdict::Drop(_) => None,
    }
}

/// A frame to be sent that is not of the present batch.
pub(crate) struct Parting<'a> {
    /// By which socket.
    pub(crate) by: Outlet,
    pub(crate) frame: &'a OwnedFrame,
    /// As what it was counted.
    pub(crate) sent: Sent,
}

/// The socket that a frame is sent by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outlet {
    /// That of an interface.
    Port(usize),
    /// One that is none of the engine's, and is open while the engine sends.
    Descriptor(RawFd),
}
