//! Whoever can forward the frames: our engines, and what they are measured against.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;
use lb_dataplane::{
    Accelerate, Config, Dataplane, TapFilter, XdpMode,
    forward::spec::{BackendSpec, BackendState, PortRangeSpec, PortSpec, ServiceSpec, TableSpec, Timeouts, VipSpec},
    guard::{self, Guard},
    io::{EngineKind, PortConfig},
    packet::{Mac, Protocol},
};
use lb_tests::{
    netns::Namespace,
    sys::{bpf, reference},
};

use crate::chain::pin;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forwarder {
    /// recvmmsg and sendmmsg with PACKET_VNET_HDR, as one would write it in an afternoon.
    Reference,
    Engine(EngineKind),
    /// The ring engine while somebody captures: all, or what is dropped.
    Captured {
        only_drops: bool,
    },
    /// The same, its worker before all others on the core (`dataplane.realtime`).
    Realtime(EngineKind),
    /// The same with two workers, both on the core.
    TwoWorkers(EngineKind),
    /// The same, its worker awake for a while after each frame (`dataplane.busy_poll_us`).
    BusyPolling(EngineKind),
    /// The ring engine, with the accelerator in front of it (`dataplane.accelerator`), in one mode.
    Accelerated(XdpMode),
    /// A program that swaps the MAC addresses of each frame and sends it back: nothing can be faster.
    Reflector,
    Nftables,
    /// A bridge of the kernel, whose only port takes frames back (hairpin).
    Bridge,
}

impl fmt::Display for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reference => f.write_str("recvmmsg/sendmmsg"),
            Self::Engine(kind) => write!(f, "lbd, engine {kind}"),
            Self::Captured { only_drops: false } => f.write_str("with a capture of all"),
            Self::Captured { only_drops: true } => f.write_str("with one of drops"),
            Self::Realtime(kind) => write!(f, "lbd, {kind}, realtime"),
            Self::TwoWorkers(kind) => write!(f, "lbd, {kind}, two workers"),
            Self::BusyPolling(kind) => write!(f, "lbd, {kind}, busy polling"),
            Self::Accelerated(mode) => write!(f, "lbd, {mode} accelerator"),
            Self::Reflector => f.write_str("bare XDP reflector"),
            Self::Nftables => f.write_str("nftables fwd"),
            Self::Bridge => f.write_str("kernel bridge"),
        }
    }
}

/// Where to forward, and whereto.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) namespace: Namespace,
    pub(crate) interface: &'static str,
    pub(crate) ifindex: u32,
    pub(crate) mac: Mac,
    /// The first VIP, and how many follow each other.
    pub(crate) vip: Ipv4Addr,
    pub(crate) vips: u32,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) backends: Vec<Mac>,
    /// Slots of the flow table. Memory that is touched for the first time takes long to come in a virtual machine.
    pub(crate) flow_capacity: usize,
    /// Where a process forwards.
    pub(crate) cpu: usize,
}

impl Forwarder {
    /// Why it cannot run here.
    pub(crate) fn missing(self) -> Option<&'static str> {
        let nft = || Command::new("nft").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        (self == Self::Nftables && nft().is_err())
            .then_some("'nft' is not installed (Debian: apt-get install nftables)")
    }

    /// How the threads are called that forward in user space.
    pub(crate) fn threads(self) -> &'static str {
        match self {
            Self::Reference => REFERENCE_THREAD,
            Self::Engine(_)
            | Self::Realtime(_)
            | Self::TwoWorkers(_)
            | Self::BusyPolling(_)
            | Self::Accelerated(_)
            | Self::Captured { .. } => "dataplane",
            Self::Nftables | Self::Bridge | Self::Reflector => "",
        }
    }

    /// Does some work while it forwards.
    pub(crate) fn during<T>(self, site: &Site, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        match self {
            Self::Reference => with_reference(site, work),
            Self::Engine(kind) => with_engine(site, kind, Manner::Usual, |_| work()),
            Self::Captured { only_drops } => with_engine(site, EngineKind::Ring, Manner::Usual, |dataplane| {
                while_captured(dataplane, only_drops, work)
            }),
            Self::Realtime(kind) => with_engine(site, kind, Manner::Realtime, |_| work()),
            Self::TwoWorkers(kind) => with_engine(site, kind, Manner::TwoWorkers, |_| work()),
            Self::BusyPolling(kind) => with_engine(site, kind, Manner::BusyPolling, |_| work()),
            Self::Accelerated(mode) => with_engine(site, EngineKind::Ring, Manner::Accelerated(mode), |dataplane| {
                let modes = dataplane.accelerator().context("an accelerator")?.map_err(anyhow::Error::msg)?.interfaces;
                anyhow::ensure!(modes.iter().all(|of| of.mode == Some(mode)), "not {mode}: {modes:?}");
                work()
            }),
            Self::Reflector => {
                let _reflector = site.namespace.enter(|| bpf::Reflector::attach(site.ifindex))?;
                work()
            }
            Self::Nftables => with_nftables(site, work),
            Self::Bridge => with_bridge(site, work),
        }
    }
}

