//! The openraft node: [`Consensus`] starts it, proposes, reads, and changes the membership.
//!
//! A command's way: [`Consensus::propose`] finds the leader, `store::log_store` makes the entry
//! durable on a majority, `store::state_machine` applies it, [`crate::watch`] shows the new table.

mod membership;
mod message;
mod network;
mod node;
mod serve;
pub(crate) mod types;
pub(crate) mod wire;

pub use membership::MembershipError;
pub use network::{Lane, Transport, TransportError};
pub(crate) use node::new_key;
pub use node::{Consensus, Lead, ProposeError, Settings, StartError, Status};
