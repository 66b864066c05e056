//! A direct-server-return dataplane for Linux: it takes Ethernet frames for virtual IPs from AF_PACKET
//! sockets, picks a backend, rewrites the two MAC addresses, and sends the frame on; from the IP header
//! up nothing changes, and the backend answers the client directly.
//!
//! Usable by itself: no tokio, no gRPC, no Raft. [`Dataplane::start`] opens the sockets and starts the
//! workers; [`Dataplane::publish`] hands them tables.
//!
//! A frame's way, in the order of the modules: `io` takes it from the ring, [`worker`] judges it
//! ([`packet::parse()`], then [`forward::decide`] with [`forward::snapshot`], [`forward::flow`] and [`forward::maglev`],
//! or [`speaker`] for what asks the node itself), [`packet::rewrite`] changes it, `io` sends it. Every frame ends as
//! forwarded, answered or dropped with a counted [`verdict::DropReason`].
#![deny(unsafe_code)]

mod accel;
mod config;
mod error;
pub mod forward;
pub mod guard;
mod handle;
#[allow(unsafe_code, reason = "the kernel's interfaces; each block says why it is sound")]
pub mod io;
pub mod packet;
mod pool;
mod publisher;
mod query;
pub mod speaker;
pub mod stats;
mod sweep;
pub mod verdict;
pub mod worker;

pub use accel::{Accelerate, Acceleration, AcceleratorReport, LinkKeeper, end_links_of_before, is_link_name};
pub use config::Config;
pub use error::StartError;
pub use handle::{Dataplane, SeenBackend};
pub use io::XdpMode;
pub use pool::Scheduling;
pub use query::{BackendReport, Explanation, Kind, Outcome, Question, Report, VipReport, WorkerReport};
pub use speaker::permit::{Grant, LeaseClock, boottime_ns};
pub use worker::{
    shared::Progress,
    tap::{Capture, TapFilter, Tapped},
};
