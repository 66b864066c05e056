//! The dataplane from outside: start it, publish tables, extend the lease, read the counters, stop it.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    crew::{Crew, Running, Scheduling, Shared, flow_tables},
    errand::{Errand, Explanation, Question, Reply},
    forward::{
        flow::{FlowEntry, FlowTable, Tick, Timeouts},
        steering::{MAX_WORKERS, SPEAKER, Steering},
        table::{Compiler, PortSpec, Snapshot, TableSpec, VipId},
    },
    groups::Groups,
    guard::{self, GuardError},
    io::{EngineError, EngineKind, PortConfig},
    lease::{LeaseClock, boottime_ns},
    packet::{self, Fragment, Mac, Packet},
    report::{self, Conflict, Report},
    stats::WorkerStats,
    worker::{Core, Speaker},
};

/// What a dataplane is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The interfaces; a [`TableSpec`]'s ports are these, in this order.
    pub ports: Vec<PortConfig>,
    /// The engine; `None` for the best that runs.
    pub engine: Option<EngineKind>,
    /// Threads that share the frames, up to [`MAX_WORKERS`].
    pub workers: usize,
    /// Whether they go before all others on their cores, the kernel's receiving threads included ([`Scheduling`]).
    pub realtime: bool,
    /// Slots for flows, of 32 bytes. Up to half of them all flows find one.
    pub flow_capacity: usize,
}

impl Config {
    /// Slots for four million flows, twice as many, so that hardly one finds its group of slots full: 256 MiB if all of
    /// them are there.
    pub const DEFAULT_FLOW_CAPACITY: usize = 1 << 23;
}

/// Why a dataplane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No engine runs.
    #[error("engine {kind}: {source}")]
    Engine {
        /// The one that was tried last.
        kind: EngineKind,
        /// Why it does not run.
        source: EngineError,
    },
    /// The guard cannot be put in place.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// A thread, an event descriptor or the flow table.
    #[error("{0}: {1}")]
    Resource(&'static str, io::Error),
    /// None, or more than are supported.
    #[error("{0} workers: must be from 1 to {MAX_WORKERS}")]
    Workers(usize),
}

impl StartError {
    /// Whether a right is missing.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Engine { source: EngineError::Socket(error), .. } => error.is_permission(),
            Self::Guard(error) => error.is_permission(),
            _ => false,
        }
    }

    /// Whether an interface is gone or down.
    pub(crate) fn is_absent(&self) -> bool {
        match self {
            Self::Engine { source: EngineError::Socket(error), .. } => error.is_absent(),
            _ => false,
        }
    }
}

/// A running dataplane.
pub struct Dataplane {
    config: Config,
    shared: Arc<Shared>,
    steering_key: u32,
    compiler: Mutex<Published>,
    workers: Mutex<Workers>,
}

/// The workers that run, and the counters of those that did.
struct Workers {
    running: Running,
    retired: WorkerStats,
}

impl Workers {
    /// Has all of them end. The speaker, as far as it goes on, and the flow tables.
    fn stop(&mut self, shared: &Shared) -> (Option<Speaker>, Vec<FlowTable>) {
        let (speakers, flows): (Vec<_>, Vec<_>) = self.running.stop(shared).into_iter().map(Core::retire).unzip();
        self.running.crew.members.iter().for_each(|member| self.retired.absorb(&member.stats));
        (speakers.into_iter().flatten().next(), flows)
    }
}

/// What was published last, by the one who publishes.
struct Published {
    compiler: Compiler,
    spec: TableSpec,
    /// `None` before the first table: what a crash left behind is in force until then.
    guarded: Option<Guarded>,
    /// Where solicitations for owned VIPs are sent to.
    groups: Groups,
}

/// What the guard covers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Guarded {
    /// Their names and indexes: a hook goes with its interface, and is not there when that returns.
    interfaces: Vec<(String, u32)>,
    vips: Vec<IpAddr>,
}

