//! A node that has lost the VIPs' segment lets go of its VIPs, and a VIP whose address somebody else uses is seen.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::ensure;
use lb_dataplane::packet::arp;
use lb_tests::{
    campaign::claims::Observer,
    capture::Injector,
    cluster::{SOON, wait_ready},
    faults::place_owner,
    observe::{ArpObserver, UdpStream, owners_in_turn},
    site::{ECHO, PATIENCE, Plan, Site, VIP, VIP_TEXT},
    topology::{Cut, Host},
    traffic::http_who,
    wait,
};

/// The carrier goes: the VIP moves at once. Then a cable is dead and shows its carrier: the others notice.
pub(crate) fn a_lost_segment_is_left() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 2, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let hears_all = |node: &serde_json::Value| {
        let attachments = node["attachments"].as_array().cloned().unwrap_or_default();
        !attachments.is_empty() && attachments.iter().all(|a| a["hears"].as_array().is_some_and(|h| h.len() == 2))
    };
    wait::until("every node hears every other one", SOON, || {
        let nodes = site.nodes[0].lbctl_json(&["node", "list"]).unwrap_or_default();
        nodes["nodes"].as_array().is_some_and(|nodes| nodes.len() == 3 && nodes.iter().all(hears_all))
    });
    for silent in [false, true] {
        let owner = place_owner(&site, silent)?;
        let mac = site.node_hosts[owner].port("eth0").mac;
        let (name, other) = (site.nodes[owner].name.clone(), &site.nodes[(owner + 1) % 3]);
        let observed = Ipv4Addr::new(192, 168, 2, 254);
        let observer = ArpObserver::start(&site.router, "eth1", observed, VIP, Duration::from_millis(2))?;
        let to = std::net::SocketAddrV4::new(VIP, ECHO);
        let stream = UdpStream::start(&site.client, to, Duration::from_millis(2))?;
        wait::until("the stream is answered", PATIENCE, || stream.last_answer().is_some());
        let host = &site.node_hosts[owner];
        if silent {
            site.net.cut(host, "eth0", Cut::Silent)?
        } else {
            site.net.plug(host, "eth0", false)?
        }
        wait::until("the VIP has moved", SOON, || other.owner_of(VIP_TEXT).is_ok_and(|n| !n.is_empty() && n != name));
        let since = stream.last_answer();
        wait::until("the stream is answered again", SOON, || stream.last_answer() > since);
        if silent {
            let nodes = other.lbctl_json(&["node", "list"])?;
            let row = nodes["nodes"].as_array().into_iter().flatten().find(|row| row["name"] == name.as_str());
            ensure!(row.is_some_and(|row| row["attachments"][0]["isolated"] == true), "{nodes}");
            site.net.cut(host, "eth0", Cut::None)?;
        } else {
            site.net.plug(host, "eth0", true)?;
            for words in ["eth0 has lost its carrier", "eth0 has its carrier back"] {
                wait::until("the node tells of its carrier", SOON, || {
                    let told = site.nodes[owner].lbctl_ok(&["events", "--kind", "kernel"]);
                    told.is_ok_and(|told| told.contains(words))
                });
            }
        }
        wait_ready(other, 3);
        wait::until("the node is able again", SOON, || {
            other.lbctl(&["vip", "move", VIP_TEXT, &name]).is_ok_and(|output| output.status.success())
        });
        let gap = stream.finish().longest_gap;
        println!("{}: {gap:?}", if silent { "dead segment" } else { "carrier lost" });
        ensure!(gap < Duration::from_secs(if silent { 4 } else { 1 }), "{gap:?}");
        let claims = observer.finish();
        ensure!(claims.last().is_some_and(|(_, last)| *last == mac), "it is the owner again");
        let until_moved: Vec<_> = claims.iter().take_while(|(_, m)| *m == mac).copied().collect();
        ensure!(owners_in_turn(&until_moved).is_ok());
    }
    Ok(())
}

/// An address that a host on the segment has is not taken away from it when it is made a VIP; and a backend that
/// answers for a VIP is named.
pub(crate) fn an_address_in_use_is_not_taken() -> anyhow::Result<()> {
    const TAKEN: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 60);
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let squatter = site.net.host("squatter")?;
    let its_mac = site.net.attach(&squatter, "eth0", "lan", &["192.168.2.60/24"])?;
    let lb = &site.nodes[0];
    lb.lbctl_ok(&["vip", "add", "192.168.2.60"])?;
    let conflict = |mac: &str| {
        let stats = lb.stats().unwrap_or_default();
        let row = stats["conflicts"].as_array().into_iter().flatten().find(|row| row["mac"] == mac);
        row.and_then(|row| row["claimant"].as_str()).map(ToOwned::to_owned)
    };
    wait::until("the conflict is seen", SOON, || conflict(&its_mac.to_string()).is_some());
    let observed = Ipv4Addr::new(192, 168, 2, 254);
    let observer = ArpObserver::start(&site.router, "eth1", observed, TAKEN, Duration::from_millis(2))?;
    wait::until("it is probed for again", SOON, || lb.log().contains("uses the address of VIP 192.168.2.60"));
    let claims = observer.finish();
    ensure!(!claims.is_empty() && claims.iter().all(|(_, mac)| *mac == its_mac), "the host keeps its address");
    squatter.ns.set_up("eth0", false)?;
    let own = site.node_hosts[0].port("eth0").mac;
    let observer = ArpObserver::start(&site.router, "eth1", observed, TAKEN, Duration::from_millis(2))?;
    let router = &site.router;
    wait::until("the VIP is taken when it is free", SOON, || {
        drop(http_who(&router.ns, std::net::SocketAddrV4::new(TAKEN, 80), Duration::from_millis(20)));
        router.neighbor("eth1", TAKEN).is_ok_and(|mac| mac == Some(own))
    });
    drop(observer);

    // A backend without arp_announce=2 asks for its router as if it were the VIP.
    let server = &site.servers[0];
    let injector = Injector::new(&server.host.ns, "eth0")?;
    injector.send(&arp::request(server.mac, VIP, Ipv4Addr::new(192, 168, 3, 1), None))?;
    wait::until("the backend is named", SOON, || {
        conflict(&server.mac.to_string()).is_some_and(|claimant| claimant == format!("backend {}", server.address))
    });
    ensure!(lb.lbctl_ok(&["stats"])?.contains("is claimed by"));
    wait::until("the log names it too", SOON, || lb.log().contains("set arp_ignore=1 and arp_announce=2 there"));
    Ok(())
}

/// A VIP that is removed and added again at once is answered soon, again and again.
pub(crate) fn a_vip_comes_and_goes() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let passing = Ipv4Addr::new(192, 168, 2, 3);
    let stations: Vec<&Host> = site.node_hosts.iter().collect();
    let asking = Ipv4Addr::new(192, 168, 2, 254);
    let observer = Observer::start(&site.net, &stations, (&site.router, "eth1", asking), &[passing])?;
    for round in 0..6 {
        let by = &site.nodes[round % 3];
        drop(by.lbctl(&["vip", "remove", "192.168.2.3"])?);
        by.lbctl_ok(&["vip", "add", "192.168.2.3"])?;
        let added = std::time::Instant::now();
        wait::until(&format!("it is answered in round {round}"), SOON, || {
            observer.last(passing).is_some_and(|at| at > added)
        });
    }
    Ok(())
}
