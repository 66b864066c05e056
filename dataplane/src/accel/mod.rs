//! The accelerator: an XDP program that forwards frames of known flows before they become packets of the kernel.
//!
//! It is a cache of what the workers have decided. A worker that forwards a frame of a flow that it knows enters the flow
//! ([`Accelerator::enter_flow`]); for a minute the program forwards its frames by itself, and then passes one
//! again, by which the worker sees that the flow lives. So there is one truth, the workers' flow tables, whatever becomes of
//! the program. Only where more new flows come than workers shall look at, it places those beyond itself, as a worker without
//! room for them would ([`placement`]). Whom it may forward to stands in its table of backends, which is written with each published table
//! ([`Accelerator::follow`]). When nobody pushes its deadline forward it passes everything.
//!
//! When this process crashes, the program stays where it is as long as somebody keeps it ([`LinkKeeper`]), and forwards until that
//! deadline. The next process has a program and tables of its own, and takes the place of the one before when it can do as
//! well ([`Accelerator::take_over`]).

mod attach;
mod choice;
mod counters;
mod elsewhere;
mod features;
mod flows;
mod kept;
mod layout;
mod placement;
mod services;

use std::{
    collections::{HashSet, hash_map::RandomState},
    hash::BuildHasher as _,
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

pub use attach::Acceleration;
pub use choice::Accelerate;
pub(crate) use elsewhere::Sweep;
pub(crate) use kept::OfBefore;
pub use kept::{LinkKeeper, end_links_of_before, is_link_name};

use attach::Interfaces;
use counters::{Counters, Harvest};
use flows::{Family, FlowAt};
use layout::{
    BACKEND_WORDS, FLOW_KEY, FRAME_NS, FRESH, GIVEN_MAC, HASH_KEY, MASKS, NAME, PASSED, PLACED, PORT_WORDS, PROCESSORS,
    RESOLVED_MAC, SLOTS, STRANGERS, TRAFFIC_WORDS, VALID_UNTIL, WAY,
};
use placement::Placement;
use services::Services;

use crate::{
    forward::{
        flow::Tick,
        hash::HashKey,
        runtime::Liveness,
        snapshot::{Backend, Snapshot},
        spec::{BackendState, PortSpec},
    },
    io::{
        PortConfig,
        sys::bpf::{Map, Program, Words},
    },
    packet::{FlowPacket, Mac},
};

/// The program, compiled by `bpf/build.sh`.
const OBJECT: &[u8] = include_bytes!("../../bpf/accelerator.bpf.o");
/// So long after a worker's last turn the tables are good.
const VALID_NS: u64 = 10_000_000_000;
/// Said so often, the program knows soon that no worker is there.
const VALID_STEP_NS: u64 = 100_000_000;
/// An entry is good for so long, and flows are remembered for so much longer where there is an accelerator: the worker sees
/// one packet of each in that time.
pub(crate) const FRESH_S: u32 = 60;
/// Of a processor's time, for a frame of a flow that the program does not know and could place: 50,000 of them a second are the
/// workers'.
const FOR_A_FRAME_NS: u64 = 20_000;
/// So many processors that are at work leave so much to the workers each, and more of them no more than these.
const PROCESSORS_AT_WORK: u64 = 4;
/// For so long a program waits for MAC addresses before it takes the place of that of the process before.
const WAIT_FOR_MACS: Duration = Duration::from_secs(2);

/// A running accelerator.
#[derive(Debug)]
pub(crate) struct Accelerator {
    program: Program,
    strangers: Map,
    devices: Map,
    of_ports: Words,
    flows_v4: Words,
    flows_v6: Words,
    hash_key: u64,
    settings: Words,
    backends: Arc<Words>,
    counters: Counters,
    services: Services,
    placement: Mutex<Placement>,
    elsewhere: Words,
    interfaces: Mutex<Interfaces>,
    /// Stations whose frames were balanced before, as they stand in the map.
    known_strangers: Mutex<HashSet<[u8; 8]>>,
    /// A bit for each interface whose frames it sees.
    sees: AtomicU64,
    /// Since when there is a table by which it could take over from the process before.
    waits_since: OnceLock<Instant>,
    /// See [`Self::stay`].
    stays: AtomicBool,
}

/// What the program has done, over all processors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AcceleratorReport {
    /// Each interface.
    pub interfaces: Vec<Acceleration>,
    /// Frames that it forwarded.
    pub forwarded: u64,
    /// Of these, those of flows that it placed itself.
    pub placed: u64,
    /// Frames that it passed to the usual way, by reason.
    pub passed: Vec<(&'static str, u64)>,
}

impl Accelerator {
    /// Loads the program and has it see the frames of all interfaces; it passes them until [`Self::follow`].
    ///
    /// # Errors
    /// The kernel does not take it, or it is asked for and some interface cannot have it.
    pub(crate) fn start(
        choice: Accelerate,
        ports: &[PortConfig],
        flows: usize,
        of_before: OfBefore,
    ) -> io::Result<Self> {
        let processors = count_processors("possible")?;
        let groups = [flows::groups(flows, Family::V4), flows::groups(flows / 4, Family::V6)];
        let maps = layout::shapes(processors, groups).map(Map::new).into_iter().collect::<io::Result<Vec<_>>>()?;
        let program = Program::load(OBJECT, "accelerator", &maps)?;
        let maps: [Map; layout::MAPS] = maps.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
        let [
            settings,
            of_ports,
            strangers,
            flows_v4,
            flows_v6,
            backends,
            traffic,
            counts,
            devices,
            services,
            maglev,
            bad_sources,
            elsewhere,
        ] = maps;
        // Nobody outside knows it.
        let hash_key = RandomState::new().hash_one(processors);
        let accelerator = Self {
            program,
            of_ports: of_ports.words()?,
            settings: settings.words()?,
            backends: Arc::new(backends.words()?),
            counters: Counters::new(traffic.words()?, counts.words()?),
            flows_v4: flows_v4.words()?,
            flows_v6: flows_v6.words()?,
            services: Services::new(services.words()?, hash_key),
            placement: Mutex::new(Placement::new(maglev.words()?, bad_sources.words()?, hash_key)),
            elsewhere: elsewhere.words()?,
            hash_key,
            strangers,
            devices,
            interfaces: Mutex::new(Interfaces::new(choice, of_before)),
            known_strangers: Mutex::default(),
            sees: AtomicU64::new(0),
            waits_since: OnceLock::new(),
            stays: AtomicBool::new(false),
        };
        accelerator.settings[FRESH].store(Tick::from_secs(FRESH_S.into()).into(), Ordering::Release);
        accelerator.settings[FRAME_NS].store(FOR_A_FRAME_NS, Ordering::Release);
        accelerator.settings[HASH_KEY].store(accelerator.hash_key, Ordering::Release);
        let [v4, v6] = groups.map(|groups| groups as u64 - 1);
        accelerator.settings[MASKS].store(v6 << 32 | v4, Ordering::Release);
        let all: Vec<(String, u32)> = ports.iter().map(|port| (port.name.clone(), port.ifindex)).collect();
        accelerator.attach(&all);
        if choice == Accelerate::Xdp {
            let refused = accelerator.report().interfaces.into_iter().find(|of| of.mode.is_none());
            if let Some(Acceleration { interface, reason, .. }) = refused {
                accelerator.end();
                let reason = reason.unwrap_or_default();
                return Err(io::Error::other(format!("{interface}: {reason}")));
            }
        }
        Ok(accelerator)
    }

    /// Has the program see the frames of these interfaces, and forgets those that are gone.
    fn attach(&self, wanted: &[(String, u32)]) {
        let mut interfaces = self.lock_interfaces();
        for ifindex in interfaces.follow(&self.program, wanted) {
            if let Some(word) = self.of_ports.get(ifindex as usize * PORT_WORDS) {
                word.store(0, Ordering::Relaxed);
            }
            // What is not there any more is found by nobody.
            let _ = self.devices.remove(&ifindex.to_ne_bytes());
        }
        self.sees.store(interfaces.seen(), Ordering::Release);
    }

    /// Places no new flows any more by what is not so in a table: before workers judge by it.
    pub(crate) fn withdraw(&self, snapshot: &Snapshot) {
        let mut placement = self.lock_placement();
        if !placement.is_beyond(snapshot) {
            placement.withdraw(&self.services, snapshot);
        }
    }

    /// Works by a table from now on: at once, but not at one moment. A frame is forwarded by the one before or by this
    /// one, and where that is not sure, passed.
    pub(crate) fn follow(&self, snapshot: &Snapshot) {
        let mut placement = self.lock_placement();
        if placement.is_beyond(snapshot) {
            return;
        }
        let all: Vec<(String, u32)> = snapshot.ports.iter().map(|port| (port.name.clone(), port.ifindex)).collect();
        self.attach(&all);
        self.enter_ports(&snapshot.ports);
        let own = snapshot.ports.iter().map(|port| port.mac);
        // No host has that of zeros.
        self.enter_strangers(own.chain(snapshot.peer_macs.iter().copied()).chain([Mac([0; 6])]));
        // What is placed goes to a backend by two tables, which are not written at one moment.
        placement.withdraw(&self.services, snapshot);
        placement.number_all(snapshot);
        let HashKey(key) = snapshot.hash_key;
        for (word, at) in [key as u64, (key >> 64) as u64].into_iter().zip(FLOW_KEY..) {
            self.settings[at].store(word, Ordering::Release);
        }
        let numbers: Vec<u32> = snapshot.services.iter().map(|service| placement.number(service)).collect();
        for slot in 0..SLOTS {
            let backend = snapshot.member(slot as u32);
            let service = backend.and_then(|backend| numbers.get(backend.service as usize)).copied();
            self.enter_backend(slot, snapshot, backend, service.unwrap_or_default());
        }
        placement.enter(&self.services, snapshot);
    }

    /// Whether somebody shall look through the flow tables ([`Self::sweep`]): until then new flows of some ports are all for
    /// workers.
    pub(crate) fn wants_sweep(&self) -> bool {
        self.lock_placement().is_unsettled()
    }

    /// Begins to do so, when no worker judges by a table that is older than this one.
    pub(crate) fn sweep<'a>(&'a self, snapshot: &'a Snapshot) -> Sweep<'a> {
        let memory = (&self.elsewhere, &self.settings);
        Sweep::begin(snapshot, self.hash_key, memory, &self.services, &self.placement)
    }

    /// Has this program see the frames that as yet the one of the process before sees: when this process could do as well,
    /// because it has a table, and knows the MAC addresses in it as far as they can be known soon.
    pub(crate) fn take_over(&self, snapshot: &Snapshot) {
        let is_unknown = |backend: &Backend| {
            let is_asked_for = backend.state == BackendState::Active && backend.port().is_some() && !backend.is_self;
            is_asked_for && backend.mac().is_none() && backend.runtime.liveness() != Liveness::Silent
        };
        let mut interfaces = self.lock_interfaces();
        if !interfaces.has_some_of_before() || snapshot.vips.is_empty() {
            return;
        }
        let has_waited = self.waits_since.get_or_init(Instant::now).elapsed() > WAIT_FOR_MACS;
        if !has_waited && snapshot.backends().any(is_unknown) {
            return;
        }
        let is_whole = interfaces.take_over(&self.program);
        drop(interfaces);
        if !is_whole {
            self.follow(snapshot);
        }
    }

    /// It stays on its interfaces, as when this process is killed, if somebody keeps its links: [`Self::end`] does nothing.
    pub(crate) fn stay(&self) {
        self.stays.store(true, Ordering::Relaxed);
    }

    /// Takes it off all interfaces.
    pub(crate) fn end(&self) {
        if !self.stays.load(Ordering::Relaxed) {
            self.pause();
            self.lock_interfaces().end();
        }
    }

    fn enter_backend(&self, slot: usize, snapshot: &Snapshot, backend: Option<&Backend>, service: u32) {
        let first = slot * BACKEND_WORDS;
        let words = &self.backends[first..first + BACKEND_WORDS];
        let words_of = |backend| layout::backend(snapshot, backend, service);
        let [name, given, way] = backend.and_then(words_of).unwrap_or_default();
        let is = |at: usize, value: u64| words[at].load(Ordering::Relaxed) == value;
        if let Some(backend) = backend {
            backend.runtime.show_mac_in(&self.backends, first + RESOLVED_MAC);
        }
        if is(NAME, name) && is(GIVEN_MAC, given) && is(WAY, way) {
            return;
        }
        // Nobody is found here until all is written.
        words[NAME].store(0, Ordering::Release);
        words[GIVEN_MAC].store(given, Ordering::Release);
        words[WAY].store(way, Ordering::Release);
        words[NAME].store(name, Ordering::Release);
    }

    fn enter_ports(&self, specs: &[PortSpec]) {
        for (spec, redirects) in specs.iter().zip(self.lock_interfaces().ways()) {
            let Some(redirects) = redirects else { continue };
            let first = spec.ifindex as usize * PORT_WORDS;
            let words = &self.of_ports[first..first + PORT_WORDS];
            let value = layout::port(spec, redirects);
            if words.iter().zip(value).all(|(word, value)| word.load(Ordering::Relaxed) == value) {
                continue;
            }
            let device = [spec.ifindex.to_ne_bytes(), [0; 4]];
            // Where it is not known, its frames are passed.
            match self.devices.set(&spec.ifindex.to_ne_bytes(), device.as_flattened()) {
                Ok(()) => words.iter().zip(value).rev().for_each(|(word, value)| word.store(value, Ordering::Release)),
                Err(error) => tracing::warn!(%error, "{} is not accelerated", spec.name),
            }
        }
    }

    /// Other load balancers, and this one.
    fn enter_strangers(&self, all: impl Iterator<Item = Mac>) {
        let mut known = self.known_strangers.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted: HashSet<[u8; 8]> = all.map(layout::stranger).collect();
        let bits = |of: &HashSet<[u8; 8]>| of.iter().fold(0, |bits, key| bits | layout::stranger_bit(*key));
        for key in wanted.difference(&known) {
            if let Err(error) = self.strangers.set(key, &[0; 8]) {
                tracing::warn!(%error, "the accelerator does not know a load balancer");
            }
        }
        self.settings[STRANGERS].store(bits(&wanted), Ordering::Release);
        for key in known.difference(&wanted) {
            let _ = self.strangers.remove(key);
        }
        *known = wanted;
    }

    fn lock_placement(&self) -> MutexGuard<'_, Placement> {
        self.placement.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_interfaces(&self) -> MutexGuard<'_, Interfaces> {
        self.interfaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A frame of a flow that a worker knows goes from one interface to a backend on another: its next ones need not come to
    /// the worker for a while.
    #[inline]
    pub(crate) fn enter_flow(
        &self,
        snapshot: &Snapshot,
        packet: &FlowPacket,
        (came_by, leaves_by): (usize, usize),
        backend: &Backend,
        now_ns: u64,
    ) {
        let both = 1 << came_by | 1 << leaves_by;
        let is_seen = self.sees.load(Ordering::Relaxed) & both == both;
        if !is_seen || packet.is_flagged() || backend.reference.slot() >= SLOTS {
            return;
        }
        let (flow, table) = self.find(packet);
        flow.enter(table, layout::name(snapshot, backend), Tick::from_ns(now_ns));
    }

    /// Its next frame is for a worker.
    pub(crate) fn forget_flow(&self, packet: &FlowPacket) {
        let (flow, table) = self.find(packet);
        flow.forget(table);
    }

    fn find(&self, packet: &FlowPacket) -> (FlowAt, &Words) {
        let flow = FlowAt::new(&packet.tuple, self.hash_key);
        let table = match flow.family {
            Family::V4 => &self.flows_v4,
            Family::V6 => &self.flows_v6,
        };
        (flow, table)
    }

    /// The tables are good for a while: a worker that works says so again and again.
    pub(crate) fn go_on(&self, now_ns: u64) {
        let until_ns = &self.settings[VALID_UNTIL];
        // Every frame on every processor reads it: it is written seldom.
        if until_ns.load(Ordering::Relaxed) < now_ns + VALID_NS - VALID_STEP_NS {
            until_ns.store(now_ns + VALID_NS, Ordering::Relaxed);
        }
    }

    /// Everything is passed from now on.
    pub(crate) fn pause(&self) {
        self.settings[VALID_UNTIL].store(0, Ordering::Relaxed);
    }

    /// Shows what was forwarded since the last time: how many frames, and for each backend how many packets, bytes and new
    /// flows. And has the processors that are at work share what workers shall look at.
    pub(crate) fn harvest(&self, snapshot: &Snapshot, each: impl FnMut(&Backend, [u64; TRAFFIC_WORDS])) -> u64 {
        let Harvest { forwarded, at_work } = self.counters.harvest(snapshot, each);
        let frame_ns = FOR_A_FRAME_NS * at_work.max(PROCESSORS_AT_WORK) / PROCESSORS_AT_WORK;
        // Every frame reads what stands beside it.
        if self.settings[FRAME_NS].load(Ordering::Relaxed) != frame_ns {
            self.settings[FRAME_NS].store(frame_ns, Ordering::Relaxed);
        }
        forwarded
    }

    /// How it fares.
    pub(crate) fn report(&self) -> AcceleratorReport {
        AcceleratorReport {
            interfaces: self.lock_interfaces().shown(),
            forwarded: self.counters.count(0),
            placed: self.counters.count(PLACED),
            passed: PASSED.iter().zip(1..).map(|(reason, at)| (*reason, self.counters.count(at))).collect(),
        }
    }

    /// One on no interface, for test runs of its program with the index of one. `None` without the right to it.
    #[cfg(test)]
    pub(crate) fn detached(ifindex: u32, redirects: bool) -> Option<Self> {
        let accelerator = match Self::start(Accelerate::Auto, &[], 1 << 12, OfBefore::new(None)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return None,
            started => started.unwrap(),
        };
        accelerator.lock_interfaces().pretend(ifindex, redirects);
        Some(accelerator)
    }

    /// What the program makes of a frame.
    #[cfg(test)]
    pub(crate) fn run(&self, frame: &[u8], ifindex: u32) -> crate::io::sys::bpf::Ran {
        self.program.run(frame, ifindex).unwrap()
    }

    /// All new flows are more than workers shall look at.
    #[cfg(test)]
    pub(crate) fn leave_nothing_to_workers(&self) {
        self.settings[FRAME_NS].store(u64::MAX, Ordering::Release);
    }

    /// Whether new flows are placed that are like this one.
    #[cfg(test)]
    pub(crate) fn places(&self, tuple: &crate::packet::Tuple) -> bool {
        self.services.is_open(&services::PortKey::new(tuple.destination, tuple.protocol, tuple.destination_port))
    }

    /// New flows are placed elsewhere, as by a fault.
    #[cfg(test)]
    pub(crate) fn misplace(&self) {
        self.lock_placement().confuse();
    }

    /// Every backend has another MAC address, as by a fault.
    #[cfg(test)]
    pub(crate) fn confuse(&self) {
        for backend in self.backends.chunks(BACKEND_WORDS) {
            backend[GIVEN_MAC].fetch_xor(1, Ordering::Relaxed);
        }
    }
}

/// How many processors are "online", or "possible", by the highest number.
fn count_processors(which: &str) -> io::Result<usize> {
    let listed = std::fs::read_to_string(format!("/sys/devices/system/cpu/{which}"))?;
    let last = listed.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| (last + 1).min(PROCESSORS)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
