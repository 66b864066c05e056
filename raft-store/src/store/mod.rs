//! What a node must not forget, under a discipline of our own.
//!
//! sled alone would not do: its `flush` never calls fsync, it opens damaged files without a word with part of the data gone,
//! and a power cut tears its file so that it cannot be read. So a [`journal`] makes changes durable, with one write and one
//! sync of a group by one thread; a watermark file says how far it was durable, and snapshot files what came before it. sled
//! holds the same again, is what is read, and is made anew after each boot and where it is torn. What cannot come from a power cut is damage: it
//! is refused, never repaired, and the way back is always to remove the node from the cluster and to add it anew.

#[cfg(test)]
pub(crate) mod camera;
mod convert;
pub(crate) mod disk;
mod envelope;
mod error;
mod failure;
pub(crate) mod identity;
pub(crate) mod inspect;
mod journal;
pub(crate) mod keys;
mod lock;
pub(crate) mod log_store;
pub(crate) mod open;
#[cfg(test)]
mod power_cuts;
mod reconcile;
mod slow;
mod snapshots;
pub(crate) mod state_machine;
mod trees;
pub(crate) mod watermark;
mod writer;

pub use error::StoreError;
pub(crate) use failure::StoreFailure;

#[cfg(test)]
mod tests;
