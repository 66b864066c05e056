//! The accelerator: an XDP program that forwards frames of known flows before they become packets of the kernel.
//!
//! It is a cache of what the workers have decided. A worker that forwards a frame of a flow that it knows enters the flow
//! ([`Accelerator::enter_flow`]); for a while, less than the flow's timeout, the program forwards its frames by itself, and then passes one
//! again, by which the worker sees that the flow lives. So there is one truth, the workers' flow tables, whatever becomes of
//! the program. Whom it may forward to stands in its table of backends, which is written with each published table
//! ([`Accelerator::follow`]). When nobody pushes its deadline forward it passes everything.

mod features;
mod layout;

use std::{
    collections::{HashSet, hash_map::RandomState},
    hash::BuildHasher as _,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use layout::{
    BACKEND_WORDS, FRESH, Family, FlowAt, GIVEN_MAC, HASH_KEY, MASKS, NAME, PASSED, PORT_WORDS, PORTS, PROCESSOR_WORDS,
    PROCESSORS, RESOLVED_MAC, SLOTS, STRANGERS, TRAFFIC_WORDS, VALID_UNTIL, WAY,
};

use crate::{
    forward::{
        flow::Tick,
        snapshot::{Backend, Snapshot},
        spec::PortSpec,
    },
    io::{
        PortConfig, XdpMode, driver,
        sys::bpf::{Link, Map, Program, Words},
        takes_tags_off,
    },
    packet::{FlowPacket, Mac},
};

/// The program, compiled by `bpf/build.sh`.
const OBJECT: &[u8] = include_bytes!("../../bpf/accelerator.bpf.o");
/// So long after a worker's last turn the tables are good.
const VALID_NS: u64 = 10_000_000_000;
/// An entry is good for so long, and flows are remembered for so much longer where there is an accelerator: the worker sees
/// one packet of each in that time.
pub(crate) const FRESH_S: u32 = 60;
/// Interfaces of these drivers lead to machines that leave checksums to hardware which there is not: native XDP would have
/// them made in software, and turns the sender's segmentation off.
const VIRTUAL: [&str; 3] = ["veth", "virtio_net", "tun"];

/// Whether an XDP program forwards known flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accelerate {
    /// None does.
    #[default]
    Off,
    /// On each interface that can have one, in the mode that suits it.
    Auto,
    /// On all of them, in the driver where that can be: else nothing starts.
    Xdp,
}

/// A running accelerator.
#[derive(Debug)]
pub(crate) struct Accelerator {
    choice: Accelerate,
    program: Program,
    strangers: Map,
    devices: Map,
    of_ports: Words,
    flows_v4: Words,
    flows_v6: Words,
    hash_key: u64,
    settings: Words,
    backends: Arc<Words>,
    traffic: Words,
    processors: Words,
    ports: Mutex<Ports>,
    /// A bit for each interface whose frames it sees.
    sees: AtomicU64,
    harvested: Mutex<Harvested>,
}

#[derive(Debug, Default)]
struct Ports {
    all: Vec<Port>,
    strangers: HashSet<[u8; 8]>,
}

#[derive(Debug)]
struct Port {
    name: String,
    ifindex: u32,
    /// Or why it is not there.
    attached: Result<Attached, String>,
    /// Why it is not in the better mode.
    reason: Option<String>,
    /// What the program knows of it.
    entered: Option<[u64; PORT_WORDS]>,
}

#[derive(Debug)]
struct Attached {
    mode: XdpMode,
    /// Its frames have to leave by the map of devices.
    redirects: bool,
    /// `None` in a test run.
    _link: Option<Link>,
}

/// What was read of the program's counters.
#[derive(Debug, Default)]
struct Harvested {
    forwarded: u64,
    by_slot: Vec<[u64; TRAFFIC_WORDS]>,
}

/// How the frames of an interface are accelerated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceleration {
    /// The interface.
    pub interface: String,
    /// The mode; `None` if they are not.
    pub mode: Option<XdpMode>,
    /// Why they are not, or not in the better mode.
    pub reason: Option<String>,
}

/// What the program has done, over all processors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AcceleratorReport {
    /// Each interface.
    pub interfaces: Vec<Acceleration>,
    /// Frames that it forwarded.
    pub forwarded: u64,
    /// Frames that it passed to the usual way, by reason.
    pub passed: Vec<(&'static str, u64)>,
}

