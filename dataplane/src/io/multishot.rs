//! The multishot engine: one receive request for each interface stays armed and takes its buffers from a ring that
//! the worker fills; frames are rewritten in their buffers and sent from there. It copies each frame once more than
//! the packet ring does, and needs no memory that is shared with the kernel's receive path: a second choice where
//! rings cannot be mapped.
//!
//! A buffer is given back once the sends of its batch have been carried out; [`super::ring`] says why that is so
//! when the submit returns.

use std::{
    io, mem,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use io_uring::{
    IoUring, cqueue, opcode, squeue,
    types::{BufRingEntry, Fixed, RecvMsgOut, SubmitArgs, Timespec},
};

use super::{
    BATCH, Engine, EngineError, FrameMeta, MAX_FRAME_LEN, PortConfig, TRUNCATED, VNET_HEADER_LEN,
    filter::Instruction,
    memory::{HugeSlice, Zeroed},
    out_port,
    ring::{ANSWERED, FORWARDED, MAX_ATTEMPTS, READABLE, WOKEN, build_uring, is_passing},
    socket::PacketSocket,
};
use crate::{
    forward::Verdict,
    worker::{Core, Sent},
};

/// Buffers of the ring; a power of two.
const BUFFERS: u16 = 512;
/// The only group of them.
const GROUP: u16 = 0;
/// Room for one control message with struct tpacket_auxdata (20 bytes).
const CONTROL_LEN: usize = 64;
/// struct io_uring_recvmsg_out stands before the control message.
const PAYLOAD_AT: usize = 16 + CONTROL_LEN;
const BUFFER_LEN: usize = (PAYLOAD_AT + VNET_HEADER_LEN + MAX_FRAME_LEN).next_multiple_of(4096);

pub(super) struct MultishotEngine {
    uring: IoUring,
    ports: Vec<Port>,
    wake: OwnedFd,
    wake_armed: bool,
    buffers: Buffers,
    /// What each receive asks for: no address, one control message. Boxed, because armed requests point at it.
    message: Box<libc::msghdr>,
    /// Of the present batch.
    sends: Vec<squeue::Entry>,
    completions: Vec<cqueue::Entry>,
}

struct Port {
    receiver: PacketSocket,
    sender: PacketSocket,
    /// For super-frames.
    segmenter: PacketSocket,
    armed: bool,
}

/// The buffers, and the ring by which the kernel is told of those that are free.
struct Buffers {
    entries: HugeSlice<Place>,
    memory: HugeSlice<u8>,
    tail: u16,
}

/// Memory for one [`BufRingEntry`].
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Place([u64; 2]);

const _: () = assert!(size_of::<Place>() == size_of::<BufRingEntry>());

impl Zeroed for Place {
    const ZERO: Self = Self([0; 2]);
}

impl Buffers {
    fn new() -> io::Result<Self> {
        let entries = HugeSlice::new(BUFFERS.into())?;
        let memory = HugeSlice::new(usize::from(BUFFERS) * BUFFER_LEN)?;
        Ok(Self { entries, memory, tail: 0 })
    }

    fn ring(&mut self) -> *mut BufRingEntry {
        self.entries.as_mut_ptr().cast()
    }

    /// Gives buffers to the kernel. Nobody may use them until they come with a frame.
    fn provide(&mut self, free: impl IntoIterator<Item = u16>) {
        let (ring, mut tail) = (self.ring(), self.tail);
        for id in free {
            let start = usize::from(id) * BUFFER_LEN;
            let buffer = &mut self.memory[start..start + BUFFER_LEN];
            // SAFETY: the ring has BUFFERS entries of this layout, and the index is below that; the kernel reads
            // an entry only once the tail is past it.
            let entry = unsafe { &mut *ring.add(usize::from(tail & (BUFFERS - 1))) };
            entry.set_addr(buffer.as_mut_ptr() as u64);
            entry.set_len(BUFFER_LEN as u32);
            entry.set_bid(id);
            tail = tail.wrapping_add(1);
        }
        // SAFETY: the tail is a part of the first entry that no entry's setter writes; it is shared with the
        // kernel and only touched atomically. The release store orders the entries before it.
        unsafe { &*BufRingEntry::tail(ring).cast::<AtomicU16>() }.store(tail, Ordering::Release);
        self.tail = tail;
    }

    /// What was received into a buffer: `len` bytes.
    fn received(&mut self, id: u16, len: usize) -> &mut [u8] {
        let start = usize::from(id) * BUFFER_LEN;
        &mut self.memory[start..start + len.min(BUFFER_LEN)]
    }
}

impl MultishotEngine {
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
                let receiver = PacketSocket::receiver(port, filter)?;
                receiver.request_auxdata()?;
                receiver.bind_all(port.ifindex)?;
                Ok(Port { receiver, sender, segmenter, armed: false })
            })
            .collect::<Result<Vec<_>, EngineError>>()?;
        let wake = wake.try_clone_to_owned().map_err(EngineError::Uring)?;
        // Fixed files, as in the ring engine: senders, segmenters, receivers, the wake-up.
        let senders = ports.iter().map(|port| port.sender.as_raw_fd());
        let segmenters = ports.iter().map(|port| port.segmenter.as_raw_fd());
        let receivers = ports.iter().map(|port| port.receiver.as_fd().as_raw_fd());
        let files: Vec<i32> = senders.chain(segmenters).chain(receivers).chain([wake.as_raw_fd()]).collect();
        uring.submitter().register_files(&files).map_err(EngineError::Uring)?;
        let mut buffers = Buffers::new().map_err(EngineError::Uring)?;
        // SAFETY: the ring is page-aligned memory of BUFFERS zeroed entries, unregistered in `drop` before it goes.
        unsafe { uring.submitter().register_buf_ring_with_flags(buffers.ring() as u64, BUFFERS, GROUP, 0) }
            .map_err(EngineError::Uring)?;
        buffers.provide(0..BUFFERS);
        // SAFETY: plain data for which zero is a value.
        let mut message: Box<libc::msghdr> = Box::new(unsafe { mem::zeroed() });
        message.msg_controllen = CONTROL_LEN;
        Ok(Self {
            uring,
            ports,
            wake,
            wake_armed: false,
            buffers,
            message,
            sends: Vec::with_capacity(BATCH),
            completions: Vec::with_capacity(BATCH),
        })
    }

    /// Arms what is not armed: a receive for each interface, and the wake-up.
    fn arm(&mut self) -> io::Result<()> {
        let count = self.ports.len();
        for (at, port) in self.ports.iter_mut().enumerate().filter(|(_, port)| !port.armed) {
            let file = Fixed((2 * count + at) as u32);
            let receive = opcode::RecvMsgMulti::new(file, &raw const *self.message, GROUP)
                .build()
                .user_data(READABLE + at as u64);
            // SAFETY: the message is boxed and lives as long as the ring; the buffers are the registered ones.
            unsafe { self.uring.submission().push(&receive) }.map_err(io::Error::other)?;
            port.armed = true;
        }
        if !self.wake_armed {
            let poll = opcode::PollAdd::new(Fixed(3 * count as u32), libc::POLLIN as u32).build().user_data(WOKEN);
            // SAFETY: a poll points at nothing.
            unsafe { self.uring.submission().push(&poll) }.map_err(io::Error::other)?;
            self.wake_armed = true;
        }
        Ok(())
    }

    /// Submits what is armed and waits for a completion; completions run only when they are asked for.
    fn wait(&mut self, wait: Duration) -> io::Result<()> {
        let timespec = Timespec::from(wait);
        match self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec)) {
            Ok(_) => Ok(()),
            Err(error) if is_passing(&error) || error.raw_os_error() == Some(libc::ETIME) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Judges and sends a batch of what has come. The buffers that are free again go back to the kernel.
    fn judge(&mut self, core: &mut Core) -> io::Result<()> {
        self.completions.clear();
        self.completions.extend(self.uring.completion().take(BATCH));
        let mut free = [0u16; BATCH];
        let mut used = 0;
        for at in 0..self.completions.len() {
            let completion = &self.completions[at];
            let (result, flags) = (completion.result(), completion.flags());
            match completion.user_data() {
                FORWARDED => core.send_failed(Sent::Forwarded),
                ANSWERED => core.send_failed(Sent::Answered),
                WOKEN => {
                    self.wake_armed = false;
                    // Only to reset it; it is non-blocking, and what it counted does not matter.
                    let _ = rustix::io::read(&self.wake, &mut [0; 8]);
                }
                port => {
                    let port = (port - READABLE) as usize;
                    if !cqueue::more(flags) {
                        self.ports[port].armed = false;
                    }
                    if let Some(id) = cqueue::buffer_select(flags) {
                        free[used] = id;
                        used += 1;
                        self.frame(port, id, usize::try_from(result).unwrap_or(0), core);
                    } else if result < 0 && result != -libc::ENOBUFS {
                        // Such as ENETDOWN, once; without buffers it is only armed again.
                        let error = io::Error::from_raw_os_error(-result);
                        tracing::debug!(%error, "an interface had an error");
                    }
                }
            }
        }
        self.submit()?;
        self.buffers.provide(free[..used].iter().copied());
        Ok(())
    }

    /// One received frame.
    fn frame(&mut self, port: usize, id: u16, len: usize, core: &mut Core) {
        let bytes = self.buffers.received(id, len);
        let vlan_tagged = match RecvMsgOut::parse(bytes, &self.message) {
            Ok(message) if !message.is_payload_truncated() => is_vlan_tagged(message.control_data()),
            _ => return core.count_unseen(TRUNCATED),
        };
        let payload = &mut bytes[PAYLOAD_AT..];
        let start = payload.as_ptr();
        let whole = payload.len() as u32;
        let Some((vnet, frame)) = payload.split_at_mut_checked(VNET_HEADER_LEN) else {
            return core.count_unseen(TRUNCATED);
        };
        let meta = FrameMeta::new(vlan_tagged, vnet);
        let verdict = core.judge(port, meta, frame);
        if let Some(out) = out_port(verdict, port) {
            let tag = if verdict == Verdict::Answer { ANSWERED } else { FORWARDED };
            let file = if meta.gso_size.is_some() { self.ports.len() + out } else { out };
            let send = opcode::Send::new(Fixed(file as u32), start, whole)
                .flags(libc::MSG_DONTWAIT)
                .build()
                .flags(squeue::Flags::SKIP_SUCCESS)
                .user_data(tag);
            self.sends.push(send);
        }
    }

    /// Has the kernel carry out all gathered sends before it returns.
    fn submit(&mut self) -> io::Result<()> {
        // SAFETY: the frames stay in their buffers until this function has returned: only then are the buffers
        // provided again. The file indexes are registered senders.
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
        Ok(())
    }
}

