//! The ring engine: frames are rewritten where the kernel put them, and io_uring sends them from
//! there, up to [`BATCH`] with one system call.
//!
//! # Why slots may be given back right after the submit
//!
//! Each send is an SQE with MSG_DONTWAIT and without IOSQE_ASYNC, links or drain. io_uring issues such
//! an SQE inside io_uring_enter. MSG_DONTWAIT sets REQ_F_NOWAIT (io_sendmsg_prep), and a request with
//! REQ_F_NOWAIT that would block is completed with -EAGAIN instead of being queued for a retry
//! (io_queue_async). A packet socket's sendmsg copies the frame into an skb before it returns
//! (packet_snd: skb_copy_datagram_from_iter). So when io_uring_enter returns and has consumed the SQEs,
//! which `submit` makes sure of, no one reads the slots any more.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use io_uring::{
    IoUring, opcode, squeue,
    types::{Fixed, SubmitArgs, Timespec},
};

use super::{
    BATCH, Engine, EngineError, FrameMeta, MAX_FRAME_LEN, PortConfig, TRUNCATED, VNET_HEADER_LEN,
    filter::Instruction,
    out_port,
    packet_ring::{PacketRing, Taken},
    socket::PacketSocket,
};
use crate::{
    forward::Verdict,
    worker::{Core, Sent},
};

/// Sends of a batch, the polls, and some room.
const SQ_ENTRIES: u32 = 256;
/// Super-frames that can wait for one submit.
const COPY_BUFFERS: usize = 16;

/// Of a submit that the kernel cannot take at the moment.
pub(super) const MAX_ATTEMPTS: u32 = 1000;

/// What a completion belongs to.
pub(super) const FORWARDED: u64 = 1;
pub(super) const ANSWERED: u64 = 2;
pub(super) const WOKEN: u64 = 3;
pub(super) const READABLE: u64 = 16;

pub(super) struct RingEngine {
    /// Before the sockets: it holds their descriptors.
    uring: IoUring,
    ports: Vec<Port>,
    wake: OwnedFd,
    wake_armed: bool,
    /// Of the present batch.
    sends: Vec<squeue::Entry>,
    copies: Copies,
}

struct Port {
    ring: PacketRing,
    sender: PacketSocket,
    /// For super-frames.
    segmenter: PacketSocket,
    armed: bool,
}

/// Buffers for frames that were longer than a slot.
struct Copies {
    buffers: Vec<Box<[u8]>>,
    used: usize,
}

impl RingEngine {
    pub(super) fn start(
        ports: &[PortConfig],
        wake: BorrowedFd<'_>,
        filter: &[Instruction],
    ) -> Result<Self, EngineError> {
        let uring = build_uring().map_err(EngineError::Uring)?;
        let ports = ports
            .iter()
            .map(|port| {
                let (sender, segmenter) = (PacketSocket::sender(port)?, PacketSocket::segmenter(port)?);
                Ok(Port { ring: PacketRing::open(port, filter)?, sender, segmenter, armed: false })
            })
            .collect::<Result<Vec<_>, EngineError>>()?;
        // Fixed files, in this order: senders, so that a port's index is its sender's; segmenters;
        // receivers; the wake-up.
        let wake = wake.try_clone_to_owned().map_err(EngineError::Uring)?;
        let senders = ports.iter().map(|port| port.sender.as_raw_fd());
        let receivers = ports.iter().map(|port| port.ring.fd().as_raw_fd());
        let segmenters = ports.iter().map(|port| port.segmenter.as_raw_fd());
        let files: Vec<i32> = senders.chain(segmenters).chain(receivers).chain([wake.as_raw_fd()]).collect();
        uring.submitter().register_files(&files).map_err(EngineError::Uring)?;
        let buffers = (0..COPY_BUFFERS).map(|_| vec![0; VNET_HEADER_LEN + MAX_FRAME_LEN].into()).collect();
        Ok(Self {
            uring,
            ports,
            wake,
            wake_armed: false,
            sends: Vec::with_capacity(BATCH),
            copies: Copies { buffers, used: 0 },
        })
    }

    /// Judges the frames of one interface. Whether there were any.
    fn drain_port(&mut self, port: usize, core: &mut Core) -> io::Result<bool> {
        let mut judged = 0;
        while judged < BATCH {
            let Some(taken) = self.ports[port].ring.take() else { break };
            judged += 1;
            let (frame, verdict, is_super) = match taken {
                Taken::InPlace { bytes, meta } => {
                    let verdict = core.judge(port, meta, &mut bytes[VNET_HEADER_LEN..]);
                    (bytes.as_ptr_range(), verdict, meta.gso_size.is_some())
                }
                Taken::Truncated => {
                    core.count_unseen(TRUNCATED);
                    continue;
                }
                Taken::Queued { vlan_tagged } => {
                    let buffer = &mut self.copies.buffers[self.copies.used];
                    let Ok(len) = self.ports[port].ring.receive_queued(buffer) else {
                        core.count_unseen(TRUNCATED);
                        continue;
                    };
                    let Some((vnet, frame)) = buffer[..len].split_at_mut_checked(VNET_HEADER_LEN) else {
                        core.count_unseen(TRUNCATED);
                        continue;
                    };
                    let meta = FrameMeta::new(vlan_tagged, vnet);
                    let verdict = core.judge(port, meta, frame);
                    self.copies.used += 1;
                    (buffer[..len].as_ptr_range(), verdict, meta.gso_size.is_some())
                }
            };
            if let Some(out) = out_port(verdict, port) {
                let len = (frame.end as usize - frame.start as usize) as u32;
                let tag = if verdict == Verdict::Answer { ANSWERED } else { FORWARDED };
                let file = if is_super { self.ports.len() + out } else { out };
                let send = opcode::Send::new(Fixed(file as u32), frame.start, len)
                    .flags(libc::MSG_DONTWAIT)
                    .build()
                    .flags(squeue::Flags::SKIP_SUCCESS)
                    .user_data(tag);
                self.sends.push(send);
            }
            if self.copies.used == COPY_BUFFERS {
                self.submit()?;
            }
        }
        if judged > 0 {
            self.submit()?;
            self.ports[port].ring.give_back();
        }
        Ok(judged > 0)
    }

