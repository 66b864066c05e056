//! The openraft node: [`Consensus`] starts it, proposes, reads, and changes the membership.
//!
//! A command's way: [`Consensus::propose`] finds the leader, `store::log_store` makes the entry
//! durable on a majority, `store::state_machine` applies it, [`crate::feed`] shows the new table.

mod compare;
mod gate;
mod in_flight;
mod lead;
mod membership;
mod message;
mod network;
mod node;
mod older_copy;
mod pace;
#[cfg(test)]
mod power_cuts;
mod propose;
mod read;
mod serve;
mod space;
mod standing;
mod start;

pub use membership::MembershipError;
pub use network::{Lane, Nobody, Transport, TransportError};
pub use node::{Consensus, Lead, Measures, Settings, Status};
pub use propose::ProposeError;
pub use serve::{Served, Speaker};
pub use space::Space;
pub use start::{StartError, new_key};
