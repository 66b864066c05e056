//! The three ways of moving frames. An [`Engine`] takes frames, has each judged, and sends what the verdict says, in the order
//! of arrival. The ring engine is the default; `multishot` needs no mapped ring, `mmsg` no io_uring.

mod factory;
mod mmsg;
mod multishot;
mod ring;

use std::{fmt, io, time::Duration};

pub(crate) use factory::EngineFactory;

use super::{
    cbpf::Instruction,
    departure::Parting,
    sys::{
        packet_ring,
        socket::{PACKET_AUXDATA, SocketError},
    },
};
use crate::{
    packet::FrameMeta,
    verdict::{DropReason, Sent, Verdict},
};

/// How frames are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring sends straight out of a TPACKET_V2 receive ring.
    Ring,
    /// io_uring receives into provided buffers and sends from there.
    Multishot,
    /// recvmmsg and sendmmsg.
    Mmsg,
}

impl EngineKind {
    /// All of them, the best one first.
    pub const ALL: [Self; 3] = [Self::Ring, Self::Multishot, Self::Mmsg];

    /// Its name in configurations and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Multishot => "multishot",
            Self::Mmsg => "mmsg",
        }
    }

    /// The engine of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Frames that did not come through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost {
    /// That the kernel dropped for want of room.
    pub(crate) frames: u64,
    /// An interface gives no frame any more though frames come: only new sockets help.
    pub(crate) is_stuck: bool,
}

impl Lost {
    fn frames(frames: u64) -> Self {
        Self { frames, is_stuck: false }
    }
}

/// Whoever judges the frames that an engine moves.
pub(crate) trait FrameJudge {
    /// What a look at a frame has found.
    type Peek: Copy;
    /// Before the first look.
    const NOTHING: Self::Peek;

    /// The first look at a frame. Engines peek at several frames, and look ahead with all of them, before they have the
    /// first one judged: what has to come from memory comes meanwhile.
    fn peek(&self, frame: &[u8], peek: &mut Self::Peek);
    /// The second look.
    fn look_ahead(&self, peek: &mut Self::Peek);
    /// The third look.
    fn look_closer(&self, peek: &Self::Peek);
    /// Judges a frame, and rewrites it in place if it goes anywhere.
    fn judge(&mut self, port: usize, meta: FrameMeta, frame: &mut [u8], peek: &Self::Peek) -> Verdict;
    /// Counts a frame that never was whole.
    fn count_unseen(&mut self, verdict: Verdict);
    /// The outgoing queue did not take a frame that was judged to be sent.
    fn send_failed(&mut self, sent: Sent);
}

/// Moves frames between the sockets and whoever judges them.
pub(crate) trait Engine<J> {
    /// Judges and sends a batch of every interface that has frames; waits for at most `wait` if none
    /// has. Whether there were any.
    fn turn(&mut self, wait: Duration, judge: &mut J) -> io::Result<bool>;
    /// Sends frames that are not of the present batch, with as few system calls as it can. `judge` is told of those that
    /// are not taken, now or with the next turn.
    fn send(&mut self, frames: &[Parting<'_>], judge: &mut J) -> io::Result<()>;
    /// Replaces the filter in front of the sockets.
    fn set_filter(&mut self, program: &[Instruction]) -> io::Result<()>;
    /// What was lost since the last call, between which there is at least one turn.
    fn lost(&mut self) -> Lost;
    /// Frames that wait in its rings, and how many these have room for; nothing where it has none.
    fn waiting(&self) -> (usize, usize) {
        (0, 0)
    }
}

/// Why an engine does not run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A packet socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// io_uring is not to be had.
    #[error("io_uring: {0}{hint}", hint = uring_hint(.0))]
    Uring(#[from] io::Error),
    /// The workers before this one have not opened theirs.
    #[error("the workers before this one have not opened their sockets yet")]
    NotInTurn,
}

fn uring_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => " (sysctl kernel.io_uring_disabled or a seccomp filter forbids it)",
        Some(libc::ENOSYS) => " (this kernel has none)",
        Some(libc::ENOMEM) => " (raise RLIMIT_MEMLOCK)",
        _ => "",
    }
}

/// What waits in the queue of an engine that receives from there. Under overload the queue is always full: a long one
/// forwards no more, makes all frames late, and keeps the processor's caches cold.
const RECEIVE_BUFFER: libc::c_int = 2 << 20;

/// Room for one control message with struct tpacket_auxdata (20 bytes).
pub(in crate::io) const CONTROL_LEN: usize = 64;

/// Whether a frame belongs to a VLAN, by the control message that came with it: struct cmsghdr (length, level, type),
/// and behind it struct tpacket_auxdata, which starts with a status and ends with the tag. A packet socket sends one at
/// most.
pub(in crate::io) fn is_vlan_tagged(control: &[u8]) -> bool {
    let word = |at: usize| control.get(at..at + 4)?.first_chunk().copied();
    let level = word(8).map(i32::from_ne_bytes);
    let kind = word(12).map(i32::from_ne_bytes);
    let is_auxdata = level == Some(libc::SOL_PACKET) && kind == Some(PACKET_AUXDATA);
    let (status, tag) = (word(16).map(u32::from_ne_bytes), word(32));
    let vlan_tci = tag.map(|[low, high, ..]| u16::from_ne_bytes([low, high]));
    is_auxdata && status.zip(vlan_tci).is_some_and(|(status, tci)| packet_ring::is_vlan_tagged(status, tci))
}

/// A frame of which the ring's slot holds only a part.
pub(in crate::io) const TRUNCATED: Verdict = Verdict::Drop(DropReason::RingTruncated);
