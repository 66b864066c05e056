//! What becomes of a packet. Files in the order in which a packet meets them: [`steering`] names its worker, [`snapshot`]
//! finds the VIP and the service, [`fragment`] keeps the parts of a datagram together, [`flow`] knows the flow or
//! not, [`maglev`] picks a backend for a new one, [`decide`] puts them together, [`egress`] says how it gets there.
//! [`spec`] is what the control plane wants, and [`compile`](mod@compile) makes a snapshot of it.

pub mod compile;
pub mod decide;
pub mod egress;
pub mod flow;
pub mod fragment;
pub mod hash;
pub mod maglev;
pub mod runtime;
pub mod snapshot;
pub mod spec;
pub mod steering;
