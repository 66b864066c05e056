//! io_uring as the engines on it use it: a batch of sends with one system call, and waiting for frames, a wake-up or
//! the time.
//!
//! # Why a frame's memory may be used again right after the submit
//!
//! Each send is an SQE with MSG_DONTWAIT and without IOSQE_ASYNC, links or drain. io_uring issues such
//! an SQE inside io_uring_enter. MSG_DONTWAIT sets REQ_F_NOWAIT (io_sendmsg_prep), and a request with
//! REQ_F_NOWAIT that would block is completed with -EAGAIN instead of being queued for a retry
//! (io_queue_async). A packet socket's sendmsg copies the frame into an skb before it returns
//! (packet_snd: skb_copy_datagram_from_iter). So when io_uring_enter returns and has consumed the SQEs,
//! which [`Uring::submit`] makes sure of, no one reads the frames any more.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
    time::Duration,
};

use io_uring::{
    IoUring, Submitter, cqueue, opcode, squeue,
    types::{Fd, Fixed, SubmitArgs, Timespec},
};

use super::BATCH;
use crate::{
    io::{
        departure::{Departure, Outlet, Parting},
        wake::Wake,
    },
    verdict::Sent,
};

/// Sends of a batch, the polls, and some room.
const SQ_ENTRIES: u32 = 256;

/// Of a submit that the kernel cannot take at the moment.
const MAX_ATTEMPTS: u32 = 1000;

/// What a completion belongs to: the lowest byte of its number.
const FORWARDED: u64 = 1;
const ANSWERED: u64 = 2;
const ORIGINATED: u64 = 3;
const FRAGMENT: u64 = 4;
const WOKEN: u64 = 5;
const PORT: u64 = 6;
/// Behind it the port; or, of a forwarded frame, its bytes, and then its backend.
const DETAIL_SHIFT: u32 = 8;
const BACKEND_SHIFT: u32 = 32;
const BYTES: u64 = (1 << (BACKEND_SHIFT - DETAIL_SHIFT)) - 1;

/// The number of a send, from which a failed one's completion is read.
fn number(sent: Sent) -> u64 {
    match sent {
        Sent::Forwarded { backend, bytes } => {
            FORWARDED | (u64::from(bytes) & BYTES) << DETAIL_SHIFT | u64::from(backend) << BACKEND_SHIFT
        }
        Sent::Answered => ANSWERED,
        Sent::Originated => ORIGINATED,
        Sent::Fragment => FRAGMENT,
    }
}

fn event(completion: cqueue::Entry) -> Option<Event> {
    let number = completion.user_data();
    let bytes = (number >> DETAIL_SHIFT & BYTES) as u32;
    let sent = match number & 0xff {
        FORWARDED => Sent::Forwarded { backend: (number >> BACKEND_SHIFT) as u32, bytes },
        ANSWERED => Sent::Answered,
        ORIGINATED => Sent::Originated,
        FRAGMENT => Sent::Fragment,
        WOKEN => return None,
        _ => return Some(Event::Port((number >> DETAIL_SHIFT) as usize, completion)),
    };
    Some(Event::SendFailed(sent))
}

/// The sockets of a port.
pub(in crate::io) struct Descriptors {
    pub(in crate::io) sender: RawFd,
    /// For GSO frames.
    pub(in crate::io) segmenter: RawFd,
    pub(in crate::io) receiver: RawFd,
}

/// What has come about.
pub(in crate::io) enum Event {
    /// The queue of a device was full: the frame is lost, as on any full wire. Successful sends leave no event.
    SendFailed(Sent),
    /// What was armed for a port.
    Port(usize, cqueue::Entry),
}

pub(in crate::io) struct Uring {
    ring: IoUring,
    ports: usize,
    wake: Wake,
    wake_armed: bool,
    /// Of the present batch.
    sends: Vec<squeue::Entry>,
}

impl Uring {
    /// A ring without sockets.
    pub(in crate::io) fn new(wake: &Wake) -> io::Result<Self> {
        let ring = build()?;
        let wake = wake.try_clone()?;
        Ok(Self { ring, ports: 0, wake, wake_armed: false, sends: Vec::with_capacity(BATCH) })
    }

    /// Tells the kernel of the sockets, once.
    pub(in crate::io) fn register(&mut self, ports: &[Descriptors]) -> io::Result<()> {
        self.ports = ports.len();
        // Fixed files, in this order: senders, so that a port's index is its sender's; segmenters;
        // receivers; the wake-up.
        let senders = ports.iter().map(|port| port.sender);
        let segmenters = ports.iter().map(|port| port.segmenter);
        let receivers = ports.iter().map(|port| port.receiver);
        let files: Vec<RawFd> =
            senders.chain(segmenters).chain(receivers).chain([self.wake.as_fd().as_raw_fd()]).collect();
        self.submitter().register_files(&files)
    }

