//! What a node reads of itself, and what it asks the segments and the backends.

use std::{fs, io::Write as _, path::Path, sync::Arc, time::Duration};

use futures::FutureExt as _;
use lb_dataplane::{Dataplane, io::merges_received};
use lb_proto::v1;
use lb_raft_store::{Consensus, table::Table};
use rustix::time::{ClockId, clock_gettime};
use tokio::{task::spawn_blocking, time::sleep};

use super::{judge::judge, readings::Readings};
use crate::{alarms::Alarms, config::Config, health::probe_presence, link, ownership::Ownership, peers::Examine};

/// Between the two looks at what counts; and for the answers to what was asked.
const WINDOW: Duration = Duration::from_millis(1200);
/// The disk is tried so often; the median counts.
const TRIALS: usize = 5;

/// Looks for what is wrong on this node. Clones are handles to the same.
#[derive(Clone)]
pub(crate) struct Doctor {
    pub(crate) config: Arc<Config>,
    pub(crate) consensus: Consensus,
    pub(crate) ownership: Ownership,
    /// Absent on a witness.
    pub(crate) dataplane: Option<Arc<Dataplane>>,
    pub(crate) alarms: Alarms,
}

impl Doctor {
    /// Looks. It takes as long as [`WINDOW`], and what is asked of the kernel.
    pub(crate) async fn examine(&self) -> Vec<v1::Finding> {
        let readings = self.read().await;
        let view = self.consensus.view();
        let mut found = judge(&readings, &view.table);
        for finding in &mut found {
            finding.node = self.config.name.to_string();
        }
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

    async fn read(&self) -> Readings {
        let view = self.consensus.view();
        let names = self.config.dataplane.as_ref().map(|dataplane| dataplane.interfaces.clone()).unwrap_or_default();
        let me = self.consensus.status().node;
        let mut readings = Readings {
            me,
            links: link::read(&names).await.unwrap_or_default(),
            alarms: self.alarms.all(),
            forwards: sysctl("net/ipv4/ip_forward") == Some(1) || sysctl("net/ipv6/conf/all/forwarding") == Some(1),
            rp_filter: ["all", "lo"]
                .into_iter()
                .filter_map(|name| Some((name, sysctl(&format!("net/ipv4/conf/{name}/rp_filter"))?)))
                .collect(),
            owners: view
                .table
                .vips()
                .filter_map(|vip| Some((vip.settings.address, (vip.owner?.node, vip.owner?.epoch))))
                .collect(),
            behind: self.consensus.measures().behind.into_iter().collect(),
            ..Readings::default()
        };
        readings.merging = names.into_iter().filter(|name| merges_received(name).unwrap_or(false)).collect();
        let (stalled, clocks) = (run_delay(), clocks());
        let data_dir = self.config.data_dir.clone();
        let disk = spawn_blocking(move || time_of_sync(&data_dir));
        match &self.dataplane {
            Some(dataplane) => self.look_at_frames(dataplane, &view.table, &mut readings).await,
            None => sleep(WINDOW).await,
        }
        readings.stalled = run_delay().saturating_sub(stalled);
        readings.clock_slew_ppm = slew_ppm(clocks, self::clocks());
        readings.disk_sync = disk.await.unwrap_or_default();
        readings
    }

    async fn look_at_frames(&self, dataplane: &Arc<Dataplane>, table: &Table, readings: &mut Readings) {
        readings.guard_problem = dataplane.guard_problem();
        dataplane.look_at_backends(|seen| readings.seen.push(seen));
        readings.reports[0] = dataplane.report();
        readings.conflicts[0] = dataplane.conflicts();
        let asked = dataplane.clone();
        let probe = spawn_blocking(move || asked.probe_vips());
        let plan = readings.me.map(|me| self.ownership.grants().borrow().plan(me, table));
        let owns = |vip| plan.as_ref().is_some_and(|plan| plan.answered.contains_key(&vip));
        readings.presence = probe_presence(dataplane, (table, &owns), &readings.seen, &readings.links, WINDOW).await;
        // Its answers are among the conflicts.
        let _ = probe.await;
        readings.reports[1] = dataplane.report();
        readings.conflicts[1] = dataplane.conflicts();
    }
}

fn sysctl(name: &str) -> Option<u8> {
    fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok()
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

fn clocks() -> [i128; 2] {
    [ClockId::Monotonic, ClockId::MonotonicRaw].map(|clock| {
        let time = clock_gettime(clock);
        i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
    })
}

fn slew_ppm(before: [i128; 2], after: [i128; 2]) -> f64 {
    let [disciplined, raw] = [0, 1].map(|clock| (after[clock] - before[clock]) as f64);
    (disciplined - raw) / raw.max(1.0) * 1e6
}

/// For a few bytes to be durable there; nothing where they cannot be written, which other findings tell.
fn time_of_sync(data_dir: &Path) -> Duration {
    let path = data_dir.join("doctor.tmp");
    let mut times: Vec<Duration> = (0..TRIALS)
        .map_while(|_| {
            let mut file = fs::File::create(&path).ok()?;
            file.write_all(b"How long does it take until this is durable?\n").ok()?;
            let begun = std::time::Instant::now();
            file.sync_all().ok()?;
            Some(begun.elapsed())
        })
        .collect();
    drop(fs::remove_file(&path));
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
