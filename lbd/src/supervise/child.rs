//! The child's end.

use std::{
    io,
    net::SocketAddr,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    sync::{Arc, Mutex, PoisonError},
};

use lb_dataplane::{LinkKeeper, guard};
use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{Resource, Signal, getppid, getrlimit, set_parent_process_death_signal},
};

use super::{
    GUARD,
    words::{Names, Obituary, Said, hear, say},
};

/// The process that waits for this one.
#[derive(Debug, Clone)]
pub(crate) struct Parent {
    /// By which it is told what to send and to keep; `None` if there is no such socket.
    socket: Option<Arc<UnixDatagram>>,
    /// The parent's socket that owns the guard, if it has one.
    guard: Option<Arc<OwnedFd>>,
    /// What it has kept of the child of another one before.
    links: Arc<Mutex<Vec<(String, OwnedFd)>>>,
}

impl Parent {
    /// Ties this process's life to its parent's. `None` when that one is dead already.
    pub(crate) fn of_child(parent: u32) -> Option<Self> {
        let tied = set_parent_process_death_signal(Some(Signal::KILL));
        // It may have died before the call.
        let lives = getppid().is_some_and(|pid| pid.as_raw_nonzero().get().cast_unsigned() == parent);
        let socket = io::stdin().as_fd().try_clone_to_owned().map(UnixDatagram::from).ok();
        let given = match socket.as_ref().map(hear) {
            Some(Ok((Some(Said::Descriptors(Names { names })), descriptors))) => names.into_iter().zip(descriptors),
            _ => Vec::new().into_iter().zip(Vec::new()),
        };
        let (guards, links): (Vec<_>, Vec<_>) = given.partition(|(name, _)| name == GUARD);
        let guard = guards.into_iter().next().map(|(_, guard)| Arc::new(guard));
        let socket = socket.map(Arc::new);
        (tied.is_ok() && lives).then(|| Self { socket, guard, links: Arc::new(Mutex::new(links)) })
    }

    /// Whose the guard is: the parent's, so that it outlives this process, or this process's own.
    pub(crate) fn guard(&self) -> guard::Ownership {
        let socket = self.guard.as_ref().and_then(|guard| guard.try_clone().ok());
        socket.map_or(guard::Ownership::Own, guard::Ownership::Of)
    }

    /// Keeps this process's memory from being swapped out, where that is allowed without a limit: a page fault in
    /// the heartbeat or the worker would wait for the disk. Locked as it is touched, not all of it at once.
    pub(crate) fn lock_memory(&self) {
        // Under a limit a later allocation would fail instead.
        if getrlimit(Resource::Memlock).current.is_some() {
            return;
        }
        let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
        if let Err(error) = mlockall(flags) {
            tracing::debug!(%error, "the memory is not locked");
        }
    }

    /// What the parent shall send when this process is dead.
    pub(crate) fn on_death_send(&self, datagrams: &[(SocketAddr, Vec<u8>)]) {
        self.tell(Said::Obituary(Obituary::of(datagrams)), &[], "the obituary");
    }

    fn tell(&self, said: Said, descriptors: &[BorrowedFd<'_>], what: &str) {
        let socket = self.socket.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into());
        if let Err(error) = socket.and_then(|socket| say(socket, said, descriptors)) {
            tracing::warn!(%error, "the parent process does not take {what}");
        }
    }
}

impl LinkKeeper for Parent {
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) {
        let said = Said::Descriptors(Names { names: vec![name.to_owned()] });
        self.tell(said, &[descriptor], "a link of the accelerator");
    }

    fn let_go(&self, name: &str) {
        self.tell(Said::LetGo(name.to_owned()), &[], "the end of a link");
    }

    fn of_before(&self) -> Vec<(String, OwnedFd)> {
        std::mem::take(&mut self.links.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
