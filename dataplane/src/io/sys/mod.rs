//! What the kernel offers: memory, packet sockets and their rings, io_uring, offloads, programs.

pub(crate) mod bpf;
pub mod memory;
pub(in crate::io) mod offload;
pub(in crate::io) mod packet_ring;
pub mod passed;
pub(in crate::io) mod socket;
mod turn;
pub(in crate::io) mod uring;

/// Frames judged before the next look at the table and the clock.
pub(in crate::io) const BATCH: usize = 64;
/// The longest frame: a GSO frame of 64 KiB with its headers.
pub(in crate::io) const MAX_FRAME_LEN: usize = 65_536 + 256;
