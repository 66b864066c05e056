//! The dataplane from outside: start it, publish tables, extend the lease, read the counters, stop it.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    accel::{Accelerate, Accelerator, AcceleratorReport, FRESH_S, OfBefore},
    config::Config,
    error::{StartError, accelerator_problem},
    forward::{
        compile::Compiler,
        flow::{FlowEntry, FlowTable, Tick},
        runtime::Liveness,
        snapshot::Snapshot,
        spec::{PortSpec, TableSpec, Timeouts},
        steering::{MAX_WORKERS, SPEAKER, Steering},
    },
    guard::{Guard, GuardError, Keeper},
    io::{CheckSocket, EngineKind, PortConfig, SocketError},
    packet::{self, Fragment, Mac, Packet},
    pool::{Pool, Scheduling, flow_tables},
    publisher::{Guarding, Publisher, lock},
    query::{Explanation, Query, Question, Reply, Report, report},
    speaker::{
        Speaker,
        multicast::MulticastGroups,
        permit::{Grant, LeaseClock, Owned, boottime_ns},
    },
    stats::{Conflict, Totals, WorkerStats},
    sweep::{Sweeper, VipAddresses, look_through},
    worker::{
        shared::{Progress, Published, Table, Workers, wait_until},
        tap::{Capture, TapFilter},
    },
};

/// A running dataplane.
pub struct Dataplane {
    config: Config,
    published: Arc<Published>,
    steering_key: u32,
    /// Why there is no accelerator, where one would do.
    not_accelerated: Option<String>,
    publisher: Arc<Mutex<Publisher>>,
    guarding: Arc<Guarding>,
    /// The memory of the flow tables is there.
    warm: Arc<AtomicBool>,
    /// Puts the guard back when somebody has taken it away.
    keeper: Mutex<Keeper>,
    grants: Mutex<Grants>,
    /// Where solicitations for owned VIPs are sent to.
    groups: Mutex<MulticastGroups>,
    pool: Arc<Mutex<PoolOf>>,
    /// `None` without an accelerator, and when the dataplane has stopped.
    sweeper: Mutex<Option<Sweeper>>,
}

/// The workers that run, and the counters of those that did.
struct PoolOf {
    running: Pool,
    retired: WorkerStats,
}

impl PoolOf {
    /// Has all of them end. The speaker, as far as it goes on, and the flow tables.
    fn stop(&mut self, published: &Published) -> (Option<Speaker>, Vec<FlowTable>) {
        let left = self.running.stop(published);
        self.running.workers.all.iter().for_each(|worker| self.retired.absorb(&worker.stats));
        left
    }
}

/// What was published last of what this node owns.
#[derive(Default)]
struct Grants {
    generation: u64,
    grants: Vec<Grant>,
}

/// A backend, as this node finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenBackend {
    /// What the control plane calls it.
    pub id: u64,
    /// Its own address.
    pub address: IpAddr,
    /// The interface on whose segment it is.
    pub port: usize,
    /// Its MAC address, as far as it is known.
    pub mac: Option<Mac>,
    /// Whether it answers.
    pub liveness: Liveness,
}

