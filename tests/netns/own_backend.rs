//! Nodes that are backends themselves, as at a small site.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use etherparse::PacketBuilder;
use lb_tests::{
    capture::Injector,
    nft,
    site::{ECHO, HTTP, HTTP_ADDRESS, PATIENCE, Plan, Site, VIP, VIP_TEXT, VIP6},
    traffic::{Backend, HttpClient},
    wait,
};

/// Two nodes that balance between each other and themselves: TCP with GSO frames, UDP with fragments, both families.
/// Nothing is balanced twice, and nothing is left over.
pub(crate) fn served(engine: &'static str) -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 2, servers: 0, two_interfaces: false, engine })?;
    site.add_ipv6()?;
    site.start()?;
    let vip6 = VIP6.to_string();
    let mut servers = Vec::new();
    for (number, host) in (1..).zip(&site.node_hosts) {
        host.ns.sysctl("ipv4.conf.all.rp_filter", "0", false)?;
        host.default_route(std::net::Ipv4Addr::new(192, 168, 3, 1))?;
        host.default_route("2001:db8:3::1".parse::<IpAddr>()?)?;
        for vip in [IpAddr::from(VIP), VIP6.into()] {
            host.make_backend(vip)?;
            servers.push(Backend::serve(&host.ns, &format!("lb{number}"), vip, HTTP, ECHO)?);
        }
    }
    let lb = &site.nodes[0];
    lb.lbctl_ok(&["vip", "add", &vip6])?;
    for (service, port) in [("web6", "80/tcp"), ("echo6", "7/udp")] {
        lb.lbctl_ok(&["service", "add", service, "--vip", &vip6, "--port", port])?;
    }
    for (number, service) in (11..=12).flat_map(|number| ["web", "echo", "web6", "echo6"].map(|s| (number, s))) {
        lb.lbctl_ok(&["backend", "add", service, &format!("192.168.3.{number}")])?;
    }
    for node in &site.nodes {
        node.wait_resolved(8);
    }
    for address in [SocketAddr::from(HTTP_ADDRESS), (VIP6, HTTP).into()] {
        let mut met = BTreeSet::new();
        for _ in 0..20 {
            let mut http = HttpClient::connect(&site.client.ns, address, PATIENCE)?;
            let said = http.upload(300_000)?;
            met.insert(said.strip_suffix(" 300000").with_context(|| format!("{engine}: {said}"))?.to_owned());
        }
        ensure!(met.len() == 2, "{engine}, {address}: only {met:?} served");
    }
    for address in [SocketAddr::new(VIP.into(), ECHO), (VIP6, ECHO).into()] {
        let mut met = BTreeSet::new();
        for _ in 0..20 {
            met.insert(echoed(&site, address, &[7; 4000]).with_context(|| format!("{engine}, {address}"))?);
        }
        ensure!(met.len() == 2, "{engine}, {address}: only {met:?} served");
    }
    // Another program flushes the ruleset: the kernel of the owner, which has the VIP on its loopback, does not take over.
    nft::flush_ruleset(&site.node_hosts[site.owner()?].ns)?;
    let mut met = BTreeSet::new();
    for _ in 0..60 {
        met.insert(echoed(&site, SocketAddr::new(VIP.into(), ECHO), b"who")?);
    }
    ensure!(met.len() == 2, "{engine}: after a flush of the ruleset only {met:?} served");
    let to = format!("{VIP_TEXT}:{HTTP}/tcp");
    let explain = |port: u16| lb.lbctl_json(&["explain", &format!("192.168.1.10:{port}"), &to]);
    let explained: Vec<_> = (1..50).map(explain).collect::<anyhow::Result<_>>()?;
    let own = explained.iter().map(|answer| &answer["explanations"][0]).find(|one| one["backend"] == "192.168.3.11");
    let own = own.context("no flow goes to the node itself")?;
    ensure!(own["interface"] == "lo" && own["verdict"] == "forward", "{own}");
    for node in &site.nodes {
        for reason in ["balanced_twice", "backend_unresolved", "send_failed", "fragment_timeout"] {
            let dropped = node.drops(reason)?;
            ensure!(dropped == 0, "{engine}: {} dropped {dropped} frames: {reason}", node.name);
        }
    }
    // A node that serves no more passes on to the other one, and lets nothing of the other one's in.
    let owner = site.owner()?;
    let (own, other) = (format!("192.168.3.{}", 11 + owner), &site.nodes[1 - owner]);
    lb.change(&["backend", "remove", "web", &own])?;
    wait::until("the owner is no backend any more", PATIENCE, || {
        let who = HttpClient::connect(&site.client.ns, HTTP_ADDRESS, PATIENCE).and_then(|mut http| http.who());
        who.is_ok_and(|who| who == other.name)
    });
    // What the other one has balanced is not balanced again.
    let (from, to) = (site.node_hosts[1 - owner].port("eth0").mac, site.node_hosts[owner].port("eth0").mac);
    let mut astray = Vec::new();
    PacketBuilder::ethernet2(from.0, to.0)
        .ipv4([192, 168, 1, 10], VIP.octets(), 64)
        .tcp(40_000, HTTP, 1, 1000)
        .syn()
        .write(&mut astray, &[])?;
    Injector::new(&site.router.ns, "eth1")?.send(&astray)?;
    wait::until("a frame that was balanced before is dropped", PATIENCE, || {
        site.nodes[owner].drops("balanced_twice").is_ok_and(|dropped| dropped == 1)
    });
    Ok(())
}

/// Who answers a datagram that does not fit into one frame.
fn echoed(site: &Site, to: SocketAddr, payload: &[u8]) -> anyhow::Result<String> {
    let socket = site.client.ns.enter(|| UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    site.client.ns.enter(|| socket.send_to(payload, to))?;
    let mut answer = vec![0; 65536];
    let (len, from) = socket.recv_from(&mut answer)?;
    ensure!(from == to, "{from} answered for {to}");
    Ok(String::from_utf8_lossy(&answer[..len]).into_owned())
}
