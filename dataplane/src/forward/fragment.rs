//! Which backend the fragments of a datagram go to: that of its first one, which alone names the ports. Fragments
//! that overtake it wait for it. Pure: the time comes in, what is to be sent or dropped comes out.
//!
//! Bounded in memory (datagrams, waiting frames and their bytes) and in time. A fragment that overlaps another one
//! is dropped (RFC 5722): two receivers could put such a datagram together differently.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    mem,
};

use super::runtime::BackendRef;
use crate::{
    packet::{DatagramId, Fragment, OwnedFrame},
    verdict::DropReason,
};

/// Datagrams that are followed at the same time; a new one takes the place of the oldest.
const MAX_DATAGRAMS: usize = 4096;
/// Frames that wait at the same time, and their bytes.
const MAX_WAITING: usize = 512;
const MAX_WAITING_BYTES: usize = 1 << 20;
/// Parts of a datagram with something missing between them. The longest datagram has 60 if every second fragment of
/// 576 bytes is late, 23 at an MTU of 1500.
const MAX_PARTS: usize = 64;
/// From its first fragment on (RFC 791 3.2 recommends 15 s, RFC 8200 4.5 sets 60 s for a receiver; Linux has 30 s).
const LIFETIME_NS: u64 = 30_000_000_000;
/// After so long, one that overlaps belongs to another datagram of the same name: senders use an identification again, and
/// none sends a fragment twice so late (RFC 6864 3.2 counts with tens of milliseconds of reordering).
const REUSED_NS: u64 = 1_000_000_000;
/// For the first fragment to come after one that overtook it.
const WAIT_NS: u64 = 500_000_000;

/// What to do with a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is the first: decide by its flow, and tell [`Fragments::decided`].
    Decide,
    /// Its datagram goes there.
    Follow(Course),
    /// Keep it with [`Fragments::hold`].
    Wait,
    /// Drop it.
    Drop(DropReason),
}

/// Where a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// To a backend.
    Backend(BackendRef),
    /// To the worker that has its flow, which decides.
    Worker(usize),
}

/// The datagrams of which fragments have come.
#[derive(Debug, Default)]
pub struct Fragments {
    datagrams: HashMap<DatagramId, Datagram>,
    /// Their ends of life.
    ends: Deadlines,
    /// When those that wait have waited long enough.
    waits: Deadlines,
    serial: u64,
    waiting: usize,
    waiting_bytes: usize,
}

/// When something is due for datagrams, the earliest first. One that is gone meanwhile stays until its turn comes or
/// [`Self::tidy`] does.
#[derive(Debug, Default)]
struct Deadlines(VecDeque<Deadline>);

#[derive(Debug, Clone, Copy)]
struct Deadline {
    at_ns: u64,
    id: DatagramId,
    /// Of the datagram that had this name then.
    serial: u64,
}

impl Deadlines {
    fn earliest(&self) -> Option<Deadline> {
        self.0.front().copied()
    }

    /// Leaves those out that are over, when they may be the most. `alive`: at most so many are not over.
    fn tidy(&mut self, alive: usize, is_over: impl Fn(&Deadline) -> bool) {
        if self.0.len() > 2 * alive {
            self.0.retain(|deadline| !is_over(deadline));
        }
    }
}

#[derive(Debug)]
struct Datagram {
    /// Tells it from another one of the same name at another time.
    serial: u64,
    /// When the first of its fragments came, whichever that was.
    begun_ns: u64,
    fate: Fate,
    /// What has come: from where to where.
    parts: BTreeMap<u32, u32>,
    /// Where it ends, once the last fragment has come.
    end: Option<u32>,
}

#[derive(Debug)]
enum Fate {
    /// The first fragment has not come yet.
    Unknown(Vec<Waiting>),
    Known(Course),
    Dropped(DropReason),
}

/// A frame that waits, and the interface that it came by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The interface.
    pub port: usize,
    /// The frame.
    pub frame: OwnedFrame,
}

