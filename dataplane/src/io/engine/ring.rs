//! The ring engine: frames are rewritten where the kernel put them, and io_uring sends them from
//! there, up to [`BATCH`] with one system call. Slots are given back right after the submit; [`super::super::sys::uring`] says
//! why that is so.

use std::{io, os::fd::AsRawFd as _, time::Duration};

use super::{
    super::{
        cbpf::Instruction,
        departure::{Parting, departure},
        fanout::Opening,
        sys::{
            BATCH, MAX_FRAME_LEN,
            packet_ring::{Other, PacketRing, Whole},
            socket::{PacketSocket, PortConfig},
            uring::{Descriptors, Event, Uring, poll},
        },
        wake::Wake,
    },
    Engine, EngineError, FrameJudge, Lost, TRUNCATED,
};
use crate::packet::{FrameMeta, VnetHeader};

/// Frames that are looked at before the first of them is judged.
const LOOKAHEAD: usize = 16;
/// GSO frames that can wait for one submit.
const COPY_BUFFERS: usize = 16;

pub(super) struct RingEngine {
    /// Before the sockets: it holds their descriptors.
    uring: Uring,
    ports: Vec<Port>,
    copies: Copies,
    events: Vec<Event>,
}

struct Port {
    ring: PacketRing,
    sender: PacketSocket,
    /// For GSO frames.
    segmenter: PacketSocket,
    armed: bool,
    /// Whether a frame was taken since the last look at what was lost.
    has_given: bool,
}

/// Buffers for frames that were longer than a slot.
struct Copies {
    buffers: Vec<Box<[u8]>>,
    used: usize,
}

impl RingEngine {
    pub(super) fn start(ports: &[PortConfig], wake: &Wake, opening: &mut Opening<'_>) -> Result<Self, EngineError> {
        let mut uring = Uring::new(wake)?;
        let ports = ports
            .iter()
            .map(|port| {
                let (sender, segmenter) = (PacketSocket::sender(port)?, PacketSocket::segmenter(port)?);
                let ring = PacketRing::map(opening.receiver(port, PacketRing::RECEIVE_BUFFER)?, port)?;
                opening.bind(ring.socket(), port)?;
                Ok(Port { ring, sender, segmenter, armed: false, has_given: false })
            })
            .collect::<Result<Vec<_>, EngineError>>()?;
        let descriptors = |port: &Port| Descriptors {
            sender: port.sender.as_raw_fd(),
            segmenter: port.segmenter.as_raw_fd(),
            receiver: port.ring.fd().as_raw_fd(),
        };
        uring.register(&ports.iter().map(descriptors).collect::<Vec<_>>())?;
        let buffers = (0..COPY_BUFFERS).map(|_| vec![0; VnetHeader::LEN + MAX_FRAME_LEN].into()).collect();
        Ok(Self { uring, ports, copies: Copies { buffers, used: 0 }, events: Vec::new() })
    }

    /// Judges the frames of one interface. Whether there were any.
    fn drain_port<J: FrameJudge>(&mut self, port: usize, judge: &mut J) -> io::Result<bool> {
        let mut judged = 0;
        while judged < BATCH {
            judged += match self.judge_whole(port, judge) {
                0 => match self.ports[port].ring.take_other() {
                    Some(other) => {
                        self.judge_other(port, other, judge)?;
                        1
                    }
                    None => break,
                },
                count => count,
            };
        }
        if judged > 0 {
            self.submit()?;
            self.ports[port].ring.give_back();
            self.ports[port].has_given = true;
        }
        Ok(judged > 0)
    }

    /// Judges frames that stand in the ring: first three looks at some of them, then their judgement. How many.
    fn judge_whole<J: FrameJudge>(&mut self, port: usize, judge: &mut J) -> usize {
        let mut frames = [const { None }; LOOKAHEAD];
        let count = self.ports[port].ring.take_whole(&mut frames);
        let mut peeks = [J::NOTHING; LOOKAHEAD];
        for (Whole { bytes, .. }, peek) in frames.iter().flatten().zip(&mut peeks) {
            judge.peek(&bytes[VnetHeader::LEN..], peek);
        }
        peeks[..count].iter_mut().for_each(|peek| judge.look_ahead(peek));
        peeks[..count].iter().for_each(|peek| judge.look_closer(peek));
        for (Whole { bytes, meta }, peek) in frames.into_iter().flatten().zip(&peeks) {
            let verdict = judge.judge(port, meta, &mut bytes[VnetHeader::LEN..], peek);
            if let Some(departure) = departure(verdict, port, bytes) {
                // SAFETY: a ring slot is ours until `give_back`, which comes after a submit.
                unsafe { self.uring.queue_send(bytes.as_ptr(), &departure) };
            }
        }
        count
    }

