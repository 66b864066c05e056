//! For which VIPs this node may answer, and until when.
//!
//! A node owns VIPs under a lease that it opens through the log. The lease is valid for as long as a
//! majority of the voters has promised, in answer to its heartbeats, to say nothing against it. A voter
//! whose promise has run out withdraws; when so many have withdrawn that no majority is left, the leader
//! ends the lease through the log, and the same entry places its VIPs anew. The holder's clock ran out
//! before the first promise did, so it is silent before anybody else may speak.
//!
//! [`member`] puts the three pure roles together: [`lease`] (the holder), [`support`] (the voter) and
//! [`takeover`] (the leader, and whoever replaces it). [`grants`] says which VIPs the lease gives this process, and in
//! which order it lets go of them. [`heartbeat`] is the thread that feeds it with
//! datagrams and the clock; [`driver`] is its connection to the log and to the dataplane. The rules and why
//! they suffice: `docs/ownership.md`.

mod backoff;
mod distance;
mod driver;
mod filter;
mod fitness;
mod grants;
mod heartbeat;
mod last_heard;
mod lease;
mod member;
mod message;
mod pairs;
mod support;
mod takeover;
mod timing;
mod watchdog;

#[cfg(test)]
mod simulation;

pub(crate) use backoff::Backoff;
pub(crate) use driver::Ownership;
pub(crate) use fitness::{Cause, Fitness, Part};
pub(crate) use grants::{Grants, Plan};
pub(crate) use heartbeat::addresses;
pub(crate) use last_heard::LastHeard;

/// Faults that tests put in on purpose, to show that the simulation would find them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "only tests plant faults"))]
enum Bug {
    /// A lease is used for as long as the promise lasts: W = D.
    NoMargin,
    /// A restarted process gives evidence at once.
    NoStartSilence,
    /// Evidence is weighed where it is gathered, and not again when it is applied.
    EvidenceNotWeighedAgain,
    /// A new owner answers without a valid lease of its own.
    ActsWithoutLease,
    /// A withdrawal is forgotten as soon as its holder is heard again.
    WithdrawalNotKept,
    /// One voter too few ends a lease.
    BlockingSetOffByOne,
    /// Only the present configuration has to be blocked.
    OnlyPresentConfiguration,
    /// OpenLease ends whatever lease there is.
    NoCompareAndSet,
    /// A process takes up any lease of its node.
    NoNonce,
    /// A deleted VIP vanishes while its owner still answers.
    NoDeletingMark,
    /// Withdrawals are never taken back.
    NoRetract,
    /// An unknown lease counts as one whose promise has run out.
    NoFirstSight,
    /// A move changes the owner at once.
    DirectMoves,
    /// A node that sends and does not hear keeps its support.
    NoHeardLately,
    /// A restarted process supports others before its own lease is applied.
    SupportBeforeLease,
    /// A grant is given up before the workers judge by a plan without it.
    ReleasedBeforeSilent,
    /// A grant for which this process has fallen silent is answered again when its move is called off.
    SilentAnsweredAgain,
    /// A node that does not do its work gives its lease back, and goes on with it when it does again.
    UnfitKeepsLease,
}

#[cfg(test)]
use simulation::{planted, planted_suffices};

#[cfg(all(not(test), not(feature = "planted-faults")))]
const fn planted(_: Bug) -> bool {
    false
}

/// Named by the environment, for a fault campaign that is to find it.
#[cfg(all(not(test), feature = "planted-faults"))]
fn planted(bug: Bug) -> bool {
    static NAME: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let name = NAME.get_or_init(|| {
        let name = std::env::var("LBD_PLANTED").unwrap_or_default();
        tracing::warn!(fault = name, "this lbd was built for faults to be planted in it: not for use");
        name
    });
    *name == format!("{bug:?}")
}

#[cfg(not(test))]
const fn planted_suffices(
    _: &lb_raft_store::table::Table,
    _: lb_raft_store::table::NodeId,
    _: lb_raft_store::table::LeaseId,
    _: &lb_raft_store::table::Evidence,
) -> bool {
    false
}
