//! Two builds of different feature level side by side.

use std::{net::SocketAddrV4, time::Duration};

use anyhow::ensure;
use lb_tests::{
    binaries,
    cluster::{SOON, wait_ready},
    observe::UdpStream,
    site::{ECHO, PATIENCE, Plan, Site, VIP},
    wait,
};

/// The nodes are upgraded one after the other under traffic; the level rises with the last one, and then there is
/// no way back for an old build.
pub(crate) fn a_rolling_upgrade() -> anyhow::Result<()> {
    let next = binaries::build_next()?;
    let mut site = Site::build(Plan { nodes: 3, servers: 2, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let level = |site: &Site| site.nodes[0].lbctl_json(&["status"]).unwrap_or_default()["feature_level"].clone();
    let stream = UdpStream::start(&site.client, SocketAddrV4::new(VIP, ECHO), Duration::from_millis(2))?;
    wait::until("the stream is answered", PATIENCE, || stream.last_answer().is_some());
    let known = site.nodes[0].lbctl_json(&["node", "list"])?["nodes"][0]["feature_level"].as_u64().unwrap_or_default();
    wait::until("the level is what this build knows", SOON, || level(&site) == known);
    for number in 0..site.nodes.len() {
        let nodes = site.nodes[0].lbctl_json(&["node", "list"])?;
        ensure!(level(&site) == known, "before every node knows it the level is {}: {nodes}", level(&site));
        site.nodes[number].terminate()?;
        site.nodes[number].program = next;
        site.nodes[number].start()?;
        wait_ready(&site.nodes[number], 3);
        site.nodes[number].wait_resolved(4);
        // Both builds take commands meanwhile.
        for node in &site.nodes {
            node.lbctl_ok(&["backend", "set", "echo", "192.168.3.5", "--weight", &format!("{}", number + 2)])?;
        }
    }
    wait::until("the level has risen", SOON, || level(&site) == known + 1);
    let report = stream.finish();
    println!("rolling upgrade: {report:?}");
    ensure!(report.lost == 0, "{report:?}");
    site.nodes[2].terminate()?;
    site.nodes[2].program = "lbd";
    site.nodes[2].spawn()?;
    let status = site.nodes[2].wait_for_end(SOON)?;
    ensure!(status.code() == Some(74), "an old build on what a new one has written: {status}");
    ensure!(site.nodes[2].log().contains(&format!("needs feature level {}", known + 1)));
    Ok(())
}
