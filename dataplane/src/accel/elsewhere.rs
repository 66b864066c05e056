//! The flows that workers know at another backend than Maglev says: those are theirs, whatever comes of them. A table change makes
//! some, and nothing else does: a new flow goes where Maglev says. So after a change the flow tables are looked through once, and
//! each of these flows has its bit in a set that the program asks. A flow may seem to be in it, and then is for a worker, too.
//!
//! There are two sets: one holds while the other is written.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use super::{
    flows::FlowAt,
    layout::{BITS_ELSEWHERE, ELSEWHERE, place_among},
    placement::Placement,
    services::Services,
};
use crate::{
    forward::{decide::Place, runtime::BackendRef, snapshot::Snapshot},
    io::sys::bpf::Words,
    packet::Tuple,
};

/// A look through all flow tables, of which nothing holds before its end. There is one at a time.
pub(crate) struct Sweep<'a> {
    snapshot: &'a Snapshot,
    hash_key: u64,
    /// The set that does not hold.
    set: &'a [AtomicU64],
    /// Its name, 1 or 2.
    which: u64,
    /// The name of the one that does, or 0 where there are no such flows.
    holds: &'a AtomicU64,
    found: u64,
    program: &'a Services,
    placement: &'a Mutex<Placement>,
}

impl<'a> Sweep<'a> {
    pub(super) fn begin(
        snapshot: &'a Snapshot,
        hash_key: u64,
        (sets, settings): (&'a Words, &'a Words),
        program: &'a Services,
        placement: &'a Mutex<Placement>,
    ) -> Self {
        let holds = &settings[ELSEWHERE];
        let (first, second) = sets.split_at(sets.len() / 2);
        let (which, set) = if holds.load(Ordering::Relaxed) == 1 { (2, second) } else { (1, first) };
        set.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        Self { snapshot, hash_key, set, which, holds, found: 0, program, placement }
    }

    /// A worker knows a flow at a backend.
    pub(crate) fn see(&mut self, tuple: &Tuple, backend: BackendRef) {
        let Ok(place) = Place::find(self.snapshot, tuple) else { return };
        if place.by_maglev(self.snapshot, tuple.source).is_some_and(|(_, by)| by.reference == backend) {
            return;
        }
        let (at, bit) = place_among(BITS_ELSEWHERE, FlowAt::new(tuple, self.hash_key).hash);
        self.set[at].fetch_or(bit, Ordering::Relaxed);
        self.found += 1;
    }

    /// All flows of all workers were seen: new ones of what has not changed since can be placed. How many are elsewhere.
    pub(crate) fn end(self) -> u64 {
        // The set first: it is asked about what is placed.
        self.holds.store(if self.found > 0 { self.which } else { 0 }, Ordering::Release);
        let mut placement = self.placement.lock().unwrap_or_else(PoisonError::into_inner);
        placement.settle(self.program, self.snapshot.generation);
        self.found
    }
}
