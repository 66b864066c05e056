//! Whether this node does its work. What vouches for a node is the work itself: the workers' progress, the table in force,
//! the guard in place, the tasks that follow the log. The thread that sends heartbeats is none of it: a node whose worker
//! hangs would keep its lease, and its VIPs would be dark.
//!
//! Tasks show themselves in [`Vitals`], and say in [`Fitness`] what keeps them from their work. Before: `control` and the
//! dataplane. After: [`super::heartbeat`] looks before each heartbeat, and [`super::member`] gives the VIPs away.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lb_dataplane::{Progress, boottime_ns};

/// A thread or task without which the node does not do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The heartbeat's thread.
    Heartbeat,
    /// The task that proposes what the heartbeat asks for, and tells it of the table.
    Driver,
    /// The task that publishes what this node owns.
    Grants,
    /// The task that publishes how it forwards.
    Table,
}

impl Part {
    const ALL: [Self; 4] = [Self::Heartbeat, Self::Driver, Self::Grants, Self::Table];

    /// For so long it may say nothing. A busy machine delays tasks by tenths of a second; a large table is compiled for
    /// seconds.
    fn patience(self) -> Duration {
        Duration::from_secs(match self {
            Self::Heartbeat => 2,
            Self::Driver | Self::Grants => 4,
            Self::Table => 30,
        })
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Heartbeat => "the heartbeat's thread",
            Self::Driver => "the task that follows the log",
            Self::Grants => "the task that publishes owned VIPs",
            Self::Table => "the task that publishes the table",
        })
    }
}

/// When each part last showed itself.
#[derive(Debug, Default)]
pub(crate) struct Vitals {
    /// Nanoseconds of CLOCK_BOOTTIME; 0 before the first time.
    shown_ns: [AtomicU64; Part::ALL.len()],
}

impl Vitals {
    /// A part is at work.
    pub(crate) fn show(&self, part: Part) {
        self.shown_ns[part as usize].store(boottime_ns(), Ordering::Relaxed);
    }

    /// A part that has been at work and has shown nothing of itself for too long; and for how long.
    pub(crate) fn silent(&self, now_ns: u64) -> Option<(Part, Duration)> {
        Part::ALL.into_iter().find_map(|part| {
            let shown_ns = self.shown_ns[part as usize].load(Ordering::Relaxed);
            let silent = Duration::from_nanos(now_ns.saturating_sub(shown_ns));
            (shown_ns != 0 && silent > part.patience()).then_some((part, silent))
        })
    }
}

/// What a task can know that makes the node unfit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// The kernel is not kept away from the VIPs.
    Guard,
    /// The table cannot be published.
    Table,
    /// The memory of the flow table is not there yet.
    Memory,
}

/// What keeps every node from its work in its first moments.
const STARTING: &str = "it is starting: its first table, or the memory of its flow table, is not there yet";
/// After so long it is no matter of the start any more.
const START_NS: u64 = 10_000_000_000;

/// Why a node does not do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unfit {
    of: Of,
    /// For people.
    pub(super) reason: String,
}

impl Unfit {
    /// It is so at every start, and ends by itself.
    pub(super) fn is_start(&self) -> bool {
        self.of == Of::Start
    }

    /// Whether it is the same as before, but for figures.
    pub(super) fn is_same(&self, before: &Self) -> bool {
        self.of == before.of
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Start,
    Cause(Cause),
    Worker(usize),
    Part(Part),
}

/// All that is known of whether this node does its work. Clones are handles to the same.
#[derive(Clone, Default)]
pub(crate) struct Fitness {
    inner: Arc<Known>,
}

#[derive(Default)]
struct Known {
    causes: Mutex<BTreeMap<Cause, String>>,
    vitals: Vitals,
    /// Absent on a witness.
    progress: Option<Arc<Progress>>,
    /// When it has begun.
    began_ns: u64,
}

impl Fitness {
    /// Of a node whose workers show themselves there.
    pub(crate) fn new(progress: Option<Arc<Progress>>) -> Self {
        let fitness = Self { inner: Arc::new(Known { progress, began_ns: boottime_ns(), ..Known::default() }) };
        if fitness.inner.progress.is_some() {
            // Until somebody says otherwise.
            fitness.not_yet(Cause::Memory);
            fitness.not_yet(Cause::Table);
        }
        fitness
    }

    pub(crate) fn vitals(&self) -> &Vitals {
        &self.inner.vitals
    }

