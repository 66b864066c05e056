//! The dataplane from outside: start it, publish tables, extend the lease, read the counters, stop it.

use std::{
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use rustix::event::{EventfdFlags, eventfd};

use crate::{
    errand::{Errand, Explanation, Question, Reply},
    forward::{
        DropReason,
        flow::{FlowEntry, FlowTable, Timeouts},
        table::{Compiler, Snapshot, TableSpec},
    },
    groups::Groups,
    guard::{self, GuardError},
    io::{self as frames, EngineError, EngineFactory, EngineKind, PortConfig},
    lease::{LeaseClock, boottime_ns},
    packet::Mac,
    stats::WorkerStats,
    worker::{self, Core},
};

/// What a dataplane is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The interfaces; a [`TableSpec`]'s ports are these, in this order.
    pub ports: Vec<PortConfig>,
    /// The engine; `None` for the best that runs.
    pub engine: Option<EngineKind>,
    /// Flows that are remembered at most.
    pub flow_capacity: usize,
}

impl Config {
    /// Four million flows: 128 MiB if all of them are there.
    pub const DEFAULT_FLOW_CAPACITY: usize = 1 << 22;
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
    fn is_absent(&self) -> bool {
        match self {
            Self::Engine { source: EngineError::Socket(error), .. } => error.is_absent(),
            _ => false,
        }
    }
}

/// What the control plane and the worker share.
pub(crate) struct Shared {
    pub(crate) snapshot: ArcSwap<Snapshot>,
    /// The generation by which every frame from now on is judged.
    pub(crate) seen_generation: AtomicU64,
    pub(crate) lease: Arc<LeaseClock>,
    pub(crate) stats: WorkerStats,
    pub(crate) stop: AtomicBool,
    pub(crate) errands: Mutex<Vec<Errand>>,
    /// Set after an errand was put there, so that the worker need not look.
    pub(crate) errands_wait: AtomicBool,
}

impl Shared {
    /// With a first table.
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        Self {
            snapshot: ArcSwap::from_pointee(snapshot),
            seen_generation: AtomicU64::new(0),
            lease: Arc::default(),
            stats: WorkerStats::default(),
            stop: AtomicBool::new(false),
            errands: Mutex::default(),
            errands_wait: AtomicBool::new(false),
        }
    }
}

/// A running dataplane.
pub struct Dataplane {
    shared: Arc<Shared>,
    compiler: Mutex<Published>,
    interfaces: Vec<String>,
    wake: OwnedFd,
    thread: Mutex<Option<thread::JoinHandle<io::Result<()>>>>,
    engine: EngineKind,
    engine_reason: Option<String>,
}

/// What was published last, by the one who publishes.
struct Published {
    compiler: Compiler,
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

/// The counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Frames taken from the rings: forwarded + answered + all drops + held.
    pub received: u64,
    /// Frames sent on to backends.
    pub forwarded: u64,
    /// Frames answered.
    pub answered: u64,
    /// Frames not sent, by reason; only reasons that occurred.
    pub drops: Vec<(DropReason, u64)>,
    /// Fragments that wait for the first of their datagram.
    pub held: u64,
    /// Frames lost before the ring.
    pub ring_full: u64,
    /// Frames made by the worker itself.
    pub originated: u64,
    /// Other stations that claimed a VIP of ours.
    pub conflicts: Vec<Conflict>,
    /// Flows put into the flow table.
    pub flows_remembered: u64,
    /// Flows that found no room there.
    pub flows_not_remembered: u64,
    /// Per VIP: address, packets, bytes.
    pub vips: Vec<(IpAddr, u64, u64)>,
    /// Per backend.
    pub backends: Vec<BackendReport>,
}

/// Somebody else's claim to a VIP that this node owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    /// The VIP.
    pub vip: IpAddr,
    /// The hardware address that claims it.
    pub mac: Mac,
    /// ARP packets and neighbour advertisements that did.
    pub count: u64,
}

