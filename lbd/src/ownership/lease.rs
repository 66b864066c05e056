//! The holder's side of a lease: what the other voters have promised, and until when this node may
//! answer. Pure.
//!
//! ```text
//!   Without --(own nonce seen in the table)--> Holding --(table ended it, or no majority can be left)--> Without
//! ```
//!
//! A ping that was sent at t and answered with a promise of W lets this node count on its supporter
//! until t + min(D, W less the clocks' drift): the supporter's promise runs from its receipt, later than t.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lb_raft_store::table::{Configuration, LeaseId, NodeId, Table, Timing as Settings};

use super::{
    message::{Ack, Verdict},
    timing::Timing,
};

/// Pings whose answers still count.
const REMEMBERED_PINGS: usize = 1024;

/// What a holder of a lease remembers: which it asked for, holds, and until when it is supported.
#[derive(Debug)]
pub(super) struct Holder {
    me: NodeId,
    nonce: u64,
    lease: Option<LeaseId>,
    /// A lease that this process has let go of: it is not taken up again.
    given_up: Option<LeaseId>,
    /// (seq, when it was sent), in order.
    sent: VecDeque<(u64, u64)>,
    /// Until when each supporter may be counted on.
    support: BTreeMap<NodeId, u64>,
    withdrawn: BTreeSet<NodeId>,
    valid_until_ns: u64,
    /// Since when it has been valid without a break.
    valid_since_ns: Option<u64>,
}

impl Holder {
    pub(super) fn new(me: NodeId, nonce: u64) -> Self {
        Self {
            me,
            nonce,
            lease: None,
            given_up: None,
            sent: VecDeque::new(),
            support: BTreeMap::new(),
            withdrawn: BTreeSet::new(),
            valid_until_ns: 0,
            valid_since_ns: None,
        }
    }

    /// The lease that this process holds, valid or not.
    pub(super) fn lease(&self) -> Option<LeaseId> {
        self.lease
    }

    /// Until when this node may answer.
    pub(super) fn valid_until_ns(&self) -> u64 {
        self.valid_until_ns
    }

    /// Whether it has been valid without a break for so long.
    pub(super) fn has_been_valid_for(&self, span_ns: u64, now_ns: u64) -> bool {
        self.valid_until_ns > now_ns && self.valid_since_ns.is_some_and(|since| now_ns >= since + span_ns)
    }

    /// Takes up the lease that the table gives to this process, and lets go of one that it has ended.
    pub(super) fn on_table(&mut self, table: &Table) {
        // Only an entry with the nonce of this process opens a lease for it: a replayed one does not.
        let ours = table.lease(self.me).filter(|lease| self.is_ours(lease.nonce));
        let lease = ours.map(|lease| lease.id).filter(|id| Some(*id) != self.given_up);
        if lease != self.lease {
            self.drop_lease();
            self.lease = lease;
        }
    }

    fn is_ours(&self, nonce: u64) -> bool {
        nonce == self.nonce || super::planted(super::Bug::NoNonce)
    }

    /// Lets go of it for good, valid or not.
    pub(super) fn give_up(&mut self) {
        self.given_up = self.lease.or(self.given_up);
        self.drop_lease();
    }

    fn drop_lease(&mut self) {
        self.lease = None;
        self.support.clear();
        self.withdrawn.clear();
        self.sent.clear();
        self.valid_until_ns = 0;
        self.valid_since_ns = None;
    }

    /// A ping goes out to everyone; the moment was read before.
    pub(super) fn on_sent(&mut self, seq: u64, now_ns: u64) {
        if self.sent.len() == REMEMBERED_PINGS {
            self.sent.pop_front();
        }
        self.sent.push_back((seq, now_ns));
    }

    /// When a ping was sent, if its answer still counts.
    pub(super) fn sent_ns(&self, seq: u64) -> Option<u64> {
        let at = self.sent.binary_search_by_key(&seq, |(seq, _)| *seq).ok()?;
        Some(self.sent[at].1)
    }

    pub(super) fn on_ack(&mut self, from: NodeId, ack: &Ack, timing: &Timing) {
        if ack.of != self.nonce || ack.lease.is_none() || ack.lease != self.lease {
            return;
        }
        let Some(sent_ns) = self.sent_ns(ack.seq) else { return };
        match ack.verdict {
            Verdict::Yes { promise_ns } => {
                let until_ns = sent_ns + timing.lease_ns.min(Settings::usable_ns(promise_ns));
                let until_ns = if super::planted(super::Bug::NoMargin) { sent_ns + promise_ns } else { until_ns };
                let known = self.support.entry(from).or_insert(0);
                *known = until_ns.max(*known);
                self.withdrawn.remove(&from);
            }
            // What it promised before still holds until then.
            Verdict::Withdrawn => drop(self.withdrawn.insert(from)),
            Verdict::Stale | Verdict::Unknown => {}
        }
    }

