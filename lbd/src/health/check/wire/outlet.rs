//! The socket of a segment, by which all its flows send.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use lb_dataplane::{io::CheckSocket, packet::Mac};

/// From where to where a flow's packets go.
#[derive(Debug, Clone, Copy)]
pub(in crate::health::check) struct Ends {
    /// The backend's.
    pub(in crate::health::check) mac: Mac,
    /// This node's address.
    pub(in crate::health::check) source: IpAddr,
    pub(in crate::health::check) vip: IpAddr,
}

pub(super) struct Outlet(Mutex<CheckSocket>);

impl Outlet {
    pub(super) fn new(socket: CheckSocket) -> Self {
        Self(Mutex::new(socket))
    }

    /// Another descriptor of the socket, to wait for packets.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        lock(&self.0).as_fd().try_clone_to_owned()
    }

    pub(super) fn send(&self, to: Mac, packet: &[u8]) {
        // A frame that is lost here is one that is lost on the wire: it is asked again, or not answered in time.
        let _ = lock(&self.0).send(to, packet);
    }

    pub(super) fn receive(&self) -> io::Result<Vec<u8>> {
        lock(&self.0).receive().map(|packet| packet.to_vec())
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
