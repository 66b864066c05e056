//! The holder's side of a lease. Pure: moments are arguments, what to do comes out.
//!
//! ```text
//!   Without --(open proposed, own nonce seen in the table)--> Holding --(table ended it)--> Without
//! ```

use lb_raft_store::table::{Lease, LeaseId};

use super::{RENEW_EVERY, VALID};

/// Before an OpenLease that did not show in the table is proposed again.
const OPEN_AGAIN_NS: u64 = 500_000_000;

/// What the driver is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Propose an OpenLease that ends `previous`.
    Open { previous: Option<LeaseId> },
    /// Ask the leader; the answer goes to [`Holder::renewed`] with the moment before the question was
    /// sent.
    Renew { lease: LeaseId },
    /// Propose that the lease is ready.
    Ready { lease: LeaseId },
    /// Stop answering at once.
    Revoke,
}

/// The state.
#[derive(Debug)]
pub(super) struct Holder {
    nonce: u64,
    lease: Option<LeaseId>,
    /// Whether the table calls it ready.
    ready: bool,
    valid_until_ns: u64,
    next_open_ns: u64,
    next_renew_ns: u64,
    next_ready_ns: u64,
    released: bool,
}

impl Holder {
    /// Of a process that chose this nonce.
    pub(super) fn new(nonce: u64) -> Self {
        Self {
            nonce,
            lease: None,
            ready: false,
            valid_until_ns: 0,
            next_open_ns: 0,
            next_renew_ns: 0,
            next_ready_ns: 0,
            released: false,
        }
    }

    /// The lease that this process holds, valid or not.
    pub(super) fn lease(&self) -> Option<LeaseId> {
        self.lease
    }

    /// Until when it may answer.
    pub(super) fn valid_until_ns(&self) -> u64 {
        self.valid_until_ns
    }

    /// Holds nothing and asks for nothing from now on.
    pub(super) fn release(&mut self) {
        self.released = true;
        self.lease = None;
        self.valid_until_ns = 0;
    }

    /// Looks at the table and the clock.
    pub(super) fn poll(&mut self, in_table: Option<&Lease>, now_ns: u64) -> Vec<Action> {
        if self.released {
            return Vec::new();
        }
        let mut actions = Vec::new();
        // Only an entry with the nonce of this process opens a lease for it: a replayed one does not.
        let ours = in_table.filter(|lease| lease.nonce == self.nonce);
        if self.lease != ours.map(|lease| lease.id) {
            self.lease = ours.map(|lease| lease.id);
            self.valid_until_ns = 0;
            self.next_renew_ns = now_ns;
            actions.push(Action::Revoke);
        }
        self.ready = ours.is_some_and(|lease| lease.ready);
        match self.lease {
            None if now_ns >= self.next_open_ns => {
                self.next_open_ns = now_ns + OPEN_AGAIN_NS;
                actions.push(Action::Open { previous: in_table.map(|lease| lease.id) });
            }
            Some(lease) => {
                if now_ns >= self.next_renew_ns {
                    self.next_renew_ns = now_ns + RENEW_EVERY.as_nanos() as u64;
                    actions.push(Action::Renew { lease });
                }
                if !self.ready && now_ns < self.valid_until_ns && now_ns >= self.next_ready_ns {
                    self.next_ready_ns = now_ns + OPEN_AGAIN_NS;
                    actions.push(Action::Ready { lease });
                }
            }
            None => {}
        }
        actions
    }

    /// The leader granted a renewal of `lease` that was sent at `sent_ns`.
    pub(super) fn renewed(&mut self, lease: LeaseId, sent_ns: u64) {
        if self.lease == Some(lease) {
            self.valid_until_ns = self.valid_until_ns.max(sent_ns + VALID.as_nanos() as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn lease(id: u64, nonce: u64, ready: bool) -> Lease {
        Lease { id: LeaseId(id), nonce, ready }
    }

    #[test]
    fn a_process_opens_its_lease_over_the_one_before_and_only_knows_its_own() {
        let mut holder = Holder::new(7);
        let old = lease(3, 6, true);
        assert_eq!(holder.poll(Some(&old), 0), [Action::Open { previous: Some(LeaseId(3)) }]);
        assert_eq!(holder.poll(Some(&old), 1), [], "asked already");
        assert_eq!(holder.lease(), None, "the lease of the process before is not ours");
        assert_eq!(holder.poll(Some(&old), 600 * MS), [Action::Open { previous: Some(LeaseId(3)) }]);
        let actions = holder.poll(Some(&lease(9, 7, false)), 601 * MS);
        assert_eq!(actions, [Action::Revoke, Action::Renew { lease: LeaseId(9) }]);
    }

    #[test]
    fn validity_counts_from_the_sending_of_the_renewal() {
        let mut holder = Holder::new(7);
        holder.poll(Some(&lease(9, 7, false)), 1000 * MS);
        holder.renewed(LeaseId(9), 1000 * MS);
        assert_eq!(holder.valid_until_ns(), 1500 * MS);
        holder.renewed(LeaseId(9), 900 * MS);
        assert_eq!(holder.valid_until_ns(), 1500 * MS, "an answer that was overtaken shortens nothing");
        holder.renewed(LeaseId(8), 2000 * MS);
        assert_eq!(holder.valid_until_ns(), 1500 * MS, "an answer about another lease counts nothing");
    }

    #[test]
    fn it_is_ready_only_after_its_first_validity() {
        let mut holder = Holder::new(7);
        holder.poll(Some(&lease(9, 7, false)), 0);
        assert_eq!(holder.poll(Some(&lease(9, 7, false)), 50 * MS), []);
        holder.renewed(LeaseId(9), 0);
        assert_eq!(holder.poll(Some(&lease(9, 7, false)), 60 * MS), [Action::Ready { lease: LeaseId(9) }]);
        assert_eq!(holder.poll(Some(&lease(9, 7, true)), 120 * MS), [Action::Renew { lease: LeaseId(9) }]);
    }

    #[test]
    fn a_lease_that_the_table_ended_is_revoked_and_opened_anew() {
        let mut holder = Holder::new(7);
        holder.poll(Some(&lease(9, 7, true)), 0);
        holder.renewed(LeaseId(9), 0);
        let actions = holder.poll(None, 10 * MS);
        assert_eq!(actions, [Action::Revoke, Action::Open { previous: None }]);
        assert_eq!(holder.valid_until_ns(), 0);
        holder.renewed(LeaseId(9), 20 * MS);
        assert_eq!(holder.valid_until_ns(), 0, "a late answer does not bring it back");
    }

    #[test]
    fn a_released_holder_asks_for_nothing() {
        let mut holder = Holder::new(7);
        holder.poll(Some(&lease(9, 7, true)), 0);
        holder.release();
        assert_eq!(holder.poll(Some(&lease(9, 7, true)), 1000 * MS), []);
        assert_eq!(holder.lease(), None);
    }
}
