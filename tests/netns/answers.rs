//! What a node says itself: refusals, explanations, its flows; and an interface that goes and comes back.

use std::{
    io,
    net::{Ipv4Addr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::ensure;
use lb_dataplane::packet::Mac;
use lb_tests::{
    site::{HTTP_ADDRESS, HTTP_ADDRESSES, PATIENCE, Plan, Site, VIP, VIP_TEXT, VIP6},
    traffic::{HttpClient, http_who},
    wait,
};

/// Where the VIP says so, a port that nobody serves is refused at once; in both families.
pub(crate) fn refusals() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.add_ipv6()?;
    site.start()?;
    let lb = &site.nodes[0];
    lb.lbctl_ok(&["vip", "add", &VIP6.to_string(), "--unmatched", "reject"])?;
    lb.change(&["vip", "set", VIP_TEXT, "--unmatched", "reject"])?;
    http_who(&site.client.ns, HTTP_ADDRESS, PATIENCE)?;
    for (vip, any) in [(VIP.to_string(), "0.0.0.0:0"), (format!("[{VIP6}]"), "[::]:0")] {
        let tcp = || {
            let to = format!("{vip}:81").parse().expect("an address");
            site.client.ns.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)))
        };
        wait::until(&format!("a connection to {vip} is refused"), PATIENCE, || {
            tcp().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        });
        let udp = site.client.ns.enter(|| UdpSocket::bind(any))?;
        udp.set_read_timeout(Some(Duration::from_millis(500)))?;
        site.client.ns.enter(|| udp.connect(format!("{vip}:9")))?;
        wait::until(&format!("a datagram to {vip} is refused"), PATIENCE, || {
            drop(udp.send(b"x"));
            udp.recv(&mut [0; 8]).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        });
    }
    ensure!(lb.drops("rejected")? > 0);
    Ok(())
}

/// `explain` says where a connection will go, and then that the flow is known; `flows` lists it.
pub(crate) fn explained() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 4, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let lb = &site.nodes[0];
    let explain = |port: u16, to: &str| {
        let answer = lb.lbctl_json(&["explain", &format!("192.168.1.10:{port}"), to])?;
        anyhow::Ok(answer["explanations"][0].clone())
    };
    let to = format!("{VIP_TEXT}:80/tcp");
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..8 {
        let mut http = HttpClient::connect(&site.client.ns, HTTP_ADDRESS, PATIENCE)?;
        let port = http.local_port()?;
        let (who, known) = (http.who()?, explain(port, &to)?);
        let server = site.servers.iter().zip(1..).find(|(_, number)| who == format!("web{number}")).expect("a server");
        ensure!(known["backend"] == server.0.address.to_string() && known["chosen_by"] == "flow", "{known}");
        ensure!(known["verdict"] == "forward" && known["owner"] == "lb1" && known["answers"] == true, "{known}");
        ensure!(known["mac"] == server.0.mac.to_string() && known["interface"] == "eth0", "{known}");
        let flows = lb.lbctl_json(&["flows", "--vip", VIP_TEXT, "--backend", &server.0.address.to_string()])?;
        let source = format!("192.168.1.10:{port}");
        let flow = flows["flows"].as_array().into_iter().flatten().find(|flow| flow["source"] == source);
        ensure!(flow.is_some_and(|flow| flow["state"] == "open" && flow["service"] == "web"), "{source}: {flows}");
        seen.insert(who);
    }
    ensure!(seen.len() > 1, "all eight went to one server");
    // A flow that is new: the Maglev table alone says where it goes, and the flow then goes there.
    let new = explain(1234, &to)?;
    ensure!(new["chosen_by"] == "maglev" && new["table_size"] == 16381 && new["service"] == "web", "{new}");
    ensure!(explain(1, &format!("{VIP_TEXT}:81/tcp"))?["verdict"] == "no_service");
    ensure!(explain(1, "192.0.2.99:80/tcp")?["verdict"] == "not_vip");
    ensure!(lb.lbctl_json(&["flows", "--vip", "192.0.2.99"])?["flows"].as_array().is_some_and(Vec::is_empty));
    captured(&site)
}

