//! Counters. Each has one writer, so adding is a load and a store; readers sum at leisure.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    ops::AddAssign,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{packet::Mac, verdict::DropReason};

/// Pairs of a VIP and a MAC address that are remembered.
const CONFLICTS: usize = 1024;

/// A number that one thread counts up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only its one writer may.
    pub(crate) fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// Something that was counted did not come about; only its one writer may.
    pub(crate) fn take_back(&self) {
        self.add(u64::MAX);
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

/// Packets and bytes of frames, without checksums and vnet headers, and the flows that they began. A GSO frame counts as one.
#[derive(Debug, Default)]
pub struct Traffic {
    /// How many frames.
    pub packets: Counter,
    /// Their bytes.
    pub bytes: Counter,
    /// Flows for which a backend was chosen.
    pub new_flows: Counter,
}

impl Traffic {
    pub(crate) fn count(&self, frame_len: usize) {
        self.packets.add(1);
        self.bytes.add(frame_len as u64);
    }

    /// Packets, bytes and new flows that others have sent.
    pub(crate) fn count_all(&self, [packets, bytes, new_flows]: [u64; 3]) {
        self.packets.add(packets);
        self.bytes.add(bytes);
        self.new_flows.add(new_flows);
    }

    /// A frame that was counted was not sent.
    pub(crate) fn take_back(&self, frame_len: u32) {
        self.packets.take_back();
        self.bytes.add(u64::from(frame_len).wrapping_neg());
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
        renewed.first.new_flows.set(self.new_flows());
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

    /// How many frames, over all workers.
    pub fn packets(&self) -> u64 {
        self.all().map(|traffic| traffic.packets.get()).sum()
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.all().map(|traffic| traffic.bytes.get()).sum()
    }

    /// The flows that they began.
    pub fn new_flows(&self) -> u64 {
        self.all().map(|traffic| traffic.new_flows.get()).sum()
    }
}

const REASONS: usize = DropReason::ALL.len();

/// Declares the counters that a worker keeps frame by frame or event by event: the field, its sum over all workers, its
/// name in metrics and its help text come from the one line.
macro_rules! counters {
    ($($(#[doc = $help:literal])+ $name:ident,)+) => {
        /// What a worker did with its frames. Every frame that was received or taken over is in exactly one of
        /// forwarded, answered, dropped, handed off and held.
        #[derive(Debug)]
        pub struct WorkerStats {
            $($(#[doc = $help])+ pub $name: Counter,)+
            dropped: [Counter; REASONS],
            /// By VIP and MAC address; bounded, because whoever floods claims must not fill the memory.
            conflicts: Mutex<BTreeMap<(IpAddr, Mac), Claims>>,
        }

        impl Default for WorkerStats {
            fn default() -> Self {
                Self {
                    $($name: Counter::default(),)+
                    dropped: std::array::from_fn(|_| Counter::default()),
                    conflicts: Mutex::default(),
                }
            }
        }

        /// The counters of several workers, added up.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct Totals {
            $($(#[doc = $help])+ pub $name: u64,)+
        }

        impl Totals {
            /// The name of each counter, its help text, and its value.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), concat!($($help),+).trim_ascii_start(), self.$name),)+].into_iter()
            }

            /// Adds what a worker has counted.
            pub(crate) fn add(&mut self, stats: &WorkerStats) {
                $(self.$name += stats.$name.get();)+
            }
        }

        impl WorkerStats {
            /// The counters that add up over workers, each with its counterpart of another worker.
            fn counters<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (&'a Counter, &'a Counter)> {
                [$((&self.$name, &other.$name),)+].into_iter().chain(self.dropped.iter().zip(&other.dropped))
            }
        }
    };
}

/// Those of the counters that tell how many there are, and not how many there were.
pub const LEVELS: &[&str] = &["held", "ring_waiting", "ring_slots"];

counters! {
    /// Frames taken from the rings.
    received,
    /// Frames sent on to a backend.
    forwarded,
    /// Frames answered: ARP, neighbour discovery and echo.
    answered,
    /// Frames handed off to the workers that own their flows.
    handed_off,
    /// Frames that other workers handed off.
    taken_over,
    /// Fragments that wait for the first of their datagram, at this moment.
    held,
    /// Frames that the kernel dropped because the ring was full.
    ring_full,
    /// Frames that wait in the rings, as looked at ten times a second.
    ring_waiting,
    /// Frames for which the rings have room.
    ring_slots,
    /// ARP and neighbour discovery that the kernel dropped because their sockets were full.
    control_lost,
    /// Frames that the workers made themselves: announcements, questions for neighbours, ICMP errors, refusals.
    originated,
    /// GSO frames that the kernel segments because the outgoing interface does not.
    segmented,
    /// IPv4 packets sent on in fragments because they may be and do not fit.
    fragmented,
    /// Backends that have another MAC address than before.
    backend_mac_changed,
    /// Claims to a backend's address that were not believed.
    backend_mac_refused,
    /// Times that a backend stopped answering ARP or neighbour discovery.
    backend_silent,
    /// Flows put into the flow table.
    flows_remembered,
    /// Flows that gave way to a new one for want of room.
    flows_displaced,
    /// Flows that found no room there.
    flows_not_remembered,
    /// Times that another program had changed or removed the guard, and it was put back.
    guard_restored,
    /// Announcements that were not sent because the lease had run out.
    announcements_withheld,
}

/// Somebody else's claim to a VIP that this node owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    /// The VIP.
    pub vip: IpAddr,
    /// The MAC address that claims it.
    pub mac: Mac,
    /// ARP packets and neighbour advertisements that did.
    pub count: u64,
    /// Those of them that asked for somebody else, with the VIP as their own address.
    pub questions: u64,
}

/// Claims of one station to one VIP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) count: u64,
    pub(crate) questions: u64,
}

impl AddAssign for Claims {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.questions += other.questions;
    }
}

impl Conflict {
    pub(crate) fn new((vip, mac): (IpAddr, Mac), Claims { count, questions }: Claims) -> Self {
        Self { vip, mac, count, questions }
    }
}

impl WorkerStats {
    /// The counter of a reason.
    pub fn dropped(&self, reason: DropReason) -> &Counter {
        &self.dropped[reason as usize]
    }

    /// Takes over what a worker that has ended has counted.
    pub(crate) fn absorb(&self, other: &Self) {
        // Of what waits in its rings nothing does any more.
        other.ring_waiting.set(0);
        other.ring_slots.set(0);
        self.counters(other).for_each(|(own, more)| own.add(more.get()));
        for Conflict { vip, mac, count, questions } in other.conflicts() {
            self.add_conflicts(vip, mac, Claims { count, questions });
        }
    }

    /// Somebody else claims a VIP of ours. On the rare path: it takes a lock.
    pub(crate) fn conflict(&self, vip: IpAddr, mac: Mac, is_question: bool) {
        self.add_conflicts(vip, mac, Claims { count: 1, questions: is_question.into() });
    }

    fn add_conflicts(&self, vip: IpAddr, mac: Mac, claims: Claims) {
        let mut conflicts = self.conflicts.lock().unwrap_or_else(PoisonError::into_inner);
        if conflicts.len() < CONFLICTS || conflicts.contains_key(&(vip, mac)) {
            *conflicts.entry((vip, mac)).or_default() += claims;
        }
    }

    /// All claims of others so far.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let conflicts = self.conflicts.lock().unwrap_or_else(PoisonError::into_inner);
        conflicts.iter().map(|(of, claims)| Conflict::new(*of, *claims)).collect()
    }
}
