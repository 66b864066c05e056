//! A node that stops: it falls silent for every VIP, hands them over, and goes on forwarding until their clients have found
//! the new owners.

use std::{sync::Arc, time::Duration};

use lb_dataplane::Dataplane;
use lb_raft_store::Consensus;
use tokio::time::Instant;

use super::publish_grants::in_force;
use crate::ownership::{Ownership, Plan};

/// No frame for so long means that the clients have found the new owner.
const QUIET: Duration = Duration::from_secs(1);
const QUIET_AT_MOST: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Falls silent for every VIP, hands them over, and goes on forwarding until their clients have found
/// the new owners.
pub(crate) async fn retire(retiring: &Retiring) {
    let begun = Instant::now();
    let lease = retiring.ownership.stop().await.filter(|_| retiring.leave == Leave::HandingOver);
    if retiring.leave == Leave::AtOnce {
        return;
    }
    let release = async || match lease {
        Some(lease) => retiring.ownership.release(lease).await,
        None => true,
    };
    let Some(dataplane) = retiring.dataplane.clone() else {
        release().await;
        return;
    };
    let status = retiring.consensus.status();
    let owned_any = if let Some(me) = status.node {
        let view = retiring.consensus.view();
        // The worker may be between its look at the lease and its answer: only when it speaks by a plan without
        // VIPs is it certainly silent.
        if !in_force(&dataplane, &Plan::default(), &view).await {
            tracing::error!("the dataplane does not fall silent: the other nodes will end the lease");
            return;
        }
        view.table.vips_of(me).next().is_some()
    } else {
        false
    };
    if !release().await {
        return;
    }
    tracing::info!(took_ms = begun.elapsed().as_millis() as u64, "the VIPs are handed over");
    if !owned_any {
        return;
    }
    let started = Instant::now();
    let before = dataplane.report().totals.forwarded;
    let (mut seen, mut since) = (before, Instant::now());
    while since.elapsed() < QUIET && started.elapsed() < QUIET_AT_MOST {
        tokio::time::sleep(LOOK_EVERY).await;
        let forwarded = dataplane.report().totals.forwarded;
        if forwarded != seen {
            (seen, since) = (forwarded, Instant::now());
        }
    }
    let (late, took_ms) = (seen.saturating_sub(before), started.elapsed().as_millis() as u64);
    tracing::info!(late, took_ms, "late frames for them were forwarded until none came any more");
}

/// How a node goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// It gives its lease back, and forwards until no more frames come.
    HandingOver,
    /// It forwards until no more frames come.
    Forwarding,
    /// It falls silent, and that is all.
    AtOnce,
}

/// What a stop needs.
pub(crate) struct Retiring {
    pub(crate) leave: Leave,
    pub(crate) consensus: Consensus,
    pub(crate) ownership: Ownership,
    pub(crate) dataplane: Option<Arc<Dataplane>>,
}
