//! Whether this node may speak for a VIP at this moment. The control plane says which VIPs it owns and until when; the
//! worker asks right before each answer, each announcement and each refusal, and nobody else reads the lease's clock:
//! what `explain` says is what happens. CLOCK_BOOTTIME, because it counts the time that a suspended machine slept
//! through.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Nanoseconds of CLOCK_BOOTTIME.
pub fn boottime_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// The deadline that the control plane and the workers share.
#[derive(Debug, Default)]
pub struct LeaseClock {
    deadline_ns: AtomicU64,
    /// Answers are given past the deadline too, until another station claims the VIP.
    held: AtomicBool,
}

impl LeaseClock {
    /// Answers are allowed until then, whatever was allowed before.
    pub fn set(&self, deadline_ns: u64) {
        self.deadline_ns.store(deadline_ns, Ordering::Release);
    }

    /// Whether answers go on past the deadline, because the operator prefers service over one owner at a time.
    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Release);
    }

    /// Whether they do.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// No answer from now on.
    pub fn revoke(&self) {
        self.hold(false);
        self.deadline_ns.store(0, Ordering::Release);
    }

    /// Whether an answer is allowed at this moment. Reads the clock each time: that is the point.
    pub fn is_valid(&self) -> bool {
        boottime_ns() < self.deadline_ns.load(Ordering::Acquire)
    }

    /// The moment until which answers are allowed.
    pub fn deadline_ns(&self) -> u64 {
        self.deadline_ns.load(Ordering::Acquire)
    }
}

/// A VIP that this node owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The VIP.
    pub vip: IpAddr,
    /// Tells this grant from the one before and the one after.
    pub epoch: u64,
    /// Nobody has owned it before: whoever else may have the address is asked first (RFC 5227 2.1).
    pub first: bool,
}

/// The VIPs that this node owns, published apart from how it forwards: a takeover never waits for a table.
#[derive(Debug, Default)]
pub struct Owned {
    /// Counts up with every publication.
    pub generation: u64,
    grants: HashMap<IpAddr, Grant>,
}

impl Owned {
    /// The next publication.
    pub fn new(generation: u64, grants: &[Grant]) -> Self {
        Self { generation, grants: grants.iter().map(|grant| (grant.vip, *grant)).collect() }
    }
}

/// A worker's right to speak for VIPs.
#[derive(Debug)]
pub(crate) struct Permit {
    lease: Arc<LeaseClock>,
    owned: Arc<Owned>,
    /// VIPs that others have claimed since the lease ran out: not answered, even where it is held.
    yielded: HashSet<IpAddr>,
}

impl Permit {
    pub(crate) fn new(lease: Arc<LeaseClock>, owned: Arc<Owned>) -> Self {
        Self { lease, owned, yielded: HashSet::new() }
    }

    /// Owns other VIPs from now on.
    pub(crate) fn adopt(&mut self, owned: Arc<Owned>) {
        self.yielded.retain(|vip| owned.grants.contains_key(vip));
        self.owned = owned;
    }

    /// The publication by which it speaks.
    pub(crate) fn generation(&self) -> u64 {
        self.owned.generation
    }

    /// What this node owns.
    pub(crate) fn grants(&self) -> impl Iterator<Item = &Grant> {
        self.owned.grants.values()
    }

    /// Whether this node owns a VIP, with a valid lease or without.
    pub(crate) fn owns(&self, vip: IpAddr) -> bool {
        self.owned.grants.contains_key(&vip)
    }

    /// Whether ARP, neighbour discovery and echo for a VIP may be answered at this moment. Past the lease's end only where
    /// the operator wants it, and for what nobody else claims.
    pub(crate) fn to_answer(&self, vip: IpAddr) -> bool {
        self.owns(vip) && (self.lease.is_valid() || (self.lease.is_held() && !self.yielded.contains(&vip)))
    }

    /// Whether owned VIPs may be announced at this moment: what is held is never announced.
    pub(crate) fn to_announce(&self) -> bool {
        self.lease.is_valid()
    }

    /// Whether a port of a VIP may be refused in its name at this moment.
    pub(crate) fn to_refuse(&self, vip: IpAddr) -> bool {
        self.owns(vip) && self.lease.is_valid()
    }

    /// Another station claims an owned VIP.
    pub(crate) fn contested(&mut self, vip: IpAddr) {
        if !self.lease.is_valid() {
            self.yielded.insert(vip);
        }
    }

    /// Looks whether the lease is valid again: then nothing is yielded any more. Called once a turn.
    pub(crate) fn look_again(&mut self) {
        if !self.yielded.is_empty() && self.lease.is_valid() {
            self.yielded.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_answered_until_another_station_claims_it_and_never_announced() {
        let (vip, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let grants = [vip, other].map(|vip| Grant { vip, epoch: 1, first: false });
        let lease = Arc::new(LeaseClock::default());
        let mut permit = Permit::new(lease.clone(), Arc::new(Owned::new(1, &grants)));
        let may = |permit: &Permit| (permit.to_answer(vip), permit.to_announce(), permit.to_refuse(vip));
        assert_eq!(may(&permit), (false, false, false), "no lease");
        lease.set(u64::MAX);
        assert_eq!(may(&permit), (true, true, true));
        permit.contested(vip);
        assert_eq!(may(&permit), (true, true, true), "with a valid lease it is defended");
        lease.set(5);
        assert_eq!(may(&permit), (false, false, false), "run out");
        lease.hold(true);
        assert_eq!(may(&permit), (true, false, false));
        permit.contested(vip);
        assert!(!permit.to_answer(vip) && permit.to_answer(other));
        lease.set(u64::MAX);
        permit.look_again();
        lease.set(6);
        assert!(permit.to_answer(vip), "it was valid since, and has run out again");
        permit.adopt(Arc::new(Owned::new(2, &grants[1..])));
        assert!(!permit.to_answer(vip) && !permit.owns(vip));
    }
}
