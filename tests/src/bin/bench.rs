//! The benchmark: `cargo lb-bench`. Pure costs first; then packets forwarded per second at a saturating
//! rate, all load-balancer work on one core, each engine and its peers in one run.
//!
//! Absolute numbers are those of this machine; quote the ratios.

use std::{
    fs,
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    process::{Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use etherparse::PacketBuilder;
use lb_dataplane::{
    Config, Dataplane,
    forward::{
        decide::decide,
        flow::{FlowTable, Tick, Timeouts},
        hash::HashKey,
        maglev::{Maglev, Member},
        table::{BackendSpec, BackendState, Compiler, PortRangeSpec, PortSpec, ServiceSpec, TableSpec, VipSpec},
    },
    guard,
    io::{EngineKind, PortConfig},
    packet::{self, Mac, Packet, Protocol, rewrite},
};
use lb_tests::{
    netns::Namespace,
    sys::{self, bpf, reference},
};
use rtnetlink::{LinkUnspec, LinkVeth};
use rustix::thread::{CpuSet, sched_setaffinity};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
const CLIENT: [u8; 4] = [10, 0, 0, 1];
const LB_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
const GENERATOR_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const BACKENDS: u8 = 8;
const FLOWS: u32 = 16384;
/// Offered packets a second: more than anything here but XDP forwards on one core.
const OFFERED: u64 = 1_000_000;
const WARM_UP: Duration = Duration::from_millis(700);
const MEASURE: Duration = Duration::from_millis(2000);
const ROUNDS: usize = 3;
/// All load-balancer work here, the generator and the sink on the other.
const LB_CPU: usize = 1;
const GENERATOR_CPU: usize = 0;
/// Of the forwarding process's group, and of the kernel thread that receives for it.
const FORWARD_NICE: i32 = -10;
const RECEIVE_NICE: i32 = -12;

fn main() -> ExitCode {
    if cfg!(debug_assertions) {
        eprintln!("a debug build measures nothing: use 'cargo lb-bench'");
        return ExitCode::FAILURE;
    }
    pure();
    let forwarding = sys::gain_namespace_rights().map_err(anyhow::Error::from).and_then(|()| forwarding());
    match forwarding {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forwarding was not measured: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Maglev builds, and what a packet costs without the kernel.
fn pure() {
    println!("Maglev build, best of 10");
    for (count, size) in [(10u32, 16381), (100, 16381), (100, 65537), (1000, 65537)] {
        let member = |i: u32| Member::new(HashKey(1), IpAddr::V4(Ipv4Addr::from(0x0a00_0001 + i)), 1, size);
        let members: Vec<Member> = (0..count).map(member).collect();
        let best = (0..10)
            .map(|_| {
                let begun = Instant::now();
                black_box(Maglev::build(black_box(&members), size));
                begun.elapsed()
            })
            .min()
            .unwrap_or_default();
        println!("  {count:5} backends, {size:6} entries  {:8.3} ms", best.as_secs_f64() * 1e3);
    }
    println!("\nparse + decide + rewrite, ns a packet, best of 10");
    let snapshot = Compiler::default().compile(&table_spec());
    // One batch that stays in the cache, as frames in a ring do; each gets another source port each time.
    let template = frame(60, 0);
    for (what, known) in [("known flow", true), ("new flow", false)] {
        let mut best = f64::MAX;
        let mut flows = FlowTable::new(1 << 20, Timeouts::default()).expect("memory for a flow table");
        let mut batch = vec![template.clone(); 64];
        for round in 0..10u64 {
            // UDP is forgotten after 30 s: a minute later every flow is new again.
            let now = Tick::from_ns(if known { 1 << 40 } else { (1 << 40) + round * 60_000_000_000 });
            let begun = Instant::now();
            for port in 0..FLOWS as u16 {
                let frame = &mut batch[usize::from(port) % 64];
                frame[34..36].copy_from_slice(&port.to_be_bytes());
                if let Packet::Flow(flow) = packet::parse(black_box(frame))
                    && let Ok(decision) = decide(&snapshot, &mut flows, &flow, now)
                {
                    let mac = decision.backend.mac().unwrap_or_default();
                    rewrite::to_backend(frame, mac, LB_MAC);
                }
            }
            let cost = begun.elapsed().as_nanos() as f64 / f64::from(FLOWS);
            if !known || round > 0 {
                best = best.min(cost);
            }
        }
        println!("  {what:10}  {best:6.1}");
    }
}

fn frame(len: usize, source_port: u16) -> Vec<u8> {
    let payload = vec![0; len - 42];
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(GENERATOR_MAC.0, LB_MAC.0)
        .ipv4(CLIENT, VIP.octets(), 64)
        .udp(source_port, 53)
        .write(&mut frame, &payload)
        .expect("a frame is written to memory");
    // The generator changes the port and not the checksum: 0 says that there is none (RFC 768).
    frame[40..42].fill(0);
    frame
}

fn backend_mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 1, number])
}

fn table_spec() -> TableSpec {
    let backend = |number: u8| BackendSpec {
        id: number.into(),
        address: IpAddr::from([10, 0, 0, 100 + number]),
        mac: Some(backend_mac(number)),
        weight: 1,
        state: BackendState::Active,
    };
    TableSpec {
        peers: Vec::new(),
        hash_key: 0x1234_5678,
        ports: vec![PortSpec {
            name: "l0".into(),
            ifindex: 0,
            mac: LB_MAC,
            mtu: 1500,
            carrier: true,
            addresses: vec![(Ipv4Addr::new(10, 0, 0, 2).into(), 24)],
        }],
        vips: vec![VipSpec {
            address: VIP.into(),
            first_grant: false,
            owned: None,
            answer_on: vec![0],
            rejects: false,
            services: vec![ServiceSpec {
                name: "dns".into(),
                ports: vec![PortRangeSpec { protocol: Protocol::Udp, first: 53, last: 53 }],
                by_source: false,
                table_size: 65537,
                backends: (1..=BACKENDS).map(backend).collect(),
            }],
        }],
        peer_macs: Vec::new(),
        timeouts: Timeouts::default(),
    }
}

/// The load balancer's machine and the generator's, and a cable.
struct Chain {
    lb: Namespace,
    generator: Namespace,
    lb_ifindex: u32,
    generator_ifindex: u32,
    /// Absent where XDP programs may not be loaded.
    _sink: Option<bpf::Sink>,
    xdp: bool,
}

impl Chain {
    fn build() -> anyhow::Result<Self> {
        let (lb, generator) = (Namespace::new()?, Namespace::new()?);
        for namespace in [&lb, &generator] {
            namespace.sysctl("ipv6.conf.default.disable_ipv6", "1", true)?;
        }
        lb.netlink(async |handle| handle.link().add(LinkVeth::new("l0", "g0").build()).execute().await)?;
        let g0 = lb.ifindex("g0")?;
        let far = generator.fd_for_netlink();
        lb.netlink(async |handle| {
            handle.link().set(LinkUnspec::new_with_index(g0).setns_by_fd(far).build()).execute().await
        })?;
        for (namespace, name, mac) in [(&lb, "l0", LB_MAC), (&generator, "g0", GENERATOR_MAC)] {
            let index = namespace.ifindex(name)?;
            namespace.netlink(async |handle| {
                let link = LinkUnspec::new_with_index(index).address(mac.0.to_vec()).up();
                handle.link().set(link.build()).execute().await
            })?;
            namespace.enter(|| reference::enable_gro(name))?;
        }
        let (lb_ifindex, generator_ifindex) = (lb.ifindex("l0")?, generator.ifindex("g0")?);
        let sink = generator.enter(|| bpf::Sink::attach(generator_ifindex));
        let xdp = sink.is_ok();
        if let Err(error) = &sink {
            println!("  (XDP programs may not be loaded here: {error}; an AF_PACKET generator takes their place)");
        }
        let chain = Self { lb, generator, lb_ifindex, generator_ifindex, _sink: sink.ok(), xdp };
        chain.pin_softirqs();
        Ok(chain)
    }

    /// Receive processing on kernel threads, each on its core.
    fn pin_softirqs(&self) {
        for (namespace, interface, cpu) in [(&self.lb, "l0", LB_CPU), (&self.generator, "g0", GENERATOR_CPU)] {
            let pinned = namespace.enter(|| threaded_napi(interface)).and_then(|()| pin_kernel_thread(interface, cpu));
            if let Err(error) = pinned {
                println!("  (softirqs of {interface} are not pinned: {error}; the figures flatter everyone)");
            }
        }
    }

    /// Frames that have come back to the generator.
    fn came_back(&self) -> u64 {
        let statistics = self.generator.enter(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap_or_default();
        let line = statistics.lines().find_map(|line| line.trim().strip_prefix("g0:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|packets| packets.parse().ok()).unwrap_or(0)
    }

    /// Offers load and measures what comes back. Packets a second.
    fn measure(&self, size: usize) -> anyhow::Result<f64> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let generator = scope.spawn(|| {
                self.generator.enter(|| {
                    pin(GENERATOR_CPU);
                    self.generate(size, &stop)
                })
            });
            thread::sleep(WARM_UP);
            let (before, begun) = (self.came_back(), Instant::now());
            thread::sleep(MEASURE);
            let rate = (self.came_back() - before) as f64 / begun.elapsed().as_secs_f64();
            stop.store(true, Ordering::Relaxed);
            generator.join().map_err(|_| anyhow::anyhow!("the generator panicked"))?.context("the generator")?;
            Ok(rate)
        })
    }

    fn generate(&self, size: usize, stop: &AtomicBool) -> std::io::Result<()> {
        if !self.xdp {
            let frames: Vec<Vec<u8>> = (0..FLOWS).map(|i| frame(size, (1024 + i) as u16)).collect();
            return reference::generate(self.generator_ifindex, &frames, stop);
        }
        let generator = bpf::Generator::new(self.generator_ifindex, OFFERED, FLOWS)?;
        let template = frame(size, 1024);
        while !stop.load(Ordering::Relaxed) {
            generator.run(&template, 1 << 20)?;
        }
        Ok(())
    }
}

/// A median of several rounds.
fn forwarding() -> anyhow::Result<()> {
    anyhow::ensure!(thread::available_parallelism()?.get() >= 2, "two cores are needed: one forwards, one generates");
    println!("\nForwarded packets a second at saturation, one core, {FLOWS} UDP flows, median of {ROUNDS}");
    println!("  {:22} {:>10} {:>10} {:>12}", "", "60 bytes", "1400 bytes", "x recvmmsg");
    // Where automatic grouping is on, a process's nice counts only inside its group; without the right to
    // change it all rows suffer alike.
    let _ = fs::write("/proc/self/autogroup", FORWARD_NICE.to_string());
    let chain = Chain::build()?;
    let reference_rate = row(&chain, "recvmmsg/sendmmsg", None, with_reference)?;
    for kind in [EngineKind::Mmsg, EngineKind::Multishot, EngineKind::Ring] {
        row(&chain, &format!("lbd, engine {kind}"), Some(reference_rate), |chain, size| {
            with_engine(chain, kind, size)
        })?;
    }
    if Command::new("nft").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok() {
        row(&chain, "nftables fwd", Some(reference_rate), with_nftables)?;
    } else {
        println!("  nftables fwd: 'nft' is not installed (Debian: apt-get install nftables)");
    }
    Ok(())
}

fn row(
    chain: &Chain,
    name: &str,
    reference: Option<f64>,
    measure: impl Fn(&Chain, usize) -> anyhow::Result<f64>,
) -> anyhow::Result<f64> {
    let median = |size: usize| -> anyhow::Result<f64> {
        let mut rates = (0..ROUNDS).map(|_| measure(chain, size)).collect::<anyhow::Result<Vec<_>>>()?;
        rates.sort_by(f64::total_cmp);
        Ok(rates[ROUNDS / 2])
    };
    let (small, large) = (median(60)?, median(1400)?);
    let ratio = small / reference.unwrap_or(small);
    println!("  {name:22} {small:10.0} {large:10.0} {ratio:12.2}");
    Ok(small)
}

fn with_engine(chain: &Chain, kind: EngineKind, size: usize) -> anyhow::Result<f64> {
    let dataplane = chain.lb.enter(|| {
        pin(LB_CPU);
        let port = PortConfig { name: "l0".into(), ifindex: chain.lb_ifindex, mtu: 1500 };
        let dataplane = Dataplane::start(&Config { ports: vec![port], engine: Some(kind), flow_capacity: 1 << 20 })?;
        let mut spec = table_spec();
        spec.ports[0].ifindex = chain.lb_ifindex;
        dataplane.publish(&spec)?;
        anyhow::Ok(dataplane)
    })?;
    let rate = chain.measure(size);
    chain.lb.enter(|| dataplane.stop())?;
    rate
}

fn with_reference(chain: &Chain, size: usize) -> anyhow::Result<f64> {
    let stop = Arc::new(AtomicBool::new(false));
    // The same guard as ours: without it the kernel would also handle every packet.
    chain.lb.enter(|| guard::install(&["l0".into()], &[VIP.into()]))?;
    let rate = thread::scope(|scope| {
        let (stopped, namespace, ifindex) = (stop.clone(), chain.lb.clone(), chain.lb_ifindex);
        let forwarder = scope.spawn(move || {
            namespace.enter(|| {
                pin(LB_CPU);
                let backends: Vec<[u8; 6]> = (1..=BACKENDS).map(|number| backend_mac(number).0).collect();
                reference::forward(ifindex, VIP.octets(), LB_MAC.0, &backends, &stopped)
            })
        });
        let rate = chain.measure(size);
        stop.store(true, Ordering::Relaxed);
        forwarder.join().map_err(|_| anyhow::anyhow!("the reference panicked"))??;
        rate
    });
    chain.lb.enter(guard::remove)?;
    rate
}

fn with_nftables(chain: &Chain, size: usize) -> anyhow::Result<f64> {
    let map: Vec<String> = (1..=BACKENDS).map(|number| format!("{} : {}", number - 1, backend_mac(number))).collect();
    let rules = format!(
        "table netdev bench {{\n chain in {{\n type filter hook ingress device l0 priority 0; policy accept;\n \
         ip daddr {VIP} udp dport 53 ether saddr set {LB_MAC} ether daddr set \
         jhash ip saddr . udp sport mod {BACKENDS} map {{ {} }} fwd to l0\n }}\n}}\n",
        map.join(", ")
    );
    nft(chain, &rules)?;
    let rate = chain.measure(size);
    nft(chain, "delete table netdev bench")?;
    rate
}

fn nft(chain: &Chain, rules: &str) -> anyhow::Result<()> {
    let status = chain.lb.command("nft")?.arg(rules).status()?;
    anyhow::ensure!(status.success(), "nft refuses: {rules}");
    Ok(())
}

/// Binds the calling thread, and what it starts, to a core.
fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    // On a machine that forbids it the figures are worse, not wrong.
    let _ = sched_setaffinity(None, &set);
}

