//! What is counted is what was sent: for each VIP, for each backend, and over a restart.

use std::{
    collections::BTreeMap,
    env, fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use lb_tests::{
    cluster::LbNode,
    netns::Namespace,
    site::{PATIENCE, Plan, Site, VIP, VIP_TEXT},
    wait,
};
use serde_json::Value;

/// `LB_COUNT_FRAMES=10000000` for the long form, which takes two minutes.
const FRAMES: u64 = 60_000;
/// In each millisecond: less than any queue on the way takes.
const AT_ONCE: u64 = 100;
/// A port to which nobody listens: the servers' kernels count what comes for it.
const PORT: u16 = 4555;
const OTHER_VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 2);

/// What a kernel has received for ports to which nobody listens (RFC 4113, udpNoPorts).
fn no_ports(namespace: &Namespace) -> anyhow::Result<u64> {
    let text = namespace.enter(|| fs::read_to_string("/proc/thread-self/net/snmp"))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
    let at = names.split(' ').position(|name| name == "NoPorts").context("NoPorts")?;
    Ok(values.split(' ').nth(at).context("a value")?.parse()?)
}

/// Packets by VIP and by backend.
fn counted(node: &LbNode) -> anyhow::Result<(BTreeMap<String, u64>, BTreeMap<String, u64>)> {
    let stats = node.stats()?;
    ensure!(stats["ring_full"] == 0, "the ring was full: {stats}");
    let of = |list: &Value| -> Option<BTreeMap<String, u64>> {
        let mut all = BTreeMap::new();
        for row in list.as_array()? {
            *all.entry(row["address"].as_str()?.to_owned()).or_default() += row["packets"].as_u64()?;
        }
        Some(all)
    };
    Ok((of(&stats["vips"]).context("vips")?, of(&stats["backends"]).context("backends")?))
}

pub(crate) fn are_exact() -> anyhow::Result<()> {
    let frames = env::var("LB_COUNT_FRAMES").ok().map_or(Ok(FRAMES), |frames| frames.parse())?;
    let mut site = Site::build(Plan { nodes: 1, servers: 3, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let node = &site.nodes[0];
    node.lbctl_ok(&["vip", "add", &OTHER_VIP.to_string()])?;
    for (name, vip) in [("one", VIP_TEXT), ("two", &OTHER_VIP.to_string())] {
        node.lbctl_ok(&["service", "add", name, "--vip", vip, "--port", &format!("{PORT}/udp")])?;
        for server in &site.servers {
            node.lbctl_ok(&["backend", "add", name, &server.address.to_string()])?;
        }
    }
    for server in &site.servers {
        server.host.add_address("lo", &format!("{OTHER_VIP}/32"))?;
    }
    site.wait_resolved();
    let before = site.servers.iter().map(|server| no_ports(&server.host.ns)).collect::<anyhow::Result<Vec<_>>>()?;
    let sockets: Vec<UdpSocket> = site
        .client
        .ns
        .enter(|| (0..64).map(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).collect::<std::io::Result<_>>())?;
    let mut sent = BTreeMap::<String, u64>::new();
    let mut send = |count: u64| {
        let mut number = 0;
        while number < count {
            wait::paced(Duration::from_millis(1), Duration::from_millis(1), || ());
            for _ in 0..AT_ONCE.min(count - number) {
                // One VIP gets twice as much as the other one.
                let vip = if number % 3 == 0 { OTHER_VIP } else { VIP };
                let socket = &sockets[number as usize % sockets.len()];
                if socket.send_to(b"counted", SocketAddr::from((vip, PORT))).is_ok() {
                    *sent.entry(vip.to_string()).or_default() += 1;
                    number += 1;
                }
            }
        }
    };
    send(1);
    wait::until("the first one has come", PATIENCE, || {
        counted(&site.nodes[0]).is_ok_and(|(vips, _)| vips.values().sum::<u64>() == 1)
    });
    send(frames / 2);
    let half = frames / 2 + 1;
    let all_have_come = |expected: u64| {
        wait::until_ok(PATIENCE, || {
            let found = counted(&site.nodes[0])?;
            ensure!(found.0.values().sum::<u64>() == expected, "{found:?}, of {expected}");
            Ok(found)
        })
    };
    let (first_vips, first_backends) = all_have_come(half)?;
    site.nodes[0].terminate()?;
    site.nodes[0].start()?;
    lb_tests::cluster::wait_ready(&site.nodes[0], 1);
    site.wait_resolved();
    send(1);
    wait::until("the VIPs are owned again", PATIENCE, || {
        counted(&site.nodes[0]).is_ok_and(|(vips, _)| vips.values().sum::<u64>() == 1)
    });
    send(frames - frames / 2);
    let all_have_come = wait::until_ok(PATIENCE, || {
        let found = counted(&site.nodes[0])?;
        ensure!(found.0.values().sum::<u64>() == frames - frames / 2 + 1, "{found:?}");
        Ok(found)
    });
    let (second_vips, second_backends) = all_have_come?;
    for (vip, sent) in &sent {
        let found = first_vips[vip] + second_vips[vip];
        ensure!(found == *sent, "{vip}: {sent} were sent, {found} counted");
    }
    for (server, before) in site.servers.iter().zip(before) {
        let address = server.address.to_string();
        let (found, came) = (first_backends[&address] + second_backends[&address], no_ports(&server.host.ns)? - before);
        ensure!(found == came && came > 0, "{address}: {came} have come, {found} were counted");
    }
    Ok(())
}
