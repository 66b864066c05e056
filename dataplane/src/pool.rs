//! The worker pool: the threads, each with an engine, a flow table and counters of its own. What they show to each other is
//! in `worker::shared`.

use std::{
    fmt, io,
    sync::{Arc, atomic::Ordering, mpsc},
    thread,
    time::Duration,
};

use rustix::thread::{CpuSet, sched_setaffinity};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

use crate::{
    config::Config,
    error::StartError,
    forward::{flow::FlowTable, spec::Timeouts, steering::Steering},
    io::{
        EngineKind, PortConfig,
        cbpf::filter,
        engine::EngineFactory,
        fanout::{Fanout, Share},
        wake::Wake,
    },
    speaker::{Speaker, permit::boottime_ns},
    worker::{
        Worker,
        shared::{Published, Workers},
    },
};

/// Workers at work.
pub(crate) struct Pool {
    pub(crate) workers: Arc<Workers>,
    pub(crate) engine: EngineKind,
    /// Why it is not the best one, if it is not.
    pub(crate) engine_reason: Option<String>,
    pub(crate) scheduling: Scheduling,
    threads: Vec<thread::JoinHandle<Ended>>,
}

/// How the workers get their processor time.
///
/// Under overload a kernel that receives and a worker that forwards share a core in halves, and half of what was received
/// is thrown away ("receive livelock": Mogul and Ramakrishnan, 1997). A worker that goes first has forwarded everything
/// before more is received; it sleeps when there is nothing, so the kernel's turn comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheduling {
    /// As any other thread.
    Normal,
    /// Before all threads without real-time priority (sched(7): SCHED_FIFO, lowest priority).
    Realtime,
    /// As any other thread, though the other was asked for, and why.
    Refused(String),
}

impl Scheduling {
    /// Schedules the calling thread.
    fn take_up(realtime: bool) -> Self {
        if !realtime {
            return Self::Normal;
        }
        let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
        match set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy) {
            Ok(()) => Self::Realtime,
            Err(thread_priority::Error::OS(code)) => Self::Refused(io::Error::from_raw_os_error(code).to_string()),
            Err(error) => Self::Refused(format!("{error:?}")),
        }
    }
}

impl fmt::Display for Scheduling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Normal => f.write_str("normal"),
            Self::Realtime => f.write_str("realtime"),
            Self::Refused(why) => {
                write!(f, "normal: real-time priority is refused ({why}): CAP_SYS_NICE or LimitRTPRIO")
            }
        }
    }
}

/// For a worker to open its sockets and begin.
const START_NS: u64 = 5_000_000_000;

/// What a worker leaves behind.
type Ended = (Worker, io::Result<()>);

impl Pool {
    /// Starts them one after the other. The first one decides on the engine; each gets one of the flow tables, and the
    /// first one what the speaker before it knew.
    pub(crate) fn start(
        config: &Config,
        published: &Arc<Published>,
        steering: Steering,
        flows: Vec<FlowTable>,
        mut speaker: Option<Speaker>,
    ) -> Result<Self, StartError> {
        let resource = |what| move |error| StartError::Resource(what, error);
        let (workers, inboxes) = Workers::new(steering).map_err(resource("making a mailbox"))?;
        let fanout = (flows.len() > 1).then(|| Fanout::new(workers.steering));
        let mut pool = Self {
            workers: workers.clone(),
            engine: EngineKind::Ring,
            engine_reason: None,
            scheduling: Scheduling::Normal,
            threads: Vec::new(),
        };
        for ((own, inbox), flows) in workers.all.iter().zip(inboxes).zip(flows) {
            published.progress.expect(own.index, boottime_ns() + START_NS);
            let end = (own.clone(), inbox);
            let worker = Worker::new(published.clone(), &workers, end, flows, speaker.take());
            let choices = match (own.index, config.engine) {
                (0, None) => EngineKind::ALL.to_vec(),
                (0, Some(kind)) => vec![kind],
                _ => vec![pool.engine],
            };
            let (report, started) = mpsc::channel();
            let start = Start {
                ports: config.ports.clone(),
                choices,
                share: Share::new(own.index, fanout.clone()),
                realtime: config.realtime,
                busy_poll: config.busy_poll,
                cpu: config.cpus.get(own.index % config.cpus.len().max(1)).copied(),
                wake: own.mailbox.waker().and_then(Wake::new).map_err(resource("making an event descriptor"))?,
                report,
            };
            let thread = thread::Builder::new()
                .name(format!("dataplane-{}", own.index))
                .spawn(move || start.run(worker))
                .map_err(resource("starting a worker's thread"));
            let outcome = thread.and_then(|thread| {
                pool.threads.push(thread);
                let ended = || resource("starting a worker")(io::Error::other("it ended at once"));
                started.recv().map_err(|_| ended())?
            });
            match outcome {
                Ok(started) if own.index == 0 => {
                    (pool.engine, pool.engine_reason) = (started.engine, started.reason);
                    pool.scheduling = started.scheduling;
                }
                Ok(_) => {}
                Err(error) => {
                    pool.stop(published);
                    return Err(error);
                }
            }
        }
        Ok(pool)
    }

