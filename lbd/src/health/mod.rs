//! Which backends take new flows: the owner of a VIP finds out whether its backends are there, and says so in the table, by
//! which all nodes choose alike. [`segments`] says, purely, whether it may be this node that is cut off; [`verdict`] what is to
//! be said; [`services`] which services nobody serves; [`report`] looks, says it, and tells the log what holds.

mod check;
mod presence;
mod report;
mod segments;
mod services;
mod verdict;

pub(crate) use presence::{Presence, probe_presence};
pub(crate) use report::Report;
pub(crate) use segments::{Silences, gateways};
pub(crate) use services::unserved;
#[cfg(test)]
pub(crate) use verdict::{Found, differing};

/// The feature level that knows of verdicts, and of segments whose backends are silent.
pub(crate) const VERDICTS_LEVEL: u32 = 6;
/// The feature level that knows of segments' gateways.
pub(crate) const GATEWAYS_LEVEL: u32 = 10;
/// The feature level that knows of checks.
pub(crate) const CHECKS_LEVEL: u32 = 8;
