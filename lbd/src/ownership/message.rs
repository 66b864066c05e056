//! What daemons say to each other about leases.

use prost::Message;

/// A holder renews its lease with the leader.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Renew {
    #[prost(uint64, tag = "1")]
    pub(super) lease: u64,
    #[prost(fixed64, tag = "2")]
    pub(super) nonce: u64,
}

/// The leader's answer.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Renewed {
    /// It is the leader, and this is the node's lease.
    #[prost(bool, tag = "1")]
    pub(super) granted: bool,
}
