//! The supporter's side of the others' leases: what this node has promised to whom, and from whom it has
//! withdrawn. Pure.
//!
//! For each lease in the table but its own:
//!
//! ```text
//!   promised until t --(t has passed)--> withdrawn --(heard again for a while: Retract, applied here)--> promised
//! ```

use std::collections::{BTreeMap, VecDeque};

use lb_raft_store::table::{LeaseId, NodeId, Table};

use super::{
    message::{Echo, Ping, Verdict},
    timing::Timing,
};

/// What this node knows of one lease.
#[derive(Debug)]
struct Promise {
    lease: LeaseId,
    until_ns: u64,
    withdrawn: bool,
    /// The last retraction of this node's that it has applied.
    retraction: Option<u64>,
    /// While withdrawn: since when it has been heard without a break, and when last.
    heard_again: Option<(u64, u64)>,
}

/// What a ping is judged by, besides the promises.
pub(super) struct Judge<'a> {
    pub(super) timing: &'a Timing,
    pub(super) nonce: u64,
    /// Its own lease, as applied here.
    pub(super) own: Option<LeaseId>,
    pub(super) now_ns: u64,
}

/// What a voter remembers: whom it has promised what, and from whom it has withdrawn.
#[derive(Debug, Default)]
pub(super) struct Supporter {
    promises: BTreeMap<NodeId, Promise>,
    /// (when, how far the table was applied), oldest first.
    applied: VecDeque<(u64, u64)>,
}

impl Supporter {
    /// Takes over the leases of the table as it is now.
    pub(super) fn on_table(&mut self, me: NodeId, table: &Table, applied: u64, timing: &Timing, now_ns: u64) {
        let current = |node: NodeId| table.lease(node).map(|lease| lease.id);
        self.promises.retain(|node, promise| current(*node) == Some(promise.lease));
        for (node, lease) in table.leases().filter(|(node, _)| *node != me) {
            let retraction = table.retraction(node, me);
            // The first sight counts as a promise.
            let first = if super::planted(super::Bug::NoFirstSight) { now_ns } else { now_ns + timing.withdraw_ns };
            let promise = self.promises.entry(node).or_insert(Promise {
                lease: lease.id,
                until_ns: first,
                withdrawn: false,
                retraction,
                heard_again: None,
            });
            if retraction > promise.retraction {
                let until_ns = now_ns + timing.withdraw_ns;
                *promise = Promise { lease: lease.id, until_ns, withdrawn: false, retraction, heard_again: None };
            }
        }
        self.applied.push_back((now_ns, applied));
        while self.applied.get(1).is_some_and(|(at, _)| at + timing.lag_ns <= now_ns) {
            self.applied.pop_front();
        }
    }

    /// Judges a ping, and promises if it is a good one.
    pub(super) fn on_ping(&mut self, from: NodeId, ping: &Ping, judge: &Judge<'_>) -> Verdict {
        let Judge { timing, nonce, own, now_ns } = *judge;
        let behind = self.is_behind(ping.applied, timing, now_ns);
        let known = self.promises.get_mut(&from).filter(|promise| Some(promise.lease) == ping.lease);
        let Some(promise) = known else { return Verdict::Unknown };
        if own.is_none() && !super::planted(super::Bug::SupportBeforeLease) {
            return Verdict::Unknown;
        }
        let fresh = |echo: Echo| echo.nonce == nonce && now_ns <= echo.at_ns + timing.echo_ns;
        let hears = ping.echo.is_some_and(fresh) || super::planted(super::Bug::NoHeardLately);
        if hears && super::planted(super::Bug::WithdrawalNotKept) {
            promise.withdrawn = false;
        }
        if promise.withdrawn {
            if hears && !behind {
                let since = match promise.heard_again {
                    Some((since, last)) if now_ns <= last + timing.echo_ns => since,
                    _ => now_ns,
                };
                promise.heard_again = Some((since, now_ns));
            }
            return Verdict::Withdrawn;
        }
        if !hears {
            return Verdict::Stale;
        }
        if behind {
            return Verdict::Unknown;
        }
        promise.until_ns = promise.until_ns.max(now_ns + timing.withdraw_ns);
        Verdict::Yes { promise_ns: timing.withdraw_ns }
    }

    /// Whether a table that is applied so far is older than what this node had a while ago.
    fn is_behind(&self, applied: u64, timing: &Timing, now_ns: u64) -> bool {
        self.is_older_than(applied, timing.lag_ns, now_ns)
    }

    /// Whether it will soon be that old. One that is as old already is not helped by waiting for it.
    pub(super) fn is_falling_behind(&self, applied: u64, timing: &Timing, now_ns: u64) -> bool {
        self.is_older_than(applied, timing.lag_ns / 4, now_ns) && !self.is_behind(applied, timing, now_ns)
    }

    fn is_older_than(&self, applied: u64, span_ns: u64, now_ns: u64) -> bool {
        let later = self.applied.partition_point(|(at, _)| at + span_ns <= now_ns);
        later.checked_sub(1).and_then(|then| self.applied.get(then)).is_some_and(|(_, then)| applied < *then)
    }

    /// Withdraws from whoever's promise has run out. Whether there was anyone.
    pub(super) fn withdraw(&mut self, now_ns: u64) -> bool {
        let mut any = false;
        for promise in self.promises.values_mut().filter(|promise| !promise.withdrawn && promise.until_ns < now_ns) {
            promise.withdrawn = true;
            promise.heard_again = None;
            any = true;
        }
        any
    }

    /// All leases from which this node has withdrawn.
    pub(super) fn withdrawn(&self) -> impl Iterator<Item = (NodeId, LeaseId)> {
        let withdrawn = |promise: &Promise| promise.withdrawn;
        self.promises.iter().filter(move |(_, promise)| withdrawn(promise)).map(|(node, p)| (*node, p.lease))
    }

    /// The leases to which a withdrawal should be taken back.
    pub(super) fn to_retract(&self, timing: &Timing, now_ns: u64) -> impl Iterator<Item = (NodeId, LeaseId)> {
        let heard = move |promise: &Promise| {
            promise.withdrawn
                && promise.heard_again.is_some_and(|(since, last)| {
                    last >= since + timing.retract_after_ns && now_ns <= last + timing.echo_ns
                })
        };
        self.promises.iter().filter(move |(_, promise)| heard(promise)).map(|(node, promise)| (*node, promise.lease))
    }

    /// Whether this node would still support that one; of a node without a lease it cannot say otherwise.
    pub(super) fn would_support(&self, node: NodeId, now_ns: u64) -> bool {
        self.promises.get(&node).is_none_or(|promise| !promise.withdrawn && now_ns <= promise.until_ns)
    }

    /// When the next promise runs out.
    pub(super) fn next_deadline_ns(&self) -> Option<u64> {
        self.promises.values().filter(|promise| !promise.withdrawn).map(|promise| promise.until_ns + 1).min()
    }
}