impl Dataplane {
    /// Opens the sockets and starts the workers; forwards nothing before the first [`Self::publish`].
    pub fn start(config: &Config) -> Result<Self, StartError> {
        if !(1..=MAX_WORKERS).contains(&config.workers) {
            return Err(StartError::Workers(config.workers));
        }
        let guard = Guard::keep(config.guard.clone())?;
        let mut compiler = Compiler::default();
        compiler.set_workers(config.workers);
        // Known interfaces, no VIPs: frames that come before the first table are dropped.
        let ports = config.ports.iter().map(empty_port).collect();
        let spec = TableSpec { ports, ..TableSpec::default() };
        let (accelerator, not_accelerated) = accelerate(config)?;
        let published = Arc::new(Published::new(compiler.compile(&spec), accelerator));
        // Random: it need not be the same on other nodes, and nobody outside shall know it.
        let steering_key = RandomState::new().hash_one(config.workers) as u32;
        let steering = Steering::new(config.workers, steering_key);
        let flows = flow_tables(config.flow_capacity, config.workers, Timeouts::default())?;
        let warm = Arc::<AtomicBool>::default();
        warm_up(&flows, warm.clone())?;
        let publisher = Arc::new(Mutex::new(Publisher::new(compiler, spec, guard)));
        let guarding = Arc::<Guarding>::default();
        let (kept, fares, ports, in_force) =
            (publisher.clone(), guarding.clone(), config.ports.clone(), published.clone());
        let keeper = Keeper::start(move || {
            let mut publisher = lock(&kept);
            publisher.keep_guard(&ports, &fares);
            // No other table comes meanwhile.
            in_force.take_over_accelerator();
        })?;
        let running = Pool::start(config, &published, steering, flows, None)?;
        let pool = Arc::new(Mutex::new(PoolOf { running, retired: WorkerStats::default() }));
        let dataplane = Self {
            config: config.clone(),
            published,
            steering_key,
            not_accelerated,
            publisher,
            guarding,
            warm,
            keeper: Mutex::new(keeper),
            grants: Mutex::default(),
            groups: Mutex::default(),
            pool,
            sweeper: Mutex::default(),
        };
        // What runs by now ends with it.
        dataplane.start_sweeper()?;
        Ok(dataplane)
    }

    fn start_sweeper(&self) -> Result<(), StartError> {
        let Some(accelerator) = self.published.accelerator.clone() else { return Ok(()) };
        let pool = self.pool.clone();
        let workers = move || lock(&pool).running.workers.clone();
        *lock(&self.sweeper) = Some(Sweeper::start(accelerator, self.published.clone(), workers)?);
        Ok(())
    }

    /// Shares the frames between another number of workers from now on. Their sockets are opened anew, so frames that
    /// come meanwhile are lost; flows keep their backends. How many flows have moved. Where it fails, the number stays
    /// as it was.
    pub fn set_workers(&self, workers: usize) -> Result<usize, StartError> {
        if !(1..=MAX_WORKERS).contains(&workers) {
            return Err(StartError::Workers(workers));
        }
        // What can fail for want of memory comes before anything stops, and what takes long while nobody waits for a lock.
        let timeouts = lock(&self.publisher).spec.timeouts;
        let mut flows = flow_tables(self.config.flow_capacity, workers, timeouts)?;
        for mut fill in flows.iter().map(FlowTable::fill) {
            while fill.step().map_err(|error| StartError::Resource("the flow table", error))? {}
        }
        // Nobody publishes meanwhile.
        let mut publisher = lock(&self.publisher);
        let mut pool = lock(&self.pool);
        flows.iter_mut().for_each(|table| table.set_timeouts(publisher.spec.timeouts));
        let config = Config { ports: publisher.open_ports(), engine: Some(pool.running.engine), ..self.config.clone() };
        let before = pool.running.workers.all.len();
        let (speaker, former) = pool.stop(&self.published);
        // From here on nobody counts: what was counted is carried over.
        let snapshot = publisher.recompile(workers);
        let steering = Steering::new(workers, self.steering_key);
        let moved = move_flows(&former, &mut flows, steering, &snapshot);
        drop(former);
        self.published.put_in_force(snapshot);
        let reason = pool.running.engine_reason.take();
        match Pool::start(&config, &self.published, steering, flows, speaker) {
            Ok(running) => pool.running = running.because(reason),
            Err(error) => {
                tracing::error!(%error, workers = before, "back to the former number of workers, without the flow table");
                self.published.put_in_force(publisher.recompile(before));
                let flows = flow_tables(config.flow_capacity, before, timeouts)?;
                let steering = Steering::new(before, self.steering_key);
                pool.running = Pool::start(&config, &self.published, steering, flows, None)?.because(reason);
                return Err(error);
            }
        }
        Ok(moved)
    }

