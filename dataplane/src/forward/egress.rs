//! How a frame gets to its backend: by which interface and to which MAC address, or why it does not. Pure.

use super::snapshot::{Backend, Snapshot};
use crate::{
    packet::{ETHERNET_HEADER_LEN, Mac},
    verdict::DropReason,
};

/// The way of a frame that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    /// Out of this interface and to this MAC address.
    Port(usize, Mac),
    /// Local delivery: this node is the backend.
    Local,
}

/// Why a frame does not go to the backend that was chosen for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSent {
    /// It is dropped.
    For(DropReason),
    /// It is larger than the outgoing interface takes, which its sender is to be told.
    TooBig {
        /// What the interface takes.
        mtu: u32,
        /// Where it would go.
        way: Egress,
    },
}

impl From<DropReason> for NotSent {
    fn from(reason: DropReason) -> Self {
        Self::For(reason)
    }
}

/// The way of a frame from `source` to a backend. `wire_len`: the length of the longest frame that leaves for it.
#[inline]
pub fn egress(snapshot: &Snapshot, source: Mac, wire_len: usize, backend: &Backend) -> Result<Egress, NotSent> {
    if backend.is_self {
        return Ok(Egress::Local);
    }
    let out = backend.port().ok_or(DropReason::BackendUnreachable)?;
    let mac = backend.mac().ok_or(DropReason::BackendUnresolved)?;
    if mac == source {
        return Err(DropReason::Hairpin.into());
    }
    let (way, mtu) = (Egress::Port(out, mac), snapshot.ports[out].mtu);
    if wire_len > ETHERNET_HEADER_LEN + mtu as usize {
        return Err(NotSent::TooBig { mtu, way });
    }
    Ok(way)
}
