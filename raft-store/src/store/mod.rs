//! What a node must not forget, in sled 0.34, under a discipline of our own.
//!
//! sled alone would not do: its `flush` never calls fsync, and it opens damaged files without a word
//! with part of the data gone. So one writer thread commits in groups and calls fdatasync itself
//! before anything is acknowledged, every record carries a checksum, and a watermark file beside sled
//! says what must be there. A store that holds less is refused, never repaired: the way back is
//! always to remove the node from the cluster and to add it anew.

mod envelope;
mod error;
pub(crate) mod identity;
pub(crate) mod keys;
mod lock;
pub(crate) mod log_store;
pub(crate) mod open;
#[cfg(test)]
mod power_cuts;
pub(crate) mod state_machine;
mod watermark;
mod writer;

pub use error::StoreError;
pub(crate) use writer::StoreFailure;

#[cfg(test)]
mod tests;
