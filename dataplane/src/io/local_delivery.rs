//! The node's own kernel, where the node is a backend itself: frames go in by the loopback interface, on which nobody
//! guards the VIPs.

use std::io;

use super::sys::socket::{PacketSocket, PortConfig};
use crate::packet::VnetHeader;

/// The loopback interface has this index in each network namespace (linux, net/flow.h: LOOPBACK_IFINDEX).
const LOOPBACK_IFINDEX: u32 = 1;

/// The way into it, opened with the first frame.
#[derive(Default)]
pub(crate) struct LocalDelivery(Option<PacketSocket>);

impl LocalDelivery {
    /// Has it receive a frame whose MAC addresses are those of the loopback interface: all zero.
    pub(crate) fn deliver(&mut self, vnet: &VnetHeader, frame: &[u8]) -> io::Result<()> {
        let socket = match &mut self.0 {
            Some(socket) => socket,
            closed => {
                let loopback = PortConfig { name: "lo".into(), ifindex: LOOPBACK_IFINDEX, mtu: u32::from(u16::MAX) };
                // GSO frames too.
                closed.insert(PacketSocket::segmenter(&loopback).map_err(io::Error::other)?)
            }
        };
        socket.send(vnet, frame)
    }
}