impl Accelerator {
    /// Loads the program and has it see the frames of all interfaces; it passes them until [`Self::follow`].
    ///
    /// # Errors
    /// The kernel does not take it, or it is asked for and some interface cannot have it.
    pub(crate) fn start(choice: Accelerate, ports: &[PortConfig], flows: usize) -> io::Result<Self> {
        let processors = possible_processors()?;
        let groups = [layout::groups(flows, Family::V4), layout::groups(flows / 4, Family::V6)];
        let [settings, of_ports, strangers, flows_v4, flows_v6, backends, traffic, counts, devices] =
            layout::shapes(processors, groups).map(Map::new);
        let (settings, of_ports, strangers, backends) = (settings?, of_ports?, strangers?, backends?);
        let (flows_v4, flows_v6, traffic, counts, devices) = (flows_v4?, flows_v6?, traffic?, counts?, devices?);
        let known = [&settings, &of_ports, &strangers, &flows_v4, &flows_v6, &backends, &traffic, &counts, &devices];
        let program = Program::load(OBJECT, "accelerator", &known)?;
        let accelerator = Self {
            choice,
            program,
            of_ports: of_ports.words()?,
            settings: settings.words()?,
            backends: Arc::new(backends.words()?),
            traffic: traffic.words()?,
            processors: counts.words()?,
            flows_v4: flows_v4.words()?,
            flows_v6: flows_v6.words()?,
            // Nobody outside knows it.
            hash_key: RandomState::new().hash_one(processors),
            strangers,
            devices,
            ports: Mutex::default(),
            sees: AtomicU64::new(0),
            harvested: Mutex::default(),
        };
        accelerator.settings[HASH_KEY].store(accelerator.hash_key, Ordering::Release);
        let [v4, v6] = groups.map(|groups| groups as u64 - 1);
        accelerator.settings[MASKS].store(v6 << 32 | v4, Ordering::Release);
        let all: Vec<(String, u32)> = ports.iter().map(|port| (port.name.clone(), port.ifindex)).collect();
        accelerator.attach(&all);
        if choice == Accelerate::Xdp {
            let refused = accelerator.report().interfaces.into_iter().find(|of| of.mode.is_none());
            if let Some(Acceleration { interface, reason, .. }) = refused {
                let reason = reason.unwrap_or_default();
                return Err(io::Error::other(format!("{interface}: {reason}")));
            }
        }
        Ok(accelerator)
    }

    /// Works by a table from now on: at once, but not at one moment. A frame is forwarded by the one before or by this
    /// one, and where that is not sure, passed.
    pub(crate) fn follow(&self, snapshot: &Snapshot) {
        let all: Vec<(String, u32)> = snapshot.ports.iter().map(|port| (port.name.clone(), port.ifindex)).collect();
        self.attach(&all);
        self.enter_ports(&snapshot.ports, &snapshot.peer_macs);
        self.settings[FRESH].store(Tick::from_secs(FRESH_S.into()).into(), Ordering::Relaxed);
        let mut known: Vec<Option<&Backend>> = vec![None; SLOTS];
        for backend in snapshot.backends() {
            if let Some(place) = known.get_mut(backend.reference.slot()) {
                *place = Some(backend);
            }
        }
        for (slot, backend) in known.into_iter().enumerate() {
            self.enter_backend(slot, snapshot, backend);
        }
    }

