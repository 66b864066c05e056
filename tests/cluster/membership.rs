//! Nodes come and go.

use std::{net::SocketAddrV4, time::Duration};

use anyhow::ensure;
use lb_tests::{
    cluster::{LbNode, NodeConfig, SOON, form, insist, wait_for_leader, wait_ready},
    observe::UdpStream,
    site::{ECHO, HTTP_ADDRESS, PATIENCE, Plan, Site, VIP, VIP_TEXT},
    traffic::HttpClient,
    wait,
};

/// Each node in turn makes and undoes changes; most of them are followers.
pub(crate) fn any_node_takes_commands() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    for node in &site.nodes {
        node.lbctl_ok(&["vip", "add", "192.168.2.50"])?;
        node.lbctl_ok(&[
            "service",
            "add",
            "s",
            "--vip",
            "192.168.2.50",
            "--port",
            "53/udp",
            "--port",
            "53/tcp",
            "--check",
            "none",
        ])?;
        node.lbctl_ok(&["service", "set", "s", "--port", "any/tcp", "--affinity", "source"])?;
        node.lbctl_ok(&["backend", "add", "s", "192.168.3.5", "--weight", "7"])?;
        ensure!(node.lbctl_ok(&["backend", "add", "s", "192.168.3.5", "--weight", "7"])?.contains("unchanged"));
        let refused = node.lbctl(&["backend", "add", "s", "192.168.3.5", "--weight", "8"])?;
        ensure!(refused.status.code() == Some(1));
        ensure!(String::from_utf8_lossy(&refused.stderr).contains("lbctl backend set s 192.168.3.5"));
        node.lbctl_ok(&["backend", "disable", "s", "192.168.3.5"])?;
        for reader in &site.nodes {
            let list = reader.lbctl_json(&["backend", "list", "s", "--no-flows"])?;
            ensure!(list["backends"][0]["state"] == "down" && list["backends"][0]["weight"] == 7, "{list}");
        }
        node.lbctl_ok(&["backend", "enable", "s", "192.168.3.5"])?;
        let refused = node.lbctl(&["vip", "remove", "192.168.2.50"])?;
        ensure!(String::from_utf8_lossy(&refused.stderr).contains("--cascade"));
        node.lbctl_ok(&["vip", "remove", "192.168.2.50", "--cascade"])?;
        ensure!(node.lbctl_ok(&["vip", "remove", "192.168.2.50"])?.contains("unchanged"));
    }
    let usage = site.nodes[0].lbctl(&["vip", "add", "nonsense"])?;
    ensure!(usage.status.code() == Some(2));
    Ok(())
}

/// A fourth node is added, then the leader removed: the table and the traffic survive both.
pub(crate) fn join_and_leave() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 4, servers: 2, two_interfaces: false, engine: "ring" })?;
    let late = site.nodes.split_off(3);
    form(&mut site.nodes)?;
    site.configure()?;
    site.nodes.extend(late);
    let mut http = HttpClient::connect(&site.client.ns, HTTP_ADDRESS, PATIENCE)?;
    let who = http.who()?;
    let stream = UdpStream::start(&site.client, SocketAddrV4::new(VIP, ECHO), Duration::from_millis(5))?;
    let before = site.nodes[0].lbctl_json(&["backend", "list", "--no-flows"])?;

    site.nodes[3].start()?;
    let waiting = site.nodes[3].lbctl_ok(&["status"])?;
    ensure!(waiting.starts_with("waiting to be added: run 'lbctl node add lb4 10.77.1.4:7401'"), "{waiting}");
    let refused = site.nodes[3].lbctl(&["vip", "add", "192.168.2.9"])?;
    ensure!(refused.status.code() == Some(1), "a node that waits takes no writes");
    site.nodes[1].lbctl_ok(&["node", "add", "lb4", "10.77.1.4:7401"])?;
    wait_ready(&site.nodes[0], 4);
    ensure!(site.nodes[3].lbctl_json(&["backend", "list", "--no-flows"])? == before, "the new node has another table");

    let leader = site.nodes[0].lbctl_json(&["status"])?["leader"].as_str().unwrap_or_default().to_owned();
    let at = site.nodes.iter().position(|node| node.name == leader).unwrap_or(0);
    // The leader owns the VIP too, so that it has to let go of everything.
    site.nodes[0].lbctl_ok(&["vip", "move", VIP_TEXT, &leader])?;
    let asked = (at + 1) % 4;
    site.nodes[asked].lbctl_ok(&["node", "remove", &leader])?;
    let status = site.nodes[at].wait_for_end(SOON)?;
    ensure!(status.code() == Some(65), "a removed node ends and says so: {status}");
    ensure!(site.nodes[at].log().contains("was removed from the cluster"));
    wait_for_leader(&site.nodes[asked]);
    let nodes = site.nodes[asked].lbctl_json(&["node", "list"])?;
    ensure!(nodes["nodes"].as_array().map(Vec::len) == Some(3), "{nodes}");
    ensure!(site.nodes[asked].lbctl_json(&["backend", "list", "--no-flows"])? == before, "the table changed");
    let owner = site.nodes[asked].owner_of(VIP_TEXT)?;
    ensure!(!owner.is_empty() && owner != leader, "the VIP is owned by {owner:?}");
    ensure!(http.who()? == who, "the connection broke");
    let report = stream.finish();
    ensure!(report.longest_gap < Duration::from_secs(2), "{report:?}");
    println!("join and leave: {report:?}");
    let unchanged = site.nodes[asked].lbctl_ok(&["node", "remove", &leader])?;
    ensure!(unchanged.contains("unchanged"));
    Ok(())
}

