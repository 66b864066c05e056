//! Faults of the owner, one after the other, and the settings that say how fast they are noticed. The figures
//! are those of `cargo lb-takeover`; here the bounds are loose.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::ensure;
use lb_dataplane::packet::{Mac, arp};
use lb_tests::{
    capture::Injector,
    cluster,
    faults::{Fault, Watch, measure, place_owner},
    observe::{ArpObserver, owners_in_turn},
    site::{PATIENCE, Plan, Site, VIP, VIP_TEXT},
    topology::{Cut, Host},
    wait,
};

const ASKING: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 254);

fn site_with_neighbor() -> anyhow::Result<(Site, Host)> {
    let mut site = Site::build(Plan { nodes: 3, servers: 2, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let neighbor = site.add_neighbor()?;
    Ok((site, neighbor))
}

/// Whatever happens to the owner, another one follows, and never two at a time.
pub(crate) fn one_owner_follows_the_other() -> anyhow::Result<()> {
    let (mut site, neighbor) = site_with_neighbor()?;
    for (number, fault) in Fault::ALL.into_iter().enumerate() {
        let outcome = measure(&mut site, &neighbor, fault, number % 2 == 0)?;
        println!("{}: {:?}", fault.name(), outcome.gap);
        ensure!(outcome.gap < Duration::from_secs(2), "{}: {:?}", fault.name(), outcome.gap);
    }
    Ok(())
}

/// The owner is cut off from its peers and from nobody else: it falls silent before the next one answers, and
/// when the cut heals, nothing moves.
pub(crate) fn a_partition_has_one_owner() -> anyhow::Result<()> {
    let (site, neighbor) = site_with_neighbor()?;
    let owner = place_owner(&site, true)?;
    let watch = Watch::start(&site, &neighbor)?;
    site.net.cut(&site.node_hosts[owner], "mgmt", Cut::Silent)?;
    let other = &site.nodes[(owner + 1) % site.nodes.len()];
    let name = site.nodes[owner].name.clone();
    wait::until("the VIP has moved", PATIENCE, || {
        other.owner_of(VIP_TEXT).is_ok_and(|now| !now.is_empty() && now != name)
    });
    watch.go_on(Duration::from_millis(300));
    // Alone it takes no command.
    let refused = site.nodes[owner].lbctl(&["--timeout", "1s", "vip", "add", "192.168.2.99"])?;
    ensure!(refused.status.code() == Some(4), "a node without a majority answered {}", refused.status);
    let healing = Watch::start(&site, &neighbor)?;
    site.net.cut(&site.node_hosts[owner], "mgmt", Cut::None)?;
    cluster::wait_ready(&site.nodes[owner], site.nodes.len());
    healing.go_on(Duration::from_millis(500));
    let seen = healing.finish()?;
    let owners = owners_in_turn(&seen.claims).map_err(anyhow::Error::msg)?;
    ensure!(owners.len() == 1, "the owners after the partition healed: {owners:?}");
    ensure!(seen.lost() == 0, "healing lost {} datagrams", seen.lost());
    let owners = owners_in_turn(&watch.finish()?.claims).map_err(anyhow::Error::msg)?;
    ensure!(owners.len() == 2, "the owners were {owners:?}");
    Ok(())
}

/// `lbctl cluster show` and `set`.
pub(crate) fn settings() -> anyhow::Result<()> {
    let (site, _) = site_with_neighbor()?;
    let (first, last) = (&site.nodes[0], &site.nodes[2]);
    ensure!(first.lbctl_json(&["cluster", "show"])?["settings"]["timing"] == "default");
    ensure!(last.lbctl_ok(&["cluster", "set", "timing=relaxed"])?.contains("timing=relaxed (revision"));
    ensure!(first.lbctl_ok(&["cluster", "set", "timing=relaxed"])?.contains("unchanged"));
    let shown = first.lbctl_json(&["cluster", "show"])?;
    ensure!(shown["settings"]["withdraw_ms"] == "600", "{shown}");
    ensure!(first.lbctl_ok(&["cluster", "show"])?.contains("heartbeat_ms"));
    for (setting, word) in [
        ("lease_ms=700", "withdraw_ms"),
        ("timing=quick", "default, relaxed, fast"),
        ("colour=blue", "there is no such setting"),
    ] {
        let output = first.lbctl(&["cluster", "set", setting])?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && text.contains(word), "{setting}: {}: {text}", output.status);
    }
    ensure!(first.lbctl(&["cluster", "set", "timing"])?.status.code() == Some(2));
    Ok(())
}

/// Without a majority owners fall silent, unless the operator wants them to hold on; then they yield to the first
/// other claim.
pub(crate) fn quorum_loss() -> anyhow::Result<()> {
    let (mut site, neighbor) = site_with_neighbor()?;
    let owner = place_owner(&site, true)?;
    let answers = |site: &Site| {
        let observer = ArpObserver::start(&site.router, "eth1", ASKING, VIP, Duration::from_millis(2))?;
        wait::paced(Duration::from_millis(10), Duration::from_millis(300), || {});
        anyhow::Ok(observer.finish().len())
    };
    for mode in ["release", "hold"] {
        site.nodes[owner].lbctl_ok(&["cluster", "set", &format!("on_quorum_loss={mode}")])?;
        ensure!(answers(&site)? > 0, "the owner answers");
        let others: Vec<usize> = (0..site.nodes.len()).filter(|node| *node != owner).collect();
        for other in &others {
            site.nodes[*other].kill()?;
        }
        let status = || site.nodes[owner].lbctl_json(&["status"]).unwrap_or_default();
        wait::until("the lease has run out", PATIENCE, || status()["lease_valid_ms"] == 0);
        ensure!(status()["held"] == (mode == "hold"), "{}", status());
        let heard = answers(&site)?;
        ensure!((heard > 0) == (mode == "hold"), "{mode}: {heard} answers without a majority");
        if mode == "hold" {
            let [claim, _] = arp::announcements(Mac([2, 0, 0, 0, 9, 9]), VIP);
            Injector::new(&neighbor.ns, "eth0")?.send(&claim)?;
            wait::until("it yields", PATIENCE, || site.nodes[owner].drops("arp_conflict").is_ok_and(|count| count > 0));
            ensure!(answers(&site)? == 0, "it answers beside another claim");
        }
        for other in others {
            site.nodes[other].start()?;
        }
        cluster::wait_ready(&site.nodes[owner], site.nodes.len());
        wait::until("the VIP is answered again", PATIENCE, || answers(&site).is_ok_and(|count| count > 0));
        site.nodes[owner].lbctl_ok(&["vip", "move", VIP_TEXT, &site.nodes[owner].name])?;
    }
    Ok(())
}

/// A VIP goes back to the node that it prefers, when the operator wants that; and VIPs are spread on request.
pub(crate) fn failback_and_rebalance() -> anyhow::Result<()> {
    let (mut site, _) = site_with_neighbor()?;
    let first = site.nodes[0].name.clone();
    site.nodes[1].lbctl_ok(&["vip", "set", VIP_TEXT, "--prefer", &first])?;
    site.nodes[1].lbctl_ok(&["vip", "move", VIP_TEXT, &first])?;
    for last in 20..25 {
        site.nodes[1].lbctl_ok(&["vip", "add", &format!("192.168.2.{last}")])?;
    }
    site.nodes[0].terminate()?;
    site.nodes[0].start()?;
    cluster::wait_ready(&site.nodes[1], 3);
    ensure!(site.nodes[1].owner_of(VIP_TEXT)? != first, "nothing moves by itself");
    site.nodes[1].lbctl_ok(&["cluster", "set", "failback=1s"])?;
    wait::until("it is back", PATIENCE, || site.nodes[1].owner_of(VIP_TEXT).is_ok_and(|owner| owner == first));
    ensure!(site.nodes[1].lbctl_ok(&["vip", "rebalance"])?.contains("vips rebalanced"));
    let nodes = site.nodes[1].lbctl_json(&["node", "list"])?;
    let counts: Vec<_> = nodes["nodes"].as_array().into_iter().flatten().map(|row| row["vips"].clone()).collect();
    ensure!(counts.iter().all(|count| *count == 2), "{counts:?}");
    ensure!(site.nodes[1].lbctl_ok(&["vip", "rebalance"])?.contains("unchanged"));
    Ok(())
}