    pub(in crate::io) fn submitter(&self) -> Submitter<'_> {
        self.ring.submitter()
    }

    /// The receiver of a port, as requests name it.
    pub(in crate::io) fn receiver(&self, port: usize) -> Fixed {
        Fixed((2 * self.ports + port) as u32)
    }

    /// Gathers the send of a judged frame, its vnet header included.
    ///
    /// # Safety
    /// The bytes stay readable and unchanged until [`Self::submit`] has returned.
    #[inline]
    pub(in crate::io) unsafe fn queue_send(&mut self, start: *const u8, departure: &Departure) {
        let Departure { port, len, is_gso, sent } = *departure;
        let file = if is_gso { self.ports + port } else { port };
        self.push_send(opcode::Send::new(Fixed(file as u32), start, len as u32), sent);
    }

    fn push_send(&mut self, send: opcode::Send, sent: Sent) {
        let send = send.flags(libc::MSG_DONTWAIT).build();
        self.sends.push(send.flags(squeue::Flags::SKIP_SUCCESS).user_data(number(sent)));
    }

    /// Sends frames that are not of the present batch, so many with one system call as a batch has.
    pub(in crate::io) fn send(&mut self, frames: &[Parting<'_>]) -> io::Result<()> {
        for batch in frames.chunks(BATCH) {
            for Parting { by, frame, sent } in batch {
                let (start, len) = (frame.bytes().as_ptr(), frame.bytes().len());
                match *by {
                    Outlet::Port(port) => {
                        let departure = Departure { port, len, is_gso: frame.vnet().is_gso(), sent: *sent };
                        // SAFETY: the frames are borrowed until after the submit.
                        unsafe { self.queue_send(start, &departure) };
                    }
                    Outlet::Descriptor(fd) => {
                        self.push_send(opcode::Send::new(Fd(fd), start, len as u32), *sent);
                    }
                }
            }
            self.submit()?;
        }
        Ok(())
    }

    /// Has the kernel carry out all gathered sends before it returns.
    pub(in crate::io) fn submit(&mut self) -> io::Result<()> {
        // A poll may be left there by a wait that was cut short; there is room for it and a batch.
        // SAFETY: the frames stay where they are until this function has returned, as whoever gathered them has
        // promised. The file indexes are registered senders.
        unsafe { self.ring.submission().push_multiple(&self.sends) }.map_err(io::Error::other)?;
        self.sends.clear();
        let mut attempts = 0;
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
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

    /// Asks for something of a port; its completions are that port's events.
    ///
    /// # Safety
    /// What the request points at stays valid until it is done.
    pub(in crate::io) unsafe fn arm(&mut self, port: usize, request: squeue::Entry) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.ring.submission().push(&request.user_data(PORT | (port as u64) << DETAIL_SHIFT)) }
            .map_err(io::Error::other)
    }

    /// Sleeps until an event, a wake-up or the time comes.
    pub(in crate::io) fn wait(&mut self, wait: Duration) -> io::Result<()> {
        if !self.wake_armed {
            let poll = poll(Fixed(3 * self.ports as u32)).user_data(WOKEN);
            // SAFETY: a poll points at nothing.
            unsafe { self.ring.submission().push(&poll) }.map_err(io::Error::other)?;
            self.wake_armed = true;
        }
        let timespec = Timespec::from(wait);
        match self.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec)) {
            Ok(_) => Ok(()),
            Err(error) if is_passing(&error) || error.raw_os_error() == Some(libc::ETIME) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether there is nothing to reap.
    pub(in crate::io) fn is_idle(&mut self) -> bool {
        self.ring.completion().is_empty()
    }

    /// Moves up to `most` completions into `events`; a wake-up only ends a wait.
    pub(in crate::io) fn reap(&mut self, events: &mut Vec<Event>, most: usize) {
        let mut woken = false;
        for completion in self.ring.completion().take(most) {
            match event(completion) {
                Some(event) => events.push(event),
                None => woken = true,
            }
        }
        if woken {
            self.wake_armed = false;
            self.wake.reset();
        }
    }
}

/// Waits until a file is readable.
pub(in crate::io) fn poll(file: Fixed) -> squeue::Entry {
    opcode::PollAdd::new(file, libc::POLLIN as u32).build()
}

/// Whether the same call may succeed a moment later.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

/// One thread submits and reaps, completions run when it asks for them, and a failed entry does not
/// hold up those behind it. NO_SQARRAY needs Linux 6.6; without it the ring only is a little slower.
fn build() -> io::Result<IoUring> {
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