/// A backend's counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendReport {
    /// Its service.
    pub service: String,
    /// Its own address.
    pub address: IpAddr,
    /// Its hardware address, if known.
    pub mac: Option<Mac>,
    /// Frames sent to it.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Dataplane {
    /// Opens the sockets and starts the worker; forwards nothing before the first [`Self::publish`].
    pub fn start(config: &Config) -> Result<Self, StartError> {
        let interfaces: Vec<String> = config.ports.iter().map(|port| port.name.clone()).collect();
        guard::keep()?;
        let mut compiler = Compiler::default();
        // Known interfaces, no VIPs: frames that come before the first table are dropped.
        let ports = config.ports.iter().map(empty_port).collect();
        let snapshot = compiler.compile(&TableSpec { ports, ..TableSpec::default() });
        let shared = Arc::new(Shared::new(snapshot));
        let resource = |what| move |error| StartError::Resource(what, error);
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| StartError::Resource("making an event descriptor", error.into()))?;
        let (report, started) = mpsc::channel();
        let worker = Start {
            config: config.clone(),
            shared: shared.clone(),
            wake: wake.try_clone().map_err(resource("copying an event descriptor"))?,
            report,
        };
        let thread = thread::Builder::new()
            .name("dataplane".into())
            .spawn(move || worker.run())
            .map_err(resource("starting the worker's thread"))?;
        let ended = || resource("starting the worker")(io::Error::other("it ended at once"));
        let (engine, engine_reason) = started.recv().map_err(|_| ended())??;
        let compiler = Mutex::new(Published { compiler, guarded: None, groups: Groups::default() });
        Ok(Self { shared, compiler, interfaces, wake, thread: Mutex::new(Some(thread)), engine, engine_reason })
    }

    /// Publishes a table and returns its generation. The worker goes on with the old one until its next
    /// batch; [`Self::wait_seen`] waits for that.
    pub fn publish(&self, spec: &TableSpec) -> Result<u64, GuardError> {
        let mut published = self.compiler.lock().unwrap_or_else(PoisonError::into_inner);
        let vips: Vec<IpAddr> = spec.vips.iter().map(|vip| vip.address).collect();
        // An interface that is gone has no hook to guard, and must not keep the table from the others.
        let interfaces = present(&self.interfaces);
        let wanted = Guarded { interfaces: interfaces.clone(), vips };
        let mut both = wanted.clone();
        // The guard before the first answer; and until after the last one when a VIP goes, because a packet
        // that finds neither would reach the kernel.
        both.vips.extend(published.guarded.iter().flat_map(|guarded| &guarded.vips));
        both.vips.sort_unstable();
        both.vips.dedup();
        published.install(&both)?;
        published.groups.follow(spec);
        let snapshot = published.compiler.compile(spec);
        let generation = snapshot.generation;
        let before = self.shared.snapshot.swap(Arc::new(snapshot));
        self.wake();
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
        while self.shared.seen_generation.load(Ordering::Acquire) < generation {
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
        self.shared.stats.conflicts()
    }

    /// The deadline of this node's answers.
    pub fn lease(&self) -> &Arc<LeaseClock> {
        &self.shared.lease
    }

    /// The engine that runs.
    pub fn engine(&self) -> EngineKind {
        self.engine
    }

    /// Why it is not the best one, if it is not.
    pub fn engine_reason(&self) -> Option<&str> {
        self.engine_reason.as_deref()
    }

    /// Whether the worker still runs.
    pub fn is_running(&self) -> bool {
        self.thread().as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// The counters.
    pub fn report(&self) -> Report {
        let stats = &self.shared.stats;
        let snapshot = self.shared.snapshot.load();
        let vip = |vip: &crate::forward::table::Vip| (vip.address, vip.traffic.packets.get(), vip.traffic.bytes.get());
        let backend = |backend: &crate::forward::table::Backend| BackendReport {
            service: snapshot.services[backend.service as usize].name.clone(),
            address: backend.address,
            mac: backend.mac(),
            packets: backend.runtime.traffic.packets.get(),
            bytes: backend.runtime.traffic.bytes.get(),
        };
        Report {
            received: stats.received.get(),
            forwarded: stats.forwarded.get(),
            answered: stats.answered.get(),
            drops: stats.drops().filter(|(_, count)| *count > 0).collect(),
            held: stats.held.get(),
            ring_full: stats.ring_full.get(),
            originated: stats.originated.get(),
            conflicts: stats.conflicts(),
            flows_remembered: stats.flows_remembered.get(),
            flows_not_remembered: stats.flows_not_remembered.get(),
            vips: snapshot.vips.iter().map(vip).collect(),
            backends: snapshot.backends().map(backend).collect(),
        }
    }

    /// What would become of a packet. `None` if the worker does not answer.
    pub fn explain(&self, question: Question) -> Option<Explanation> {
        let (reply, answer) = Reply::channel();
        self.send(Errand::Explain(question, reply));
        answer.wait()
    }

    /// Looks through the flow table piece by piece, while the worker goes on. `visit` gets the live flows of a piece
    /// and the table by which they are forwarded; it returns whether to go on. Whether the worker has answered.
    pub fn flows(&self, mut visit: impl FnMut(&Snapshot, Vec<FlowEntry>) -> bool) -> bool {
        let mut next = 0;
        loop {
            let (reply, answer) = Reply::channel();
            self.send(Errand::ListFlows(next..next + FLOWS_AT_ONCE, reply));
            let Some((entries, slots)) = answer.wait() else { return false };
            next += FLOWS_AT_ONCE;
            if !visit(&self.shared.snapshot.load(), entries) || next >= slots {
                return true;
            }
        }
    }

    fn send(&self, errand: Errand) {
        self.shared.errands.lock().unwrap_or_else(PoisonError::into_inner).push(errand);
        self.shared.errands_wait.store(true, Ordering::Release);
        self.wake();
    }

    /// Stops answering and forwarding, and takes the guard away.
    pub fn stop(&self) -> Result<(), GuardError> {
        self.stop_worker();
        guard::remove()
    }

    fn thread(&self) -> MutexGuard<'_, Option<thread::JoinHandle<io::Result<()>>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop_worker(&self) {
        self.shared.lease.revoke();
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
        let thread = self.thread().take();
        match thread.map(thread::JoinHandle::join) {
            Some(Ok(Err(error))) => tracing::error!(%error, "the dataplane had stopped by itself"),
            Some(Err(_)) => tracing::error!("the dataplane's worker panicked"),
            Some(Ok(Ok(()))) | None => {}
        }
    }

    fn wake(&self) {
        // It fails only when the counter is full, and then the worker is awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Dataplane {
    /// Without [`Self::stop`] the guard stays, as after a crash.
    fn drop(&mut self) {
        self.stop_worker();
    }
}

impl Published {
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

/// The interfaces that exist, and their indexes.
fn present(interfaces: &[String]) -> Vec<(String, u32)> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None);
    let Ok(socket) = socket else { return interfaces.iter().map(|name| (name.clone(), 0)).collect() };
    let index = |name: &String| rustix::net::netdevice::name_to_index(&socket, name).ok();
    interfaces.iter().filter_map(|name| Some((name.clone(), index(name)?))).collect()
}