impl Fragments {
    /// A fragment has come.
    pub fn arrive(&mut self, fragment: &Fragment, now_ns: u64) -> Step {
        let id = fragment.datagram;
        if self.datagrams.get(&id).is_some_and(|datagram| datagram.is_over(fragment, now_ns)) {
            self.datagrams.remove(&id);
        }
        let serial = &mut self.serial;
        let ends = &mut self.ends;
        let datagram = self.datagrams.entry(id).or_insert_with(|| {
            *serial += 1;
            ends.0.push_back(Deadline { at_ns: now_ns + LIFETIME_NS, id, serial: *serial });
            Datagram::new(*serial, now_ns)
        });
        let step = datagram.step(fragment);
        // Whole: nothing more can come. The one whose first fragment is being decided on is needed once more.
        if datagram.is_whole() && matches!(step, Step::Follow(_) | Step::Drop(_)) {
            self.datagrams.remove(&id);
        }
        step
    }

    /// What [`Self::arrive`] would say; nothing is noted.
    pub fn foresee(&self, fragment: &Fragment, now_ns: u64) -> Step {
        let known = self.datagrams.get(&fragment.datagram).filter(|datagram| !datagram.is_over(fragment, now_ns));
        let mut datagram = known.map_or_else(|| Datagram::new(0, now_ns), Datagram::without_frames);
        datagram.step(fragment)
    }

    /// The first fragment's outcome; those that have waited for it share it.
    pub fn decided(&mut self, id: DatagramId, outcome: Result<Course, DropReason>) -> Vec<Waiting> {
        let Some(datagram) = self.datagrams.get_mut(&id) else { return Vec::new() };
        let fate = outcome.map_or_else(Fate::Dropped, Fate::Known);
        let Fate::Unknown(released) = mem::replace(&mut datagram.fate, fate) else { return Vec::new() };
        if datagram.is_whole() {
            self.datagrams.remove(&id);
        }
        self.forget_waiting(&released);
        released
    }

    /// Keeps a frame until then. Where there is no room, those that have waited longest are given up: whoever sends
    /// fragments that nothing follows must not stop the others. How many frames that drops, which may be this one.
    pub fn hold(&mut self, id: DatagramId, waits: Waiting, now_ns: u64) -> usize {
        let before = self.waiting;
        let len = waits.frame.frame().len();
        while self.waiting == MAX_WAITING || self.waiting_bytes + len > MAX_WAITING_BYTES {
            match self.waits.0.pop_front() {
                Some(longest) => self.give_up(longest, DropReason::FragmentNoRoom),
                None => return before - self.waiting + 1,
            }
        }
        let given_up = before - self.waiting;
        let datagram = self.datagrams.get_mut(&id);
        let Some(Datagram { fate: Fate::Unknown(waiting), serial, .. }) = datagram else { return given_up + 1 };
        if waiting.is_empty() {
            self.waits.0.push_back(Deadline { at_ns: now_ns + WAIT_NS, id, serial: *serial });
        }
        waiting.push(waits);
        self.waiting += 1;
        self.waiting_bytes += len;
        given_up
    }

    /// Forgets what is too old, and the oldest while there are too many. How many waiting frames that drops.
    pub fn expire(&mut self, now_ns: u64) -> usize {
        let before = self.waiting;
        while let Some(due) = self.waits.earliest().filter(|due| due.at_ns <= now_ns) {
            self.waits.0.pop_front();
            self.give_up(due, DropReason::FragmentTimeout);
        }
        while let Some(due) = self.ends.earliest() {
            if due.at_ns > now_ns && self.datagrams.len() <= MAX_DATAGRAMS {
                break;
            }
            self.ends.0.pop_front();
            if self.datagrams.get(&due.id).is_some_and(|datagram| datagram.serial == due.serial)
                && let Some(datagram) = self.datagrams.remove(&due.id)
            {
                self.drop_waiting(datagram.fate);
            }
        }
        let datagrams = &self.datagrams;
        let of = |due: &Deadline| datagrams.get(&due.id).filter(|datagram| datagram.serial == due.serial);
        self.ends.tidy(MAX_DATAGRAMS, |due| of(due).is_none());
        let waits = |datagram: &Datagram| matches!(datagram.fate, Fate::Unknown(_));
        self.waits.tidy(MAX_WAITING, |due| !of(due).is_some_and(waits));
        before - self.waiting
    }

