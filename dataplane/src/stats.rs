//! Counters. Each has one writer, so adding is a load and a store; readers sum at leisure.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{forward::DropReason, packet::Mac, report::Conflict};

/// Pairs of a VIP and a hardware address that are remembered.
const CONFLICTS: usize = 1024;

/// A number that one thread counts up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only its one writer may.
    pub(crate) fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// Takes over a count that is kept elsewhere; only its one writer may.
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Packets and bytes of frames, without checksums and vnet headers. A super-frame counts as one.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Frames.
    pub packets: Counter,
    /// Their bytes.
    pub bytes: Counter,
}

impl Traffic {
    pub(crate) fn count(&self, frame_len: usize) {
        self.packets.add(1);
        self.bytes.add(frame_len as u64);
    }
}

/// The traffic of one thing, by worker: each counts in a cache line of its own.
#[derive(Debug)]
pub struct TrafficByWorker {
    /// Without a detour: most dataplanes have one worker.
    first: Traffic,
    others: Box<[Apart]>,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Apart(Traffic);

impl TrafficByWorker {
    /// Nothing yet, by so many workers.
    pub(crate) fn new(workers: usize) -> Self {
        Self { first: Traffic::default(), others: (1..workers).map(|_| Apart::default()).collect() }
    }

    /// For another number of workers, and with all that was counted.
    pub(crate) fn divided_anew(&self, workers: usize) -> Self {
        let renewed = Self::new(workers);
        renewed.first.packets.set(self.packets());
        renewed.first.bytes.set(self.bytes());
        renewed
    }

    /// What a worker counts in.
    #[inline]
    pub(crate) fn of(&self, worker: usize) -> &Traffic {
        match worker.checked_sub(1) {
            None => &self.first,
            Some(other) => &self.others[other].0,
        }
    }

    fn all(&self) -> impl Iterator<Item = &Traffic> {
        std::iter::once(&self.first).chain(self.others.iter().map(|Apart(traffic)| traffic))
    }

    /// Frames.
    pub fn packets(&self) -> u64 {
        self.all().map(|traffic| traffic.packets.get()).sum()
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.all().map(|traffic| traffic.bytes.get()).sum()
    }
}

const REASONS: usize = DropReason::ALL.len();

/// What a worker did with its frames. Every frame that was received or taken over is in exactly one of forwarded,
/// answered, dropped, handed over and held.
#[derive(Debug)]
pub struct WorkerStats {
    /// Frames taken from the rings.
    pub received: Counter,
    /// Frames sent on to a backend.
    pub forwarded: Counter,
    /// Frames answered: ARP, neighbour discovery and echo.
    pub answered: Counter,
    dropped: [Counter; REASONS],
    /// Frames handed over to the workers that have their flows.
    pub handed_over: Counter,
    /// Frames that other workers handed over.
    pub taken_over: Counter,
    /// Fragments that wait for the first of their datagram, at this moment.
    pub held: Counter,
    /// Frames that the kernel dropped because the ring was full.
    pub ring_full: Counter,
    /// Frames that the worker made itself: announcements, questions for neighbours, ICMP errors, refusals.
    pub originated: Counter,
    /// Super-frames that the kernel segments because the outgoing interface does not.
    pub segmented: Counter,
    /// Flows put into the flow table.
    pub flows_remembered: Counter,
    /// Flows that found no room there.
    pub flows_not_remembered: Counter,
    /// By VIP and hardware address; bounded, because whoever floods claims must not fill the memory.
    conflicts: Mutex<BTreeMap<(IpAddr, Mac), u64>>,
    /// Announcements that were not sent because the lease had run out.
    pub announcements_withheld: Counter,
}

impl Default for WorkerStats {
    fn default() -> Self {
        Self {
            received: Counter::default(),
            forwarded: Counter::default(),
            answered: Counter::default(),
            dropped: std::array::from_fn(|_| Counter::default()),
            handed_over: Counter::default(),
            taken_over: Counter::default(),
            held: Counter::default(),
            ring_full: Counter::default(),
            originated: Counter::default(),
            segmented: Counter::default(),
            flows_remembered: Counter::default(),
            flows_not_remembered: Counter::default(),
            conflicts: Mutex::default(),
            announcements_withheld: Counter::default(),
        }
    }
}

impl WorkerStats {
    /// The counter of a reason.
    pub fn dropped(&self, reason: DropReason) -> &Counter {
        &self.dropped[reason as usize]
    }

    /// Takes over what a worker that has ended has counted.
    pub(crate) fn absorb(&self, other: &Self) {
        let counters = [
            (&self.received, &other.received),
            (&self.forwarded, &other.forwarded),
            (&self.answered, &other.answered),
            (&self.handed_over, &other.handed_over),
            (&self.taken_over, &other.taken_over),
            (&self.held, &other.held),
            (&self.ring_full, &other.ring_full),
            (&self.originated, &other.originated),
            (&self.segmented, &other.segmented),
            (&self.flows_remembered, &other.flows_remembered),
            (&self.flows_not_remembered, &other.flows_not_remembered),
            (&self.announcements_withheld, &other.announcements_withheld),
        ];
        counters.into_iter().chain(self.dropped.iter().zip(&other.dropped)).for_each(|(own, more)| own.add(more.get()));
        for Conflict { vip, mac, count } in other.conflicts() {
            self.add_conflicts(vip, mac, count);
        }
    }

    /// Somebody else claims a VIP of ours. On the rare path: it takes a lock.
    pub(crate) fn conflict(&self, vip: IpAddr, mac: Mac) {
        self.add_conflicts(vip, mac, 1);
    }

    fn add_conflicts(&self, vip: IpAddr, mac: Mac, count: u64) {
        let mut conflicts = self.conflicts.lock().unwrap_or_else(PoisonError::into_inner);
        if conflicts.len() < CONFLICTS || conflicts.contains_key(&(vip, mac)) {
            *conflicts.entry((vip, mac)).or_default() += count;
        }
    }

    /// All claims of others so far.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let conflicts = self.conflicts.lock().unwrap_or_else(PoisonError::into_inner);
        conflicts.iter().map(|((vip, mac), count)| Conflict { vip: *vip, mac: *mac, count: *count }).collect()
    }
}
