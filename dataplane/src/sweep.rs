//! Looks through the flow tables while the workers go on: for whoever lists flows, and, after a change, for the accelerator.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    accel::Accelerator,
    error::StartError,
    forward::{flow::FlowEntry, runtime::VipId, snapshot::Snapshot},
    packet::Tuple,
    query::{Query, Reply},
    worker::shared::{Published, Workers, wait_until},
};

/// Slots of a flow table that are looked through between two batches: half a megabyte, some 50 us.
const SLOTS_AT_ONCE: usize = 1 << 14;
/// A sweep for the accelerator rests for so many times as long as a piece takes, or for so long: where workers have much to do a
/// piece takes long, and what is found relieves them.
const REST: u32 = 4;
const LONGEST_REST: Duration = Duration::from_millis(10);
/// Before a sweep that has failed is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// Where so many flows were elsewhere, so that some in a hundred others have the same mark, it is looked again after a while: most
/// of a flood are soon forgotten.
const MANY: u64 = 1 << 16;
const AGAIN: Duration = Duration::from_secs(60);
/// By then workers judge by a table that was published.
const TO_TAKE_UP: Duration = Duration::from_secs(1);

/// Looks through the flow tables of all workers piece by piece. `visit` gets the live flows of a piece; it returns whether to go
/// on. Whether the workers have answered.
pub(crate) fn look_through(workers: &Workers, mut visit: impl FnMut(Vec<FlowEntry>) -> bool) -> bool {
    for worker in &workers.all {
        let mut next = 0;
        loop {
            let (reply, answer) = Reply::channel();
            worker.mailbox.ask(Query::ListFlows(next..next + SLOTS_AT_ONCE, reply));
            let Some((entries, slots)) = answer.wait() else { return false };
            next += SLOTS_AT_ONCE;
            if !visit(entries) {
                return true;
            }
            if next >= slots {
                break;
            }
        }
    }
    true
}

/// The addresses of a table's VIPs, by what flow entries call them.
pub(crate) struct VipAddresses(HashMap<VipId, IpAddr>);

impl VipAddresses {
    pub(crate) fn by(snapshot: &Snapshot) -> Self {
        Self(snapshot.vips.iter().map(|vip| (vip.id, vip.address)).collect())
    }

    /// The flow of an entry; `None` where its VIP is gone.
    pub(crate) fn tuple(&self, entry: &FlowEntry) -> Option<Tuple> {
        self.0.get(&entry.vip).map(|vip| entry.tuple(*vip))
    }
}

/// The thread that looks for the flows that are elsewhere than the accelerator would place them. It ends after this, when no worker
/// owes it an answer.
pub(crate) struct Sweeper {
    stop: Arc<AtomicBool>,
    thread: thread::Thread,
}

impl Sweeper {
    /// `workers`: those that work at the moment.
    pub(crate) fn start(
        accelerator: Arc<Accelerator>,
        published: Arc<Published>,
        workers: impl Fn() -> Arc<Workers> + Send + 'static,
    ) -> Result<Self, StartError> {
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let work = move || {
            let mut again = None;
            while !stopped.load(Ordering::Acquire) {
                let rest = again.map(|at: Instant| at.saturating_duration_since(Instant::now()));
                if rest != Some(Duration::ZERO) && !accelerator.wants_sweep() {
                    rest.map_or_else(thread::park, thread::park_timeout);
                    continue;
                }
                match sweep(&accelerator, &published.table.load_full().snapshot, &workers(), &stopped) {
                    Some(elsewhere) => again = (elsewhere > MANY).then(|| Instant::now() + AGAIN),
                    // The workers were stopped, or have not taken the table up.
                    None => thread::park_timeout(RETRY),
                }
            }
        };
        let thread = thread::Builder::new().name("flow-sweeper".into()).spawn(work);
        let thread = thread.map_err(|error| StartError::Resource("the thread that looks through the flows", error))?;
        Ok(Self { stop, thread: thread.thread().clone() })
    }

    /// There may be something to do.
    pub(crate) fn wake(&self) {
        self.thread.unpark();
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }
}

/// Looks for all flows that are elsewhere than a table would place them. How many there are; `None` where it could not look
/// at all.
fn sweep(accelerator: &Accelerator, snapshot: &Snapshot, workers: &Workers, stopped: &AtomicBool) -> Option<u64> {
    let has_stopped = || stopped.load(Ordering::Acquire);
    if !wait_until(TO_TAKE_UP, || has_stopped() || workers.judge_by_table(snapshot.generation)) {
        return None;
    }
    let addresses = VipAddresses::by(snapshot);
    let mut sweep = accelerator.sweep(snapshot);
    let (start, mut flows) = (Instant::now(), 0);
    let mut begun = start;
    let are_seen = look_through(workers, |entries| {
        flows += entries.len();
        for entry in &entries {
            if let Some(tuple) = addresses.tuple(entry) {
                sweep.see(&tuple, entry.backend);
            }
        }
        drop(entries);
        thread::park_timeout((begun.elapsed() * REST).min(LONGEST_REST));
        begun = Instant::now();
        !has_stopped()
    });
    if !are_seen || has_stopped() {
        return None;
    }
    let elsewhere = sweep.end();
    tracing::debug!(flows, elsewhere, took = ?start.elapsed(), "new flows can be placed");
    Some(elsewhere)
}
