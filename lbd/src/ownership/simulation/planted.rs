//! Faults that are put in on purpose: each must be found, or the rule that it breaks is not tested.

use std::{cell::Cell, collections::BTreeSet};

use lb_raft_store::table::{Body, Evidence, Lease, LeaseId, Mutation, NodeId, Table};

use super::{super::Bug, first_failure};

thread_local! {
    pub(super) static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

pub(in crate::ownership) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Evidence that only a planted fault takes for sufficient.
pub(in crate::ownership) fn planted_suffices(table: &Table, node: NodeId, lease: LeaseId, evidence: &Evidence) -> bool {
    let Evidence::Withdrawals(withdrawals) = evidence else { return false };
    let Some(held) = table.lease(node).filter(|held| held.id == lease) else { return false };
    let against: BTreeSet<NodeId> = withdrawals.iter().filter(|w| w.supporter != node).map(|w| w.supporter).collect();
    let configuration = table.configuration();
    match PLANTED.get() {
        Some(Bug::EvidenceNotWeighedAgain) => {
            held.configuration == configuration.index && configuration.is_blocked_by(&against)
        }
        Some(Bug::OnlyPresentConfiguration) => configuration.is_blocked_by(&against),
        Some(Bug::BlockingSetOffByOne) => configuration
            .halves
            .iter()
            .all(|half| half.difference(&against).count().saturating_sub(1) <= half.len() / 2 && !against.is_empty()),
        _ => false,
    }
}

/// Applies an entry as every node does, but for the planted faults of the table.
pub(super) fn apply(table: &mut Table, index: u64, command: &Body) {
    let planted_command = match (PLANTED.get(), command) {
        (
            Some(Bug::EvidenceNotWeighedAgain | Bug::BlockingSetOffByOne | Bug::OnlyPresentConfiguration),
            Body::Fence { node, lease, evidence: Evidence::Withdrawals(_), heard },
        ) => table.lease(*node).filter(|held| held.id == *lease).map(|Lease { nonce, .. }| Body::Fence {
            node: *node,
            lease: *lease,
            evidence: Evidence::Obituary { nonce: *nonce },
            heard: heard.clone(),
        }),
        (Some(Bug::NoCompareAndSet), Body::OpenLease { node, nonce, .. }) => {
            let previous = table.lease(*node).map(|lease| lease.id);
            Some(Body::OpenLease { node: *node, nonce: *nonce, previous })
        }
        _ => None,
    };
    // A refusal is an answer too.
    drop(table.apply(index, &planted_command.as_ref().unwrap_or(command).clone().into()));
    let released = match (PLANTED.get(), command) {
        (Some(Bug::DirectMoves), Body::MoveIntent { vip, .. }) => Some(*vip),
        (Some(Bug::NoDeletingMark), Body::Mutate(mutations)) => match mutations[..] {
            [Mutation::DeleteVip { address, .. }] => Some(address),
            _ => None,
        },
        _ => None,
    };
    if let Some(owner) = released.and_then(|vip| table.vip(vip)).and_then(|vip| vip.owner) {
        let vip = released.expect("checked");
        drop(table.apply(index, &Body::Released { grants: vec![(vip, owner.epoch)] }.into()));
    }
}

/// Each planted fault, and a seed that shows it. A change of the simulation moves them: then the search takes
/// longer, and prints the new ones.
const PLANTED_FAULTS: [(Bug, u64); 18] = [
    (Bug::NoMargin, 468),
    (Bug::NoStartSilence, 2620),
    (Bug::EvidenceNotWeighedAgain, 16965),
    (Bug::ActsWithoutLease, 8),
    (Bug::WithdrawalNotKept, 2549),
    (Bug::BlockingSetOffByOne, 15),
    (Bug::OnlyPresentConfiguration, 3144),
    (Bug::NoCompareAndSet, 217),
    (Bug::NoNonce, 10),
    (Bug::NoDeletingMark, 165),
    (Bug::NoRetract, 11),
    (Bug::NoFirstSight, 0),
    (Bug::DirectMoves, 6),
    (Bug::NoHeardLately, 50),
    (Bug::SupportBeforeLease, 1754),
    (Bug::ReleasedBeforeSilent, 165),
    (Bug::SilentAnsweredAgain, 1330),
    (Bug::UnfitKeepsLease, 1746),
];

#[test]
fn the_simulation_finds_each_planted_fault() {
    let mut missed = Vec::new();
    for (bug, seed) in PLANTED_FAULTS {
        let found = first_failure(Some(bug), seed, 1).or_else(|| first_failure(Some(bug), 0, 20_000));
        match found {
            Some((found, text)) => println!("{bug:?}: seed {found}: {text}"),
            None => missed.push(bug),
        }
    }
    assert_eq!(missed, [], "planted, and not found");
}