    /// From now on this keeps the node from its work, or does not.
    pub(crate) fn set(&self, cause: Cause, reason: Option<String>) {
        let mut causes = self.inner.causes.lock().unwrap_or_else(PoisonError::into_inner);
        match reason {
            Some(reason) => drop(causes.insert(cause, reason)),
            None => drop(causes.remove(&cause)),
        }
    }

    /// What a start brings is not there yet.
    pub(crate) fn not_yet(&self, cause: Cause) {
        self.set(cause, Some(STARTING.to_owned()));
    }

    /// Why this node does not do its work, if it does not. `stall_ns`: for so long a worker may be late; `None` where nobody is
    /// judged by that, because whoever asks was away itself.
    pub(super) fn unfit(&self, stall_ns: Option<u64>, now_ns: u64) -> Option<Unfit> {
        if let Some((cause, reason)) = self.inner.causes.lock().unwrap_or_else(PoisonError::into_inner).iter().next() {
            let is_start = reason == STARTING && now_ns < self.inner.began_ns + START_NS;
            let of = if is_start { Of::Start } else { Of::Cause(*cause) };
            return Some(Unfit { of, reason: reason.clone() });
        }
        let stall_ns = stall_ns?;
        if let Some((worker, late_ns)) = self.late_worker(now_ns).filter(|(_, late_ns)| *late_ns > stall_ns) {
            let reason = format!("worker {worker} of the dataplane has stopped ({} ms ago)", late_ns / 1_000_000);
            return Some(Unfit { of: Of::Worker(worker), reason });
        }
        let (part, _) = self.inner.vitals.silent(now_ns)?;
        Some(Unfit { of: Of::Part(part), reason: format!("{part} has stopped") })
    }

    /// What a watchdog must not see: a part that hangs for good.
    pub(crate) fn hangs(&self, now_ns: u64) -> Option<String> {
        if let Some((worker, _)) = self.late_worker(now_ns).filter(|(_, late_ns)| *late_ns > HANGS_NS) {
            return Some(format!("worker {worker} of the dataplane"));
        }
        self.inner.vitals.silent(now_ns).map(|(part, _)| part.to_string())
    }

    fn late_worker(&self, now_ns: u64) -> Option<(usize, u64)> {
        self.inner.progress.as_ref()?.latest(now_ns)
    }
}

/// A worker that shows nothing of itself for so long will not.
const HANGS_NS: u64 = 5_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_start_brings_is_no_trouble_until_it_lasts() {
        let fitness = Fitness::new(None);
        let begun_ns = fitness.inner.began_ns;
        let at = |later_ns: u64| fitness.unfit(None, begun_ns + later_ns);
        fitness.not_yet(Cause::Memory);
        fitness.not_yet(Cause::Table);
        let first = at(0).unwrap();
        assert!(first.is_start(), "{first:?}");
        fitness.set(Cause::Memory, None);
        fitness.set(Cause::Table, None);
        fitness.not_yet(Cause::Memory);
        assert!(at(1).unwrap().is_same(&first), "one start, told once");
        let late = at(START_NS).unwrap();
        assert!(!late.is_start() && !late.is_same(&first) && late.reason == first.reason, "{late:?}");
        fitness.set(Cause::Guard, Some("no guard".into()));
        assert!(!at(0).unwrap().is_start(), "a real trouble is told at once");
        fitness.set(Cause::Guard, None);
        fitness.set(Cause::Memory, None);
        assert_eq!(at(0), None);
    }

    #[test]
    fn a_part_that_has_begun_must_go_on() {
        const SECOND: u64 = 1_000_000_000;
        let fitness = Fitness::new(None);
        let now_ns = boottime_ns();
        let unfit = |later: u64| Some(fitness.unfit(Some(SECOND), now_ns + later * SECOND)?.reason);
        assert_eq!(unfit(100), None, "nobody has begun");
        fitness.vitals().show(Part::Driver);
        assert_eq!(unfit(3), None);
        assert_eq!(unfit(5).as_deref(), Some("the task that follows the log has stopped"));
        assert_eq!(fitness.unfit(None, now_ns + 5 * SECOND), None, "whoever was away judges nobody");
        fitness.set(Cause::Table, Some("it does not compile".into()));
        fitness.set(Cause::Guard, Some("no guard".into()));
        assert_eq!(unfit(0).as_deref(), Some("no guard"));
        fitness.set(Cause::Guard, None);
        assert_eq!(unfit(0).as_deref(), Some("it does not compile"));
        fitness.set(Cause::Table, None);
        assert_eq!(unfit(0), None);
    }
}
