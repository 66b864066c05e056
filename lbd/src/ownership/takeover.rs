//! The leader's side of leases: it gathers what ends them. And everybody's opinion of the leader: when it
//! is gone, and whose turn it is to take its place. Pure.

use std::collections::{BTreeMap, BTreeSet};

use lb_raft_store::table::{Evidence, LeaseId, NodeId, Table, Withdrawal};

use super::timing::Timing;

/// What another node said last.
#[derive(Debug)]
struct Claim {
    lease: LeaseId,
    as_of: u64,
    withdrawn: BTreeSet<(NodeId, LeaseId)>,
    deserted: Option<NodeId>,
    at_ns: u64,
}

/// What a leader, or whoever would replace it, has gathered against leases and against the leader.
#[derive(Debug, Default)]
pub(super) struct Takeover {
    claims: BTreeMap<NodeId, Claim>,
    /// Processes that are known to be dead.
    obituaries: BTreeMap<NodeId, u64>,
    /// When the end of a lease was proposed last.
    proposed: BTreeMap<(NodeId, LeaseId), u64>,
    /// The leader of that term whose listener refused connections.
    refused: Option<(NodeId, u64)>,
    /// Which leader, of which term, is gone, and since when this is known.
    gone: Option<(NodeId, u64, u64)>,
    /// Which leader this node last tried to replace, and when.
    tried: Option<(NodeId, u64)>,
}

/// A lease to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub(super) node: NodeId,
    pub(super) lease: LeaseId,
    pub(super) evidence: Evidence,
    pub(super) heard: Vec<NodeId>,
}

/// What this node says itself.
pub(super) struct Own<'a> {
    pub(super) node: NodeId,
    pub(super) lease: Option<LeaseId>,
    pub(super) applied: u64,
    pub(super) withdrawn: &'a [(NodeId, LeaseId)],
}

impl Takeover {
    /// A node's present process spoke.
    pub(super) fn on_claim(
        &mut self,
        from: NodeId,
        lease: LeaseId,
        as_of: u64,
        withdrawn: &[(NodeId, LeaseId)],
        deserted: Option<NodeId>,
        now_ns: u64,
    ) {
        let withdrawn = withdrawn.iter().copied().collect();
        self.claims.insert(from, Claim { lease, as_of, withdrawn, deserted, at_ns: now_ns });
    }

    pub(super) fn on_obituary(&mut self, node: NodeId, nonce: u64) {
        self.obituaries.insert(node, nonce);
    }

    /// The machine of that term's leader answers, and its process is gone.
    pub(super) fn on_refused(&mut self, node: NodeId, term: u64) {
        self.refused = Some((node, term));
    }

    /// Forgets what the table has settled.
    pub(super) fn on_table(&mut self, table: &Table) {
        let stands = |node: NodeId, lease: LeaseId| table.lease(node).is_some_and(|held| held.id == lease);
        self.claims.retain(|node, claim| stands(*node, claim.lease));
        self.proposed.retain(|(node, lease), _| stands(*node, *lease));
        self.obituaries.retain(|node, nonce| table.lease(*node).is_some_and(|lease| lease.nonce == *nonce));
    }

    /// Nodes that were heard lately.
    pub(super) fn heard(&self, timing: &Timing, now_ns: u64) -> impl Iterator<Item = NodeId> {
        let lately = now_ns.saturating_sub(timing.short_ns());
        self.claims.iter().filter(move |(_, claim)| claim.at_ns >= lately).map(|(node, _)| *node)
    }

    /// For a leader: the leases that can be ended now.
    pub(super) fn ends(&mut self, table: &Table, own: &Own<'_>, timing: &Timing, now_ns: u64) -> Vec<End> {
        let mut heard: Vec<NodeId> = self.heard(timing, now_ns).collect();
        heard.push(own.node);
        let mut ends = Vec::new();
        for (node, lease) in table.leases() {
            let against = self.evidence(node, lease.id, lease.nonce, own);
            let again = self.proposed.get(&(node, lease.id)).is_none_or(|at| now_ns >= at + timing.again_ns);
            if again && suffices(table, node, lease.id, &against) {
                let heard = heard.iter().copied().filter(|other| *other != node).collect();
                ends.push(End { node, lease: lease.id, evidence: against, heard });
            }
        }
        for end in &ends {
            self.proposed.insert((end.node, end.lease), now_ns);
        }
        ends
    }

    fn evidence(&self, node: NodeId, lease: LeaseId, nonce: u64, own: &Own<'_>) -> Evidence {
        if self.obituaries.get(&node) == Some(&nonce) {
            return Evidence::Obituary { nonce };
        }
        let of_others = self.claims.iter().filter(|(_, claim)| claim.withdrawn.contains(&(node, lease)));
        let of_others = of_others.map(|(supporter, claim)| Withdrawal {
            supporter: *supporter,
            lease: claim.lease,
            as_of: claim.as_of,
        });
        let ours = own.lease.filter(|_| own.withdrawn.contains(&(node, lease)));
        let ours = ours.map(|own_lease| Withdrawal { supporter: own.node, lease: own_lease, as_of: own.applied });
        Evidence::Withdrawals(of_others.chain(ours).collect())
    }

