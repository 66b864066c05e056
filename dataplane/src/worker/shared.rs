//! What a worker shows to others, apart from its thread: its counters, its mailbox, and by what it judges; and what the
//! control plane shows to all workers.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;

use super::mailbox::{Inbox, Mailbox};
use crate::{
    forward::{snapshot::Snapshot, steering::Steering},
    io::cbpf::{Instruction, filter},
    speaker::permit::{LeaseClock, Owned},
    stats::WorkerStats,
};

/// What the control plane has published to all workers.
pub(crate) struct Published {
    pub(crate) table: ArcSwap<Table>,
    pub(crate) owned: ArcSwap<Owned>,
    pub(crate) lease: Arc<LeaseClock>,
    pub(crate) stop: AtomicBool,
}

/// A forwarding table, and the socket filter that lets its VIPs by.
pub(crate) struct Table {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) filter: Vec<Instruction>,
}

impl Table {
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        let vips: Vec<_> = snapshot.vips.iter().map(|vip| vip.address).collect();
        Self { snapshot: Arc::new(snapshot), filter: filter::program(&vips) }
    }
}

impl Published {
    /// With a first table; nothing is owned.
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        Self {
            table: ArcSwap::from_pointee(Table::new(snapshot)),
            owned: ArcSwap::default(),
            lease: Arc::default(),
            stop: AtomicBool::new(false),
        }
    }
}

/// The workers of a pool, as each of them and the control plane see them.
pub(crate) struct Workers {
    pub(crate) steering: Steering,
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
        Ok((Arc::new(Self { steering, all }), inboxes))
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