/// Has an interface's receive processing run on a kernel thread. sysfs shows the network namespace in
/// which it was mounted, so it is mounted anew, in a mount namespace of this thread.
fn threaded_napi(interface: &str) -> std::io::Result<()> {
    let sysfs = sys::private_sysfs()?;
    fs::write(sysfs.path().join("class/net").join(interface).join("threaded"), "1")
}

fn pin_kernel_thread(interface: &str, cpu: usize) -> std::io::Result<()> {
    let prefix = format!("napi/{interface}");
    let mut set = CpuSet::new();
    set.set(cpu);
    let mut found = false;
    for process in fs::read_dir("/proc")?.flatten() {
        let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        let pid = process.file_name().to_str().and_then(|name| name.parse().ok());
        if comm.starts_with(&prefix)
            && let Some(pid) = pid.and_then(rustix::process::Pid::from_raw)
        {
            sched_setaffinity(Some(pid), &set)?;
            if cpu == GENERATOR_CPU {
                // The sink must never make the wire overflow.
                reference::make_real_time(pid)?;
            } else {
                // Receiving and forwarding share the core about evenly.
                rustix::process::setpriority_process(Some(pid), RECEIVE_NICE)?;
            }
            found = true;
        }
    }
    if found { Ok(()) } else { Err(std::io::Error::other("its kernel thread was not found")) }
}