    /// Whether this node is to start an election now, because the leader of that term is gone. `deserts` is its
    /// own opinion.
    pub(super) fn elects(
        &mut self,
        table: &Table,
        me: NodeId,
        (leader, term): (NodeId, u64),
        deserts: bool,
        timing: &Timing,
        now_ns: u64,
    ) -> bool {
        let configuration = table.configuration();
        if self.gone.is_some_and(|(of, in_term, _)| (of, in_term) != (leader, term)) {
            self.gone = None;
        }
        if !configuration.voters().contains(&me) {
            return false;
        }
        let dead = table.lease(leader).is_some_and(|lease| self.obituaries.get(&leader) == Some(&lease.nonce));
        let mut deserters: BTreeSet<NodeId> = self
            .claims
            .iter()
            .filter(|(_, claim)| claim.deserted == Some(leader) && now_ns <= claim.at_ns + timing.short_ns())
            .map(|(node, _)| *node)
            .collect();
        if deserts {
            deserters.insert(me);
        }
        let gone = dead || self.refused == Some((leader, term)) || configuration.is_majority(&deserters);
        if !gone {
            self.gone = None;
            return false;
        }
        let since = match self.gone {
            Some((of, in_term, since)) if (of, in_term) == (leader, term) => since,
            _ => now_ns,
        };
        self.gone = Some((leader, term, since));
        // The surviving voter of smallest id first; the next one if no leader has appeared since.
        let smaller = self.heard(timing, now_ns).filter(|node| *node < me && *node != leader);
        let rank = smaller.filter(|node| configuration.voters().contains(node)).count() as u64;
        // A leader that comes back after an attempt has a log that this node's lacks, maybe: deposed again and again
        // it could never replicate it, nor end its own lease. Of a dead one nothing is to be waited for.
        let proven = dead || self.refused == Some((leader, term));
        let waits = self.tried.is_some_and(|(of, at)| {
            let pause_ns = if of == leader && !proven { timing.depose_again_ns } else { timing.again_ns };
            now_ns < at + pause_ns
        });
        if waits || now_ns < since + rank * timing.rank_ns {
            return false;
        }
        self.tried = Some((leader, now_ns));
        self.refused = None;
        true
    }

    /// This node leads.
    pub(super) fn leads(&mut self) {
        self.gone = None;
        self.refused = None;
    }

    /// When an election that is waited for is due.
    pub(super) fn next_deadline_ns(&self, timing: &Timing, now_ns: u64) -> Option<u64> {
        self.gone.map(|_| now_ns + timing.rank_ns / 4)
    }
}

fn suffices(table: &Table, node: NodeId, lease: LeaseId, evidence: &Evidence) -> bool {
    table.suffices(node, lease, evidence) || super::planted_suffices(table, node, lease, evidence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_that_is_elected_again_is_not_deposed_again_at_once() {
        const MS: u64 = 1_000_000;
        let mut table = Table::default();
        table.configure(0, vec![BTreeSet::from([1, 2, 3])]);
        let timing = Timing::new(lb_raft_store::table::Timing::DEFAULT, 150);
        let mut takeover = Takeover::default();
        let mut elects = |term: u64, now_ns: u64| {
            takeover.on_claim(3, LeaseId(9), 1, &[], Some(1), now_ns);
            takeover.elects(&table, 2, (1, term), true, &timing, now_ns)
        };
        assert!(elects(5, 100 * MS), "two of three voters desert it");
        assert!(!elects(7, 300 * MS), "its log is longer than ours, and it leads again");
        assert!(!elects(7, 1000 * MS));
        assert!(elects(7, 1200 * MS), "it is not heard, still");
    }

    #[test]
    fn one_of_three_that_deserts_the_leader_starts_no_election() {
        const MS: u64 = 1_000_000;
        let mut table = Table::default();
        table.configure(0, vec![BTreeSet::from([1, 2, 3])]);
        let timing = Timing::new(lb_raft_store::table::Timing::DEFAULT, 150);
        let elects = |claim: Option<NodeId>, own: bool| {
            let mut takeover = Takeover::default();
            takeover.on_claim(3, LeaseId(9), 1, &[], claim, 100 * MS);
            (0..20).any(|at| takeover.elects(&table, 2, (1, 5), own, &timing, (100 + at) * MS))
        };
        assert!(!elects(None, true), "this node alone");
        assert!(!elects(Some(1), false), "another one alone");
        assert!(!elects(Some(3), true), "the other one has deserted somebody else");
        assert!(elects(Some(1), true));
        // A vote of one that has none does not count.
        table.configure(1, vec![BTreeSet::from([1, 2, 4])]);
        let mut takeover = Takeover::default();
        takeover.on_claim(3, LeaseId(9), 1, &[], Some(1), 100 * MS);
        assert!(!takeover.elects(&table, 2, (1, 5), true, &timing, 101 * MS));
    }

    #[test]
    fn evidence_is_as_old_as_its_supporter_says() {
        let (node, lease) = (1, LeaseId(7));
        let withdrawn = [(node, lease)];
        let mut takeover = Takeover::default();
        takeover.on_claim(3, LeaseId(9), 40, &withdrawn, None, 1);
        takeover.on_claim(4, LeaseId(10), 41, &[], None, 1);
        let own = Own { node: 2, lease: Some(LeaseId(8)), applied: 50, withdrawn: &withdrawn };
        let of = |supporter, lease, as_of| Withdrawal { supporter, lease: LeaseId(lease), as_of };
        let both = Evidence::Withdrawals(vec![of(3, 9, 40), of(2, 8, 50)]);
        assert_eq!(takeover.evidence(node, lease, 5, &own), both);
        // Without a lease of its own nobody withdraws from another's.
        let none = Own { node: 2, lease: None, applied: 50, withdrawn: &withdrawn };
        assert_eq!(takeover.evidence(node, lease, 5, &none), Evidence::Withdrawals(vec![of(3, 9, 40)]));
        assert_eq!(takeover.evidence(node, LeaseId(6), 5, &own), Evidence::Withdrawals(vec![]), "another lease");
    }
}
