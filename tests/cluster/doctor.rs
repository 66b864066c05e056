//! `lbctl doctor`: each fault is made for real, found by its name, and not found any more when it is mended.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, ensure};
use lb_dataplane::packet::arp;
use lb_tests::{
    capture::Injector,
    cluster::SOON,
    frame::Path,
    pki::Pki,
    site::{ECHO, Plan, Site, VIP, VIP_TEXT},
    sys::reference,
    topology::Lane,
    wait,
};
use serde_json::Value;

/// What a node finds, by the names of the findings; and whether the command ended as it should.
fn found(site: &Site, by: usize) -> anyhow::Result<(BTreeSet<String>, Value)> {
    let output = site.nodes[by].lbctl(&["-o", "json", "doctor"])?;
    let told: Value =
        serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let all = told["found"].as_array().context("a list")?;
    let is_wrong = all.iter().any(|finding| finding["severity"] != "info");
    ensure!(output.status.code() == Some(i32::from(is_wrong)), "{}: {told}", output.status);
    let ids = all.iter().filter_map(|finding| finding["id"].as_str()).map(str::to_owned).collect();
    Ok((ids, told))
}

/// All of these are found, or none of them.
fn are_found(site: &Site, by: usize, ids: &[&str], wanted: bool) -> anyhow::Result<Value> {
    wait::until_ok(SOON, || {
        let (all, told) = found(site, by)?;
        let wrong: Vec<&&str> = ids.iter().filter(|id| all.contains(**id) != wanted).collect();
        let is = if wanted { "not found" } else { "found yet" };
        ensure!(wrong.is_empty(), "{is}: {wrong:?}: {told:#}");
        Ok(told)
    })
}

/// What is only worth knowing may be: a claim of the last minute.
fn nothing_is_found(site: &Site) -> anyhow::Result<()> {
    wait::until_ok(SOON, || {
        let (_, told) = found(site, 0)?;
        let is_info = |finding: &Value| finding["severity"] == "info";
        ensure!(told["found"].as_array().is_some_and(|all| all.iter().all(is_info)), "{told:#}");
        Ok(())
    })
}

/// What is found while a client's datagrams come to a node.
fn while_frames_come(site: &Site, at: usize, is_found: impl Fn(&BTreeSet<String>) -> bool) -> anyhow::Result<()> {
    let router = Injector::new(&site.router.ns, "eth1")?;
    let path = Path { to: site.node_hosts[at].port("eth0").mac, ..site.path(VIP.into(), ECHO) };
    // Of several flows some go to each backend.
    let frames: Vec<Vec<u8>> = (0..32).map(|flow| path.from_port(40_000 + flow).udp(b"seen")).collect();
    wait::until_ok(SOON, || {
        std::thread::scope(|scope| {
            let sends = scope.spawn(|| {
                wait::paced(Duration::from_millis(100), Duration::from_secs(3), || {
                    frames.iter().for_each(|frame| router.send(frame).expect("sending"));
                });
            });
            let found = found(site, 0);
            sends.join().map_err(|_| anyhow::anyhow!("sending"))?;
            let (all, told) = found?;
            ensure!(is_found(&all), "{told:#}");
            Ok(())
        })
    })
}

