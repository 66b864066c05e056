//! Planned moves, and the API as a stranger's client sees it.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::ensure;
use lb_tests::{
    cluster::wait_ready,
    observe::{ArpObserver, UdpStream, owners_in_turn},
    site::{ECHO, HTTP_ADDRESS, PATIENCE, Plan, Site, VIP, VIP_TEXT},
    traffic::HttpClient,
    wait,
};

/// `vip move`, `node drain` and SIGTERM: the old owner lets go before the new one speaks.
pub(crate) fn moves_and_stops() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 2, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let mut http = HttpClient::connect(&site.client.ns, HTTP_ADDRESS, PATIENCE)?;
    let who = http.who()?;
    let observed = Ipv4Addr::new(192, 168, 2, 254);
    for step in ["move", "drain", "stop"] {
        let owner = site.owner()?;
        let arps = ArpObserver::start(&site.router, "eth1", observed, VIP, Duration::from_millis(2))?;
        let stream = UdpStream::start(&site.client, SocketAddrV4::new(VIP, ECHO), Duration::from_millis(2))?;
        wait::until("answers come", PATIENCE, || stream.last_answer().is_some());
        let (from, other) = (site.nodes[owner].name.clone(), (owner + 1) % 3);
        match step {
            "move" => {
                let to = site.nodes[other].name.clone();
                site.nodes[owner].lbctl_ok(&["vip", "move", VIP_TEXT, &to])?;
                ensure!(site.nodes[owner].owner_of(VIP_TEXT)? == to);
                ensure!(site.nodes[owner].lbctl_ok(&["vip", "move", VIP_TEXT, &to])?.contains("unchanged"));
            }
            "drain" => {
                site.nodes[other].lbctl_ok(&["node", "drain", &from])?;
                ensure!(site.nodes[other].owner_of(VIP_TEXT)? != from);
                site.nodes[other].lbctl_ok(&["node", "undrain", &from])?;
            }
            _ => {
                let status = site.nodes[owner].terminate()?;
                ensure!(status.success(), "a graceful stop: {status}");
            }
        }
        wait::until("another node owns it", PATIENCE, || {
            site.nodes[other].owner_of(VIP_TEXT).is_ok_and(|name| !name.is_empty() && name != from)
        });
        ensure!(http.who()? == who, "{step}: the connection broke");
        let report = stream.finish();
        println!("{step}: {report:?}");
        let owners = owners_in_turn(&arps.finish()).map_err(anyhow::Error::msg)?;
        ensure!(owners.len() == 2, "{step}: owners in turn: {owners:?}");
        ensure!(report.lost == 0, "{step}: {report:?}");
    }
    let stopped = site.nodes.iter().position(|node| !node.is_running()).unwrap_or(0);
    site.nodes[stopped].start()?;
    wait_ready(&site.nodes[stopped], 3);
    Ok(())
}
