//! What kernels get wrong, and limits of theirs: the dataplane alone, without a cluster.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::ensure;
use lb_dataplane::{
    Accelerate, Config, Dataplane,
    forward::spec::{BackendSpec, BackendState, PortRangeSpec, PortSpec, ServiceSpec, TableSpec, VipSpec},
    guard::{self, Guard},
    io::{EngineKind, PortConfig},
    packet::{Mac, Protocol, VnetHeader},
};
use lb_tests::{capture::Injector, frame::Path, netns::Namespace, site::PATIENCE, sys, wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const OWN: Mac = Mac([2, 0, 0, 0, 0, 9]);
const ROUTER: Mac = Mac([2, 0, 0, 0, 0, 1]);
const BACKEND: Mac = Mac([2, 0, 0, 0, 0, 5]);
const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 1);
const PORT: u16 = 53;

/// A UDP service on one interface.
pub(crate) fn table(ifindex: u32) -> TableSpec {
    let backend = BackendSpec {
        id: 1,
        address: [192, 168, 2, 5].into(),
        mac: Some(BACKEND),
        weight: 1,
        state: BackendState::Active,
    };
    let service = ServiceSpec {
        name: "dns".into(),
        ports: vec![PortRangeSpec { protocol: Protocol::Udp, first: PORT, last: PORT }],
        by_source: false,
        resets_flows: false,
        table_size: 4093,
        backends: vec![backend],
    };
    let vip = VipSpec { address: VIP.into(), answer_on: vec![0], rejects: false, services: vec![service] };
    let port = PortSpec {
        name: "tap0".into(),
        ifindex,
        mac: OWN,
        mtu: 1500,
        carrier: true,
        segments: true,
        addresses: vec![([192, 168, 2, 11].into(), 24)],
    };
    TableSpec { hash_key: 7, ports: vec![port], vips: vec![vip], ..TableSpec::default() }
}

/// Whether tap interfaces can be made here.
pub(crate) fn tap_interfaces() -> Result<(), String> {
    let namespace = Namespace::new().map_err(|error| error.to_string())?;
    let made = namespace.enter(|| sys::tap("tap0"));
    made.map(drop).map_err(|error| format!("no tap interface can be made here (/dev/net/tun: {error})"))
}

/// A GSO frame of fragments of a UDP datagram, of which the kernel cannot tell in a vnet header, makes it give no
/// frame to a ring any more. The sockets are opened anew. The engines without a ring lose that frame at most.
pub(crate) fn an_interface_stops(engine: &'static str) -> anyhow::Result<()> {
    let (kind, workers) = engine.split_once('/').unwrap_or((engine, "1"));
    let namespace = Namespace::new()?;
    let mut cable = namespace.enter(|| sys::tap("tap0"))?;
    namespace.sysctl("ipv6.conf.tap0.disable_ipv6", "1", true)?;
    namespace.set_up("tap0", true)?;
    let ifindex = namespace.ifindex("tap0")?;
    namespace.netlink(async |handle| {
        let link = rtnetlink::LinkUnspec::new_with_index(ifindex).address(OWN.0.to_vec());
        handle.link().set(link.build()).execute().await
    })?;
    let workers = workers.parse()?;
    let dataplane = namespace.enter(|| {
        let ports = vec![PortConfig { name: "tap0".into(), ifindex, mtu: 1500 }];
        let config = config(ports, kind, workers, guard::Ownership::Own);
        let dataplane = Dataplane::start(&config)?;
        let generation = dataplane.publish(&table(ifindex))?;
        ensure!(dataplane.wait_for_table(generation, Duration::from_secs(5)));
        anyhow::Ok(dataplane)
    })?;
    // Enough flows for every worker.
    let all_forwarded = |cable: &mut File| {
        (0..30).all(|port| {
            let datagram = datagram(4000 + port, 100);
            drop(write(cable, VnetHeader::default(), &datagram));
            comes_out(cable, &datagram[14..])
        })
    };
    wait::until("it forwards", PATIENCE, || all_forwarded(&mut cable));
    // One for each worker at least.
    for port in 0..30 {
        write(&mut cable, UDP_FRAGMENTS, &datagram(4000 + port, 4000))?;
    }
    wait::until("it forwards again", PATIENCE, || all_forwarded(&mut cable));
    ensure!(dataplane.is_running());
    namespace.enter(|| dataplane.stop())?;
    Ok(())
}

pub(crate) fn config(ports: Vec<PortConfig>, engine: &str, workers: usize, guard: guard::Ownership) -> Config {
    Config {
        ports,
        engine: EngineKind::by_name(engine),
        workers,
        realtime: false,
        busy_poll: Duration::ZERO,
        cpus: Vec::new(),
        accelerate: Accelerate::Off,
        link_keeper: None,
        flow_capacity: 1 << 12,
        guard,
    }
}

/// A partial checksum, VIRTIO_NET_HDR_GSO_UDP, headers of 42 bytes, 1480 bytes a fragment; the checksum of UDP at 34 + 6.
const UDP_FRAGMENTS: VnetHeader = VnetHeader([1, 3, 42, 0, 0xc8, 0x05, 34, 0, 6, 0]);