type Started = Result<(EngineKind, Option<String>), StartError>;

/// What the worker's thread starts with. The engine is made on the thread that uses it.
struct Start {
    config: Config,
    shared: Arc<Shared>,
    wake: OwnedFd,
    report: mpsc::Sender<Started>,
}

impl Start {
    fn run(self) -> io::Result<()> {
        let flows = match FlowTable::new(self.config.flow_capacity, Timeouts::default()) {
            Ok(flows) => flows,
            Err(error) => return self.failed(StartError::Resource("the flow table", error)),
        };
        let filter = frames::filter::program(&[]);
        let start = |kind| {
            let wake = self.wake.try_clone();
            let wake = wake.map_err(|error| StartError::Resource("copying an event descriptor", error))?;
            let factory = EngineFactory { kind, wake };
            match factory.start(&self.config.ports, &filter) {
                Ok(engine) => Ok((engine, factory)),
                Err(source) => Err(StartError::Engine { kind, source }),
            }
        };
        let choices: &[EngineKind] = match &self.config.engine {
            Some(kind) => std::slice::from_ref(kind),
            None => &[EngineKind::Ring, EngineKind::Multishot, EngineKind::Mmsg],
        };
        let mut reason = None;
        let mut started = start(choices[0]);
        for next in &choices[1..] {
            // Without the right to a socket, or without the interface, no other engine runs either.
            let Err(error) = &started else { break };
            if error.is_permission() || error.is_absent() {
                break;
            }
            reason.get_or_insert_with(|| error.to_string());
            started = start(*next);
        }
        let (engine, factory) = match started {
            Ok(started) => started,
            Err(error) => return self.failed(error),
        };
        // Nobody waits any more if the caller is gone; then `stop` is set too.
        let _ = self.report.send(Ok((factory.kind, reason)));
        worker::run(Core::new(self.shared, flows), engine, factory, self.config.ports)
    }

    fn failed(&self, error: StartError) -> io::Result<()> {
        let _ = self.report.send(Err(error));
        Ok(())
    }
}

fn empty_port(port: &PortConfig) -> crate::forward::table::PortSpec {
    crate::forward::table::PortSpec {
        name: port.name.clone(),
        ifindex: port.ifindex,
        mac: Mac::ZERO,
        mtu: port.mtu,
        carrier: false,
        addresses: Vec::new(),
    }
}
