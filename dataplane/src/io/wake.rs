//! What ends a worker's waiting, besides the frames of its engine: its bell, and frames in its control sockets.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::event::epoll;

/// One descriptor that is readable when any of them has something.
pub(crate) struct Wake {
    any: OwnedFd,
    /// An event descriptor that does not block.
    bell: OwnedFd,
}

impl Wake {
    pub(crate) fn new(bell: OwnedFd) -> io::Result<Self> {
        let wake = Self { any: epoll::create(epoll::CreateFlags::CLOEXEC)?, bell };
        wake.include(&wake.bell)?;
        Ok(wake)
    }

    /// Another descriptor, until it is closed.
    pub(in crate::io) fn include(&self, descriptor: impl AsFd) -> io::Result<()> {
        let data = epoll::EventData::new_u64(0);
        Ok(epoll::add(&self.any, descriptor, data, epoll::EventFlags::IN)?)
    }

    /// The bell has been heard.
    pub(in crate::io) fn reset(&self) {
        // What it counted does not matter.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }

    /// The same one again.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { any: self.any.try_clone()?, bell: self.bell.try_clone()? })
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.any.as_fd()
    }
}
