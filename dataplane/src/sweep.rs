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
pub(crate) struct Addressed(HashMap<VipId, IpAddr>);

impl Addressed {
    pub(crate) fn by(snapshot: &Snapshot) -> Self {
        Self(snapshot.vips.iter().map(|vip| (vip.id, vip.address)).collect())
    }

    /// The flow of an entry; `None` where its VIP is gone.
    pub(crate) fn tuple(&self, entry: &FlowEntry) -> Option<Tuple> {
        self.0.get(&entry.vip).map(|vip| entry.tuple(*vip))
    }
}

/// The thread that looks for the flows that are elsewhere than the accelerator would place them; it ends with this.
pub(crate) struct Sweeper {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
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
            while !stopped.load(Ordering::Acquire) {
                match accelerator.wants_sweep() {
                    false => thread::park(),
                    true if sweep(&accelerator, &published.table.load_full().snapshot, &workers(), &stopped) => {}
                    // The workers were stopped, or have not taken the table up.
                    true => thread::park_timeout(RETRY),
                }
            }
        };
        let thread = thread::Builder::new().name("flow-sweeper".into()).spawn(work);
        let thread = thread.map_err(|error| StartError::Resource("the thread that looks through the flows", error))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// There may be something to do.
    pub(crate) fn wake(&self) {
        self.thread.iter().for_each(|thread| thread.thread().unpark());
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the sweeper of flows panicked");
        }
    }
}

/// Looks for all flows that are elsewhere than a table would place them. Whether they were found.
fn sweep(accelerator: &Accelerator, snapshot: &Snapshot, workers: &Workers, stopped: &AtomicBool) -> bool {
    if !wait_until(TO_TAKE_UP, || workers.judge_by_table(snapshot.generation)) {
        return false;
    }
    let addressed = Addressed::by(snapshot);
    let mut sweep = accelerator.sweep(snapshot);
    let (start, mut flows) = (Instant::now(), 0);
    let mut begun = start;
    let are_seen = look_through(workers, |entries| {
        flows += entries.len();
        for entry in &entries {
            if let Some(tuple) = addressed.tuple(entry) {
                sweep.see(&tuple, entry.backend);
            }
        }
        drop(entries);
        thread::park_timeout((begun.elapsed() * REST).min(LONGEST_REST));
        begun = Instant::now();
        !stopped.load(Ordering::Acquire)
    });
    let is_whole = are_seen && !stopped.load(Ordering::Acquire);
    if is_whole {
        let elsewhere = sweep.end();
        tracing::debug!(flows, elsewhere, took = ?start.elapsed(), "new flows can be placed");
    }
    is_whole
}
