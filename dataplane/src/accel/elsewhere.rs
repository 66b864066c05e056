//! The flows that workers know at another backend than Maglev says: those are theirs until the next look. Only a change makes some,
//! of a service's table or to longer times: a new flow goes where Maglev says. So after a change the flow tables are looked through, and
//! each of these flows is marked for the program. Another flow may have the same mark, and then is for a worker, too.
//!
//! There are two halves: one holds while the other is written.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use super::{
    flows::FlowAt,
    layout::{BITS_ELSEWHERE, ELSEWHERE, mark},
    placement::Placement,
    services::Services,
};
use crate::{
    forward::{decide::Place, runtime::BackendRef, snapshot::Snapshot},
    io::sys::bpf::Words,
    packet::Tuple,
};

/// By then no processor has a frame in hand for which it has asked the other half.
const FRAMES_AT_HAND: Duration = Duration::from_millis(1);

/// A look through all flow tables, of which nothing holds before its end. There is one at a time.
pub(crate) struct Sweep<'a> {
    snapshot: &'a Snapshot,
    hash_key: u64,
    /// The half that does not hold.
    marks: &'a [AtomicU64],
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
        (halves, settings): (&'a Words, &'a Words),
        program: &'a Services,
        placement: &'a Mutex<Placement>,
    ) -> Self {
        let holds = &settings[ELSEWHERE];
        let (first, second) = halves.split_at(halves.len() / 2);
        let (which, marks) = if holds.load(Ordering::Relaxed) == 1 { (2, second) } else { (1, first) };
        marks.iter().for_each(|word| word.store(0, Ordering::Release));
        Self { snapshot, hash_key, marks, which, holds, found: 0, program, placement }
    }

    /// A worker knows a flow at a backend.
    pub(crate) fn see(&mut self, tuple: &Tuple, backend: BackendRef) {
        let Ok(place) = Place::find(self.snapshot, tuple) else { return };
        // Where nothing is placed nobody asks.
        if place.service(self.snapshot).by_source {
            return;
        }
        let Some((_, by)) = place.by_maglev(self.snapshot, tuple.source) else { return };
        // A backend that is gone does not come back by that name.
        if by.reference == backend || self.snapshot.backend(backend).is_none() {
            return;
        }
        let (at, bit) = mark(BITS_ELSEWHERE, FlowAt::new(tuple, self.hash_key).hash);
        self.marks[at].fetch_or(bit, Ordering::Relaxed);
        self.found += 1;
    }

    /// All flows of all workers were seen: new ones of what has not changed since can be placed. How many are elsewhere.
    pub(crate) fn end(self) -> u64 {
        // The marks first: what is placed is asked for.
        self.holds.store(if self.found > 0 { self.which } else { 0 }, Ordering::Release);
        thread::sleep(FRAMES_AT_HAND);
        let mut placement = self.placement.lock().unwrap_or_else(PoisonError::into_inner);
        placement.settle(self.program, self.snapshot.generation);
        self.found
    }
}