    /// Publishes a table and returns its generation. The workers go on with the old one until their next
    /// batch; [`Self::wait_for_table`] waits for that.
    pub fn publish(&self, spec: &TableSpec) -> Result<u64, GuardError> {
        let mut publisher = lock(&self.publisher);
        let vips = spec.vips.iter().map(|vip| vip.address).collect();
        let less = publisher.cover(vips, &self.config.ports, &self.guarding)?;
        let unseen_s = self.published.accelerator.as_ref().map_or(0, |_| FRESH_S);
        let snapshot = publisher.compile(spec, unseen_s);
        let generation = snapshot.generation;
        let table = Arc::new(Table::new(snapshot));
        self.published.withdraw_accelerator(&table.snapshot);
        let before = self.published.table.swap(table.clone());
        self.workers().wake();
        // After them: it may wait for the kernel's lock on all links.
        self.published.accelerate_by(&table);
        lock(&self.sweeper).iter().for_each(Sweeper::wake);
        if let Some(less) = less {
            self.wait_for_table(generation, Duration::from_secs(1));
            publisher.install(&less)?;
        }
        // Freed here if the workers have let go of it: it may be large.
        drop(before);
        Ok(generation)
    }

    /// Owns these VIPs from the workers' next batch on, as far as the table has them, and no others; apart from
    /// [`Self::publish`], so that a takeover does not wait for a table. The generation, for [`Self::wait_for_grants`].
    pub fn own(&self, grants: &[Grant]) -> u64 {
        let mut own = lock(&self.grants);
        own.generation += 1;
        own.grants = grants.to_vec();
        self.published.owned.store(Arc::new(Owned::new(own.generation, grants)));
        self.workers().wake();
        own.generation
    }

    /// Listens to the multicast groups of the owned VIPs, by the last table. It may wait for the kernel's lock on all
    /// links, so it comes after what must be quick.
    pub fn join_groups(&self) {
        let mut groups = lock(&self.groups);
        let spec = lock(&self.publisher).spec.clone();
        let grants = lock(&self.grants).grants.clone();
        groups.follow(&spec, &grants);
    }

    /// Waits until no frame is judged by an older table any more. Whether that came about in time.
    pub fn wait_for_table(&self, generation: u64, timeout: Duration) -> bool {
        wait_until(timeout, || self.workers().judge_by_table(generation))
    }

    /// Waits until nobody speaks by older grants any more. Whether that came about in time.
    pub fn wait_for_grants(&self, generation: u64, timeout: Duration) -> bool {
        wait_until(timeout, || self.workers().speak_by_grants(generation))
    }

    /// The other load balancers and the gateways that are heard on a segment of ours: the interface, and their address.
    pub fn heard_peers(&self) -> Vec<(usize, IpAddr)> {
        let now_ns = boottime_ns();
        let table = self.published.table.load();
        let heard = table.snapshot.peers.iter().filter(|peer| peer.is_heard(now_ns));
        heard.map(|peer| (peer.spec.port, peer.spec.address)).collect()
    }

    /// Shows each backend that this node can reach by a link with a carrier, and whether it answers for its address.
    pub fn look_at_backends(&self, mut each: impl FnMut(SeenBackend)) {
        let table = self.published.table.load();
        let ports = &table.snapshot.ports;
        // What cannot be asked is not silent.
        let is_reached = |port: usize| ports[port].carrier && !ports[port].is_gone();
        for backend in table.snapshot.backends() {
            if let Some(port) = backend.port().filter(|port| is_reached(*port)) {
                let (mac, liveness) = (backend.mac(), backend.runtime.liveness());
                each(SeenBackend { id: backend.id, address: backend.address, port, mac, liveness });
            }
        }
    }

    /// A socket by which backends on the segment of an interface can be checked.
    pub fn open_check_socket(&self, port: usize) -> Result<CheckSocket, SocketError> {
        let table = self.published.table.load();
        let port = &table.snapshot.ports[port];
        let config = PortConfig { name: port.name.clone(), ifindex: port.ifindex, mtu: port.mtu };
        CheckSocket::open(&config, port.mac)
    }

