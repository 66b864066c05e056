//! The bytes of `lb_raft_store` over tonic.

mod client;
mod server;

pub(crate) use client::{Channels, TonicTransport};
pub(crate) use server::{Answers, RaftServer};

/// Snapshots travel in one message.
pub(crate) const MAX_MESSAGE_LEN: usize = 64 << 20;