/// The frames of a capture are judged one by one.
fn captured(site: &Site) -> anyhow::Result<()> {
    let mut frames = Vec::new();
    let mut tcp = Vec::new();
    etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([192, 168, 1, 77], VIP.octets(), 64)
        .tcp(4711, 80, 1, 100)
        .syn()
        .write(&mut tcp, b"")?;
    frames.push(tcp.clone());
    frames.push(lb_dataplane::packet::arp::request(Mac([2; 6]), Ipv4Addr::new(192, 168, 2, 254), VIP, None).to_vec());
    frames.push(tcp[..30].to_vec());
    // libpcap's format: magic, version 2.4, zone, accuracy, longest, Ethernet; then time, lengths, bytes.
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65535, 1] {
        file.extend(word.to_le_bytes());
    }
    for frame in &frames {
        for word in [1, 2, frame.len() as u32, frame.len() as u32] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    let path = site.root.path().join("frames.pcap");
    std::fs::write(&path, &file)?;
    let path = path.to_string_lossy();
    let answer = site.nodes[0].lbctl_json(&["explain", "--pcap", &path])?;
    let verdicts: Vec<&str> =
        answer["explanations"].as_array().into_iter().flatten().filter_map(|e| e["verdict"].as_str()).collect();
    ensure!(verdicts == ["forward", "answer", "malformed"], "{answer}");
    std::fs::write(&*path, b"nothing of that kind")?;
    let refused = site.nodes[0].lbctl(&["explain", "--pcap", &path])?;
    ensure!(refused.status.code() == Some(2), "{refused:?}");
    Ok(())
}

/// An interface gets another MAC address, vanishes and comes back as another one: it is served again, without a
/// restart, in both families.
pub(crate) fn an_interface_changes(engine: &'static str) -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine })?;
    site.start_both()?;
    for address in HTTP_ADDRESSES {
        ensure!(http_who(&site.client.ns, address, PATIENCE)? == "web1");
    }
    let host = &site.node_hosts[0];
    let mac = Mac([2, 0, 0, 0, 0x77, 0x77]);
    host.set_mac("eth0", mac)?;
    for address in HTTP_ADDRESSES {
        wait::until(&format!("{engine}: the router is told the new MAC address"), PATIENCE, || {
            site.router.neighbor("eth1", address.ip()).is_ok_and(|known| known == Some(mac))
        });
        ensure!(http_who(&site.client.ns, address, PATIENCE)? == "web1", "{engine}");
    }
    let before = host.ns.ifindex("eth0")?;
    host.remove("eth0")?;
    wait::until("the loss is noticed", PATIENCE, || site.nodes[0].log().contains("an interface is lost"));
    site.net.attach(host, "eth0", "lan", &["192.168.2.11/24", "192.168.3.11/24"])?;
    ensure!(host.ns.ifindex("eth0")? != before, "the kernel gave the same index again");
    host.enable_ipv6()?;
    for address in ["2001:db8:2::11/64", "2001:db8:3::11/64"] {
        host.add_address("eth0", address)?;
    }
    for address in HTTP_ADDRESSES {
        wait::until(&format!("{engine}: {address} is served by the new interface"), PATIENCE, || {
            http_who(&site.client.ns, address, Duration::from_secs(1)).is_ok_and(|who| who == "web1")
        });
    }
    Ok(())
}

/// Of two interfaces that have vanished one comes back: it is served, and the number of workers can be changed, while the
/// other one is still gone.
pub(crate) fn one_interface_returns(engine: &'static str) -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: true, engine })?;
    site.start()?;
    let (lb, host) = (&site.nodes[0], &site.node_hosts[0]);
    lb.change(&["vip", "set", VIP_TEXT, "--unmatched", "reject"])?;
    ensure!(http_who(&site.client.ns, HTTP_ADDRESS, PATIENCE)? == "web1");
    host.remove("eth0")?;
    host.remove("eth1")?;
    wait::until("the loss is noticed", PATIENCE, || lb.log().matches("an interface is lost").count() >= 2);
    site.net.attach(host, "eth0", "vips", &["192.168.2.11/24"])?;
    let is_refused = || {
        let to = (VIP, 81).into();
        let connected = site.client.ns.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(500)));
        connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    };
    wait::until(&format!("{engine}: the VIP is answered for by the one that is back"), PATIENCE, is_refused);
    for workers in [2, 1] {
        lb.set_workers(workers)?;
        wait::until(&format!("{engine}: also by {workers} workers"), PATIENCE, is_refused);
    }
    site.net.attach(host, "eth1", "servers", &["192.168.3.11/24"])?;
    wait::until(&format!("{engine}: the servers are reached again"), PATIENCE, || {
        http_who(&site.client.ns, HTTP_ADDRESS, Duration::from_secs(1)).is_ok_and(|who| who == "web1")
    });
    Ok(())
}