/// From struct cmsghdr (length, level, type) with struct tpacket_auxdata behind it, which starts with a status.
fn is_vlan_tagged(control: &[u8]) -> bool {
    const PACKET_AUXDATA: i32 = 8;
    const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
    let word = |at: usize| control.get(at..at + 4)?.first_chunk().copied();
    let is_auxdata = word(8).map(i32::from_ne_bytes) == Some(libc::SOL_PACKET)
        && word(12).map(i32::from_ne_bytes) == Some(PACKET_AUXDATA);
    is_auxdata && word(16).is_some_and(|status| u32::from_ne_bytes(status) & TP_STATUS_VLAN_VALID != 0)
}

impl Engine for MultishotEngine {
    fn turn(&mut self, wait: Duration, core: &mut Core) -> io::Result<()> {
        self.arm()?;
        let pending = !self.uring.completion().is_empty();
        self.wait(if pending { Duration::ZERO } else { wait })?;
        self.judge(core)
    }

    fn send(&mut self, port: usize, frame: &[u8]) -> io::Result<()> {
        self.ports[port].sender.send(frame)
    }

    fn set_filter(&mut self, program: &[Instruction]) -> io::Result<()> {
        self.ports.iter().try_for_each(|port| port.receiver.attach(program))
    }

    fn lost(&mut self) -> u64 {
        self.ports.iter().map(|port| port.receiver.lost()).sum()
    }
}

impl Drop for MultishotEngine {
    fn drop(&mut self) {
        // From here on no armed receive finds a buffer, whenever it is cancelled.
        if let Err(error) = self.uring.submitter().unregister_buf_ring(GROUP) {
            tracing::warn!(%error, "the engine's buffers were not taken back");
        }
    }
}