    fn enter_backend(&self, slot: usize, snapshot: &Snapshot, backend: Option<&Backend>) {
        let first = slot * BACKEND_WORDS;
        let words = &self.backends[first..first + BACKEND_WORDS];
        let [name, given, way] = backend.and_then(|backend| layout::backend(snapshot, backend)).unwrap_or_default();
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

    /// Has the program see the frames of these interfaces, which may be others than before under the same names.
    fn attach(&self, wanted: &[(String, u32)]) {
        let mut ports = self.lock_ports();
        for (at, (name, ifindex)) in wanted.iter().enumerate() {
            if ports.all.get(at).is_some_and(|port| port.ifindex == *ifindex) {
                continue;
            }
            let (attached, reason) = self.attach_one(name, *ifindex, wanted);
            match &attached {
                Ok(attached) => {
                    let mode = attached.mode;
                    tracing::info!(reason = reason.as_deref(), "{name} is accelerated ({mode} XDP)");
                }
                Err(reason) => tracing::info!("{name} is not accelerated: {reason}"),
            }
            let port = Port { name: name.clone(), ifindex: *ifindex, attached, reason, entered: None };
            match ports.all.get_mut(at) {
                Some(place) => {
                    let before = std::mem::replace(place, port);
                    self.forget_port(&before);
                }
                None => ports.all.push(port),
            }
        }
        let sees = ports.all.iter().enumerate().filter(|(_, port)| port.attached.is_ok());
        self.sees.store(sees.fold(0, |bits, (at, _)| bits | 1 << at), Ordering::Release);
    }

    fn forget_port(&self, port: &Port) {
        if let Some(word) = self.of_ports.get(port.ifindex as usize * PORT_WORDS) {
            word.store(0, Ordering::Relaxed);
        }
        // What is not there any more is found by nobody.
        let _ = self.devices.remove(&port.ifindex.to_ne_bytes());
    }

    fn attach_one(
        &self,
        name: &str,
        ifindex: u32,
        all: &[(String, u32)],
    ) -> (Result<Attached, String>, Option<String>) {
        if ifindex == 0 {
            return (Err("it is gone".to_owned()), None);
        }
        if ifindex as usize >= PORTS {
            return (Err(format!("its index is {ifindex}, and those below {PORTS} are looked after")), None);
        }
        if takes_tags_off(name).unwrap_or(false) {
            let reason = format!(
                "it takes VLAN tags off before XDP sees a frame, so that those of other VLANs look like ours: ethtool -K {name} rxvlan off"
            );
            return (Err(reason), None);
        }
        let driver = driver(name).unwrap_or_default();
        let native = self.may_be_native(&driver, ifindex, all);
        let attach = |mode| {
            let redirects = mode == XdpMode::Native && driver == "veth";
            let link = self.program.attach(ifindex, mode)?;
            Ok(Attached { mode, redirects, _link: Some(link) })
        };
        let mut reason = native.err();
        if reason.is_none() {
            match attach(XdpMode::Native) {
                Ok(attached) => return (Ok(attached), None),
                Err(error) => reason = Some(refused(&error)),
            }
        }
        match attach(XdpMode::Generic) {
            Ok(attached) => (Ok(attached), reason),
            Err(error) => (Err(refused(&error)), None),
        }
    }

    /// Whether the driver can run it, and frames arrive that it sends.
    fn may_be_native(&self, driver: &str, ifindex: u32, all: &[(String, u32)]) -> Result<(), String> {
        if self.choice == Accelerate::Auto && VIRTUAL.contains(&driver) {
            return Err(format!("{driver} is faster so: whoever sends there leaves checksums and segments to it"));
        }
        let unknown = |error: io::Error| format!("the kernel does not say what its driver can do ({error})");
        let has = |features: u64, wanted: u64| features & wanted == wanted;
        if !has(features::of(ifindex).map_err(unknown)?, features::BASIC | features::REDIRECT) {
            return Err(format!("its driver ({driver}) has no native XDP"));
        }
        // By XDP_TX drivers send without it, but for veth, which loses such frames.
        let leaves_by = |other: u32| other != ifindex || driver == "veth";
        for (name, other) in all.iter().filter(|(_, other)| *other != 0 && leaves_by(*other)) {
            if !has(features::of(*other).map_err(unknown)?, features::NDO_XMIT) {
                return Err(format!("{name}, by which frames leave, does not send what a program hands over"));
            }
        }
        Ok(())
    }

    fn enter_ports(&self, specs: &[PortSpec], peers: &[Mac]) {
        let mut ports = self.lock_ports();
        for (port, spec) in ports.all.iter_mut().zip(specs) {
            let Ok(attached) = &port.attached else { continue };
            let value = layout::port(spec, attached.redirects);
            if port.entered == Some(value) {
                continue;
            }
            let index = spec.ifindex.to_ne_bytes();
            let device = [spec.ifindex.to_ne_bytes(), [0; 4]];
            // Where it is not known, its frames are passed.
            if let Err(error) = self.devices.set(&index, device.as_flattened()) {
                tracing::warn!(%error, "{} is not accelerated", port.name);
                continue;
            }
            let words = self.of_ports.iter().skip(spec.ifindex as usize * PORT_WORDS);
            for (word, value) in words.zip(value).collect::<Vec<_>>().into_iter().rev() {
                word.store(value, Ordering::Release);
            }
            port.entered = Some(value);
        }
        let own = specs.iter().map(|port| port.mac);
        let wanted: HashSet<[u8; 8]> = own.chain(peers.iter().copied()).map(layout::stranger).collect();
        for key in wanted.difference(&ports.strangers) {
            if let Err(error) = self.strangers.set(key, &[0; 8]) {
                tracing::warn!(%error, "the accelerator does not know a load balancer");
            }
        }
        for key in ports.strangers.difference(&wanted) {
            let _ = self.strangers.remove(key);
        }
        let bits = wanted.iter().fold(0, |bits, key| bits | layout::stranger_bit(*key));
        self.settings[STRANGERS].store(bits, Ordering::Release);
        ports.strangers = wanted;
    }

    fn lock_ports(&self) -> std::sync::MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
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
        if !is_seen || packet.opens || packet.ends || packet.resets || backend.reference.slot() >= SLOTS {
            return;
        }
        let flow = FlowAt::new(&packet.tuple, self.hash_key);
        let table = match flow.family {
            Family::V4 => &self.flows_v4,
            Family::V6 => &self.flows_v6,
        };
        flow.enter(table, layout::name(snapshot, backend), Tick::from_ns(now_ns));
    }

