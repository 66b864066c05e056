//! The ring engine: frames are rewritten where the kernel put them, and io_uring sends them from
//! there, up to [`BATCH`] with one system call. Slots are given back right after the submit; [`super::uring`] says
//! why that is so.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    time::Duration,
};

use super::{
    BATCH, Engine, EngineError, FrameMeta, MAX_FRAME_LEN, PortConfig, TRUNCATED, VNET_HEADER_LEN,
    filter::Instruction,
    out_port,
    packet_ring::{PacketRing, Taken},
    socket::PacketSocket,
    uring::{Descriptors, Event, Uring, poll},
};
use crate::worker::Core;

/// Super-frames that can wait for one submit.
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
        let mut uring = Uring::new(wake)?;
        let ports = ports
            .iter()
            .map(|port| {
                let (sender, segmenter) = (PacketSocket::sender(port)?, PacketSocket::segmenter(port)?);
                Ok(Port { ring: PacketRing::open(port, filter)?, sender, segmenter, armed: false })
            })
            .collect::<Result<Vec<_>, EngineError>>()?;
        let descriptors = |port: &Port| Descriptors {
            sender: port.sender.as_raw_fd(),
            segmenter: port.segmenter.as_raw_fd(),
            receiver: port.ring.fd().as_raw_fd(),
        };
        uring.register(&ports.iter().map(descriptors).collect::<Vec<_>>())?;
        let buffers = (0..COPY_BUFFERS).map(|_| vec![0; VNET_HEADER_LEN + MAX_FRAME_LEN].into()).collect();
        Ok(Self { uring, ports, copies: Copies { buffers, used: 0 }, events: Vec::new() })
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
                // SAFETY: a ring slot is ours until `give_back`, a copy until `used` is reset; both come after a submit.
                unsafe { self.uring.queue_send(out, frame, is_super, verdict) };
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

    fn reap(&mut self, core: &mut Core) {
        self.uring.reap(&mut self.events, usize::MAX);
        for event in self.events.drain(..) {
            let (port, completion) = match event {
                Event::SendFailed(sent) => {
                    core.send_failed(sent);
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