    /// Other stations that claimed a VIP of ours.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let pool = lock(&self.pool);
        let at_work = pool.running.workers.all.iter().map(|worker| &*worker.stats);
        report::conflicts(at_work.chain([&pool.retired]))
    }

    /// Asks the segments whether somebody else has a VIP that this node owns: who answers is among the [`Self::conflicts`] soon.
    /// For how many VIPs; `None` if the worker does not answer.
    pub fn probe_vips(&self) -> Option<usize> {
        let (workers, (reply, answer)) = (self.workers(), Reply::channel());
        workers.all[SPEAKER].mailbox.ask(Query::ProbeVips(reply));
        answer.wait()
    }

    /// The deadline of this node's answers.
    pub fn lease(&self) -> &Arc<LeaseClock> {
        &self.published.lease
    }

    /// The engine that runs.
    pub fn engine(&self) -> EngineKind {
        lock(&self.pool).running.engine
    }

    /// Why it is not the best one, if it is not.
    pub fn engine_reason(&self) -> Option<String> {
        lock(&self.pool).running.engine_reason.clone()
    }

    /// How the workers are scheduled.
    pub fn scheduling(&self) -> Scheduling {
        lock(&self.pool).running.scheduling.clone()
    }

    /// How many workers there are.
    pub fn worker_count(&self) -> usize {
        self.workers().all.len()
    }

    /// Whether all workers still run.
    pub fn is_running(&self) -> bool {
        lock(&self.pool).running.is_well()
    }

    /// Why this node's kernel is not kept away from the VIPs, if so: then it must not own any.
    pub fn guard_problem(&self) -> Option<String> {
        self.guarding.problem()
    }

    /// Whether nobody else can change the guard.
    pub fn is_guard_owned(&self) -> bool {
        lock(&self.publisher).guard.is_owned()
    }

    /// Whether the memory of the flow tables is there: before that, first packets of flows wait for the kernel to find it.
    pub fn is_warm(&self) -> bool {
        self.warm.load(Ordering::Acquire)
    }

    /// By when each worker is to show itself.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.published.progress
    }

    /// How the accelerator fares, or why there is none; `None` where none was asked for.
    pub fn accelerator(&self) -> Option<Result<AcceleratorReport, String>> {
        let at_work = self.published.accelerator.as_ref().map(|accelerator| Ok(accelerator.report()));
        at_work.or_else(|| self.not_accelerated.clone().map(Err))
    }

    /// The counters.
    pub fn report(&self) -> Report {
        let pool = lock(&self.pool);
        let at_work: Vec<&WorkerStats> = pool.running.workers.all.iter().map(|worker| &*worker.stats).collect();
        let mut report = Report::new(&at_work, &pool.retired, &self.published.table.load().snapshot);
        self.add_guard(&mut report.totals);
        report
    }

    /// Those of them that are of no VIP and no backend: for who looks often.
    pub fn totals(&self) -> Totals {
        let pool = lock(&self.pool);
        let workers = &pool.running.workers.all;
        let mut totals = report::totals(|| workers.iter().map(|worker| &*worker.stats).chain([&pool.retired]));
        self.add_guard(&mut totals);
        totals
    }

    fn add_guard(&self, totals: &mut Totals) {
        totals.guard_restored += self.guarding.restored();
    }

    /// What would become of a packet. `None` if the worker does not answer.
    pub fn explain(&self, question: Question) -> Option<Explanation> {
        let (workers, (reply, answer)) = (self.workers(), Reply::channel());
        let owner = match &question {
            Question::Flow(tuple) => Some(workers.steering.flow(tuple)),
            Question::Frame(frame) => match packet::parse(frame) {
                Packet::Fragment(Fragment { flow: Some(flow), .. }) => Some(workers.steering.flow(&flow.tuple)),
                packet => workers.steering.packet(&packet),
            },
        };
        let owner = owner.unwrap_or(SPEAKER);
        workers.all[owner].mailbox.ask(Query::Explain(question.clone(), reply));
        let explanation = answer.wait()?;
        if owner == SPEAKER {
            return Some(explanation);
        }
        // The speaker alone knows whether the node answers.
        let (reply, answer) = Reply::channel();
        workers.all[SPEAKER].mailbox.ask(Query::Explain(question, reply));
        Some(Explanation { answers: answer.wait()?.answers, ..explanation })
    }

    /// Begins to copy frames; `None` where there are as many captures as there may be.
    pub fn capture(&self, filter: TapFilter) -> Option<Capture> {
        Capture::begin(&self.published.taps, filter)
    }

    /// How many flows each backend has, by their ids. `None` where the workers do not answer.
    pub fn count_flows(&self) -> Option<HashMap<u64, u64>> {
        let mut counts = HashMap::new();
        let all = self.flows(|snapshot, entries| {
            for backend in entries.iter().filter_map(|entry| snapshot.backend(entry.backend)) {
                *counts.entry(backend.id).or_default() += 1;
            }
            true
        });
        all.then_some(counts)
    }

    /// Looks through the flow tables piece by piece, while the workers go on. `visit` gets the live flows of a piece
    /// and the table by which they are forwarded; it returns whether to go on. Whether the workers have answered.
    pub fn flows(&self, mut visit: impl FnMut(&Snapshot, Vec<FlowEntry>) -> bool) -> bool {
        look_through(&self.workers(), |entries| visit(&self.published.table.load().snapshot, entries))
    }

    /// This process ends by a fault: the accelerator goes on as if it had been killed, if somebody keeps it on its
    /// interfaces.
    pub fn leave_accelerator(&self) {
        self.published.accelerator.iter().for_each(|accelerator| accelerator.stay());
    }

    /// Stops answering and forwarding, and takes the guard away.
    pub fn stop(&self) -> Result<(), GuardError> {
        lock(&self.keeper).stop();
        self.stop_workers();
        lock(&self.publisher).guard.remove()
    }

    fn stop_workers(&self) {
        self.published.lease.revoke();
        lock(&self.sweeper).take();
        lock(&self.pool).running.stop(&self.published);
        self.published.accelerator.iter().for_each(|accelerator| accelerator.end());
    }

    fn workers(&self) -> Arc<Workers> {
        lock(&self.pool).running.workers.clone()
    }
}