impl Dataplane {
    /// Opens the sockets and starts the workers; forwards nothing before the first [`Self::publish`].
    pub fn start(config: &Config) -> Result<Self, StartError> {
        if !(1..=MAX_WORKERS).contains(&config.workers) {
            return Err(StartError::Workers(config.workers));
        }
        guard::keep()?;
        let mut compiler = Compiler::default();
        compiler.set_workers(config.workers);
        // Known interfaces, no VIPs: frames that come before the first table are dropped.
        let ports = config.ports.iter().map(empty_port).collect();
        let spec = TableSpec { ports, ..TableSpec::default() };
        let shared = Arc::new(Shared::new(compiler.compile(&spec)));
        // Random: it need not be the same on other nodes, and nobody outside shall know it.
        let steering_key = RandomState::new().hash_one(config.workers) as u32;
        let steering = Steering::new(config.workers, steering_key);
        let flows = flow_tables(config.flow_capacity, config.workers, Timeouts::default())?;
        let running = Running::start(config, &shared, steering, flows, None)?;
        let workers = Mutex::new(Workers { running, retired: WorkerStats::default() });
        let compiler = Mutex::new(Published { compiler, spec, guarded: None, groups: Groups::default() });
        Ok(Self { config: config.clone(), shared, steering_key, compiler, workers })
    }

    /// Shares the frames between another number of workers from now on. Their sockets are opened anew, so frames that
    /// come meanwhile are lost; flows keep their backends. How many flows have moved. Where it fails, the number stays
    /// as it was.
    pub fn set_workers(&self, workers: usize) -> Result<usize, StartError> {
        if !(1..=MAX_WORKERS).contains(&workers) {
            return Err(StartError::Workers(workers));
        }
        // Nobody publishes meanwhile.
        let mut published = self.compiler();
        let mut team = self.workers();
        let config = Config { ports: published.open_ports(), engine: Some(team.running.engine), ..self.config.clone() };
        // What can fail for want of memory comes before anything stops.
        let timeouts = published.spec.timeouts;
        let mut flows = flow_tables(config.flow_capacity, workers, timeouts)?;
        let before = team.running.crew.members.len();
        let (speaker, former) = team.stop(&self.shared);
        // From here on nobody counts: what was counted is carried over.
        let snapshot = published.recompile(workers);
        let steering = Steering::new(workers, self.steering_key);
        let moved = move_flows(&former, &mut flows, steering, &snapshot);
        drop(former);
        self.shared.snapshot.store(Arc::new(snapshot));
        let reason = team.running.engine_reason.take();
        match Running::start(&config, &self.shared, steering, flows, speaker) {
            Ok(running) => team.running = running.because(reason),
            Err(error) => {
                tracing::error!(%error, workers = before, "back to the former number of workers, without the flow table");
                self.shared.snapshot.store(Arc::new(published.recompile(before)));
                let flows = flow_tables(config.flow_capacity, before, timeouts)?;
                let steering = Steering::new(before, self.steering_key);
                team.running = Running::start(&config, &self.shared, steering, flows, None)?.because(reason);
                return Err(error);
            }
        }
        Ok(moved)
    }

    /// Publishes a table and returns its generation. The worker goes on with the old one until its next
    /// batch; [`Self::wait_seen`] waits for that.
    pub fn publish(&self, spec: &TableSpec) -> Result<u64, GuardError> {
        let mut published = self.compiler();
        let vips: Vec<IpAddr> = spec.vips.iter().map(|vip| vip.address).collect();
        // An interface that is gone has no hook to guard, and must not keep the table from the others.
        let interfaces = present(&self.config.ports);
        let wanted = Guarded { interfaces: interfaces.clone(), vips };
        let mut both = wanted.clone();
        // The guard before the first answer; and until after the last one when a VIP goes, because a packet
        // that finds neither would reach the kernel.
        both.vips.extend(published.guarded.iter().flat_map(|guarded| &guarded.vips));
        both.vips.sort_unstable();
        both.vips.dedup();
        published.install(&both)?;
        published.groups.follow(spec);
        published.spec.clone_from(spec);
        let snapshot = published.compiler.compile(spec);
        let generation = snapshot.generation;
        let before = self.shared.snapshot.swap(Arc::new(snapshot));
        self.crew().wake();
        if both.vips.len() > wanted.vips.len() {
            self.wait_seen(generation, Duration::from_secs(1));
            published.install(&wanted)?;
        }
        // Freed here if the worker has let go of it: it may be large.
        drop(before);
        Ok(generation)
    }

