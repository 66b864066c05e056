//! What the program counts, and what is read of it: how much it forwards for whom, and how many processors it works on.

use std::{
    array, mem,
    sync::{Mutex, PoisonError, atomic::Ordering},
};

use super::layout::{PASSED, PROCESSOR_WORDS, SLOTS, TRAFFIC_WORDS};
use crate::{
    forward::snapshot::{Backend, Snapshot},
    io::sys::bpf::Words,
};

/// Whoever sees more frames than so many between two looks is at work.
const FRAMES_AT_WORK: u64 = 100;

#[derive(Debug)]
pub(super) struct Counters {
    traffic: Words,
    processors: Words,
    read: Mutex<Read>,
}

/// What was read before.
#[derive(Debug, Default)]
struct Read {
    forwarded: u64,
    by_slot: Vec<[u64; TRAFFIC_WORDS]>,
    by_processor: Vec<u64>,
}

/// What is new since the last look.
pub(super) struct Harvest {
    /// Frames that were forwarded.
    pub(super) forwarded: u64,
    /// Processors that have seen more than a few frames.
    pub(super) at_work: u64,
}

impl Counters {
    pub(super) fn new(traffic: Words, processors: Words) -> Self {
        Self { traffic, processors, read: Mutex::default() }
    }

    /// Shows what was forwarded since the last time: for each backend how many packets, bytes and new flows.
    pub(super) fn harvest(&self, snapshot: &Snapshot, mut each: impl FnMut(&Backend, [u64; TRAFFIC_WORDS])) -> Harvest {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let read = &mut *read;
        let seen = self.processors.chunks(PROCESSOR_WORDS).map(|of_one| {
            let counts = &of_one[..=PASSED.len()];
            counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
        });
        let before = mem::replace(&mut read.by_processor, seen.collect());
        let at_work = at_work(&before, &read.by_processor);
        let total = self.count(0);
        let forwarded = total - mem::replace(&mut read.forwarded, total);
        if forwarded == 0 {
            return Harvest { forwarded, at_work };
        }
        read.by_slot.resize(SLOTS, [0; TRAFFIC_WORDS]);
        for backend in snapshot.backends() {
            let slot = backend.reference.slot();
            let Some(before) = read.by_slot.get_mut(slot) else { continue };
            let now: [u64; TRAFFIC_WORDS] = array::from_fn(|which| {
                let all = self.traffic.iter().skip(slot * TRAFFIC_WORDS + which).step_by(SLOTS * TRAFFIC_WORDS);
                all.map(|word| word.load(Ordering::Relaxed)).sum()
            });
            let since: [u64; TRAFFIC_WORDS] = array::from_fn(|which| now[which] - before[which]);
            if since[0] > 0 {
                each(backend, since);
            }
            *before = now;
        }
        Harvest { forwarded, at_work }
    }

    /// One of the counters of processors, over all of them.
    pub(super) fn count(&self, which: usize) -> u64 {
        self.processors.iter().skip(which).step_by(PROCESSOR_WORDS).map(|word| word.load(Ordering::Relaxed)).sum()
    }
}

/// How many processors are, by how many frames each of them has seen.
fn at_work(before: &[u64], now: &[u64]) -> u64 {
    before.iter().zip(now).filter(|(before, now)| *now - *before > FRAMES_AT_WORK).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_at_work_that_see_more_than_a_few_frames() {
        assert_eq!(at_work(&[], &[5000, 5000]), 0, "the first look");
        assert_eq!(at_work(&[5000, 0, 7, 9], &[5000, 100, 108, 99_999]), 2);
    }
}
