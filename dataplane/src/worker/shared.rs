//! What a worker shows to others, apart from its thread: its counters, its mailbox, and by what it judges; and what the
//! control plane shows to all workers.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use super::{
    mailbox::{Inbox, Mailbox},
    tap::TapList,
};
use crate::{
    accel::Accelerator,
    forward::{
        snapshot::Snapshot,
        steering::{MAX_WORKERS, Steering},
    },
    io::cbpf::{Instruction, filter},
    speaker::{
        permit::{LeaseClock, Owned},
        routers::Routers,
    },
    stats::WorkerStats,
};

/// What the control plane has published to all workers.
pub(crate) struct Published {
    pub(crate) table: ArcSwap<Table>,
    pub(crate) owned: ArcSwap<Owned>,
    pub(crate) taps: Arc<TapList>,
    pub(crate) lease: Arc<LeaseClock>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) accelerator: Option<Arc<Accelerator>>,
    pub(crate) stop: AtomicBool,
}

/// By when each worker is to show itself again: a worker that is late does not judge frames, whatever the rest of the
/// process does.
#[derive(Debug)]
pub struct Progress {
    /// Nanoseconds of CLOCK_BOOTTIME; [`NOBODY`] where there is no such worker.
    due_ns: [AtomicU64; MAX_WORKERS],
}

const NOBODY: u64 = u64::MAX;

impl Default for Progress {
    fn default() -> Self {
        Self { due_ns: std::array::from_fn(|_| AtomicU64::new(NOBODY)) }
    }
}

impl Progress {
    /// A worker shows itself, and will do so again by then.
    pub(crate) fn expect(&self, worker: usize, by_ns: u64) {
        if let Some(due_ns) = self.due_ns.get(worker) {
            due_ns.store(by_ns, Ordering::Release);
        }
    }

    /// Nobody is expected to show itself any more.
    pub(crate) fn dismiss(&self) {
        self.due_ns.iter().for_each(|due_ns| due_ns.store(NOBODY, Ordering::Release));
    }

    /// The worker that is latest, if one is late, and by how many nanoseconds.
    pub fn latest(&self, now_ns: u64) -> Option<(usize, u64)> {
        let late = |(worker, due_ns): (usize, &AtomicU64)| {
            let by_ns = now_ns.checked_sub(due_ns.load(Ordering::Acquire)).filter(|by_ns| *by_ns > 0)?;
            Some((worker, by_ns))
        };
        self.due_ns.iter().enumerate().filter_map(late).max_by_key(|(_, by_ns)| *by_ns)
    }
}

/// A forwarding table, and the socket filter that lets its VIPs by.
pub(crate) struct Table {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) filter: Vec<Instruction>,
}

impl Table {
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        let vips: Vec<_> = snapshot.vips.iter().map(|vip| vip.address).collect();
        let own: Vec<_> = snapshot.ports.iter().flat_map(|port| &port.addresses).map(|(own, _)| *own).collect();
        Self { snapshot: Arc::new(snapshot), filter: filter::program(&vips, &own) }
    }
}

impl Published {
    /// With a first table; nothing is owned.
    pub(crate) fn new(snapshot: Snapshot, accelerator: Option<Arc<Accelerator>>) -> Self {
        Self {
            accelerator,
            table: ArcSwap::from_pointee(Table::new(snapshot)),
            owned: ArcSwap::default(),
            taps: Arc::default(),
            lease: Arc::default(),
            progress: Arc::default(),
            stop: AtomicBool::new(false),
        }
    }

    /// A table for workers that do not work yet.
    pub(crate) fn put_in_force(&self, snapshot: Snapshot) {
        let table = Arc::new(Table::new(snapshot));
        self.accelerate_by(&table);
        self.table.store(table);
    }

    /// The accelerator, if there is one, does nothing any more that is not so in a table.
    pub(crate) fn withdraw_accelerator(&self, snapshot: &Snapshot) {
        self.accelerator.iter().for_each(|accelerator| accelerator.withdraw(snapshot));
    }

    /// The accelerator, if there is one, works by a table.
    pub(crate) fn accelerate_by(&self, table: &Table) {
        self.accelerator.iter().for_each(|accelerator| accelerator.follow(&table.snapshot));
    }

    /// The accelerator, if there is one, takes the place of that of the process before when it can.
    pub(crate) fn take_over_accelerator(&self) {
        let take_over = |of: &Arc<Accelerator>| of.take_over(&self.table.load().snapshot);
        self.accelerator.iter().for_each(take_over);
    }
}

/// The workers of a pool, as each of them and the control plane see them.
pub(crate) struct Workers {
    pub(crate) steering: Steering,
    pub(crate) routers: Arc<Routers>,
    pub(crate) all: Vec<Arc<WorkerHandle>>,
}

/// A worker, as others see it.
pub(crate) struct WorkerHandle {
    pub(crate) index: usize,
    pub(crate) stats: Arc<WorkerStats>,
    pub(crate) mailbox: Mailbox,
    /// The publications by which it judges every frame from now on.
    pub(crate) seen: Seen,
}

/// The generations of what a worker works by.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    table: AtomicU64,
    owned: AtomicU64,
}

impl Seen {
    pub(super) fn set(&self, table: u64, owned: u64) {
        self.table.store(table, Ordering::Release);
        self.owned.store(owned, Ordering::Release);
    }
}

impl Workers {
    /// So many, none of them at work, and the ends of their mailboxes.
    pub(crate) fn new(steering: Steering) -> io::Result<(Arc<Self>, Vec<Inbox>)> {
        let mut inboxes = Vec::new();
        let all = (0..steering.workers() as usize).map(|index| {
            let (mailbox, inbox) = Mailbox::new()?;
            inboxes.push(inbox);
            Ok(Arc::new(WorkerHandle { index, stats: Arc::default(), mailbox, seen: Seen::default() }))
        });
        let all = all.collect::<io::Result<_>>()?;
        Ok((Arc::new(Self { steering, routers: Arc::default(), all }), inboxes))
    }

    pub(crate) fn wake(&self) {
        self.all.iter().for_each(|worker| worker.mailbox.wake());
    }

    /// Whether none of them judges a frame by a table that is older than this.
    pub(crate) fn judge_by_table(&self, generation: u64) -> bool {
        self.all.iter().all(|worker| worker.seen.table.load(Ordering::Acquire) >= generation)
    }

    /// Whether none of them speaks by grants that are older than these.
    pub(crate) fn speak_by_grants(&self, generation: u64) -> bool {
        self.all.iter().all(|worker| worker.seen.owned.load(Ordering::Acquire) >= generation)
    }
}

/// Waits until that holds of the workers. Whether it came about in time.
pub(crate) fn wait_until(timeout: Duration, holds: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    while !holds() {
        if Instant::now() >= deadline {
            return false;
        }
        // A batch takes microseconds.
        thread::sleep(Duration::from_micros(100));
    }
    true
}
