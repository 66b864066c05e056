//! Two builds side by side: this one and a later or an earlier one.

use std::{net::SocketAddrV4, time::Duration};

use anyhow::{Context as _, ensure};
use lb_tests::{
    binaries,
    cluster::{LbNode, SOON, wait_ready},
    observe::UdpStream,
    site::{ECHO, PATIENCE, Plan, Site, VIP},
    wait,
};
use serde_json::Value;

/// The environment variable that names the commit, tag or branch from which nodes are upgraded.
const FROM: &str = "LB_UPGRADE_FROM";

/// By which a debug build knows one feature level more.
const NEXT: &str = "LBD_NEXT_FEATURE_LEVEL";

/// Whether there is an earlier version to upgrade from.
pub(crate) fn from_is_given() -> Result<(), String> {
    let told = |_| format!("the long form: {FROM}=COMMIT builds lbd of that commit and upgrades it");
    std::env::var(FROM).map(drop).map_err(told)
}

/// Only a debug build can know a level more than its own.
pub(crate) fn a_debug_build() -> Result<(), String> {
    if cfg!(debug_assertions) { Ok(()) } else { Err("a release build knows no next feature level".to_owned()) }
}

fn level(site: &Site) -> Value {
    site.nodes[0].lbctl_json(&["status"]).unwrap_or_default()["feature_level"].clone()
}

/// What the nodes know, from the lowest to the highest.
fn known(site: &Site) -> anyhow::Result<Vec<u64>> {
    let nodes = site.nodes[0].lbctl_json(&["node", "list"])?;
    let nodes = nodes["nodes"].as_array().context("nodes")?;
    let mut levels: Vec<u64> = nodes.iter().filter_map(|node| node["feature_level"].as_u64()).collect();
    levels.sort_unstable();
    Ok(levels)
}

/// The nodes are upgraded one after the other under traffic; what the cluster can do stays as it is until the last one is,
/// and no datagram is lost.
fn upgrade(site: &mut Site, install: impl Fn(&mut LbNode)) -> anyhow::Result<()> {
    let stream = UdpStream::start(&site.client, SocketAddrV4::new(VIP, ECHO), Duration::from_millis(2))?;
    wait::until("the stream is answered", PATIENCE, || stream.last_answer().is_some());
    let before = known(site)?[0];
    wait::until("the level is what all know", SOON, || level(site) == before);
    for number in 0..site.nodes.len() {
        ensure!(level(site) == before, "before every node knows it the level is {}: {:?}", level(site), known(site)?);
        site.nodes[number].terminate()?;
        install(&mut site.nodes[number]);
        site.nodes[number].start()?;
        wait_ready(&site.nodes[number], 3);
        site.nodes[number].wait_resolved(4);
        // Both builds take commands meanwhile.
        for node in &site.nodes {
            node.lbctl_ok(&["backend", "set", "echo", "192.168.3.5", "--weight", &format!("{}", number + 2)])?;
        }
    }
    wait::until("all nodes say what they know", SOON, || known(site).is_ok_and(|known| known.first() == known.last()));
    let after = known(site)?[0];
    wait::until("the level has risen", SOON, || level(site) == after);
    let report = stream.finish();
    println!("from level {before} to {after}: {report:?}");
    ensure!(report.lost == 0, "{report:?}");
    Ok(())
}

/// From this build to one that knows a level more; and then there is no way back.
pub(crate) fn a_rolling_upgrade() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 2, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let before = known(&site)?[0];
    upgrade(&mut site, |node| node.environment.push((NEXT.to_owned(), "1".to_owned())))?;
    ensure!(level(&site) == before + 1);
    site.nodes[2].terminate()?;
    site.nodes[2].environment.clear();
    site.nodes[2].spawn()?;
    let status = site.nodes[2].wait_for_end(SOON)?;
    ensure!(status.code() == Some(74), "an old build on what a new one has written: {status}");
    ensure!(site.nodes[2].log().contains(&format!("needs feature level {}", before + 1)));
    Ok(())
}

/// From the commit that the environment names to this build.
pub(crate) fn from_an_earlier_commit() -> anyhow::Result<()> {
    let earlier = binaries::build_earlier(&std::env::var(FROM)?)?;
    let mut site = Site::build(Plan { nodes: 3, servers: 2, two_interfaces: false, engine: "ring" })?;
    for node in &mut site.nodes {
        node.program = earlier;
        // It may not know certificates.
        node.without_tls()?;
    }
    site.start()?;
    upgrade(&mut site, |node| node.program = "lbd")
}
