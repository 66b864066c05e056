//! Faults of the owner, one after the other, and the settings that say how fast they are noticed. The figures
//! are those of `cargo lb-takeover`; here the bounds are loose.

use std::time::Duration;

use anyhow::ensure;
use lb_tests::{
    cluster,
    faults::{Fault, Watch, measure, place_owner},
    observe::owners_in_turn,
    site::{PATIENCE, Plan, Site, VIP_TEXT},
    topology::{Cut, Host},
    wait,
};

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
        println!("{}: {:?}", fault.name(), outcome.gap());
        ensure!(outcome.gap() < Duration::from_secs(2), "{}: {:?}", fault.name(), outcome.gap());
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
    let (claims, near, far) = healing.finish();
    let owners = owners_in_turn(&claims).map_err(anyhow::Error::msg)?;
    ensure!(owners.len() == 1, "the owners after the partition healed: {owners:?}");
    ensure!(near.lost + far.lost == 0, "healing lost {} and {} datagrams", near.lost, far.lost);
    let (claims, ..) = watch.finish();
    let owners = owners_in_turn(&claims).map_err(anyhow::Error::msg)?;
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
