//! The owner dies under load.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::ensure;
use lb_tests::{
    observe::{ArpObserver, UdpStream, owners_in_turn},
    site::{ECHO, HTTP_ADDRESS, PATIENCE, Plan, Site, VIP},
    traffic::HttpClient,
    wait,
};

pub(crate) fn owner_is_killed() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 4, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let mut connections = Vec::new();
    for _ in 0..50 {
        let mut http = HttpClient::connect(&site.client.ns, HTTP_ADDRESS, PATIENCE)?;
        connections.push((http.who()?, http));
    }
    // Twice, so that once the owner is also the leader and once, most likely, it is not.
    for _ in 0..2 {
        let owner = site.owner()?;
        let old_mac = site.node_hosts[owner].port("eth0").mac;
        let observed = Ipv4Addr::new(192, 168, 2, 254);
        let arps = ArpObserver::start(&site.router, "eth1", observed, VIP, Duration::from_millis(5))?;
        let stream = UdpStream::start(&site.client, SocketAddrV4::new(VIP, ECHO), Duration::from_millis(2))?;
        wait::until("answers come", PATIENCE, || stream.last_answer().is_some());
        let died = Instant::now();
        site.nodes[owner].kill()?;
        wait::until("answers come again", PATIENCE, || {
            stream.last_answer().is_some_and(|at| at > died + Duration::from_millis(100))
        });
        for (who, http) in &mut connections {
            ensure!(http.who()? == *who, "a connection broke or changed its backend");
        }
        let report = stream.finish();
        ensure!(report.longest_gap < Duration::from_secs(1), "the VIP was silent for {:?}", report.longest_gap);
        let owners = owners_in_turn(&arps.finish()).map_err(anyhow::Error::msg)?;
        ensure!(owners.len() == 2 && owners[0] == old_mac, "owners in turn: {owners:?}");
        let new = site.owner()?;
        ensure!(site.node_hosts[new].port("eth0").mac == owners[1]);
        let neighbor = site.router.neighbor("eth1", VIP)?;
        ensure!(neighbor == Some(owners[1]), "the router's entry is {neighbor:?}, the owner {}", owners[1]);
        println!("gap {:?}, {} of {} datagrams lost", report.longest_gap, report.lost, report.sent);
        site.nodes[owner].start()?;
        lb_tests::cluster::wait_ready(&site.nodes[new], 3);
        site.wait_resolved();
    }
    Ok(())
}