    /// Nobody waits any longer for the first fragment of a datagram.
    fn give_up(&mut self, due: Deadline, reason: DropReason) {
        let datagram = self.datagrams.get_mut(&due.id).filter(|datagram| datagram.serial == due.serial);
        if let Some(Datagram { fate: fate @ Fate::Unknown(_), .. }) = datagram {
            let given_up = mem::replace(fate, Fate::Dropped(reason));
            self.drop_waiting(given_up);
        }
    }

    /// When to call [`Self::expire`] again for those that wait.
    pub fn next_due_ns(&self) -> Option<u64> {
        self.waits.earliest().map(|due| due.at_ns)
    }

    /// Frames that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    fn drop_waiting(&mut self, fate: Fate) {
        if let Fate::Unknown(waiting) = fate {
            self.forget_waiting(&waiting);
        }
    }

    fn forget_waiting(&mut self, frames: &[Waiting]) {
        self.waiting -= frames.len();
        self.waiting_bytes -= frames.iter().map(|waiting| waiting.frame.frame().len()).sum::<usize>();
    }
}

impl Datagram {
    fn new(serial: u64, begun_ns: u64) -> Self {
        Self { serial, begun_ns, fate: Fate::Unknown(Vec::new()), parts: BTreeMap::new(), end: None }
    }

    /// The same, as far as what comes next depends on it.
    fn without_frames(&self) -> Self {
        let fate = match &self.fate {
            Fate::Unknown(_) => Fate::Unknown(Vec::new()),
            Fate::Known(course) => Fate::Known(*course),
            Fate::Dropped(reason) => Fate::Dropped(*reason),
        };
        Self { fate, parts: self.parts.clone(), ..*self }
    }

    /// Whether a fragment is of another datagram, which has this one's name: it is a first one, or does not fit, and comes
    /// long after this one began. Not while others wait for the first one.
    fn is_over(&self, fragment: &Fragment, now_ns: u64) -> bool {
        let waits = matches!(self.fate, Fate::Unknown(_));
        let is_late = now_ns >= self.begun_ns + REUSED_NS;
        is_late && !waits && (fragment.flow.is_some() || !self.fits(fragment))
    }

    /// Notes a fragment and says what to do with it.
    fn step(&mut self, fragment: &Fragment) -> Step {
        if let Err(reason) = self.add(fragment) {
            return Step::Drop(reason);
        }
        match &self.fate {
            Fate::Unknown(_) if fragment.flow.is_some() => Step::Decide,
            Fate::Unknown(_) => Step::Wait,
            Fate::Known(course) => Step::Follow(*course),
            Fate::Dropped(reason) => Step::Drop(*reason),
        }
    }

    /// Notes what came, if it fits to what came before.
    fn add(&mut self, fragment: &Fragment) -> Result<(), DropReason> {
        if !self.fits(fragment) {
            return Err(DropReason::FragmentOverlap);
        }
        let (from, to) = (fragment.offset, fragment.offset + fragment.len);
        let joins_before = self.part_before(from).filter(|(_, end)| *end == from);
        let joins_after = self.part_after(from).filter(|(start, _)| *start == to);
        if joins_before.is_none() && joins_after.is_none() && self.parts.len() == MAX_PARTS {
            return Err(DropReason::FragmentNoRoom);
        }
        if let Some((start, _)) = joins_after {
            self.parts.remove(&start);
        }
        let (start, end) = (joins_before.map_or(from, |part| part.0), joins_after.map_or(to, |part| part.1));
        self.parts.insert(start, end);
        if !fragment.more {
            self.end = Some(to);
        }
        Ok(())
    }