fn datagram(from: u16, len: usize) -> Vec<u8> {
    let client = SocketAddr::from(([192, 168, 1, 10], from));
    let service = SocketAddr::from((IpAddr::V4(VIP), PORT));
    Path { from: ROUTER, to: OWN, client, service }.udp(&vec![7; len])
}

fn write(cable: &mut File, vnet: VnetHeader, frame: &[u8]) -> std::io::Result<()> {
    cable.write_all(&[&vnet.0[..], frame].concat())
}

/// Whether a packet goes to the backend within a while.
fn comes_out(cable: &mut File, packet: &[u8]) -> bool {
    let mut buffer = vec![0; 1 << 17];
    let timeout = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    while poll(&mut [PollFd::new(&*cable, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0) {
        let Ok(len) = cable.read(&mut buffer) else { break };
        let frame = &buffer[VnetHeader::LEN..len];
        if frame.starts_with(&BACKEND.0) && frame[14..] == *packet {
            return true;
        }
    }
    false
}

/// As many interfaces as a node may have, and as many VIPs, are guarded by one transaction: what comes for a VIP by
/// any of them reaches nobody, what comes for another address of the node does, and so does all without the guard.
pub(crate) fn many_interfaces_are_guarded() -> anyhow::Result<()> {
    const DISCARD: u16 = 9;
    let namespace = Namespace::new()?;
    namespace.sysctl("ipv6.conf.default.accept_dad", "0", false)?;
    let mac = |number: u8| Mac([2, 0, 0, 1, 0, number]);
    let names: Vec<String> = (0..64).map(|number| format!("eth{number}")).collect();
    let vips: Vec<IpAddr> = (0..4096u16).map(|vip| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, vip])).collect();
    let own: IpAddr = "2001:db8:1::1".parse()?;
    // The first VIP, one of a later netlink message, and the last.
    let guarded = [vips[1], vips[700], vips[4095]];
    namespace.netlink(async |handle| {
        for pair in names.chunks(2) {
            handle.link().add(rtnetlink::LinkVeth::new(&pair[0], &pair[1]).build()).execute().await?;
        }
        Ok(())
    })?;
    for (number, name) in (0..).zip(&names) {
        let ifindex = namespace.ifindex(name)?;
        namespace.netlink(async |handle| {
            let link = rtnetlink::LinkUnspec::new_with_index(ifindex).address(mac(number).0.to_vec()).up();
            handle.link().set(link.build()).execute().await
        })?;
    }
    let lo = namespace.ifindex("lo")?;
    namespace.netlink(async |handle| {
        for address in guarded.into_iter().chain([own]) {
            handle.address().add(lo, address, 128).execute().await?;
        }
        Ok(())
    })?;
    let socket = namespace.enter(|| UdpSocket::bind(("::", DISCARD)))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    // By what goes out of an interface something comes in by the other one of its pair.
    let cables: Vec<Injector> = names.iter().map(|name| Injector::new(&namespace, name)).collect::<Result<_, _>>()?;
    let send = |by: u8, to: IpAddr| -> anyhow::Result<()> {
        let client = SocketAddr::new("2001:db8:2::1".parse()?, 1000);
        let path = Path { from: mac(by), to: mac(by ^ 1), client, service: SocketAddr::new(to, DISCARD) };
        Ok(cables[usize::from(by)].send(&path.udp(format!("{by} {to}").as_bytes()))?)
    };
    // With a tag that names no VLAN, only a priority (IEEE 802.1Q 9.6): the kernel takes it as untagged.
    let send_tagged = |by: u8, to: IpAddr| -> anyhow::Result<()> {
        let client = SocketAddr::new("2001:db8:2::1".parse()?, 1000);
        let path = Path { from: mac(by), to: mac(by ^ 1), client, service: SocketAddr::new(to, DISCARD) };
        let mut frame = path.udp(format!("{by} {to}").as_bytes());
        frame.splice(12..12, [0x81, 0, 0xe0, 0]);
        Ok(cables[usize::from(by)].send(&frame)?)
    };
    let heard = || -> anyhow::Result<String> {
        let mut buffer = [0; 64];
        let len = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
    };
    let mut guard = namespace.enter(|| Guard::keep(guard::Ownership::Own))?;
    guard.install(&names, &vips)?;
    // And again, in place of the first.
    guard.install(&names, &vips)?;
    for by in 0..64 {
        for vip in guarded {
            send(by, vip)?;
            send_tagged(by, vip)?;
        }
        for send in [&send as &dyn Fn(u8, IpAddr) -> anyhow::Result<()>, &send_tagged] {
            send(by, own)?;
            let first = heard()?;
            ensure!(first == format!("{by} {own}"), "the kernel took {first:?}");
        }
    }
    guard.remove()?;
    for by in 0..64 {
        for vip in guarded {
            send(by, vip)?;
            let first = heard()?;
            ensure!(first == format!("{by} {vip}"), "without a guard the kernel took {first:?}");
        }
    }
    Ok(())
}