const REFERENCE_THREAD: &str = "reference";

/// Does some work while a capture is read to its end.
fn while_captured<T>(
    dataplane: &Dataplane,
    only_drops: bool,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let capture = dataplane.capture(TapFilter { only_drops, ..TapFilter::default() }).context("a capture")?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopped = &stop;
        scope.spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                drop(capture.next(Duration::from_millis(20)));
            }
        });
        let outcome = work();
        stop.store(true, Ordering::Relaxed);
        outcome
    })
}

/// How a worker waits for its turn and for frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    Usual,
    Realtime,
    TwoWorkers,
    BusyPolling,
    Accelerated(XdpMode),
}

/// As the documents recommend it.
const BUSY_POLL: Duration = Duration::from_micros(200);

/// Does some work while an engine forwards.
pub(crate) fn with_engine<T>(
    site: &Site,
    kind: EngineKind,
    manner: Manner,
    work: impl FnOnce(&Dataplane) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let dataplane = site.namespace.enter(|| {
        pin(site.cpu);
        let port = PortConfig { name: site.interface.into(), ifindex: site.ifindex, mtu: 1500 };
        let flow_capacity = site.flow_capacity;
        let config = Config {
            ports: vec![port],
            engine: Some(kind),
            workers: if manner == Manner::TwoWorkers { 2 } else { 1 },
            realtime: manner == Manner::Realtime,
            // The cables are of a kind that is generic by choice.
            accelerate: match manner {
                Manner::Accelerated(XdpMode::Native) => Accelerate::Xdp,
                Manner::Accelerated(XdpMode::Generic) => Accelerate::Auto,
                _ => Accelerate::Off,
            },
            link_keeper: None,
            busy_poll: if manner == Manner::BusyPolling { BUSY_POLL } else { Duration::ZERO },
            cpus: Vec::new(),
            flow_capacity,
            guard: guard::Ownership::Own,
        };
        let dataplane = Dataplane::start(&config)?;
        let generation = dataplane.publish(&table_spec(site))?;
        dataplane.wait_for_table(generation, Duration::from_secs(5));
        anyhow::Ok(dataplane)
    })?;
    let outcome = work(&dataplane);
    site.namespace.enter(|| dataplane.stop())?;
    outcome
}

fn table_spec(site: &Site) -> TableSpec {
    let backend = |(mac, number): (&Mac, u8)| BackendSpec {
        id: number.into(),
        address: IpAddr::from([10, 0, 0, 100 + number]),
        mac: Some(*mac),
        weight: 1,
        state: BackendState::Active,
    };
    let vip = |number: u32| VipSpec {
        address: Ipv4Addr::from(u32::from(site.vip) + number).into(),
        answer_on: vec![0],
        rejects: false,
        services: vec![ServiceSpec {
            name: format!("service{number}"),
            ports: vec![PortRangeSpec { protocol: site.protocol, first: site.port, last: site.port }],
            by_source: false,
            resets_flows: false,
            table_size: 16_381,
            backends: site
                .backends
                .iter()
                .zip(1..)
                .map(backend)
                .map(|b| BackendSpec { id: b.id + u64::from(number) * 256, ..b })
                .collect(),
        }],
    };
    TableSpec {
        hash_key: 0x1234_5678,
        ports: vec![PortSpec {
            name: site.interface.into(),
            ifindex: site.ifindex,
            mac: site.mac,
            mtu: 1500,
            carrier: true,
            segments: true,
            addresses: vec![(Ipv4Addr::new(10, 0, 0, 2).into(), 24)],
        }],
        vips: (0..site.vips).map(vip).collect(),
        timeouts: Timeouts::default(),
        ..TableSpec::default()
    }
}