    /// Has the kernel carry out all gathered sends before it returns.
    fn submit(&mut self) -> io::Result<()> {
        // A poll may be left there by a wait that was cut short; there is room for it and a batch.
        // SAFETY: the frames stay where they are until this function has returned: ring slots until
        // `give_back`, copies until `used` is reset below. The file indexes are registered senders.
        unsafe { self.uring.submission().push_multiple(&self.sends) }.map_err(io::Error::other)?;
        self.sends.clear();
        let mut attempts = 0;
        while !self.uring.submission().is_empty() {
            match self.uring.submit() {
                Ok(_) => {}
                Err(error) if is_passing(&error) && attempts < MAX_ATTEMPTS => {
                    attempts += 1;
                    std::thread::yield_now();
                }
                Err(error) => return Err(error),
            }
        }
        self.copies.used = 0;
        Ok(())
    }

    fn push_poll(&mut self, file: usize, tag: u64) -> io::Result<()> {
        let poll = opcode::PollAdd::new(Fixed(file as u32), libc::POLLIN as u32).build().user_data(tag);
        // SAFETY: a poll points at nothing.
        unsafe { self.uring.submission().push(&poll) }.map_err(io::Error::other)
    }

    /// Sleeps until a frame, a wake-up or the time comes.
    fn wait(&mut self, wait: Duration) -> io::Result<()> {
        let count = self.ports.len();
        for port in 0..count {
            if !self.ports[port].armed {
                self.push_poll(2 * count + port, READABLE + port as u64)?;
                self.ports[port].armed = true;
            }
        }
        if !self.wake_armed {
            self.push_poll(3 * count, WOKEN)?;
            self.wake_armed = true;
        }
        let timespec = Timespec::from(wait);
        let args = SubmitArgs::new().timespec(&timespec);
        match self.uring.submitter().submit_with_args(1, &args) {
            Ok(_) => Ok(()),
            Err(error) if is_passing(&error) || error.raw_os_error() == Some(libc::ETIME) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn reap(&mut self, core: &mut Core) {
        let mut woken = false;
        for completion in self.uring.completion() {
            match completion.user_data() {
                // Successful sends leave no completion. The queue of the device was full: the frame is lost,
                // as on any full wire.
                FORWARDED => core.send_failed(Sent::Forwarded),
                ANSWERED => core.send_failed(Sent::Answered),
                WOKEN => woken = true,
                port => {
                    if let Some(port) = port.checked_sub(READABLE).and_then(|p| self.ports.get_mut(p as usize)) {
                        port.armed = false;
                        if completion.result() < 0 || completion.result() & i32::from(libc::POLLERR) != 0 {
                            // Else every poll would return at once, for good.
                            if let Some(error) = port.ring.socket().take_error() {
                                tracing::warn!(%error, "an interface had an error");
                            }
                        }
                    }
                }
            }
        }
        if woken {
            self.wake_armed = false;
            let mut count = [0; 8];
            // Only to reset it; it is non-blocking, and what it counted does not matter.
            let _ = rustix::io::read(&self.wake, &mut count);
        }
    }
}

impl Engine for RingEngine {
    fn turn(&mut self, wait: Duration, core: &mut Core) -> io::Result<()> {
        let mut busy = false;
        for port in 0..self.ports.len() {
            busy |= self.drain_port(port, core)?;
        }
        if !busy && !wait.is_zero() {
            self.wait(wait)?;
        }
        self.reap(core);
        Ok(())
    }

    fn send(&mut self, port: usize, frame: &[u8]) -> io::Result<()> {
        self.ports[port].sender.send(frame)
    }

    fn set_filter(&mut self, program: &[Instruction]) -> io::Result<()> {
        self.ports.iter().try_for_each(|port| port.ring.socket().attach(program))
    }

    fn lost(&mut self) -> u64 {
        self.ports.iter().map(|port| port.ring.socket().lost()).sum()
    }
}

/// Whether the same call may succeed a moment later.
pub(super) fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

/// One thread submits and reaps, completions run when it asks for them, and a failed entry does not
/// hold up those behind it. NO_SQARRAY needs Linux 6.6; without it the ring only is a little slower.
pub(super) fn build_uring() -> io::Result<IoUring> {
    let builder = |no_sqarray: bool| {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all();
        if no_sqarray {
            builder.setup_no_sqarray();
        }
        builder.build(SQ_ENTRIES)
    };
    match builder(true) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => builder(false),
        built => built,
    }
}
