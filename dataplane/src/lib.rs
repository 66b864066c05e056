//! A direct-server-return dataplane for Linux: it takes Ethernet frames for virtual IPs from AF_PACKET
//! sockets, picks a backend, rewrites the two MAC addresses, and sends the frame on; from the IP header
//! up nothing changes, and the backend answers the client directly.
//!
//! Usable by itself: no tokio, no gRPC, no Raft. [`Dataplane::start`] opens the sockets and starts the
//! workers; [`Dataplane::publish`] hands them tables.
//!
//! A frame's way, in the order of the files: `io` takes it from the ring, [`worker`] judges it
//! ([`packet::parse()`], then [`forward::decide`] with [`forward::table`], [`forward::flow`] and
//! [`forward::maglev`], then [`packet::rewrite`]), `io` sends it. Every frame ends as forwarded, answered
//! or dropped with a counted [`forward::DropReason`].
#![deny(unsafe_code)]

pub mod announce;
mod crew;
mod errand;
pub mod forward;
mod groups;
pub mod guard;
mod handle;
#[allow(unsafe_code, reason = "the kernel's interfaces; each block says why it is sound")]
pub mod io;
pub mod lease;
mod limit;
mod mailbox;
pub mod neighbor;
pub mod packet;
mod report;
mod segment;
pub mod stats;
pub mod worker;

pub use crew::Scheduling;
pub use errand::{Explanation, Kind, Question};
pub use handle::{Config, Dataplane, StartError};
pub use report::{BackendReport, Conflict, Report, WorkerReport};
pub use segment::PeerSpec;
