//! The load balancer's machine and the generator's, and a cable. All load-balancer work is done on one core, the
//! receiving of its frames included; the generator and the sink have the other.

use std::{
    fs, io,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use etherparse::PacketBuilder;
use lb_dataplane::packet::{Mac, Protocol};
use lb_tests::{
    netns::Namespace,
    sys::{
        self,
        bpf::{self, Flows},
        reference,
    },
};
use rtnetlink::{LinkUnspec, LinkVeth};
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_setaffinity},
};

use crate::helper::{Helper, Task};

/// The first VIP.
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 100, 0);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 0);
pub(crate) const LB_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
const GENERATOR_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
/// Offered packets a second: more than anything here but XDP forwards on one core.
const OFFERED: u64 = 1_000_000;
const WARM_UP: Duration = Duration::from_millis(400);
const MEASURE: Duration = Duration::from_millis(1000);
pub(crate) const LB_CPU: usize = 1;
pub(crate) const GENERATOR_CPU: usize = 0;
/// Of the forwarding process's group, and of the kernel thread that receives for it: both get about half of the core
/// when they want more than there is, in turns that are short enough for the queues between them.
const FORWARD_NICE: i32 = -10;
const RECEIVE_NICE: i32 = -12;
const RECEIVE_SLICE: Duration = Duration::from_micros(100);
/// What is sent when nothing else is said.
pub(crate) const KNOWN_FLOWS: u32 = 1 << 14;

/// Slots of a flow table that is large enough for them.
pub(crate) const FEW_FLOWS: usize = 1 << 18;

/// What is offered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Bytes of a frame.
    pub(crate) size: usize,
    /// Datagrams, or segments that open connections.
    pub(crate) protocol: Protocol,
    /// Flows, a power of two.
    pub(crate) flows: u32,
    pub(crate) vips: u32,
    /// To whom: the load balancer, but for a bridge.
    pub(crate) destination: Mac,
    /// Packets a second.
    pub(crate) offered: u64,
    /// Until all flows are known.
    pub(crate) warm_up: Duration,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            size: 60,
            protocol: Protocol::Udp,
            flows: KNOWN_FLOWS,
            vips: 1,
            destination: LB_MAC,
            offered: OFFERED,
            warm_up: WARM_UP,
        }
    }
}

impl Load {
    pub(crate) fn flows(&self) -> Flows {
        Flows { count: self.flows, source: CLIENT, destination: VIP, destinations: self.vips }
    }

    /// A frame of one of its flows.
    pub(crate) fn frame(&self, flow: u32) -> Vec<u8> {
        let (source, port, destination) = self.flows().tuple(flow);
        let mut frame = Vec::new();
        let packet = PacketBuilder::ethernet2(GENERATOR_MAC.0, self.destination.0).ipv4(
            source.octets(),
            destination.octets(),
            64,
        );
        let written = match self.protocol {
            Protocol::Udp => packet.udp(port, 53).write(&mut frame, &vec![0; self.size - 42]),
            Protocol::Tcp => packet.tcp(port, 53, 1, 64240).syn().write(&mut frame, &vec![0; self.size - 54]),
        };
        written.expect("a frame is written to memory");
        if self.protocol == Protocol::Udp {
            // The generator changes the port and not the checksum: 0 says that there is none (RFC 768).
            frame[40..42].fill(0);
        }
        frame
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    /// Packets a second that reached the load balancer.
    pub(crate) received: f64,
    /// Packets a second.
    pub(crate) forwarded: f64,
    /// Microseconds of the core for a forwarded packet, of whoever forwards in user space.
    pub(crate) process_us: f64,
    /// And for a received one, of the kernel thread that receives.
    pub(crate) softirq_us: f64,
}

pub(crate) struct Chain {
    pub(crate) lb: Namespace,
    pub(crate) generator: Namespace,
    pub(crate) lb_ifindex: u32,
    pub(crate) generator_ifindex: u32,
    /// Absent where XDP programs may not be loaded, and where frames shall come back.
    sink: Option<bpf::Sink>,
    receiver: Option<Pid>,
    xdp: bool,
}

impl Chain {
    /// `swallow`: what comes back is counted and dropped.
    pub(crate) fn build(swallow: bool) -> anyhow::Result<Self> {
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
            namespace.enter(|| reference::enable_gro(name).and_then(|()| reference::keep_tags(name)))?;
        }
        let (lb_ifindex, generator_ifindex) = (lb.ifindex("l0")?, generator.ifindex("g0")?);
        let mut chain = Self { lb, generator, lb_ifindex, generator_ifindex, sink: None, receiver: None, xdp: false };
        if swallow {
            let sink = chain.generator.enter(|| bpf::Sink::attach(generator_ifindex));
            if let Err(error) = &sink {
                println!("  (XDP programs may not be loaded here: {error}; an AF_PACKET generator takes their place)");
            }
            chain.sink = sink.ok();
            chain.xdp = chain.sink.is_some();
        }
        for (namespace, interface, cpu) in [(&chain.lb, "l0", LB_CPU), (&chain.generator, "g0", GENERATOR_CPU)] {
            match namespace.enter(|| threaded_napi(interface)).and_then(|()| pin_receiver(interface, cpu)) {
                Ok(pid) if cpu == LB_CPU => chain.receiver = Some(pid),
                Ok(_) => {}
                Err(error) => {
                    println!("  (softirqs of {interface} are not pinned: {error}; the figures flatter everyone)");
                }
            }
        }
        // Where automatic grouping is on, a process's nice counts only inside its group; without the right to
        // change it all rows suffer alike.
        let _ = fs::write("/proc/self/autogroup", FORWARD_NICE.to_string());
        Ok(chain)
    }

