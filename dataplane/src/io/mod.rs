//! The kernel's side of the dataplane, and the only unsafe code: packet sockets, the receive ring,
//! io_uring, and the engines that move frames between them and the worker.
//!
//! An [`Engine`] takes frames, has each judged by [`crate::worker::Core`], and sends what the verdict
//! says, in the order of arrival. The ring engine is the default; `multishot` needs no mapped ring, `mmsg` no
//! io_uring.

mod bpf;
mod fanout;
pub(crate) mod filter;
mod kernel;
pub mod memory;
mod mmsg;
mod multishot;
mod offload;
mod packet_ring;
mod ring;
mod socket;
mod turn;
mod uring;

use std::{
    fmt, io,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

pub(crate) use bpf::Instruction;
pub(crate) use fanout::{Fanout, Share};
pub(crate) use kernel::OwnKernel;
pub use offload::segments_tcp;
pub use socket::SocketError;

use crate::{
    forward::{DropReason, Verdict},
    packet::VnetHeader,
    worker::Core,
};

/// Frames judged before the next look at the table and the clock.
pub(crate) const BATCH: usize = 64;
/// The longest frame: a super-frame of 64 KiB with its headers.
pub(crate) const MAX_FRAME_LEN: usize = 65_536 + 256;

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

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ring => "ring",
            Self::Multishot => "multishot",
            Self::Mmsg => "mmsg",
        })
    }
}

/// What the kernel says about a frame beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrameMeta {
    /// It belongs to a VLAN, by a tag that the kernel has taken out of the frame.
    pub vlan_tagged: bool,
    /// What stands before it.
    pub vnet: VnetHeader,
}

/// An interface to receive from and to send to.
#[derive(Debug, Clone)]
pub struct PortConfig {
    /// Its name.
    pub name: String,
    /// Its index in the kernel; 0 while it is gone.
    pub ifindex: u32,
    /// Its MTU, which sizes the ring's slots.
    pub mtu: u32,
}

impl PortConfig {
    /// Whether there is no such interface at present.
    pub(crate) fn is_gone(&self) -> bool {
        self.ifindex == 0
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

/// Moves frames between the sockets and the worker.
pub(crate) trait Engine {
    /// Judges and sends a batch of every interface that has frames; waits for at most `wait` if none
    /// has.
    fn turn(&mut self, wait: Duration, core: &mut Core) -> io::Result<()>;
    /// Sends a frame that is not of the present batch.
    fn send(&mut self, port: usize, vnet: &VnetHeader, frame: &[u8]) -> io::Result<()>;
    /// Replaces the filter in front of the sockets.
    fn set_filter(&mut self, program: &[Instruction]) -> io::Result<()>;
    /// What was lost since the last call, between which there is at least one turn.
    fn lost(&mut self) -> Lost;
}

/// Makes engines of one kind for one worker.
pub(crate) struct EngineFactory {
    /// Which.
    pub(crate) kind: EngineKind,
    /// Whose.
    pub(crate) share: Share,
    /// Ends their waiting.
    pub(crate) wake: OwnedFd,
}

impl EngineFactory {
    /// Opens the sockets and starts an engine on the calling thread, which must be the one that uses it.
    pub(crate) fn start(&self, ports: &[PortConfig], filter: &[Instruction]) -> Result<Box<dyn Engine>, EngineError> {
        let wake = self.wake.as_fd();
        let mut opening = self.share.open(ports, filter)?;
        let engine: Box<dyn Engine> = match self.kind {
            EngineKind::Ring => Box::new(ring::RingEngine::start(ports, wake, &mut opening)?),
            EngineKind::Multishot => Box::new(multishot::MultishotEngine::start(ports, wake, &mut opening)?),
            EngineKind::Mmsg => Box::new(mmsg::MmsgEngine::start(ports, wake, &mut opening)?),
        };
        opening.done();
        Ok(engine)
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
    Uring(io::Error),
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

/// Where a judged frame goes.
fn out_port(verdict: Verdict, came_by: usize) -> Option<usize> {
    match verdict {
        Verdict::Forward { port } => Some(port),
        Verdict::Answer => Some(came_by),
        Verdict::Deliver | Verdict::Hold | Verdict::HandOver | Verdict::Drop(_) => None,
    }
}

/// What waits in the queue of an engine that receives from there. Under overload the queue is always full: a long one
/// forwards no more, makes all frames late, and keeps the processor's caches cold.
const RECEIVE_BUFFER: libc::c_int = 2 << 20;

/// Room for one control message with struct tpacket_auxdata (20 bytes).
const CONTROL_LEN: usize = 64;

/// Whether a frame belongs to a VLAN, by the control message that came with it: struct cmsghdr (length, level, type),
/// and behind it struct tpacket_auxdata, which starts with a status and ends with the tag. A packet socket sends one at
/// most.
fn is_vlan_tagged(control: &[u8]) -> bool {
    let word = |at: usize| control.get(at..at + 4)?.first_chunk().copied();
    let level = word(8).map(i32::from_ne_bytes);
    let kind = word(12).map(i32::from_ne_bytes);
    let is_auxdata = level == Some(libc::SOL_PACKET) && kind == Some(socket::PACKET_AUXDATA);
    let (status, tag) = (word(16).map(u32::from_ne_bytes), word(32));
    let vlan_tci = tag.map(|[low, high, ..]| u16::from_ne_bytes([low, high]));
    is_auxdata && status.zip(vlan_tci).is_some_and(|(status, tci)| packet_ring::is_vlan_tagged(status, tci))
}

/// A frame of which the ring's slot holds only a part.
const TRUNCATED: Verdict = Verdict::Drop(DropReason::RingTruncated);