fn with_reference<T>(site: &Site, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let stop = Arc::new(AtomicBool::new(false));
    // The same guard as ours: without it the kernel would also handle every packet.
    let mut guard = site.namespace.enter(|| Guard::keep(guard::Ownership::Own))?;
    guard.install(&[site.interface.into()], &[site.vip.into()])?;
    let outcome = thread::scope(|scope| {
        let (stopped, site) = (stop.clone(), site.clone());
        let forward = move || {
            site.namespace.enter(|| {
                pin(site.cpu);
                // The thread that enters the namespace is another one.
                rustix::thread::set_name(c"reference")?;
                let backends: Vec<[u8; 6]> = site.backends.iter().map(|mac| mac.0).collect();
                reference::forward(site.ifindex, site.vip.octets(), site.mac.0, &backends, &stopped)
            })
        };
        let forwarder = scope.spawn(forward);
        let outcome = work();
        stop.store(true, Ordering::Relaxed);
        forwarder.join().map_err(|_| anyhow::anyhow!("the reference panicked"))?.context("the reference")?;
        outcome
    });
    guard.remove()?;
    outcome
}

fn with_nftables<T>(site: &Site, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let protocol = match site.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let map: Vec<String> = site.backends.iter().zip(0..).map(|(mac, number)| format!("{number} : {mac}")).collect();
    let Site { interface, mac, port, .. } = site;
    let vip = match site.vips {
        1 => site.vip.to_string(),
        vips => format!("{}-{}", site.vip, Ipv4Addr::from(u32::from(site.vip) + vips - 1)),
    };
    let rules = format!(
        "table netdev bench {{\n chain in {{\n type filter hook ingress device {interface} priority 0; policy accept;\n \
         ip daddr {vip} {protocol} dport {port} ether saddr set {mac} ether daddr set \
         jhash ip saddr . {protocol} sport mod {} map {{ {} }} fwd to {interface}\n }}\n}}\n",
        map.len(),
        map.join(", ")
    );
    nft(site, &rules)?;
    let outcome = work();
    nft(site, "delete table netdev bench")?;
    outcome
}

fn nft(site: &Site, rules: &str) -> anyhow::Result<()> {
    let status = site.namespace.command("nft")?.arg(rules).status()?;
    anyhow::ensure!(status.success(), "nft refuses: {rules}");
    Ok(())
}

fn with_bridge<T>(site: &Site, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    use rtnetlink::{
        LinkBridge, LinkBridgePort, LinkUnspec,
        packet_route::{
            link::BridgeStpState,
            neighbour::{NeighbourFlags, NeighbourState},
        },
    };
    site.namespace.netlink(async |handle| {
        let bridge = LinkBridge::new("br0").stp_state(BridgeStpState::Disabled).up();
        handle.link().add(bridge.build()).execute().await
    })?;
    let bridge = site.namespace.ifindex("br0")?;
    site.namespace.netlink(async |handle| {
        handle.link().set(LinkUnspec::new_with_index(site.ifindex).controller(bridge).build()).execute().await?;
        let port = LinkBridgePort::new(site.ifindex).hairpin(true);
        handle.link().set_port(port.build()).execute().await?;
        for backend in &site.backends {
            let entry = handle.neighbours().add_bridge(site.ifindex, &backend.0);
            // Static: a permanent one would be an address of the bridge's own.
            let entry = entry.flags(NeighbourFlags::Controller).state(NeighbourState::Noarp);
            entry.execute().await?;
        }
        Ok(())
    })?;
    let outcome = work();
    site.namespace.netlink(async |handle| handle.link().del(bridge).execute().await)?;
    outcome
}