    /// Waits until no frame is judged by an older table any more. Whether that came about in time.
    pub fn wait_seen(&self, generation: u64, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while !self.crew().has_seen(generation) {
            if Instant::now() >= deadline {
                return false;
            }
            // A batch takes microseconds; this is the rare path of a VIP that leaves.
            thread::sleep(Duration::from_micros(100));
        }
        true
    }

    /// The other load balancers that are heard on a segment of ours: the interface, and their address.
    pub fn heard_peers(&self) -> Vec<(usize, IpAddr)> {
        let now_ns = boottime_ns();
        let snapshot = self.shared.snapshot.load();
        let heard = snapshot.peers.iter().filter(|peer| peer.is_heard(now_ns));
        heard.map(|peer| (peer.spec.port, peer.spec.address)).collect()
    }

    /// Other stations that claimed a VIP of ours.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let workers = self.workers();
        let at_work = workers.running.crew.members.iter().map(|member| &member.stats);
        report::conflicts(at_work.chain([&workers.retired]))
    }

    /// The deadline of this node's answers.
    pub fn lease(&self) -> &Arc<LeaseClock> {
        &self.shared.lease
    }

    /// The engine that runs.
    pub fn engine(&self) -> EngineKind {
        self.workers().running.engine
    }

    /// Why it is not the best one, if it is not.
    pub fn engine_reason(&self) -> Option<String> {
        self.workers().running.engine_reason.clone()
    }

    /// How the workers are scheduled.
    pub fn scheduling(&self) -> Scheduling {
        self.workers().running.scheduling.clone()
    }

    /// How many workers there are.
    pub fn worker_count(&self) -> usize {
        self.crew().members.len()
    }

    /// Whether all workers still run.
    pub fn is_running(&self) -> bool {
        self.workers().running.is_well()
    }

    /// The counters.
    pub fn report(&self) -> Report {
        let workers = self.workers();
        Report::new(&workers.running.crew.members, &workers.retired, &self.shared.snapshot.load())
    }

    /// What would become of a packet. `None` if the worker does not answer.
    pub fn explain(&self, question: Question) -> Option<Explanation> {
        let (crew, (reply, answer)) = (self.crew(), Reply::channel());
        let home = match &question {
            Question::Flow(tuple) => Some(crew.steering.flow(tuple)),
            Question::Frame(frame) => match packet::parse(frame) {
                Packet::Fragment(Fragment { flow: Some(flow), .. }) => Some(crew.steering.flow(&flow.tuple)),
                packet => crew.steering.packet(&packet),
            },
        };
        let home = home.unwrap_or(SPEAKER);
        crew.members[home].mailbox.send(Errand::Explain(question.clone(), reply));
        let explanation = answer.wait()?;
        if home == SPEAKER {
            return Some(explanation);
        }
        // The speaker alone knows whether the node answers.
        let (reply, answer) = Reply::channel();
        crew.members[SPEAKER].mailbox.send(Errand::Explain(question, reply));
        Some(Explanation { answers: answer.wait()?.answers, ..explanation })
    }

    /// Looks through the flow tables piece by piece, while the workers go on. `visit` gets the live flows of a piece
    /// and the table by which they are forwarded; it returns whether to go on. Whether the workers have answered.
    pub fn flows(&self, mut visit: impl FnMut(&Snapshot, Vec<FlowEntry>) -> bool) -> bool {
        for member in &self.crew().members {
            let mut next = 0;
            loop {
                let (reply, answer) = Reply::channel();
                member.mailbox.send(Errand::ListFlows(next..next + FLOWS_AT_ONCE, reply));
                let Some((entries, slots)) = answer.wait() else { return false };
                next += FLOWS_AT_ONCE;
                if !visit(&self.shared.snapshot.load(), entries) {
                    return true;
                }
                if next >= slots {
                    break;
                }
            }
        }
        true
    }

    /// Stops answering and forwarding, and takes the guard away.
    pub fn stop(&self) -> Result<(), GuardError> {
        self.stop_workers();
        guard::remove()
    }

    fn stop_workers(&self) {
        self.shared.lease.revoke();
        self.workers().running.stop(&self.shared);
    }

    fn workers(&self) -> MutexGuard<'_, Workers> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compiler(&self) -> MutexGuard<'_, Published> {
        self.compiler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn crew(&self) -> Arc<Crew> {
        self.workers().running.crew.clone()
    }
}