/// From one node to five and back to one, under traffic: no packet is lost, no connection breaks.
pub(crate) fn one_five_one() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 5, servers: 2, two_interfaces: false, engine: "ring" })?;
    for node in &mut site.nodes {
        node.start()?;
    }
    wait_for_leader(&site.nodes[0]);
    wait_ready(&site.nodes[0], 1);
    let late = site.nodes.split_off(1);
    site.configure()?;
    site.nodes.extend(late);
    let mut http = HttpClient::connect(&site.client.ns, HTTP_ADDRESS, PATIENCE)?;
    let who = http.who()?;
    let stream = UdpStream::start(&site.client, SocketAddrV4::new(VIP, ECHO), Duration::from_millis(2))?;
    wait::until("the stream is answered", PATIENCE, || stream.last_answer().is_some());
    for number in 1..5 {
        let (name, address) = (site.nodes[number].name.clone(), site.nodes[number].address.clone());
        site.nodes[number - 1].lbctl_ok(&["node", "add", &name, &address])?;
        wait_ready(&site.nodes[0], number + 1);
        site.nodes[number].wait_resolved(4);
        // Everybody owns the VIP once. On a busy machine a lease may just have run out.
        insist(|| site.nodes[0].lbctl(&["vip", "move", VIP_TEXT, &name]))?;
    }
    // The owner goes each time, and the first node of all too: another one is the last.
    for number in [4, 0, 3, 2] {
        let name = site.nodes[number].name.clone();
        site.nodes[1].lbctl_ok(&["vip", "move", VIP_TEXT, &name])?;
        site.nodes[1].lbctl_ok(&["node", "remove", &name])?;
        let status = site.nodes[number].wait_for_end(SOON)?;
        ensure!(status.code() == Some(65), "{name} ended with {status}");
    }
    let nodes = site.nodes[1].lbctl_json(&["node", "list"])?;
    ensure!(nodes["nodes"].as_array().map(Vec::len) == Some(1), "{nodes}");
    ensure!(http.who()? == who, "the connection broke");
    let report = stream.finish();
    println!("one, five, one: {report:?}");
    ensure!(report.lost == 0, "{report:?}");
    Ok(())
}

/// A node that was off when it was removed is told by the others when it comes back.
pub(crate) fn removed_while_off() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 0, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    site.nodes[2].kill()?;
    site.nodes[0].lbctl_ok(&["node", "remove", "lb3", "--force"])?;
    site.nodes[2].start()?;
    let status = site.nodes[2].wait_for_end(SOON)?;
    ensure!(status.code() == Some(65), "it ended with {status}");
    ensure!(site.nodes[2].log().contains("was removed from the cluster"));
    Ok(())
}

/// A witness votes, owns nothing, and has no dataplane.
pub(crate) fn witness() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 2, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let host = site.net.host("w1")?;
    site.net.attach(&host, "mgmt", "nodes", &["10.77.1.9/24"])?;
    let config = NodeConfig { address: "10.77.1.9", interfaces: &[], engine: "", bootstrap: false };
    let mut witness = LbNode::new(&host, &site.root, &config)?;
    witness.start()?;
    site.nodes[0].lbctl_ok(&["node", "add", "w1", "10.77.1.9:7401", "--role", "witness"])?;
    let status = witness.lbctl_json(&["status"])?;
    ensure!(status["dataplane"].is_null() && status["nodes"].as_array().map(Vec::len) == Some(3), "{status}");
    let refused = site.nodes[0].lbctl(&["vip", "move", VIP_TEXT, "w1"])?;
    ensure!(refused.status.code() == Some(1), "a witness was given a VIP");
    let mut http = HttpClient::connect(&site.client.ns, HTTP_ADDRESS, PATIENCE)?;
    let who = http.who()?;
    let owner = site.owner()?;
    site.nodes[owner].kill()?;
    let survivor = &site.nodes[1 - owner];
    wait::until("the other node owns the VIP", SOON, || {
        survivor.owner_of(VIP_TEXT).is_ok_and(|name| name == survivor.name)
    });
    ensure!(http.who()? == who, "the connection broke");
    ensure!(witness.owner_of(VIP_TEXT)? == survivor.name);
    ensure!(witness.terminate()?.success());
    Ok(())
}

/// A wrong name, a wrong role, nobody there, a wiped node.
pub(crate) fn refusals() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 0, two_interfaces: false, engine: "ring" })?;
    let third = site.nodes.split_off(2);
    form(&mut site.nodes)?;
    site.nodes.extend(third);
    site.nodes[2].start()?;
    let refused = |arguments: &[&str], word: &str| {
        let output = site.nodes[0].lbctl(arguments)?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1), "{arguments:?}: {}: {text}", output.status);
        ensure!(text.contains(word), "{arguments:?}: {word:?} is missing in {text}");
        Ok(())
    };
    refused(&["node", "add", "lb9", "10.77.1.3:7401"], "calls itself \"lb3\"")?;
    refused(&["node", "add", "lb3", "10.77.1.3:7401", "--role", "witness"], "node.role")?;
    refused(&["node", "add", "lb8", "10.77.1.1:7999"], "Start lbd there first")?;
    // lb2 loses its disk and comes back empty: the others do not take it for the old one.
    site.nodes[1].kill()?;
    std::fs::remove_dir_all(site.nodes[1].data_dir())?;
    site.nodes[1].start()?;
    ensure!(site.nodes[1].lbctl_ok(&["status"])?.starts_with("waiting to be added"));
    Ok(())
}