    /// Whether a fragment overlaps nothing that came before, and does not end elsewhere.
    fn fits(&self, fragment: &Fragment) -> bool {
        let (from, to) = (fragment.offset, fragment.offset + fragment.len);
        let last_end = self.parts.values().next_back().copied().unwrap_or(0);
        let after_the_end = match self.end {
            Some(end) => to > end || !fragment.more,
            None => !fragment.more && to < last_end,
        };
        let overlaps = self.part_before(from).is_some_and(|(_, end)| end > from)
            || self.part_after(from).is_some_and(|(start, _)| start < to);
        !after_the_end && !overlaps
    }

    fn part_before(&self, from: u32) -> Option<(u32, u32)> {
        self.parts.range(..=from).next_back().map(|(start, end)| (*start, *end))
    }

    fn part_after(&self, from: u32) -> Option<(u32, u32)> {
        self.parts.range(from..).next().map(|(start, end)| (*start, *end))
    }

    fn is_whole(&self) -> bool {
        self.parts.len() == 1 && self.parts.get(&0).copied() == self.end && self.end.is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::{FlowPacket, Protocol, Tuple};

    const BACKEND: u32 = 7;
    const MAX_DATAGRAM: u32 = 65_535;

    fn backend() -> Course {
        Course::Backend(BackendRef::from_raw(BACKEND))
    }

    fn waiting(len: usize) -> Waiting {
        Waiting { port: 0, frame: OwnedFrame::whole(&vec![0; len]) }
    }

    fn id(id: u32) -> DatagramId {
        DatagramId { source: [192, 0, 2, 1].into(), destination: [192, 0, 2, 9].into(), protocol: 17, id }
    }

    fn fragment(of: u32, offset: u32, len: u32, more: bool) -> Fragment {
        let flow = (offset == 0).then(|| FlowPacket {
            tuple: Tuple {
                source: id(of).source,
                destination: id(of).destination,
                source_port: 1,
                destination_port: 53,
                protocol: Protocol::Udp,
            },
            opens: false,
            ends: false,
            resets: false,
            transport_at: 34,
            headers_len: 42,
        });
        Fragment { datagram: id(of), offset, len, more, flow }
    }

    #[test]
    fn fragments_in_order_follow_the_first() {
        let mut fragments = Fragments::default();
        assert_eq!(fragments.arrive(&fragment(1, 0, 800, true), 0), Step::Decide);
        assert_eq!(fragments.decided(id(1), Ok(backend())), []);
        assert_eq!(fragments.arrive(&fragment(1, 800, 800, true), 0), Step::Follow(backend()));
        assert_eq!(fragments.arrive(&fragment(1, 1600, 8, false), 0), Step::Follow(backend()));
        assert!(fragments.datagrams.is_empty(), "a whole datagram is forgotten");
    }

    #[test]
    fn fragments_that_overtake_the_first_wait_for_it_and_share_its_fate() {
        for outcome in [Ok(backend()), Err(DropReason::NoService)] {
            let mut fragments = Fragments::default();
            for (offset, more) in [(1600, false), (800, true)] {
                assert_eq!(fragments.arrive(&fragment(1, offset, 800, more), 0), Step::Wait);
                assert_eq!(fragments.hold(id(1), waiting(3), 0), 0);
            }
            assert_eq!(fragments.arrive(&fragment(1, 0, 800, true), 0), Step::Decide);
            assert_eq!(fragments.decided(id(1), outcome).len(), 2);
            assert_eq!((fragments.waiting(), fragments.datagrams.len()), (0, 0));
        }
    }

    #[test]
    fn overlapping_repeated_and_endless_fragments_are_dropped() {
        let mut fragments = Fragments::default();
        assert_eq!(fragments.arrive(&fragment(1, 0, 800, true), 0), Step::Decide);
        fragments.decided(id(1), Ok(backend()));
        let overlap = Step::Drop(DropReason::FragmentOverlap);
        assert_eq!(fragments.arrive(&fragment(1, 0, 800, true), 0), overlap, "the same again");
        assert_eq!(fragments.arrive(&fragment(1, 792, 800, true), 0), overlap);
        assert_eq!(fragments.arrive(&fragment(1, 1600, 800, false), 0), Step::Follow(backend()));
        assert_eq!(fragments.arrive(&fragment(1, 2400, 800, true), 0), overlap, "behind the end");
        assert_eq!(fragments.arrive(&fragment(1, 3200, 800, false), 0), overlap, "another end");
        // Every second one of a datagram that never ends.
        let steps: Vec<Step> = (1..100).map(|n| fragments.arrive(&fragment(2, n * 16, 8, true), 0)).collect();
        assert_eq!(steps[MAX_PARTS..], vec![Step::Drop(DropReason::FragmentNoRoom); 99 - MAX_PARTS]);
    }

    #[test]
    fn a_name_that_is_used_again_is_another_datagram() {
        let overlap = Step::Drop(DropReason::FragmentOverlap);
        // The second fragment was lost; a second later the sender uses the identification again.
        for later_first in [false, true] {
            let mut fragments = Fragments::default();
            let begin = |fragments: &mut Fragments, at| {
                assert_eq!(fragments.arrive(&fragment(1, 0, 800, true), at), Step::Decide);
                assert!(fragments.decided(id(1), Ok(backend())).is_empty());
            };
            begin(&mut fragments, 0);
            assert_eq!(fragments.arrive(&fragment(1, 800, 800, true), 1), Step::Follow(backend()));
            let (soon, now) = (REUSED_NS - 1, REUSED_NS);
            assert_eq!(fragments.arrive(&fragment(1, 0, 800, true), soon), overlap, "a copy");
            if later_first {
                assert_eq!(fragments.arrive(&fragment(1, 800, 800, true), soon), overlap);
                assert_eq!(fragments.foresee(&fragment(1, 800, 800, true), now), Step::Wait);
                assert_eq!(fragments.arrive(&fragment(1, 800, 800, true), now), Step::Wait);
                assert_eq!(fragments.hold(id(1), waiting(3), now), 0);
                assert_eq!(fragments.arrive(&fragment(1, 0, 800, true), now + 1), Step::Decide);
                assert_eq!(fragments.decided(id(1), Ok(backend())).len(), 1);
            } else {
                assert_eq!(fragments.foresee(&fragment(1, 0, 800, true), now), Step::Decide);
                begin(&mut fragments, now);
                assert_eq!(fragments.arrive(&fragment(1, 800, 800, true), now + 1), Step::Follow(backend()));
            }
            assert_eq!(fragments.arrive(&fragment(1, 1600, 8, false), now + 2), Step::Follow(backend()));
            assert!(fragments.datagrams.is_empty(), "whole");
            fragments.expire(LIFETIME_NS * 3);
            assert!(fragments.ends.0.is_empty());
        }
        // One that was refused is not refused for ever.
        let mut fragments = Fragments::default();
        fragments.arrive(&fragment(1, 0, 800, true), 0);
        fragments.decided(id(1), Err(DropReason::NoService));
        assert_eq!(fragments.arrive(&fragment(1, 0, 800, true), REUSED_NS), Step::Decide);
    }

    #[test]
    fn waiting_ends() {
        let mut fragments = Fragments::default();
        for of in 0..10 {
            assert_eq!(fragments.arrive(&fragment(of, 800, 800, true), 0), Step::Wait);
            assert_eq!(fragments.hold(id(of), waiting(1500), 0), 0);
        }
        let due = fragments.next_due_ns().unwrap();
        assert_eq!(fragments.expire(due - 1), 0);
        assert_eq!(fragments.expire(due), 10);
        assert_eq!((fragments.waiting, fragments.waiting_bytes), (0, 0));
        let late = fragments.arrive(&fragment(3, 0, 800, true), due);
        assert_eq!(late, Step::Drop(DropReason::FragmentTimeout), "the rest of what was given up");
        fragments.expire(LIFETIME_NS + due);
        assert!(fragments.datagrams.is_empty() && fragments.ends.0.is_empty() && fragments.waits.0.is_empty());
    }

    #[test]
    fn the_longest_datagram_comes_with_every_second_fragment_late() {
        let mut fragments = Fragments::default();
        let last = MAX_DATAGRAM / 552;
        let (late, early): (Vec<u32>, Vec<u32>) = (0..=last).partition(|n| n % 2 == 0);
        let of = |n| if n < last { fragment(1, n * 552, 552, true) } else { fragment(1, n * 552, 8, false) };
        for n in early {
            assert_eq!(fragments.arrive(&of(n), 0), Step::Wait);
            assert_eq!(fragments.hold(id(1), waiting(600), 0), 0);
        }
        assert_eq!(fragments.arrive(&of(0), 0), Step::Decide);
        fragments.decided(id(1), Ok(backend()));
        for n in &late[1..] {
            assert_eq!(fragments.arrive(&of(*n), 0), Step::Follow(backend()));
        }
        assert!(fragments.datagrams.is_empty());
    }

    #[test]
    fn fragments_that_nothing_follows_do_not_stop_others_from_waiting() {
        let mut fragments = Fragments::default();
        let mut given_up = 0;
        for of in 0..3 * MAX_DATAGRAMS as u32 {
            assert_eq!(fragments.arrive(&fragment(of, 800, 800, true), 0), Step::Wait);
            given_up += fragments.hold(id(of), waiting(1500), 0) + fragments.expire(0);
            assert_eq!(fragments.arrive(&fragment(of, 1600, 8, true), 0), Step::Wait, "the newest waits");
        }
        assert_eq!(fragments.waiting, MAX_WAITING);
        assert_eq!(given_up, 3 * MAX_DATAGRAMS - MAX_WAITING, "each that does not wait is told of");
        let first = fragments.waits.earliest().unwrap().id;
        assert_eq!(fragments.arrive(&fragment(first.id, 0, 800, true), 0), Step::Decide);
        assert_eq!(fragments.decided(first, Ok(backend())).len(), 1);
        // Long frames are bounded by their bytes.
        let longest = MAX_WAITING_BYTES / 16;
        for of in 0..64 {
            fragments.arrive(&fragment(1_000_000 + of, 800, 800, true), 0);
            fragments.hold(id(1_000_000 + of), waiting(longest), 0);
        }
        assert_eq!((fragments.waiting, fragments.waiting_bytes), (16, MAX_WAITING_BYTES));
    }

    #[test]
    fn memory_is_bounded_whether_datagrams_become_whole_or_not() {
        let mut fragments = Fragments::default();
        for of in 0..10 * MAX_DATAGRAMS as u32 {
            if of % 3 > 0 {
                fragments.arrive(&fragment(of, 800, 8, false), 0);
                fragments.hold(id(of), waiting(60), 0);
            }
            if of % 3 < 2 {
                assert_eq!(fragments.arrive(&fragment(of, 0, 800, true), 0), Step::Decide);
                fragments.decided(id(of), Ok(backend()));
            }
            fragments.expire(0);
            assert!(fragments.datagrams.len() <= MAX_DATAGRAMS);
            assert!(fragments.ends.0.len() <= 2 * MAX_DATAGRAMS && fragments.waits.0.len() <= 2 * MAX_WAITING);
        }
    }

    proptest! {
        /// In whatever order they come, all fragments of a datagram get the backend of its first.
        #[test]
        fn every_order_leads_to_one_backend(order in Just((0..12u32).collect::<Vec<_>>()).prop_shuffle()) {
            let mut fragments = Fragments::default();
            let (mut sent, mut decided) = (0, 0);
            for n in order {
                let fragment = fragment(1, n * 8, 8, n < 11);
                match fragments.arrive(&fragment, 0) {
                    Step::Decide => {
                        decided += 1;
                        sent += 1 + fragments.decided(id(1), Ok(backend())).len();
                    }
                    Step::Follow(to) => {
                        prop_assert_eq!(to, backend());
                        sent += 1;
                    }
                    Step::Wait => prop_assert_eq!(fragments.hold(id(1), waiting(60), 0), 0),
                    Step::Drop(reason) => prop_assert!(false, "{:?}", reason),
                }
            }
            prop_assert_eq!((sent, decided, fragments.waiting(), fragments.datagrams.len()), (12, 1, 0, 0));
        }
    }
}
