//! What a node reads of itself, and what it asks the segments and the backends.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::FutureExt as _;
use lb_dataplane::{AcceleratorReport, Dataplane, io::merges_received};
use lb_proto::v1;
use lb_raft_store::{Consensus, View};
use rustix::{
    net::AddressFamily,
    time::{ClockId, clock_gettime},
};
use tokio::{
    sync::Mutex,
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};

use super::{judge::judge, netconf, readings::Readings};
use crate::{alarms::Alarms, config::Config, health::probe_presence, link, ownership::Ownership, peers::Examine};

/// Between the two looks at what counts; and for the answers to what was asked.
const WINDOW: Duration = Duration::from_millis(1200);
/// What was found stays so for as long: whoever asks meanwhile is told the same.
const FRESH: Duration = Duration::from_millis(500);
/// The disk is tried so often, and the median counts; a slow one once.
const TRIALS: usize = 5;
const SLOW_TRIAL: Duration = Duration::from_millis(100);
/// A disk that takes longer takes at least as long.
const DISK_PATIENCE: Duration = Duration::from_secs(1);

/// Looks for what is wrong on this node. Clones are handles to the same.
#[derive(Clone)]
pub(crate) struct Doctor {
    pub(crate) config: Arc<Config>,
    pub(crate) consensus: Consensus,
    pub(crate) ownership: Ownership,
    /// Absent on a witness.
    pub(crate) dataplane: Option<Arc<Dataplane>>,
    pub(crate) alarms: Alarms,
    pub(crate) last: Last,
}

/// What was found last. One examination goes on at a time.
#[derive(Clone, Default)]
pub(crate) struct Last(Arc<Mutex<Option<Found>>>);

/// When it was found, and what.
type Found = (Instant, Vec<v1::Finding>);

impl Doctor {
    /// Looks. It takes as long as [`WINDOW`], and what is asked of the kernel; where somebody has just looked, nothing.
    pub(crate) async fn examine(&self) -> Vec<v1::Finding> {
        let mut last = self.last.0.lock().await;
        if let Some((_, found)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return found.clone();
        }
        let view = self.consensus.view();
        let readings = self.read(&view).await;
        let name = self.config.name.to_string();
        let judged = spawn_blocking(move || {
            let named = |finding| v1::Finding { node: name.clone(), ..finding };
            judge(&readings, &view.table).into_iter().map(named).collect::<Vec<_>>()
        });
        let found = judged.await.unwrap_or_default();
        *last = Some((Instant::now(), found.clone()));
        found
    }

    /// What other nodes are told.
    pub(crate) fn for_others(&self) -> Examine {
        let doctor = self.clone();
        Arc::new(move || {
            let doctor = doctor.clone();
            async move {
                v1::Diagnosis { found: doctor.examine().await, version: env!("CARGO_PKG_VERSION").to_owned() }
            }
            .boxed()
        })
    }

    async fn read(&self, view: &Arc<View>) -> Readings {
        let names = self.config.dataplane.as_ref().map(|dataplane| dataplane.interfaces.clone()).unwrap_or_default();
        let links = link::read(&names).await.unwrap_or_default();
        let mut readings = of_machine(names).await;
        readings.links = links;
        readings.me = self.consensus.status().node;
        readings.alarms = self.alarms.all();
        readings.behind = self.consensus.measures().behind.into_iter().collect();
        readings.owners = view
            .table
            .vips()
            .filter_map(|vip| Some((vip.settings.address, (vip.owner?.node, vip.owner?.epoch))))
            .collect();
        let disk = tokio::spawn(time_of_sync(self.config.data_dir.clone()));
        let (stalled, clocks) = spawn_blocking(|| (run_delay(), clocks())).await.unwrap_or_default();
        match &self.dataplane {
            Some(dataplane) => self.look_at_frames(dataplane, view, &mut readings).await,
            None => sleep(WINDOW).await,
        }
        let (stalled_after, clocks_after) = spawn_blocking(|| (run_delay(), self::clocks())).await.unwrap_or_default();
        readings.stalled = stalled_after.saturating_sub(stalled);
        readings.clock_slew_ppm = slew_ppm(clocks, clocks_after);
        readings.disk_sync = disk.await.unwrap_or_default();
        readings
    }

