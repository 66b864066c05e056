//! The workers: each a thread with an engine, a flow table and counters of its own. What they share is the published
//! table, the lease, and their mailboxes.

use std::{
    fmt, io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

use arc_swap::ArcSwap;
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

use crate::{
    forward::{
        flow::{FlowTable, Timeouts},
        steering::Steering,
        table::Snapshot,
    },
    handle::{Config, StartError},
    io::{EngineFactory, EngineKind, Fanout, PortConfig, Share, filter},
    lease::LeaseClock,
    mailbox::{Inbox, Mailbox},
    stats::WorkerStats,
    worker::{self, Core, Speaker},
};

/// What the control plane and all workers share.
pub(crate) struct Shared {
    pub(crate) snapshot: ArcSwap<Snapshot>,
    pub(crate) lease: Arc<LeaseClock>,
    pub(crate) stop: AtomicBool,
}

impl Shared {
    /// With a first table.
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        Self { snapshot: ArcSwap::from_pointee(snapshot), lease: Arc::default(), stop: AtomicBool::new(false) }
    }
}

/// The workers, as each of them and the control plane see them.
pub(crate) struct Crew {
    pub(crate) steering: Steering,
    pub(crate) members: Vec<Arc<Member>>,
}

/// A worker, as others see it.
pub(crate) struct Member {
    pub(crate) index: usize,
    pub(crate) stats: WorkerStats,
    pub(crate) mailbox: Mailbox,
    /// The generation by which it judges every frame from now on.
    pub(crate) seen_generation: AtomicU64,
}

impl Crew {
    /// So many, none of them at work, and the ends of their mailboxes.
    pub(crate) fn new(steering: Steering) -> io::Result<(Arc<Self>, Vec<Inbox>)> {
        let mut inboxes = Vec::new();
        let members = (0..steering.workers() as usize).map(|index| {
            let (mailbox, inbox) = Mailbox::new()?;
            inboxes.push(inbox);
            let (stats, seen_generation) = (WorkerStats::default(), AtomicU64::new(0));
            Ok(Arc::new(Member { index, stats, mailbox, seen_generation }))
        });
        let members = members.collect::<io::Result<_>>()?;
        Ok((Arc::new(Self { steering, members }), inboxes))
    }

    pub(crate) fn wake(&self) {
        self.members.iter().for_each(|member| member.mailbox.wake());
    }

    /// Whether none of them judges a frame by a table that is older than this.
    pub(crate) fn has_seen(&self, generation: u64) -> bool {
        self.members.iter().all(|member| member.seen_generation.load(Ordering::Acquire) >= generation)
    }
}

/// Workers at work.
pub(crate) struct Running {
    pub(crate) crew: Arc<Crew>,
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

/// What a worker leaves behind.
type Ended = (Core, Inbox, io::Result<()>);

impl Running {
    /// Starts them one after the other. The first one decides on the engine; each gets one of the flow tables, and the
    /// first one what the speaker before it knew.
    pub(crate) fn start(
        config: &Config,
        shared: &Arc<Shared>,
        steering: Steering,
        flows: Vec<FlowTable>,
        mut speaker: Option<Speaker>,
    ) -> Result<Self, StartError> {
        let resource = |what| move |error| StartError::Resource(what, error);
        let (crew, inboxes) = Crew::new(steering).map_err(resource("making a mailbox"))?;
        let fanout = (flows.len() > 1).then(|| Fanout::new(crew.steering));
        let mut running = Self {
            crew: crew.clone(),
            engine: EngineKind::Ring,
            engine_reason: None,
            scheduling: Scheduling::Normal,
            threads: Vec::new(),
        };
        for ((own, inbox), flows) in crew.members.iter().zip(inboxes).zip(flows) {
            let core = Core::new(shared.clone(), crew.clone(), own.clone(), flows, speaker.take());
            let choices = match (own.index, config.engine) {
                (0, None) => vec![EngineKind::Ring, EngineKind::Multishot, EngineKind::Mmsg],
                (0, Some(kind)) => vec![kind],
                _ => vec![running.engine],
            };
            let (report, started) = mpsc::channel();
            let start = Start {
                ports: config.ports.clone(),
                choices,
                share: Share::new(own.index, fanout.clone()),
                realtime: config.realtime,
                wake: own.mailbox.waker().map_err(resource("copying an event descriptor"))?,
                report,
            };
            let thread = thread::Builder::new()
                .name(format!("dataplane-{}", own.index))
                .spawn(move || start.run(core, inbox))
                .map_err(resource("starting a worker's thread"));
            let outcome = thread.and_then(|thread| {
                running.threads.push(thread);
                let ended = || resource("starting a worker")(io::Error::other("it ended at once"));
                started.recv().map_err(|_| ended())?
            });
            match outcome {
                Ok(started) if own.index == 0 => {
                    (running.engine, running.engine_reason) = (started.engine, started.reason);
                    running.scheduling = started.scheduling;
                }
                Ok(_) => {}
                Err(error) => {
                    running.stop(shared);
                    return Err(error);
                }
            }
        }
        Ok(running)
    }

    /// Their engine was chosen before, for this reason.
    pub(crate) fn because(self, engine_reason: Option<String>) -> Self {
        Self { engine_reason, ..self }
    }

    /// Whether all of them are at work.
    pub(crate) fn is_well(&self) -> bool {
        !self.threads.is_empty() && !self.threads.iter().any(thread::JoinHandle::is_finished)
    }

    /// Has them end, and returns what each knows.
    pub(crate) fn stop(&mut self, shared: &Shared) -> Vec<Core> {
        shared.stop.store(true, Ordering::Release);
        self.crew.wake();
        let mut ended: Vec<(Core, Inbox)> = Vec::new();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok((core, inbox, outcome)) => {
                    if let Err(error) = outcome {
                        tracing::error!(%error, "a worker of the dataplane had stopped by itself");
                    }
                    ended.push((core, inbox));
                }
                Err(_) => tracing::error!("a worker of the dataplane panicked"),
            }
        }
        shared.stop.store(false, Ordering::Release);
        // Only now does nobody hand anything over any more.
        ended.into_iter().map(|(core, inbox)| core.give_up(&inbox)).collect()
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
    wake: OwnedFd,
    report: mpsc::Sender<Result<Started, StartError>>,
}

impl Start {
    fn run(self, mut core: Core, inbox: Inbox) -> Ended {
        let filter = filter::program(&[]);
        let start = |kind| {
            let wake = self.wake.try_clone();
            let wake = wake.map_err(|error| StartError::Resource("copying an event descriptor", error))?;
            let factory = EngineFactory { kind, share: self.share.clone(), wake };
            match factory.start(&self.ports, &filter) {
                Ok(engine) => Ok((engine, factory)),
                Err(source) => Err(StartError::Engine { kind, source }),
            }
        };
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
            Ok((engine, factory)) => {
                let scheduling = Scheduling::take_up(self.realtime);
                let _ = self.report.send(Ok(Started { engine: factory.kind, reason, scheduling }));
                let outcome = worker::run(&mut core, &inbox, engine, factory, self.ports);
                (core, inbox, outcome)
            }
            Err(error) => {
                let _ = self.report.send(Err(error));
                (core, inbox, Ok(()))
            }
        }
    }
}
