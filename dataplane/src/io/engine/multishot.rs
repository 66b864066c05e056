//! The multishot engine: one receive request for each interface stays armed and takes its buffers from a ring that
//! the worker fills; frames are rewritten in their buffers and sent from there. It copies each frame once more than
//! the packet ring does, and needs no memory that is shared with the kernel's receive path: a second choice where
//! rings cannot be mapped.
//!
//! A buffer is given back once the sends of its batch have been carried out; [`super::super::sys::uring`] says why that is so
//! when the submit returns.

use std::{
    io, mem,
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use io_uring::{
    cqueue, opcode,
    types::{BufRingEntry, RecvMsgOut},
};

use super::{
    super::{
        cbpf::Instruction,
        departure::{Parting, departure},
        fanout::Opening,
        sys::{
            BATCH, MAX_FRAME_LEN,
            memory::{HugeSlice, Zeroed},
            socket::{PacketSocket, PortConfig},
            uring::{Descriptors, Event, Uring},
        },
        wake::Wake,
    },
    CONTROL_LEN, Engine, EngineError, FrameJudge, Lost, RECEIVE_BUFFER, TRUNCATED, is_vlan_tagged,
};
use crate::packet::{FrameMeta, VnetHeader};

/// Buffers of the ring; a power of two.
const BUFFERS: u16 = 512;
/// The only group of them.
const GROUP: u16 = 0;
/// struct io_uring_recvmsg_out stands before the control message.
const PAYLOAD_AT: usize = 16 + CONTROL_LEN;
const BUFFER_LEN: usize = (PAYLOAD_AT + VnetHeader::LEN + MAX_FRAME_LEN).next_multiple_of(4096);

pub(super) struct MultishotEngine {
    uring: Uring,
    ports: Vec<Port>,
    buffers: Buffers,
    /// What each receive asks for: no address, one control message. Boxed, because armed requests point at it.
    message: Box<libc::msghdr>,
    /// Of the present batch.
    events: Vec<Event>,
}

struct Port {
    receiver: PacketSocket,
    sender: PacketSocket,
    /// For GSO frames.
    segmenter: PacketSocket,
    armed: bool,
}

/// A frame in a buffer.
struct Received<P> {
    port: usize,
    id: u16,
    len: usize,
    peek: P,
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
    pub(super) fn start(ports: &[PortConfig], wake: &Wake, opening: &mut Opening<'_>) -> Result<Self, EngineError> {
        let mut uring = Uring::new(wake)?;
        let ports = ports
            .iter()
            .map(|port| {
                let (sender, segmenter) = (PacketSocket::sender(port)?, PacketSocket::segmenter(port)?);
                let receiver = opening.receiver(port, RECEIVE_BUFFER)?;
                receiver.request_auxdata()?;
                opening.bind(&receiver, port)?;
                Ok(Port { receiver, sender, segmenter, armed: false })
            })
            .collect::<Result<Vec<_>, EngineError>>()?;
        let descriptors = |port: &Port| Descriptors {
            sender: port.sender.as_raw_fd(),
            segmenter: port.segmenter.as_raw_fd(),
            receiver: port.receiver.as_raw_fd(),
        };
        uring.register(&ports.iter().map(descriptors).collect::<Vec<_>>())?;
        let mut buffers = Buffers::new().map_err(EngineError::Uring)?;
        // SAFETY: the ring is page-aligned memory of BUFFERS zeroed entries, unregistered in `drop` before it goes.
        unsafe { uring.submitter().register_buf_ring_with_flags(buffers.ring() as u64, BUFFERS, GROUP, 0) }
            .map_err(EngineError::Uring)?;
        buffers.provide(0..BUFFERS);
        // SAFETY: plain data for which zero is a value.
        let mut message: Box<libc::msghdr> = Box::new(unsafe { mem::zeroed() });
        message.msg_controllen = CONTROL_LEN;
        Ok(Self { uring, ports, buffers, message, events: Vec::with_capacity(BATCH) })
    }

    /// Arms a receive for each interface that has none.
    fn arm(&mut self) -> io::Result<()> {
        for (at, port) in self.ports.iter_mut().enumerate().filter(|(_, port)| !port.armed) {
            let receive = opcode::RecvMsgMulti::new(self.uring.receiver(at), &raw const *self.message, GROUP).build();
            // SAFETY: the message is boxed and lives as long as the ring; the buffers are the registered ones.
            unsafe { self.uring.arm(at, receive) }?;
            port.armed = true;
        }
        Ok(())
    }

    /// Judges and sends a batch of what has come. The buffers that are free again go back to the kernel.
    fn judge_batch<J: FrameJudge>(&mut self, judge: &mut J) -> io::Result<bool> {
        let mut events = mem::take(&mut self.events);
        self.uring.reap(&mut events, BATCH);
        let mut received = [const { None }; BATCH];
        let mut places = received.iter_mut();
        for event in events.drain(..) {
            let (port, completion) = match event {
                Event::SendFailed(sent) => {
                    judge.send_failed(sent);
                    continue;
                }
                Event::Port(port, completion) => (port, completion),
            };
            let (result, flags) = (completion.result(), completion.flags());
            if !cqueue::more(flags) {
                self.ports[port].armed = false;
            }
            if let Some(id) = cqueue::buffer_select(flags) {
                let len = usize::try_from(result).unwrap_or(0);
                let frame = self.buffers.received(id, len).get(PAYLOAD_AT + VnetHeader::LEN..);
                let mut peek = J::NOTHING;
                if let Some(frame) = frame {
                    judge.peek(frame, &mut peek);
                }
                if let Some(place) = places.next() {
                    *place = Some(Received { port, id, len, peek });
                }
            } else if result < 0 && result != -libc::ENOBUFS {
                // Such as ENETDOWN, once; without buffers it is only armed again.
                let error = io::Error::from_raw_os_error(-result);
                tracing::debug!(%error, "an interface had an error");
            }
        }
        self.events = events;
        received.iter_mut().flatten().for_each(|received| judge.look_ahead(&mut received.peek));
        received.iter().flatten().for_each(|received| judge.look_closer(&received.peek));
        received.iter().flatten().for_each(|received| self.frame(received, judge));
        self.uring.submit()?;
        self.buffers.provide(received.iter().flatten().map(|received| received.id));
        Ok(received[0].is_some())
    }

    /// One received frame.
    fn frame<J: FrameJudge>(&mut self, received: &Received<J::Peek>, judge: &mut J) {
        let Received { port, id, len, peek } = received;
        let (port, id, len) = (*port, *id, *len);
        let bytes = self.buffers.received(id, len);
        let vlan_tagged = match RecvMsgOut::parse(bytes, &self.message) {
            Ok(message) if !message.is_payload_truncated() => is_vlan_tagged(message.control_data()),
            _ => return judge.count_unseen(TRUNCATED),
        };
        let payload = &mut bytes[PAYLOAD_AT..];
        let Some((vnet, frame)) = payload.split_first_chunk_mut() else {
            return judge.count_unseen(TRUNCATED);
        };
        let meta = FrameMeta { vlan_tagged, vnet: VnetHeader(*vnet) };
        let verdict = judge.judge(port, meta, frame, peek);
        if let Some(departure) = departure(verdict, port, payload) {
            // SAFETY: the buffer is provided to the kernel again only after the submit.
            unsafe { self.uring.queue_send(payload.as_ptr(), &departure) };
        }
    }
}

impl<J: FrameJudge> Engine<J> for MultishotEngine {
    fn turn(&mut self, wait: Duration, judge: &mut J) -> io::Result<bool> {
        self.arm()?;
        // Completions run only when they are asked for, so also a busy turn asks.
        let idle = self.uring.is_idle();
        self.uring.wait(if idle { wait } else { Duration::ZERO })?;
        self.judge_batch(judge)
    }

    fn send(&mut self, frames: &[Parting<'_>], _: &mut J) -> io::Result<()> {
        self.uring.send(frames)
    }

    fn set_filter(&mut self, program: &[Instruction]) -> io::Result<()> {
        self.ports.iter().try_for_each(|port| port.receiver.attach(program))
    }

    fn lost(&mut self) -> Lost {
        Lost::frames(self.ports.iter().map(|port| port.receiver.lost()).sum())
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