pub(crate) fn of_backends_and_vips() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 2, servers: 3, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let [first, second, third] = &*site.servers else { anyhow::bail!("three servers") };
    let lb = &site.nodes[0];
    lb.lbctl_ok(&["vip", "move", VIP_TEXT, "lb1"])?;
    nothing_is_found(&site)?;
    let told = lb.lbctl_ok(&["doctor"])?;
    ensure!(told == "nothing is wrong, as far as can be seen\n", "{told}");

    // A backend without the VIP, and one that answers ARP for it.
    first.host.remove_address("lo", VIP.into())?;
    second.host.ns.sysctl("ipv4.conf.all.arp_ignore", "0", false)?;
    let faults = ["vip-missing", "backend-answers-arp"];
    let told = are_found(&site, 1, &faults, true)?;
    let all = told["found"].as_array().context("a list")?;
    let of = |id: &str| all.iter().find(|finding| finding["id"] == id).context("it was found");
    for (id, server) in faults.iter().zip(&site.servers) {
        let text = of(id)?["explanation"].as_str().unwrap_or_default();
        ensure!(text.contains(&server.address.to_string()), "{id}: {text}");
        ensure!(of(id)?["node"] == "lb1" && of(id)?["mend"].as_str().is_some_and(|mend| mend.len() > 10));
    }
    // As people read it.
    let output = lb.lbctl(&["doctor"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.code() == Some(1) && text.contains("WARNING vip-missing  backend echo 192.168.3.5  (lb1)\n"),
        "{text}"
    );
    ensure!(text.contains("        mend: on 192.168.3.5: ip address add 192.168.2.1/32 dev lo"), "{text}");
    first.host.add_address("lo", &format!("{VIP}/32"))?;
    second.host.ns.sysctl("ipv4.conf.all.arp_ignore", "1", false)?;
    are_found(&site, 1, &faults, false)?;

    // Backends that are nowhere, behind a router, or one host twice; and nobody left to serve.
    lb.lbctl_ok(&["service", "add", "odd", "--vip", VIP_TEXT, "--port", "99/udp"])?;
    third.host.add_address("eth0", "192.168.3.77/24")?;
    // One node alone is on that segment.
    site.node_hosts[1].add_address("eth0", "10.99.0.12/24")?;
    wait::until_ok(SOON, || lb.change(&["backend", "add", "odd", "10.99.0.1"]))?;
    for address in ["192.168.3.99", "192.168.3.77", "192.168.3.7"] {
        lb.lbctl_ok(&["backend", "add", "odd", address])?;
    }
    are_found(&site, 0, &["backend-unresolved", "backend-off-segment", "shared-mac"], true)?;
    for address in ["192.168.3.99", "10.99.0.1", "192.168.3.77"] {
        lb.lbctl_ok(&["backend", "remove", "odd", address])?;
    }
    lb.lbctl_ok(&["backend", "disable", "odd", "192.168.3.7"])?;
    are_found(&site, 0, &["service-unserved"], true)?;
    lb.lbctl_ok(&["service", "remove", "odd", "--cascade"])?;

    // Packets that come back; the VIP on a node's interface.
    first.host.remove_address("lo", VIP.into())?;
    first.host.ns.sysctl("ipv4.ip_forward", "1", false)?;
    first.host.route(VIP.into(), Ipv4Addr::new(192, 168, 3, 11).into())?;
    while_frames_come(&site, 0, |told| told.contains("backend-returns-packets"))?;
    first.host.ns.sysctl("ipv4.ip_forward", "0", false)?;
    first.host.add_address("lo", &format!("{VIP}/32"))?;
    site.node_hosts[1].add_address("eth0", &format!("{VIP}/32"))?;
    are_found(&site, 0, &["vip-on-interface"], true)?;
    site.node_hosts[1].remove_address("eth0", VIP.into())?;

    // A node's packets that come to the other one.
    while_frames_come(&site, 1, |told| told.contains("stale-port"))?;
    nothing_is_found(&site)?;

    // Claims are told for a minute: another station's, and a backend's that asks with the VIP.
    let neighbor = site.add_neighbor()?;
    neighbor.add_address("eth0", &format!("{VIP}/32"))?;
    are_found(&site, 0, &["duplicate-vip"], true)?;
    neighbor.remove_address("eth0", VIP.into())?;
    let third_asks = Injector::new(&third.host.ns, "eth0")?;
    third_asks.send(&arp::request(third.mac, VIP, Ipv4Addr::new(192, 168, 3, 1), None))?;
    let told = are_found(&site, 0, &["backend-asks-with-vip"], true)?;
    let asks = told["found"].as_array().into_iter().flatten().find(|finding| finding["id"] == "backend-asks-with-vip");
    let text = asks.and_then(|finding| finding["explanation"].as_str()).unwrap_or_default();
    ensure!(text.contains("192.168.3.7"), "{told}");
    Ok(())
}

pub(crate) fn of_nodes() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 1, two_interfaces: true, engine: "ring" })?;
    site.start()?;
    nothing_is_found(&site)?;
    let lb = &site.nodes[0];
    let hosts = &site.node_hosts;

    // Interfaces: one without segmentation, with another MTU; a network in which one node has no address.
    hosts[1].ns.enter(|| reference::disable_tso("eth0"))?;
    hosts[1].set_mtu("eth1", 1400)?;
    hosts[1].add_address("eth0", "192.168.50.12/24")?;
    lb.lbctl_ok(&["vip", "add", "192.168.50.1"])?;
    // A node that is its own backend, and drops what comes by lo; one whose certificate ends.
    lb.lbctl_ok(&["backend", "add", "echo", "192.168.3.13"])?;
    hosts[2].ns.sysctl("ipv4.conf.all.rp_filter", "1", false)?;
    Pki::below(site.root.path())?.issue("node", "lb3", &["--san", "10.77.1.3", "--days", "5"])?;
    let faults =
        ["software-segmentation", "mtu-differs", "interface-without-address", "reverse-path-filter", "certificate"];
    are_found(&site, 0, &faults, true)?;
    hosts[1].set_mtu("eth1", 1500)?;
    lb.lbctl_ok(&["vip", "remove", "192.168.50.1"])?;
    lb.lbctl_ok(&["backend", "remove", "echo", "192.168.3.13"])?;
    hosts[2].ns.sysctl("ipv4.conf.all.rp_filter", "0", false)?;
    Pki::below(site.root.path())?.issue("node", "lb3", &["--san", "10.77.1.3"])?;
    are_found(&site, 0, &faults[1..], false)?;

    // Heartbeats are blocked, and TCP is not; a node is off.
    hosts[1].block(Lane::Heartbeats, true)?;
    are_found(&site, 0, &["heartbeats-blocked"], true)?;
    hosts[1].block(Lane::Heartbeats, false)?;
    site.nodes[2].terminate()?;
    are_found(&site, 0, &["node-silent"], true)?;
    site.nodes[2].start()?;
    are_found(&site, 0, &["node-silent", "heartbeats-blocked"], false).map(drop)
}