/// The accelerator, if there is to be one; or why it is not there, where that is no reason not to start.
fn accelerate(config: &Config) -> Result<(Option<Arc<Accelerator>>, Option<String>), StartError> {
    let of_before = OfBefore::new(config.link_keeper.as_ref());
    if config.accelerate == Accelerate::Off {
        return Ok((None, None));
    }
    match Accelerator::start(config.accelerate, &config.ports, config.flow_capacity, of_before) {
        Ok(accelerator) => Ok((Some(Arc::new(accelerator)), None)),
        Err(error) if config.accelerate == Accelerate::Auto => {
            let problem = accelerator_problem(&error);
            tracing::info!("nothing is accelerated: {problem}");
            Ok((None, Some(problem)))
        }
        Err(error) => Err(StartError::Accelerator(error)),
    }
}

/// Provides the memory of flow tables on a thread of its own, and takes at most half of a core's time for it.
fn warm_up(flows: &[FlowTable], warm: Arc<AtomicBool>) -> Result<(), StartError> {
    let fills: Vec<_> = flows.iter().map(FlowTable::fill).collect();
    let work = move || {
        for mut fill in fills {
            loop {
                let begun = Instant::now();
                match fill.step() {
                    Ok(true) => thread::sleep(begun.elapsed()),
                    Ok(false) => break,
                    Err(error) => {
                        tracing::warn!(%error, "the memory of the flow table is not there yet: it is taken as flows come");
                        break;
                    }
                }
            }
        }
        warm.store(true, Ordering::Release);
    };
    let thread = thread::Builder::new().name("flow-memory".into()).spawn(work);
    thread.map(drop).map_err(|error| StartError::Resource("the thread that takes the flow table's memory", error))
}

impl Drop for Dataplane {
    /// Without [`Self::stop`] the guard stays, as after a crash.
    fn drop(&mut self) {
        self.stop_workers();
    }
}

/// Puts the flows of former workers into the tables of those that have them from now on. How many.
fn move_flows(former: &[FlowTable], tables: &mut [FlowTable], steering: Steering, snapshot: &Snapshot) -> usize {
    let now = Tick::from_ns(boottime_ns());
    let addresses = VipAddresses::by(snapshot);
    let mut moved = 0;
    for entry in former.iter().flat_map(|table| table.entries(0..table.slots(), now)) {
        let Some(tuple) = addresses.tuple(&entry) else { continue };
        tables[steering.flow(&tuple)].restore(snapshot.hash_key.tuple(&tuple), &entry, now);
        moved += 1;
    }
    moved
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