    /// Judges a frame that does not stand in the ring.
    fn judge_other<J: FrameJudge>(&mut self, port: usize, other: Other, judge: &mut J) -> io::Result<()> {
        let Other::Queued { vlan_tagged } = other else {
            judge.count_unseen(TRUNCATED);
            return Ok(());
        };
        let buffer = &mut self.copies.buffers[self.copies.used];
        let received = self.ports[port].ring.receive_queued(buffer).unwrap_or(0);
        let bytes = &mut buffer[..received];
        let Some((vnet, frame)) = bytes.split_first_chunk_mut() else {
            judge.count_unseen(TRUNCATED);
            return Ok(());
        };
        let meta = FrameMeta { vlan_tagged, vnet: VnetHeader(*vnet) };
        let mut peek = J::NOTHING;
        judge.peek(frame, &mut peek);
        let verdict = judge.judge(port, meta, frame, &peek);
        if let Some(departure) = departure(verdict, port, bytes) {
            self.copies.used += 1;
            // SAFETY: a copy is left alone until `used` is reset, after a submit.
            unsafe { self.uring.queue_send(bytes.as_ptr(), &departure) };
        }
        if self.copies.used == COPY_BUFFERS {
            self.submit()?;
        }
        Ok(())
    }

    /// Has the kernel carry out all gathered sends before it returns.
    fn submit(&mut self) -> io::Result<()> {
        self.uring.submit()?;
        self.copies.used = 0;
        Ok(())
    }

    /// Sleeps until a frame, a wake-up or the time comes.
    fn wait(&mut self, wait: Duration) -> io::Result<()> {
        for (at, port) in self.ports.iter_mut().enumerate().filter(|(_, port)| !port.armed) {
            let readable = poll(self.uring.receiver(at));
            // SAFETY: a poll points at nothing.
            unsafe { self.uring.arm(at, readable) }?;
            port.armed = true;
        }
        self.uring.wait(wait)
    }

    fn reap(&mut self, judge: &mut impl FrameJudge) {
        self.uring.reap(&mut self.events, usize::MAX);
        for event in self.events.drain(..) {
            let (port, completion) = match event {
                Event::SendFailed(sent) => {
                    judge.send_failed(sent);
                    continue;
                }
                Event::Port(at, completion) => (&mut self.ports[at], completion),
            };
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

impl<J: FrameJudge> Engine<J> for RingEngine {
    fn turn(&mut self, wait: Duration, judge: &mut J) -> io::Result<bool> {
        let mut busy = false;
        for port in 0..self.ports.len() {
            busy |= self.drain_port(port, judge)?;
        }
        if !busy && !wait.is_zero() {
            self.wait(wait)?;
        }
        self.reap(judge);
        Ok(busy)
    }

    fn send(&mut self, frames: &[Parting<'_>], _: &mut J) -> io::Result<()> {
        self.uring.send(frames)
    }

    fn set_filter(&mut self, program: &[Instruction]) -> io::Result<()> {
        self.ports.iter().try_for_each(|port| port.ring.socket().attach(program))
    }

    fn lost(&mut self) -> Lost {
        let mut all = Lost::frames(0);
        for port in &mut self.ports {
            let frames = port.ring.socket().lost();
            all.frames += frames;
            // A full ring has frames to take. Where the kernel drops and there are none, it has forgotten to give a slot
            // back to itself: tpacket_rcv() does so, and drops whatever comes after, when a GSO frame is of a kind
            // that the vnet header has no name for (UDP fragmentation, SCTP).
            all.is_stuck |= frames > 0 && !port.has_given;
            port.has_given = false;
        }
        all
    }

    fn waiting(&self) -> (usize, usize) {
        let waiting = self.ports.iter().map(|port| port.ring.waiting());
        waiting.fold((0, 0), |all, of| (all.0 + of.0, all.1 + of.1))
    }
}