    /// The tables are good for a while: a worker that works says so again and again.
    pub(crate) fn go_on(&self, now_ns: u64) {
        self.settings[VALID_UNTIL].store(now_ns + VALID_NS, Ordering::Relaxed);
    }

    /// Everything is passed from now on.
    pub(crate) fn pause(&self) {
        self.settings[VALID_UNTIL].store(0, Ordering::Relaxed);
    }

    /// Shows what was forwarded since the last time: how many frames, and for each backend how many packets and bytes.
    pub(crate) fn harvest(&self, snapshot: &Snapshot, mut each: impl FnMut(&Backend, u64, u64)) -> u64 {
        let mut harvested = self.harvested.lock().unwrap_or_else(PoisonError::into_inner);
        let harvested = &mut *harvested;
        let total = self.count(0);
        let forwarded = total - std::mem::replace(&mut harvested.forwarded, total);
        if forwarded == 0 {
            return 0;
        }
        harvested.by_slot.resize(SLOTS, [0; TRAFFIC_WORDS]);
        for backend in snapshot.backends() {
            let slot = backend.reference.slot();
            let Some(before) = harvested.by_slot.get_mut(slot) else { continue };
            let now: [u64; TRAFFIC_WORDS] = std::array::from_fn(|which| {
                let all = self.traffic.iter().skip(slot * TRAFFIC_WORDS + which).step_by(SLOTS * TRAFFIC_WORDS);
                all.map(|word| word.load(Ordering::Relaxed)).sum()
            });
            let [packets, bytes] = [0, 1].map(|which| now[which] - before[which]);
            if packets > 0 {
                each(backend, packets, bytes);
            }
            *before = now;
        }
        forwarded
    }

    fn count(&self, reason: usize) -> u64 {
        self.processors.iter().skip(reason).step_by(PROCESSOR_WORDS).map(|word| word.load(Ordering::Relaxed)).sum()
    }

    /// How it fares.
    pub(crate) fn report(&self) -> AcceleratorReport {
        let shown = |port: &Port| Acceleration {
            interface: port.name.clone(),
            mode: port.attached.as_ref().ok().map(|attached| attached.mode),
            reason: port.attached.as_ref().err().or(port.reason.as_ref()).cloned(),
        };
        AcceleratorReport {
            interfaces: self.lock_ports().all.iter().map(shown).collect(),
            forwarded: self.count(0),
            passed: PASSED.iter().zip(1..).map(|(reason, at)| (*reason, self.count(at))).collect(),
        }
    }

    /// One on no interface, for test runs of its program with the index of one. `None` without the right to it.
    #[cfg(test)]
    pub(crate) fn detached(ifindex: u32, redirects: bool) -> Option<Self> {
        let accelerator = match Self::start(Accelerate::Auto, &[], 1 << 12) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return None,
            started => started.unwrap(),
        };
        let attached = Ok(Attached { mode: XdpMode::Native, redirects, _link: None });
        let port = Port { name: "test".into(), ifindex, attached, reason: None, entered: None };
        accelerator.lock_ports().all.push(port);
        Some(accelerator)
    }

    /// What the program makes of a frame.
    #[cfg(test)]
    pub(crate) fn run(&self, frame: &[u8], ifindex: u32) -> crate::io::sys::bpf::Ran {
        self.program.run(frame, ifindex).unwrap()
    }

    /// Every backend has another MAC address, as by a fault.
    #[cfg(test)]
    pub(crate) fn confuse(&self) {
        for backend in self.backends.chunks(BACKEND_WORDS) {
            backend[GIVEN_MAC].fetch_xor(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Accelerator {
    fn drop(&mut self) {
        self.pause();
    }
}

/// Why the kernel does not attach it, in words where there are.
fn refused(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => "another program has it (ip link show)".to_owned(),
        Some(libc::ERANGE) => format!("its MTU is too large for native XDP ({error})"),
        _ => error.to_string(),
    }
}

/// How many processors there can be.
fn possible_processors() -> io::Result<usize> {
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = possible.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| (last + 1).min(PROCESSORS)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
