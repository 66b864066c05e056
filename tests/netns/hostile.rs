//! Frames by which others take what is not theirs, and rare ones that networks send for good reason, on every engine: the
//! dataplane alone, at one end of a cable of which the test holds the other.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::ensure;
use lb_dataplane::{
    Dataplane,
    forward::spec::{BackendSpec, BackendState, PeerSpec, PortRangeSpec, PortSpec, ServiceSpec, TableSpec, VipSpec},
    guard,
    io::PortConfig,
    packet::{self, Mac, Packet, Protocol, VnetHeader, arp, ndp},
    speaker::permit::Grant,
    verdict::DropReason,
};
use lb_tests::{frame::Path, netns::Namespace, site::PATIENCE, sys, wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::kernel_faults::config;

const NODE: Mac = Mac([2, 0, 0, 0, 0, 1]);
const BACKEND: Mac = Mac([2, 0, 0, 0, 0, 0x21]);
const PEER: Mac = Mac([2, 0, 0, 0, 0, 3]);
const GATEWAY: Mac = Mac([2, 0, 0, 0, 0, 0xfe]);
const STRANGER: Mac = Mac([2, 0, 0, 0, 0x66, 0x66]);
const VIPS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10))];
/// Which nobody had before.
const NEW_VIPS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 11)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x11))];
const BACKENDS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 21)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x21))];
const CLIENTS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9))];
const DNS: u16 = 53;
/// For what must not come.
const A_WHILE: Duration = Duration::from_millis(50);

fn table(ifindex: u32) -> TableSpec {
    let vip = |(address, id): (IpAddr, u64)| VipSpec {
        address,
        answer_on: vec![0],
        rejects: true,
        services: vec![ServiceSpec {
            name: format!("dns{id}"),
            ports: vec![PortRangeSpec { protocol: Protocol::Udp, first: DNS, last: DNS }],
            by_source: false,
            resets_flows: false,
            table_size: 4093,
            backends: vec![BackendSpec {
                id,
                address: BACKENDS[usize::from(address.is_ipv6())],
                mac: None,
                weight: 1,
                state: BackendState::Active,
            }],
        }],
    };
    TableSpec {
        hash_key: 7,
        ports: vec![PortSpec {
            name: "tap0".into(),
            ifindex,
            mac: NODE,
            mtu: 1500,
            carrier: true,
            segments: true,
            addresses: vec![([192, 0, 2, 2].into(), 24), (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2).into(), 64)],
        }],
        vips: VIPS.into_iter().chain(NEW_VIPS).zip(1..).map(vip).collect(),
        peer_addresses: vec![(PEER, [192, 0, 2, 3].into())],
        peers: vec![PeerSpec { port: 0, address: [192, 0, 2, 3].into(), mac: Some(PEER) }],
        ..TableSpec::default()
    }
}

/// A dataplane and the other end of its cable.
struct Bench {
    dataplane: Dataplane,
    cable: File,
    /// Who has the backends' addresses; nobody answers for `None`.
    backend: Option<Mac>,
    /// Questions to one station alone, and when they came.
    asked: Vec<(Instant, Mac)>,
    namespace: Namespace,
}