    /// Counts the support at this moment, in the configuration that this node has applied.
    pub(super) fn count(&mut self, configuration: &Configuration, timing: &Timing, now_ns: u64) {
        if self.valid_until_ns <= now_ns {
            self.valid_since_ns = None;
        }
        if self.lease.is_none() {
            return;
        }
        // Its own support lasts from now on.
        let mut until = self.support.clone();
        until.insert(self.me, now_ns + timing.lease_ns);
        self.valid_until_ns = configuration
            .halves
            .iter()
            .map(|half| {
                let mut of_half: Vec<u64> = half.iter().map(|voter| until.get(voter).copied().unwrap_or(0)).collect();
                of_half.sort_unstable_by(|a, b| b.cmp(a));
                of_half.get(half.len() / 2).copied().unwrap_or(0)
            })
            .min()
            .unwrap_or(0);
        if self.valid_until_ns > now_ns && self.valid_since_ns.is_none() {
            self.valid_since_ns = Some(now_ns);
        }
    }

    /// Whether so many have withdrawn that it can never be valid again.
    pub(super) fn is_lost(&self, configuration: &Configuration, now_ns: u64) -> bool {
        self.lease.is_some() && self.valid_until_ns <= now_ns && configuration.is_lost_without(&self.withdrawn)
    }
}

#[cfg(test)]
mod tests {
    use lb_raft_store::table::{BOOTSTRAP_NODE, Body, NewNode, Role};

    use super::*;

    const ME: NodeId = BOOTSTRAP_NODE;
    const NONCE: u64 = 77;

    /// A table in which leases are opened for this node, by processes with these nonces, one after the other.
    fn table(nonces: &[u64]) -> Table {
        let mut table = Table::default();
        let node = NewNode {
            name: "lb1".parse().unwrap(),
            role: Role::Lb,
            address: "10.0.0.1:7401".into(),
            store: uuid::Uuid::nil(),
        };
        let create = Body::CreateCluster {
            cluster: uuid::Uuid::from_u128(1),
            cluster_name: "lb".parse().unwrap(),
            hash_seed: 5,
            heartbeat_key: 7,
            node,
        };
        table.apply(1, &create.into()).reply.result.unwrap();
        for (index, nonce) in (2..).zip(nonces) {
            let previous = table.lease(ME).map(|lease| lease.id);
            let open = Body::OpenLease { node: ME, nonce: *nonce, previous };
            table.apply(index, &open.into()).reply.result.unwrap();
        }
        table
    }

    #[test]
    fn a_lease_that_was_given_up_is_not_taken_up_again_and_the_next_one_is() {
        let mut holder = Holder::new(ME, NONCE);
        holder.on_table(&table(&[NONCE]));
        assert_eq!(holder.lease(), Some(LeaseId(2)));
        holder.give_up();
        for _ in 0..2 {
            assert_eq!(holder.lease(), None);
            // The table has it still, and whatever else changes there.
            holder.on_table(&table(&[NONCE]));
        }
        holder.on_table(&table(&[NONCE, NONCE]));
        assert_eq!(holder.lease(), Some(LeaseId(3)), "opened since");
        holder.on_table(&table(&[NONCE]));
        assert_eq!(holder.lease(), None, "a table of before");
        // Giving up what is not there forgets nothing.
        holder.give_up();
        holder.on_table(&table(&[NONCE]));
        assert_eq!(holder.lease(), None);
    }

    #[test]
    fn a_lease_of_another_process_is_nobodys() {
        let mut holder = Holder::new(ME, NONCE);
        for (nonces, expected) in
            [(&[NONCE + 1][..], None), (&[NONCE + 1, NONCE], Some(LeaseId(3))), (&[NONCE, 5], None)]
        {
            holder.on_table(&table(nonces));
            assert_eq!(holder.lease(), expected, "{nonces:?}");
        }
    }

    #[test]
    fn validity_counts_from_its_last_break() {
        const MS: u64 = 1_000_000;
        let timing = Timing::new(lb_raft_store::table::Timing::DEFAULT, 150);
        let alone = Configuration { index: 1, halves: vec![BTreeSet::from([ME])] };
        let mut holder = Holder::new(ME, NONCE);
        holder.on_table(&table(&[NONCE]));
        for at in [0, 50, 100, 150, 200] {
            holder.count(&alone, &timing, at * MS);
        }
        assert!(holder.has_been_valid_for(200 * MS, 200 * MS) && !holder.has_been_valid_for(201 * MS, 200 * MS));
        // Nobody looked for longer than it lasts: it was not valid meanwhile, whatever it is now.
        let late = 200 * MS + timing.lease_ns + MS;
        assert!(!holder.has_been_valid_for(0, late), "not before it is counted again");
        holder.count(&alone, &timing, late);
        assert!(holder.has_been_valid_for(0, late) && !holder.has_been_valid_for(MS, late));
    }
}