    async fn look_at_frames(&self, dataplane: &Arc<Dataplane>, view: &View, readings: &mut Readings) {
        let table = &view.table;
        readings.guard_problem = dataplane.guard_problem();
        let asked = dataplane.clone();
        let first = spawn_blocking(move || {
            let mut seen = Vec::new();
            asked.look_at_backends(|backend| seen.push((backend.id, backend)));
            let (report, conflicts) = (asked.report(), asked.conflicts());
            // Whoever answers is among the conflicts afterwards.
            let _ = asked.probe_vips();
            (seen, report, conflicts)
        });
        let Ok((seen, report, conflicts)) = first.await else { return };
        readings.seen = seen.into_iter().collect();
        readings.not_accelerated = not_accelerated(dataplane.accelerator());
        (readings.reports[0], readings.conflicts[0]) = (report, conflicts);
        let plan = readings.me.map(|me| self.ownership.grants().borrow().plan(me, table));
        let owns = |vip| plan.as_ref().is_some_and(|plan| plan.answered.contains_key(&vip));
        readings.presence = probe_presence(dataplane, (table, &owns), &readings.seen, &readings.links, WINDOW).await;
        let asked = dataplane.clone();
        let second = spawn_blocking(move || (asked.report(), asked.conflicts())).await;
        (readings.reports[1], readings.conflicts[1]) = second.unwrap_or_default();
    }
}

/// Interfaces whose frames should be accelerated and are not, and why.
fn not_accelerated(of: Option<Result<AcceleratorReport, String>>) -> Vec<(String, String)> {
    match of {
        None => Vec::new(),
        Some(Err(problem)) => vec![("all".to_owned(), problem)],
        Some(Ok(report)) => {
            let without = report.interfaces.into_iter().filter(|of| of.mode.is_none());
            without.map(|of| (of.interface, of.reason.unwrap_or_default())).collect()
        }
    }
}

/// What there is to read without waiting for frames. The kernel may take its time for an interface's traits.
async fn of_machine(interfaces: Vec<String>) -> Readings {
    let read = spawn_blocking(move || {
        let of = |family, interface| netconf::read(family, interface).unwrap_or_default();
        let all = of(AddressFamily::INET, netconf::ALL);
        let forwards = [all.forwards, of(AddressFamily::INET6, netconf::ALL).forwards];
        let filters = [("all", all), ("lo", of(AddressFamily::INET, netconf::LO))];
        Readings {
            merging: interfaces.into_iter().filter(|name| merges_received(name).unwrap_or(false)).collect(),
            forwards: forwards.iter().any(Option::is_some).then(|| forwards.contains(&Some(true))),
            rp_filter: filters.into_iter().filter_map(|(name, of)| Some((name, of.rp_filter?))).collect(),
            ..Readings::default()
        }
    });
    read.await.unwrap_or_default()
}

/// How long this process' thread of the heartbeats has waited for a core since its start (proc_pid_schedstat, the second field).
fn run_delay() -> Duration {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let waited = tasks.filter_map(|task| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        let text = fs::read_to_string(task.path().join("schedstat")).ok().filter(|_| name.starts_with("heartbeat"))?;
        text.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    Duration::from_nanos(waited.sum())
}

/// CLOCK_MONOTONIC, and CLOCK_MONOTONIC_RAW at the same moment: of some attempts the one with the least between.
fn clocks() -> [i128; 2] {
    let now = |clock| {
        let time = clock_gettime(clock);
        i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
    };
    let attempt = || {
        let (before, raw, after) = (now(ClockId::Monotonic), now(ClockId::MonotonicRaw), now(ClockId::Monotonic));
        (after - before, [before.midpoint(after), raw])
    };
    (0..5).map(|_| attempt()).min_by_key(|(between, _)| *between).map(|(_, clocks)| clocks).unwrap_or_default()
}

fn slew_ppm(before: [i128; 2], after: [i128; 2]) -> f64 {
    let [disciplined, raw] = [0, 1].map(|clock| (after[clock] - before[clock]) as f64);
    (disciplined - raw) / raw.max(1.0) * 1e6
}

/// For a few bytes to be durable there; nothing where they cannot be written, which other findings tell.
async fn time_of_sync(data_dir: PathBuf) -> Duration {
    let tried = timeout(DISK_PATIENCE, spawn_blocking(move || try_disk(&data_dir.join("doctor.tmp")))).await;
    tried.map_or(DISK_PATIENCE, Result::unwrap_or_default)
}

fn try_disk(path: &Path) -> Duration {
    let mut times = Vec::new();
    while times.len() < TRIALS && times.last().is_none_or(|last| *last < SLOW_TRIAL) {
        let written = fs::File::create(path).and_then(|mut file| {
            file.write_all(b"How long does it take until this is durable?\n")?;
            let begun = std::time::Instant::now();
            file.sync_all()?;
            Ok(begun.elapsed())
        });
        let Ok(time) = written else { break };
        times.push(time);
    }
    drop(fs::remove_file(path));
    if let Some(slow) = times.iter().copied().find(|time| *time >= SLOW_TRIAL) {
        return slow;
    }
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