impl Bench {
    /// The first VIPs are answered, the backends known.
    fn new(engine: &str) -> anyhow::Result<Self> {
        let (kind, workers) = engine.split_once('/').unwrap_or((engine, "1"));
        let namespace = Namespace::new()?;
        let cable = namespace.enter(|| sys::tap("tap0"))?;
        namespace.sysctl("ipv6.conf.tap0.disable_ipv6", "1", true)?;
        namespace.set_up("tap0", true)?;
        let ifindex = namespace.ifindex("tap0")?;
        namespace.netlink(async |handle| {
            let link = rtnetlink::LinkUnspec::new_with_index(ifindex).address(NODE.0.to_vec());
            handle.link().set(link.build()).execute().await
        })?;
        let workers = workers.parse()?;
        let dataplane = namespace.enter(|| {
            let ports = vec![PortConfig { name: "tap0".into(), ifindex, mtu: 1500 }];
            let dataplane = Dataplane::start(&config(ports, kind, workers, guard::Ownership::Own))?;
            dataplane.lease().set(u64::MAX);
            dataplane.own(&VIPS.map(|vip| Grant { vip, epoch: 1, first: false }));
            let generation = dataplane.publish(&table(ifindex))?;
            ensure!(dataplane.wait_for_table(generation, PATIENCE));
            anyhow::Ok(dataplane)
        })?;
        let mut bench = Self { dataplane, cable, backend: Some(BACKEND), asked: Vec::new(), namespace };
        for at in 0..2 {
            wait::until("the backends are known", PATIENCE, || bench.lands_at(at) == Some(BACKEND));
        }
        Ok(bench)
    }

    fn send(&mut self, frame: &[u8]) -> anyhow::Result<()> {
        self.send_with(VnetHeader::default(), frame)
    }

    fn send_with(&mut self, vnet: VnetHeader, frame: &[u8]) -> anyhow::Result<()> {
        Ok(self.cable.write_all(&[&vnet.0[..], frame].concat())?)
    }

    /// What comes out of the dataplane within a while that `wanted` says something of. Questions for backends are answered
    /// meanwhile, by whoever has their addresses.
    fn until<T>(&mut self, within: Duration, mut wanted: impl FnMut(&VnetHeader, &[u8]) -> Option<T>) -> Option<T> {
        let end = Instant::now() + within;
        let mut buffer = vec![0; 1 << 17];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            let ready = poll(&mut [PollFd::new(&self.cable, PollFlags::IN)], Some(&timeout)).unwrap_or(0);
            if ready == 0 {
                return None;
            }
            let len = self.cable.read(&mut buffer).ok()?;
            let (vnet, frame) = (VnetHeader::read(&buffer)?, &buffer[VnetHeader::LEN..len]);
            if let Some(found) = wanted(&vnet, frame) {
                return Some(found);
            }
            if let Some(answer) = self.answer(frame) {
                self.send(&answer).ok()?;
            }
        }
    }

    fn answer(&mut self, question: &[u8]) -> Option<Vec<u8>> {
        let to = packet::destination(question)?;
        if to.is_host() {
            self.asked.push((Instant::now(), to));
        }
        let mac = self.backend.filter(|mac| to.is_group() || to == *mac)?;
        match packet::parse(question) {
            Packet::Arp(arp) if BACKENDS[0] == arp.target && arp.operation == arp::Operation::Request => {
                let mut frame = question.to_vec();
                arp::answer_in_place(&mut frame, &arp, mac);
                Some(frame)
            }
            Packet::Neighbor(message) if BACKENDS[1] == message.target && message.kind == ndp::Kind::Solicitation => {
                Some(advertisement(mac, &message, to.is_host()))
            }
            _ => None,
        }
    }

    /// Where a new flow of that family goes.
    fn lands_at(&mut self, family: usize) -> Option<Mac> {
        let datagram = datagram(CLIENTS[family], VIPS[family], fastrand::u16(1024..), b"where to");
        self.send(&datagram).ok()?;
        self.until(A_WHILE, |_, frame| frame.ends_with(&datagram[14..]).then(|| packet::destination(frame)).flatten())
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        let drops = self.dataplane.report().drops;
        drops.into_iter().find(|(of, _)| *of == reason).map_or(0, |(_, count)| count)
    }

    /// Sends frames, each of which is dropped for that reason and answered by nothing.
    fn are_dropped(&mut self, what: &str, frames: &[Vec<u8>], reason: DropReason) -> anyhow::Result<()> {
        for (number, frame) in frames.iter().enumerate() {
            let before = self.dropped(reason);
            self.send(frame)?;
            let mac = packet::source(frame);
            wait::until(&format!("{what} {number} is counted"), PATIENCE, || self.dropped(reason) == before + 1);
            let answer = self.until(Duration::from_millis(5), |_, out| {
                let to = packet::destination(out);
                // Questions to backends and announcements are of the node's own accord.
                (to == mac || matches!(packet::parse(out), Packet::Flow(_))).then(|| out.to_vec())
            });
            ensure!(answer.is_none(), "{what} {number}: {answer:02x?}");
        }
        Ok(())
    }

    fn finish(self) -> anyhow::Result<()> {
        ensure!(self.dataplane.is_running());
        Ok(self.namespace.enter(|| self.dataplane.stop())?)
    }
}

