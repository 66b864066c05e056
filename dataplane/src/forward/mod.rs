//! What becomes of a packet. Files in the order in which a packet meets them: [`table`] finds the VIP
//! and the service, [`flow`] knows the flow or not, [`maglev`] picks a backend for a new one,
//! [`decide`] puts them together.

pub mod decide;
pub mod flow;
pub mod hash;
pub mod maglev;
pub mod table;
mod verdict;

pub use verdict::{DropReason, Verdict};
