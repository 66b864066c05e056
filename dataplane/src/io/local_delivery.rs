//! The node's own kernel, where the node is a backend itself: frames go in by the loopback interface, on which nobody
//! guards the VIPs.

use std::{io, os::fd::AsRawFd as _};

use super::{
    departure::Outlet,
    sys::socket::{PacketSocket, PortConfig},
};

/// The loopback interface has this index in each network namespace (linux, net/flow.h: LOOPBACK_IFINDEX).
const LOOPBACK_IFINDEX: u32 = 1;

/// The way into it, opened with the first frame.
#[derive(Default)]
pub(crate) struct LocalDelivery(Option<PacketSocket>);

impl LocalDelivery {
    /// The socket that frames go in by whose MAC addresses are those of the loopback interface: all zero.
    pub(crate) fn outlet(&mut self) -> io::Result<Outlet> {
        let socket = match &mut self.0 {
            Some(socket) => socket,
            closed => {
                let loopback = PortConfig { name: "lo".into(), ifindex: LOOPBACK_IFINDEX, mtu: u32::from(u16::MAX) };
                // GSO frames too.
                closed.insert(PacketSocket::segmenter(&loopback).map_err(io::Error::other)?)
            }
        };
        Ok(Outlet::Descriptor(socket.as_raw_fd()))
    }
}