/// As Linux answers: without its MAC address and without the Override flag, if it was asked alone.
fn advertisement(mac: Mac, question: &ndp::Message, was_asked_alone: bool) -> Vec<u8> {
    let mut frame = ndp::advertisement(mac, NODE, question).to_vec();
    if was_asked_alone {
        frame.truncate(frame.len() - 8);
        (frame[19], frame[58]) = (24, 0x40);
        frame[56..58].fill(0);
        let sum = packet::checksum::icmpv6(question.target, question.source, &frame[54..]);
        frame[56..58].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

fn path(client: IpAddr, vip: IpAddr) -> Path {
    Path { from: GATEWAY, to: NODE, client: SocketAddr::new(client, 4000), service: SocketAddr::new(vip, DNS) }
}

fn datagram(client: IpAddr, vip: IpAddr, port: u16, payload: &[u8]) -> Vec<u8> {
    path(client, vip).from_port(port).udp(payload)
}

/// Says by broadcast that a station has a backend's address.
fn claim(mac: Mac, family: usize) -> Vec<u8> {
    match BACKENDS[family] {
        IpAddr::V4(backend) => {
            let router = Ipv4Addr::new(192, 0, 2, 1);
            arp::request(mac, backend, router, None).to_vec()
        }
        IpAddr::V6(backend) => ndp::announcement(mac, backend).to_vec(),
    }
}

/// No frame that anybody can forge moves a backend's traffic; a backend that has another MAC address is followed.
pub(crate) fn backends_macs(engine: &'static str) -> anyhow::Result<()> {
    let mut bench = Bench::new(engine)?;
    for family in 0..2 {
        for forger in [STRANGER, GATEWAY, PEER] {
            let (sent, refused) = (Instant::now(), bench.dataplane.report().totals.backend_mac_refused);
            bench.send(&claim(forger, family))?;
            wait::until(&format!("{engine}: {forger} is refused and the backend asked"), PATIENCE, || {
                bench.until(A_WHILE, |_, _| None::<()>);
                bench.dataplane.report().totals.backend_mac_refused > refused
                    && bench.asked.iter().any(|(at, mac)| *at > sent && *mac == BACKEND)
            });
            ensure!(bench.lands_at(family) == Some(BACKEND), "{engine}: {forger} has got family {family}");
        }
    }
    let report = bench.dataplane.report().totals;
    ensure!(report.backend_mac_changed == 0, "{engine}: {report:?}");
    // One that is announced, and then one that is not.
    for mac in [STRANGER, BACKEND] {
        bench.backend = Some(mac);
        let changed = Instant::now();
        if mac == STRANGER {
            (0..2).try_for_each(|family| bench.send(&claim(mac, family)))?;
        }
        for family in 0..2 {
            wait::until(&format!("{engine}: {mac} is found"), PATIENCE, || bench.lands_at(family) == Some(mac));
        }
        let took = changed.elapsed();
        ensure!(took < Duration::from_secs(4), "{engine}: {mac} was found after {took:?}");
    }
    ensure!(bench.dataplane.report().totals.backend_mac_changed == 4, "{engine}");
    bench.finish()
}

/// Whoever probes for the VIP that the node probes for has it until it is gone.
pub(crate) fn probes(engine: &'static str) -> anyhow::Result<()> {
    let mut bench = Bench::new(engine)?;
    let grant = |(vip, first)| Grant { vip, epoch: 2, first };
    let grants: Vec<Grant> =
        VIPS.map(|vip| (vip, false)).into_iter().chain(NEW_VIPS.map(|vip| (vip, true))).map(grant).collect();
    for vip in NEW_VIPS {
        bench.dataplane.own(&grants);
        let probe = packet::probe(STRANGER, vip);
        let node_probes = move |frame: &[u8]| match packet::parse(frame) {
            Packet::Arp(arp) => vip == arp.target && arp.sender.is_unspecified(),
            Packet::Neighbor(message) => vip == message.target && message.source.is_unspecified(),
            _ => false,
        };
        let seen = bench.until(PATIENCE, |_, frame| node_probes(frame).then_some(()));
        ensure!(seen.is_some(), "{engine}: {vip} is not probed for");
        bench.send(&probe)?;
        wait::until(&format!("{engine}: {vip} is contested"), PATIENCE, || {
            bench.dataplane.conflicts().iter().any(|conflict| (conflict.vip, conflict.mac) == (vip, STRANGER))
        });
        // Anew for the other one.
        bench.dataplane.own(&VIPS.map(|vip| Grant { vip, epoch: 2, first: false }));
    }
    bench.finish()
}

/// What no host sends from is dropped, counted, and answered by nothing; and nothing is answered to a group.
pub(crate) fn bad_sources(engine: &'static str) -> anyhow::Result<()> {
    let mut bench = Bench::new(engine)?;
    let v4: [IpAddr; 7] =
        ["224.0.0.5", "255.255.255.255", "127.0.0.1", "0.0.0.0", "192.0.2.11", "192.0.2.2", "192.0.2.255"]
            .map(|source| source.parse().expect("an address"));
    let v6: [IpAddr; 5] =
        ["ff02::5", "::1", "::", "2001:db8::11", "2001:db8::2"].map(|source| source.parse().expect("an address"));
    let frames: Vec<Vec<u8>> = v4
        .map(|source| (source, VIPS[0]))
        .into_iter()
        .chain(v6.map(|source| (source, VIPS[1])))
        .flat_map(|(source, vip)| [DNS, 9].map(|port| path(source, vip).to_port(port).udp(b"x")))
        .collect();
    bench.are_dropped("a source", &frames, DropReason::BadSource)?;
    let to_group = |mac: Mac| {
        let (IpAddr::V4(client), IpAddr::V4(vip)) = (CLIENTS[0], VIPS[0]) else { return Vec::new() };
        let operation = arp::Operation::Request;
        let arp = arp::Arp { operation, sender_mac: mac, sender: client, target_mac: Mac::ZERO, target: vip };
        arp::emit(NODE, STRANGER, &arp).to_vec()
    };
    bench.are_dropped("a group", &[to_group(Mac::BROADCAST)], DropReason::BadSource)?;
    bench.send(&to_group(STRANGER))?;
    let answer = bench.until(PATIENCE, |_, frame| frame.starts_with(&STRANGER.0).then_some(()));
    ensure!(answer.is_some(), "{engine}: a sound question is not answered");
    let flows = bench.dataplane.report().totals;
    ensure!(flows.originated > 0);
    bench.finish()
}

/// What is longer than the link takes: a trailer is left out, IPv4 without DF goes on in fragments; and a fragment
/// identification that returns is another datagram.
pub(crate) fn lengths(engine: &'static str) -> anyhow::Result<()> {
    let mut bench = Bench::new(engine)?;
    for family in 0..2 {
        let headers = if family == 0 { 28 } else { 48 };
        let mut full = datagram(CLIENTS[family], VIPS[family], 4001, &vec![0x64; 1500 - headers]);
        full.extend([9; 4]);
        bench.send(&full)?;
        let whole = &full[14..1514];
        let seen = bench.until(PATIENCE, |_, frame| {
            (frame.starts_with(&BACKEND.0) && frame.get(14..) == Some(whole)).then_some(())
        });
        ensure!(seen.is_some(), "{engine}: family {family}: a full packet with a trailer did not come out");
    }
    ensure!(bench.dropped(DropReason::TooBig) == 0);
    let mut large = datagram(CLIENTS[0], VIPS[0], 4002, &vec![0x65; 4000]);
    large[20] = 0;
    bench.send(&large)?;
    let mut parts: Vec<Vec<u8>> = Vec::new();
    bench.until(PATIENCE, |_, frame| {
        let is_part = frame.starts_with(&BACKEND.0) && frame[12..14] == [8, 0] && frame[20..22] != [0, 0];
        if is_part {
            parts.push(frame.to_vec());
        }
        (parts.len() == 3).then_some(())
    });
    let together: Vec<u8> = parts.iter().flat_map(|part| part[34..].to_vec()).collect();
    ensure!(together == large[34..] && parts.iter().all(|part| part.len() <= 1514), "{engine}: {}", parts.len());
    ensure!(bench.dataplane.report().totals.fragmented == 1, "{engine}");
    // The second fragment of the first datagram is lost; the identification returns.
    let part = |first: bool| {
        let mut frame = datagram(CLIENTS[0], VIPS[0], 4003, &vec![0x66; if first { 1472 } else { 520 }]);
        frame[18..20].copy_from_slice(&77u16.to_be_bytes());
        frame[20..22].copy_from_slice(&if first { 0x2000u16 } else { 185 }.to_be_bytes());
        frame
    };
    let comes = |bench: &mut Bench, frame: &[u8]| -> anyhow::Result<bool> {
        bench.send(frame)?;
        Ok(bench.until(A_WHILE, |_, out| (out.get(14..) == Some(&frame[14..])).then_some(())).is_some())
    };
    ensure!(comes(&mut bench, &part(true))?, "{engine}");
    ensure!(!comes(&mut bench, &part(true))?, "{engine}: a copy is no other datagram");
    let begun = Instant::now();
    wait::until(&format!("{engine}: the identification may return"), PATIENCE, || {
        bench.until(A_WHILE, |_, _| None::<()>);
        begun.elapsed() > Duration::from_millis(1100)
    });
    ensure!(
        comes(&mut bench, &part(true))? && comes(&mut bench, &part(false))?,
        "{engine}: the second datagram is torn"
    );
    bench.finish()
}

/// An answer is complete in itself, whatever the frame lacked whose place it has taken.
pub(crate) fn answers_are_whole(engine: &'static str) -> anyhow::Result<()> {
    let mut bench = Bench::new(engine)?;
    let mut ping = Vec::new();
    path(CLIENTS[0], VIPS[0]).ip().icmpv4_echo_request(1, 2).write(&mut ping, b"ping")?;
    // As if the network card had yet to compute the checksum.
    ping[36..38].fill(0);
    let [start, offset] = [34u16.to_ne_bytes(), 2u16.to_ne_bytes()];
    let partial = VnetHeader([1, 0, 0, 0, 0, 0, start[0], start[1], offset[0], offset[1]]);
    bench.send_with(partial, &ping)?;
    let answer = bench.until(PATIENCE, |vnet, frame| (frame.get(34) == Some(&0)).then(|| (*vnet, frame.to_vec())));
    let Some((vnet, frame)) = answer else { anyhow::bail!("{engine}: no answer") };
    ensure!(vnet.partial_checksum().is_none(), "{engine}: {vnet:?}");
    ensure!(packet::checksum::internet(&frame[34..]) == 0, "{engine}: a wrong checksum: {frame:02x?}");
    bench.finish()
}
