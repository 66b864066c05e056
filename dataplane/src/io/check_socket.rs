//! The socket by which this node talks with a backend as a client of a VIP would: it sends whole frames to the backend's MAC
//! address, and gets what answers, before the kernel does. The kernel, which knows nothing of the conversation and would
//! reset it, does not get it: the guard sees to that.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use super::{
    cbpf::checks::checks,
    sys::socket::{PacketSocket, PortConfig, SocketError},
};
use crate::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Mac};

/// Some thousand answers.
const RECEIVE_BUFFER: libc::c_int = 4 << 20;
/// As long as a packet can be that the kernel has put together of several (GRO).
const MAX_LEN: usize = ETHERNET + 65_536;
const ETHERNET: usize = 14;

/// The checks' socket of one interface. It never waits.
pub struct CheckSocket {
    socket: PacketSocket,
    source: Mac,
    frame: Vec<u8>,
    buffer: Box<[u8]>,
}

impl CheckSocket {
    /// `source`: the interface's MAC address.
    pub(crate) fn open(port: &PortConfig, source: Mac) -> Result<Self, SocketError> {
        let socket = PacketSocket::plain(port, &checks(), RECEIVE_BUFFER)?;
        socket.bind_all(port)?;
        Ok(Self { socket, source, frame: Vec::new(), buffer: vec![0; MAX_LEN].into() })
    }

    /// Sends an IP packet to a MAC address.
    pub fn send(&mut self, to: Mac, packet: &[u8]) -> io::Result<()> {
        let ethertype = if packet.first().is_some_and(|byte| byte >> 4 == 4) { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        self.frame.clear();
        self.frame.extend_from_slice(&to.0);
        self.frame.extend_from_slice(&self.source.0);
        self.frame.extend_from_slice(&ethertype.to_be_bytes());
        self.frame.extend_from_slice(packet);
        socket2::SockRef::from(&self.socket).send_with_flags(&self.frame, libc::MSG_DONTWAIT).map(drop)
    }

    /// The next IP packet that came; an error of the kind `WouldBlock` when there is none.
    pub fn receive(&mut self) -> io::Result<&mut [u8]> {
        let received = self.socket.receive(&mut self.buffer, &mut [])?;
        let len = received.len.clamp(ETHERNET, self.buffer.len());
        Ok(&mut self.buffer[ETHERNET..len])
    }
}

impl AsFd for CheckSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for CheckSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