impl Drop for Dataplane {
    /// Without [`Self::stop`] the guard stays, as after a crash.
    fn drop(&mut self) {
        self.stop_workers();
    }
}

impl Published {
    /// The interfaces as they are now. One that is gone, or another one than was published, waits until it is.
    fn open_ports(&self) -> Vec<PortConfig> {
        let ports = self.spec.ports.iter();
        let known = ports.map(|port| PortConfig { name: port.name.clone(), ifindex: port.ifindex, mtu: port.mtu });
        let known: Vec<PortConfig> = known.collect();
        let present = present(&known);
        let is_there = |port: &PortConfig| present.contains(&(port.name.clone(), port.ifindex));
        known
            .into_iter()
            .map(|port| PortConfig { ifindex: if is_there(&port) { port.ifindex } else { 0 }, ..port })
            .collect()
    }

    /// The same table again, for another number of workers.
    fn recompile(&mut self, workers: usize) -> Snapshot {
        self.compiler.set_workers(workers);
        self.compiler.compile(&self.spec)
    }

    fn install(&mut self, guarded: &Guarded) -> Result<(), GuardError> {
        if self.guarded.as_ref() != Some(guarded) {
            let names: Vec<String> = guarded.interfaces.iter().map(|(name, _)| name.clone()).collect();
            guard::install(&names, &guarded.vips)?;
            self.guarded = Some(guarded.clone());
        }
        Ok(())
    }
}

/// Slots of the flow table that are looked through between two batches: half a megabyte, some 50 us.
const FLOWS_AT_ONCE: usize = 1 << 14;

/// Puts the flows of former workers into the tables of those that have them from now on. How many.
fn move_flows(former: &[FlowTable], tables: &mut [FlowTable], steering: Steering, snapshot: &Snapshot) -> usize {
    let now = Tick::from_ns(boottime_ns());
    let addresses: HashMap<VipId, IpAddr> = snapshot.vips.iter().map(|vip| (vip.id, vip.address)).collect();
    let mut moved = 0;
    for entry in former.iter().flat_map(|table| table.entries(0..table.slots(), now)) {
        let Some(vip) = addresses.get(&entry.vip) else { continue };
        let tuple = entry.tuple(*vip);
        tables[steering.flow(&tuple)].restore(snapshot.hash_key.tuple(&tuple), &entry, now);
        moved += 1;
    }
    moved
}

/// The interfaces that exist, and their indexes.
fn present(ports: &[PortConfig]) -> Vec<(String, u32)> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None);
    let Ok(socket) = socket else { return ports.iter().map(|port| (port.name.clone(), 0)).collect() };
    let index = |name: &str| rustix::net::netdevice::name_to_index(&socket, name).ok();
    ports.iter().filter_map(|port| Some((port.name.clone(), index(&port.name)?))).collect()
}

fn empty_port(port: &PortConfig) -> PortSpec {
    PortSpec {
        name: port.name.clone(),
        ifindex: port.ifindex,
        mac: Mac::ZERO,
        mtu: port.mtu,
        carrier: false,
        segments: true,
        addresses: Vec::new(),
    }
}
