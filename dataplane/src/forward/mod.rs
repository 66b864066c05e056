//! What becomes of a packet. Files in the order in which a packet meets them: [`steering`] names its worker, [`table`]
//! finds the VIP and the service, [`fragment`] keeps the parts of a datagram together, [`flow`] knows the flow or
//! not, [`maglev`] picks a backend for a new one, [`decide`] puts them together.

pub mod decide;
pub mod flow;
pub mod fragment;
pub mod hash;
pub mod maglev;
pub mod steering;
pub mod table;
mod verdict;

pub use verdict::{DropReason, Verdict};
