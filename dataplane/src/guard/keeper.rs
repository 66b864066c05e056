//! Keeps the guard in place while others change the ruleset: a thread that hears of every change, and looks once a second
//! whether it has missed one.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::{
    error::{GuardError, failed},
    netlink::{Netlink, take},
};

/// Between two looks without a change.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The thread; it ends with this.
pub(crate) struct Keeper {
    stop: Arc<AtomicBool>,
    wake: OwnedFd,
    thread: Option<thread::JoinHandle<()>>,
}

impl Keeper {
    /// Calls `look` whenever the ruleset has changed, and each second.
    pub(crate) fn start(mut look: impl FnMut() + Send + 'static) -> Result<Self, GuardError> {
        let changes = Netlink::listener()?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from);
        let wake = wake.map_err(failed("making an event descriptor"))?;
        let (woken, stop) =
            (wake.try_clone().map_err(failed("copying an event descriptor"))?, Arc::<AtomicBool>::default());
        let stopped = stop.clone();
        let keep = move || {
            while !stopped.load(Ordering::Acquire) {
                let mut fds = [PollFd::new(&changes, PollFlags::IN), PollFd::new(&woken, PollFlags::IN)];
                // Interrupted or not: everything is looked at again.
                let _ = poll(&mut fds, Some(&LOOK_EVERY));
                // What has changed does not matter: it is read anew. What had no room is told as an error, once.
                while matches!(take(&changes), Ok(Some(_))) {}
                if !stopped.load(Ordering::Acquire) {
                    look();
                }
            }
        };
        let thread = thread::Builder::new().name("guard-keeper".into()).spawn(keep);
        let thread = thread.map_err(failed("starting the keeper's thread"))?;
        Ok(Self { stop, wake, thread: Some(thread) })
    }

    /// Ends it; nobody looks any more when this has returned.
    pub(crate) fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the guard's keeper panicked");
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop();
    }
}