    /// Frames that have come back to the generator, and frames that have reached the load balancer.
    fn counted(&self) -> (u64, u64) {
        let received = |namespace: &Namespace, interface: &str| namespace.received(interface).unwrap_or(0);
        (received(&self.generator, "g0"), received(&self.lb, "l0"))
    }

    /// Offers load and measures what comes back; `forwarder` is the start of the names of the threads that forward.
    pub(crate) fn measure(&self, load: &Load, forwarder: &str) -> anyhow::Result<Figures> {
        let ifindex = self.generator_ifindex;
        let mut generator = Helper::start(&self.generator, &Task::Generate { ifindex, xdp: self.xdp, load: *load })?;
        thread::sleep(load.warm_up);
        let processors = || (processor_ns(forwarder), self.receiver.map_or(0, thread_ns));
        let (before, cpu_before, begun) = (self.counted(), processors(), Instant::now());
        thread::sleep(MEASURE);
        let (after, cpu_after, took) = (self.counted(), processors(), begun.elapsed());
        generator.check()?;
        let per = |ns: u64, packets: u64| ns as f64 / 1e3 / packets.max(1) as f64;
        let forwarded = after.0 - before.0;
        Ok(Figures {
            received: (after.1 - before.1) as f64 / took.as_secs_f64(),
            forwarded: forwarded as f64 / took.as_secs_f64(),
            process_us: per(cpu_after.0.saturating_sub(cpu_before.0), forwarded),
            softirq_us: per(cpu_after.1 - cpu_before.1, after.1 - before.1),
        })
    }
}

/// Binds the calling thread, and what it starts, to a core.
pub(crate) fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    // On a machine that forbids it the figures are worse, not wrong.
    let _ = sched_setaffinity(None, &set);
}

/// Has an interface's receive processing run on a kernel thread. sysfs shows the network namespace in
/// which it was mounted, so it is mounted anew, in a mount namespace of this thread.
pub(crate) fn threaded_napi(interface: &str) -> io::Result<()> {
    let sysfs = sys::private_sysfs()?;
    fs::write(sysfs.path().join("class/net").join(interface).join("threaded"), "1")
}

/// Binds the youngest kernel thread that receives for an interface of this name to a core.
pub(crate) fn pin_receiver(interface: &str, cpu: usize) -> io::Result<Pid> {
    let prefix = format!("napi/{interface}-");
    let named = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.starts_with(&prefix));
    let processes = fs::read_dir("/proc")?.flatten().filter_map(|process| process.file_name().to_str()?.parse().ok());
    let pid = processes.filter(named).max().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("its kernel thread was not found"))?;
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(Some(pid), &set)?;
    if cpu == GENERATOR_CPU {
        // The sink must never make the wire overflow.
        reference::make_real_time(pid)?;
    } else {
        reference::share_processor(pid, RECEIVE_NICE, RECEIVE_SLICE)?;
    }
    Ok(pid)
}

/// For how long threads of this process whose names start so have run.
fn processor_ns(name: &str) -> u64 {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let named = tasks.filter(|task| {
        !name.is_empty() && fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.starts_with(name))
    });
    named.map(|task| run_ns(&task.path().join("schedstat"))).sum()
}

fn thread_ns(pid: Pid) -> u64 {
    run_ns(std::path::Path::new(&format!("/proc/{}/schedstat", pid.as_raw_pid())))
}

fn run_ns(schedstat: &std::path::Path) -> u64 {
    let text = fs::read_to_string(schedstat).unwrap_or_default();
    text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}
