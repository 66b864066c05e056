//! The plain engine: recvmmsg(2) and sendmmsg(2), for kernels and sandboxes without io_uring.

use std::{
    io, mem,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
    ptr,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{
    super::{
        cbpf::Instruction,
        departure::{Departure, Outlet, Parting, departure},
        fanout::Opening,
        sys::{
            BATCH, MAX_FRAME_LEN,
            memory::HugeSlice,
            socket::{PacketSocket, PortConfig},
        },
        wake::Wake,
    },
    CONTROL_LEN, Engine, EngineError, FrameJudge, Lost, RECEIVE_BUFFER, TRUNCATED, is_vlan_tagged,
};
use crate::{
    packet::{FrameMeta, VnetHeader},
    verdict::Sent,
};

const BUFFER_LEN: usize = (VnetHeader::LEN + MAX_FRAME_LEN).next_multiple_of(4096);

pub(super) struct MmsgEngine {
    ports: Vec<Port>,
    wake: Wake,
    batch: Box<Batch>,
}

struct Port {
    receiver: PacketSocket,
    sender: PacketSocket,
    /// For GSO frames.
    segmenter: PacketSocket,
    /// Of the present batch.
    outgoing: Vec<Outgoing>,
}

struct Outgoing {
    buffer: usize,
    departure: Departure,
}

/// Buffers and the headers that point into them. Boxed, so that the pointers stay good.
struct Batch {
    buffers: HugeSlice<u8>,
    controls: [Control; BATCH],
    vectors: [libc::iovec; BATCH],
    headers: [libc::mmsghdr; BATCH],
}

/// Aligned as struct cmsghdr.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

impl super::super::sys::memory::Zeroed for u8 {
    const ZERO: Self = 0;
}

impl MmsgEngine {
    pub(super) fn start(ports: &[PortConfig], wake: &Wake, opening: &mut Opening<'_>) -> Result<Self, EngineError> {
        let ports = ports
            .iter()
            .map(|port| {
                let (sender, segmenter) = (PacketSocket::sender(port)?, PacketSocket::segmenter(port)?);
                let receiver = opening.receiver(port, RECEIVE_BUFFER)?;
                receiver.request_auxdata()?;
                opening.bind(&receiver, port)?;
                Ok(Port { receiver, sender, segmenter, outgoing: Vec::with_capacity(BATCH) })
            })
            .collect::<Result<Vec<_>, EngineError>>()?;
        let buffers = HugeSlice::new(BATCH * BUFFER_LEN).map_err(EngineError::Uring)?;
        // SAFETY: iovec and mmsghdr are plain data for which zero (null pointers, no lengths) is a value.
        let (vectors, headers) = unsafe { (mem::zeroed(), mem::zeroed()) };
        let batch = Box::new(Batch { buffers, controls: [Control([0; CONTROL_LEN]); BATCH], vectors, headers });
        let wake = wake.try_clone().map_err(EngineError::Uring)?;
        Ok(Self { ports, wake, batch })
    }

    /// Judges and sends what one interface has. Whether there was anything.
    fn drain_port<J: FrameJudge>(&mut self, port: usize, judge: &mut J) -> bool {
        let received = self.batch.receive(&self.ports[port].receiver);
        let mut peeks = [J::NOTHING; BATCH];
        for (index, peek) in peeks.iter_mut().enumerate().take(received) {
            let (len, _) = self.batch.received(index);
            if let Some(frame) = self.batch.buffer(index, len).get(VnetHeader::LEN..) {
                judge.peek(frame, peek);
            }
        }
        peeks[..received].iter_mut().for_each(|peek| judge.look_ahead(peek));
        peeks[..received].iter().for_each(|peek| judge.look_closer(peek));
        for (index, peek) in peeks.iter().enumerate().take(received) {
            let (len, vlan_tagged) = self.batch.received(index);
            let bytes = self.batch.buffer(index, len);
            let Some((vnet, frame)) = bytes.split_first_chunk_mut() else {
                judge.count_unseen(TRUNCATED);
                continue;
            };
            let meta = FrameMeta { vlan_tagged, vnet: VnetHeader(*vnet) };
            let verdict = judge.judge(port, meta, frame, peek);
            if let Some(departure) = departure(verdict, port, bytes) {
                self.ports[departure.port].outgoing.push(Outgoing { buffer: index, departure });
            }
        }
        for port in &mut self.ports {
            // By turns, so that a flow's frames leave in their order.
            for run in port.outgoing.chunk_by(|one, next| one.departure.is_gso == next.departure.is_gso) {
                let socket = if run[0].departure.is_gso { &port.segmenter } else { &port.sender };
                self.batch.send(socket.as_raw_fd(), run, judge);
            }
            port.outgoing.clear();
        }
        received > 0
    }
}

impl Batch {
    /// Receives up to a batch of frames into the buffers, without waiting.
    fn receive(&mut self, socket: &PacketSocket) -> usize {
        for index in 0..BATCH {
            self.point(index, index, BUFFER_LEN);
            let header = &mut self.headers[index].msg_hdr;
            header.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_LEN;
        }
        // SAFETY: each header points at one vector, each vector at a buffer of its own of BUFFER_LEN bytes,
        // and each control pointer at CONTROL_LEN bytes; all live in self, which is borrowed.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        // Nothing there, or a passing error such as ENETDOWN: the next turn asks again.
        usize::try_from(received).unwrap_or(0)
    }

    /// The length of a received message, and whether its frame carries a VLAN tag.
    fn received(&self, index: usize) -> (usize, bool) {
        let header = &self.headers[index];
        // The kernel has said how much of it it wrote.
        let control = &self.controls[index].0[..header.msg_hdr.msg_controllen.min(CONTROL_LEN)];
        (header.msg_len as usize, is_vlan_tagged(control))
    }

    fn buffer(&mut self, index: usize, len: usize) -> &mut [u8] {
        let start = index * BUFFER_LEN;
        &mut self.buffers[start..start + len.min(BUFFER_LEN)]
    }

    /// Makes the header at `index` point at `len` bytes of a buffer.
    fn point(&mut self, index: usize, buffer: usize, len: usize) {
        let start = self.buffer(buffer, len).as_mut_ptr();
        self.point_at(index, start, len);
    }

    fn point_at(&mut self, index: usize, start: *mut u8, len: usize) {
        self.vectors[index] = libc::iovec { iov_base: start.cast(), iov_len: len };
        let vector = &raw mut self.vectors[index];
        let header = &mut self.headers[index];
        // SAFETY: plain data for which zero is a value.
        header.msg_hdr = unsafe { mem::zeroed() };
        header.msg_hdr.msg_iov = vector;
        header.msg_hdr.msg_iovlen = 1;
    }

    /// Sends frames of the buffers by one socket.
    fn send<J: FrameJudge>(&mut self, socket: RawFd, outgoing: &[Outgoing], judge: &mut J) {
        for (index, Outgoing { buffer, departure }) in outgoing.iter().enumerate() {
            self.point(index, *buffer, departure.len);
        }
        // SAFETY: so many headers were pointed at filled buffers of self.
        unsafe { self.send_pointed(socket, outgoing.iter().map(|outgoing| outgoing.departure.sent), judge) };
    }

    /// Sends other frames by one socket, a batch at most.
    fn send_others<J: FrameJudge>(&mut self, socket: RawFd, frames: &[Parting<'_>], judge: &mut J) {
        for (index, parting) in frames.iter().enumerate() {
            let bytes = parting.frame.bytes();
            self.point_at(index, bytes.as_ptr().cast_mut(), bytes.len());
        }
        // SAFETY: so many headers point at frames that are borrowed, and that sendmmsg only reads.
        unsafe { self.send_pointed(socket, frames.iter().map(|parting| parting.sent), judge) };
    }

    /// Sends what the first headers point at; what the interface's queue does not take is lost, as on any full wire.
    ///
    /// # Safety
    /// So many headers as there are in `all` point at readable memory.
    unsafe fn send_pointed<J: FrameJudge>(
        &mut self,
        socket: RawFd,
        all: impl ExactSizeIterator<Item = Sent> + Clone,
        judge: &mut J,
    ) {
        let mut done = 0;
        while done < all.len() {
            let count = (all.len() - done) as libc::c_uint;
            // SAFETY: by the caller's promise for the headers from `done` on, which live in self.
            let sent =
                unsafe { libc::sendmmsg(socket, self.headers.as_mut_ptr().add(done), count, libc::MSG_DONTWAIT) };
            match usize::try_from(sent) {
                Ok(sent) if sent > 0 => done += sent,
                _ => {
                    all.clone().nth(done).into_iter().for_each(|sent| judge.send_failed(sent));
                    done += 1;
                }
            }
        }
    }
}

impl<J: FrameJudge> Engine<J> for MmsgEngine {
    fn turn(&mut self, wait: Duration, judge: &mut J) -> io::Result<bool> {
        let mut busy = false;
        for port in 0..self.ports.len() {
            busy |= self.drain_port(port, judge);
        }
        if busy || wait.is_zero() {
            return Ok(busy);
        }
        let receivers = self.ports.iter().map(|port| port.receiver.as_fd());
        let mut waiting: Vec<PollFd<'_>> =
            receivers.chain([self.wake.as_fd()]).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let timeout = Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: wait.subsec_nanos().into() };
        match rustix::event::poll(&mut waiting, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.wake.reset();
        Ok(false)
    }

    fn send(&mut self, frames: &[Parting<'_>], judge: &mut J) -> io::Result<()> {
        let socket = |parting: &Parting<'_>| match parting.by {
            Outlet::Port(port) if parting.frame.vnet().is_gso() => self.ports[port].segmenter.as_raw_fd(),
            Outlet::Port(port) => self.ports[port].sender.as_raw_fd(),
            Outlet::Descriptor(fd) => fd,
        };
        for run in frames.chunk_by(|one, next| socket(one) == socket(next)) {
            for batch in run.chunks(BATCH) {
                self.batch.send_others(socket(&batch[0]), batch, judge);
            }
        }
        Ok(())
    }

    fn set_filter(&mut self, program: &[Instruction]) -> io::Result<()> {
        self.ports.iter().try_for_each(|port| port.receiver.attach(program))
    }

    fn lost(&mut self) -> Lost {
        Lost::frames(self.ports.iter().map(|port| port.receiver.lost()).sum())
    }
}
