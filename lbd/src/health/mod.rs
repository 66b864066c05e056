//! Which backends take new flows: the owner of a VIP finds out whether its backends are there, and says so in the table, by
//! which all nodes choose alike. [`verdict`] says, purely, what is to be said; [`report`] looks, says it, and tells the log
//! what holds.

mod report;
mod verdict;

pub(crate) use report::Report;
