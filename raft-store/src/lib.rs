//! The replicated table of VIPs, services, backends, nodes and leases.
//!
//! [`table`] is the pure model; `store` keeps it in sled under a discipline that loses nothing that was
//! acknowledged; [`Consensus`] is the openraft node. openraft and sled are known to this crate alone:
//! the daemon proposes [`table::Command`]s, reads, and watches [`View`]s, and carries bytes between
//! nodes through [`Transport`].
#![forbid(unsafe_code)]

mod codec;
mod consensus;
mod feed;
#[cfg(test)]
mod fuzz;
mod latency;
mod raft;
mod recovery;
mod span;
mod store;
pub mod table;

pub use consensus::{
    Consensus, Lane, Lead, Measures, MembershipError, Nobody, ProposeError, Served, Settings, Space, Speaker,
    StartError, Status, Transport, TransportError, new_key,
};
pub use feed::{Cause, Change, History, View, Watcher};
pub use latency::latency_histogram;
pub use recovery::{RecoverError, Recovered, recover};
pub use span::request_span;
pub use store::{
    StoreError,
    inspect::{JournalReport, NodeReport, SledReport, SnapshotReport, StoreReport, inspect},
};
