//! The leader's side of leases: who has been silent for too long. Pure.

use std::collections::BTreeMap;

use lb_raft_store::table::{Lease, LeaseId, NodeId};

use super::SILENCE;

/// A leader that did not run for so long may have missed renewals: it starts counting anew.
const MAX_GAP_NS: u64 = 200_000_000;
/// Before a fence that is not applied yet is proposed again.
const AGAIN_NS: u64 = 200_000_000;

/// What the leader has heard.
#[derive(Debug, Default)]
pub(super) struct Fencing {
    /// Since when, in which term, it has been the leader without a gap.
    leading: Option<(u64, u64)>,
    last_poll_ns: u64,
    heard: BTreeMap<NodeId, Heard>,
}

#[derive(Debug)]
struct Heard {
    lease: LeaseId,
    at_ns: u64,
    proposed_ns: Option<u64>,
}

/// A lease to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Silent {
    pub(super) node: NodeId,
    pub(super) lease: LeaseId,
    pub(super) silent_ms: u64,
}

impl Fencing {
    /// A renewal came, and a majority has confirmed since that this node leads. Whether it may be granted:
    /// not once the lease's end is proposed, because that may be agreed on any moment. The caller answers
    /// while it holds the lock under which this was asked.
    #[must_use]
    pub(super) fn heard(&mut self, node: NodeId, lease: LeaseId, now_ns: u64) -> bool {
        let ending = self.heard.get(&node).is_some_and(|heard| heard.lease == lease && heard.proposed_ns.is_some());
        if !ending {
            self.heard.insert(node, Heard { lease, at_ns: now_ns, proposed_ns: None });
        }
        !ending
    }

    /// Looks at the table and the clock. `term` is `None` while this node does not lead.
    pub(super) fn poll<'a>(
        &mut self,
        term: Option<u64>,
        leases: impl Iterator<Item = (NodeId, &'a Lease)>,
        now_ns: u64,
    ) -> Vec<Silent> {
        let gap = now_ns.saturating_sub(self.last_poll_ns) > MAX_GAP_NS;
        self.last_poll_ns = now_ns;
        let Some(term) = term else {
            self.leading = None;
            return Vec::new();
        };
        let same_term = self.leading.is_some_and(|(leading, _)| leading == term);
        if !same_term {
            // What was proposed in an earlier term is agreed on before this term's first entry, or never; and
            // no renewal is granted before that entry is applied.
            self.heard.values_mut().for_each(|heard| heard.proposed_ns = None);
        }
        let since_ns = match self.leading {
            Some((_, since)) if same_term && !gap => since,
            _ => now_ns,
        };
        self.leading = Some((term, since_ns));
        let mut silent = Vec::new();
        for (node, lease) in leases {
            let heard = self.heard.entry(node).or_insert(Heard { lease: lease.id, at_ns: now_ns, proposed_ns: None });
            if heard.lease != lease.id {
                *heard = Heard { lease: lease.id, at_ns: now_ns, proposed_ns: None };
            }
            let silent_ns = now_ns.saturating_sub(heard.at_ns.max(since_ns));
            let again = heard.proposed_ns.is_none_or(|at| now_ns >= at + AGAIN_NS);
            if silent_ns >= SILENCE.as_nanos() as u64 && again {
                heard.proposed_ns = Some(now_ns);
                silent.push(Silent { node, lease: lease.id, silent_ms: silent_ns / 1_000_000 });
            }
        }
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn lease(id: u64) -> Lease {
        Lease { id: LeaseId(id), nonce: 1, ready: true }
    }

    /// Polls every 50 ms and returns when a fence is due.
    fn first_fence(fencing: &mut Fencing, term: u64, from_ms: u64, until_ms: u64) -> Option<u64> {
        (from_ms..until_ms).step_by(50).find(|at| {
            let leases = [(2, lease(5))];
            !fencing.poll(Some(term), leases.iter().map(|(n, l)| (*n, l)), at * MS).is_empty()
        })
    }

    #[test]
    fn a_lease_is_ended_a_second_after_its_last_renewal() {
        let mut fencing = Fencing::default();
        assert_eq!(first_fence(&mut fencing, 1, 0, 600), None);
        assert!(fencing.heard(2, LeaseId(5), 600 * MS));
        assert_eq!(first_fence(&mut fencing, 1, 600, 5000), Some(1600));
    }

    #[test]
    fn a_new_leader_counts_from_its_election() {
        let mut fencing = Fencing::default();
        assert!(fencing.heard(2, LeaseId(5), 0));
        fencing.poll(None, [].into_iter(), 4950 * MS);
        assert_eq!(first_fence(&mut fencing, 2, 5000, 9000), Some(6000));
    }

    #[test]
    fn a_leader_that_slept_fences_nobody_on_waking() {
        let mut fencing = Fencing::default();
        assert_eq!(first_fence(&mut fencing, 1, 0, 500), None);
        assert_eq!(first_fence(&mut fencing, 1, 10_000, 10_950), None);
        assert_eq!(first_fence(&mut fencing, 1, 10_950, 20_000), Some(11_000));
    }

    #[test]
    fn a_new_lease_has_its_whole_second() {
        let mut fencing = Fencing::default();
        assert!(fencing.heard(2, LeaseId(4), 0));
        assert_eq!(first_fence(&mut fencing, 1, 0, 5000), Some(1000));
    }

    #[test]
    fn a_lease_whose_end_is_proposed_is_not_renewed_in_that_term() {
        let mut fencing = Fencing::default();
        first_fence(&mut fencing, 1, 0, 5000);
        assert!(!fencing.heard(2, LeaseId(5), 1010 * MS));
        assert_eq!(first_fence(&mut fencing, 1, 1050, 5000), Some(1200), "it is proposed again");
        assert!(fencing.heard(2, LeaseId(6), 1300 * MS), "another lease of the node");
        assert_eq!(first_fence(&mut fencing, 2, 1350, 2000), None, "another term");
        assert!(fencing.heard(2, LeaseId(5), 2000 * MS));
    }

    #[test]
    fn a_fence_is_repeated_until_it_is_applied() {
        let mut fencing = Fencing::default();
        first_fence(&mut fencing, 1, 0, 5000);
        assert_eq!(first_fence(&mut fencing, 1, 1050, 5000), Some(1200));
    }
}