    /// Their engine was chosen before, for this reason.
    pub(crate) fn because(self, engine_reason: Option<String>) -> Self {
        Self { engine_reason, ..self }
    }

    /// Whether all of them are at work.
    pub(crate) fn is_well(&self) -> bool {
        !self.threads.is_empty() && !self.threads.iter().any(thread::JoinHandle::is_finished)
    }

    /// Has them end, and returns what each knows: the speaker, as far as it goes on, and the flow tables.
    pub(crate) fn stop(&mut self, published: &Published) -> (Option<Speaker>, Vec<FlowTable>) {
        published.stop.store(true, Ordering::Release);
        self.workers.wake();
        let mut ended: Vec<Worker> = Vec::new();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok((worker, outcome)) => {
                    if let Err(error) = outcome {
                        tracing::error!(%error, "a worker of the dataplane had stopped by itself");
                    }
                    ended.push(worker);
                }
                Err(_) => tracing::error!("a worker of the dataplane panicked"),
            }
        }
        published.progress.dismiss();
        published.stop.store(false, Ordering::Release);
        // Only now does nobody hand anything off any more.
        let (speakers, flows): (Vec<_>, Vec<_>) = ended.into_iter().map(Worker::retire).unzip();
        (speakers.into_iter().flatten().next(), flows)
    }
}

/// So many flow tables, which together hold `capacity` flows or a few more.
pub(crate) fn flow_tables(capacity: usize, workers: usize, timeouts: Timeouts) -> Result<Vec<FlowTable>, StartError> {
    let table = || FlowTable::new(capacity.div_ceil(workers), timeouts);
    let tables = (0..workers).map(|_| table()).collect::<io::Result<_>>();
    tables.map_err(|error| StartError::Resource("the flow table", error))
}

/// A worker is at work.
struct Started {
    engine: EngineKind,
    /// Why it is not the best one, if it is not.
    reason: Option<String>,
    scheduling: Scheduling,
}

/// What a worker's thread starts with. The engine is made on the thread that uses it.
struct Start {
    ports: Vec<PortConfig>,
    /// In the order of preference.
    choices: Vec<EngineKind>,
    share: Share,
    realtime: bool,
    busy_poll: Duration,
    cpu: Option<usize>,
    wake: Wake,
    report: mpsc::Sender<Result<Started, StartError>>,
}

impl Start {
    fn run(self, mut worker: Worker) -> Ended {
        let filter = filter::program(&[], &[]);
        let start = |kind| {
            let wake = self.wake.try_clone();
            let wake = wake.map_err(|error| StartError::Resource("copying an event descriptor", error))?;
            let factory = EngineFactory { kind, share: self.share.clone(), wake };
            let opened = factory.start(&self.ports, &filter);
            match opened.and_then(|engine| Ok((engine, factory.open_control(&self.ports)?))) {
                Ok(sockets) => Ok((sockets, factory)),
                Err(source) => Err(StartError::Engine { kind, source }),
            }
        };
        if let Some(Err(error)) = self.cpu.map(stay_on) {
            let _ = self.report.send(Err(error));
            return (worker, Ok(()));
        }
        let mut reason = None;
        let mut started = start(self.choices[0]);
        for next in &self.choices[1..] {
            // Without the right to a socket, or without the interface, no other engine runs either.
            let Err(error) = &started else { break };
            if error.is_permission() || error.is_absent() {
                break;
            }
            reason.get_or_insert_with(|| error.to_string());
            started = start(*next);
        }
        // Nobody waits any more if the caller is gone; then `stop` is set too.
        match started {
            Ok((sockets, factory)) => {
                let scheduling = Scheduling::take_up(self.realtime);
                let _ = self.report.send(Ok(Started { engine: factory.kind, reason, scheduling }));
                let outcome = worker.run(sockets, factory, self.ports, self.busy_poll);
                (worker, outcome)
            }
            Err(error) => {
                let _ = self.report.send(Err(error));
                (worker, Ok(()))
            }
        }
    }
}

/// The calling thread runs on one processor from now on.
fn stay_on(cpu: usize) -> Result<(), StartError> {
    let only = match cpu < CpuSet::MAX_CPU {
        true => {
            let mut only = CpuSet::new();
            only.set(cpu);
            sched_setaffinity(None, &only).map_err(io::Error::from)
        }
        false => Err(io::ErrorKind::InvalidInput.into()),
    };
    only.map_err(|error| StartError::Processor(cpu, error))
}
