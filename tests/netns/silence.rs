//! What must never leave a node: answers of its kernel for a VIP, and frames that are not its business.

use anyhow::ensure;
use etherparse::PacketBuilder;
use lb_dataplane::packet::{Mac, arp};
use lb_tests::{
    capture::{Capture, Injector},
    site::{HTTP_ADDRESS, PATIENCE, Plan, Site, VIP},
    traffic::http_who,
    wait,
};

/// Counts what a node sends beside the forwarded frames, whatever its kernel was told.
pub(crate) fn kernel_is_silent() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let (node, server) = (&site.node_hosts[0], &site.servers[0]);
    let injector = Injector::new(&site.router.ns, "eth1")?;
    let (router_mac, node_mac) = (site.router.port("eth1").mac, node.port("eth0").mac);
    // Its first owner answers for it only after it has asked whether anybody else does.
    http_who(&site.client.ns, HTTP_ADDRESS, PATIENCE)?;
    for (ip_forward, vip_on_loopback) in [("0", false), ("1", false), ("0", true), ("1", true)] {
        node.ns.sysctl("ipv4.ip_forward", ip_forward, false)?;
        node.ns.sysctl("ipv4.conf.all.arp_ignore", "0", false)?;
        node.ns.sysctl("ipv4.conf.all.send_redirects", "1", false)?;
        if vip_on_loopback && ip_forward == "0" {
            node.add_address("lo", "192.168.2.1/32")?;
        }
        let what = format!("ip_forward={ip_forward}, VIP on loopback: {vip_on_loopback}");
        let capture = Capture::start(site.net.switch(), &node.port("eth0").switch_port, |_| true)?;
        ensure!(http_who(&site.client.ns, HTTP_ADDRESS, PATIENCE)? == "web1", "{what}");
        // Ports without a service, a protocol that is not balanced, and ARP requests of three kinds.
        for (port, flags) in [(81u16, "syn"), (81, "ack"), (22, "syn")] {
            let builder = PacketBuilder::ethernet2(router_mac.0, node_mac.0).ipv4([192, 168, 1, 10], VIP.octets(), 64);
            let mut frame = Vec::new();
            let tcp = builder.tcp(41000, port, 1, 1000);
            if flags == "syn" { tcp.syn() } else { tcp.ack(1) }.write(&mut frame, b"")?;
            injector.send(&frame)?;
        }
        let mut udp = Vec::new();
        PacketBuilder::ethernet2(router_mac.0, node_mac.0)
            .ipv4([192, 168, 1, 10], VIP.octets(), 64)
            .udp(1, 9)
            .write(&mut udp, b"x")?;
        injector.send(&udp)?;
        let sender = std::net::Ipv4Addr::new(192, 168, 2, 254);
        for last_known in [None, Some(node_mac)] {
            injector.send(&arp::request(router_mac, sender, VIP, last_known))?;
        }
        // An answered echo comes last: when it is there, everything before has been handled.
        let mut echo = Vec::new();
        PacketBuilder::ethernet2(router_mac.0, node_mac.0)
            .ipv4([192, 168, 2, 254], VIP.octets(), 64)
            .icmpv4_echo_request(1, 1)
            .write(&mut echo, b"are you there")?;
        injector.send(&echo)?;
        let is_echo_reply =
            |seen: &lb_tests::capture::Seen| seen.frame.get(23) == Some(&1) && seen.frame.get(34) == Some(&0);
        wait::until("the echo is answered", PATIENCE, || {
            capture.so_far().iter().any(|seen| !seen.outgoing && is_echo_reply(seen))
        });
        // At the switch's port, what goes out of the switch goes to the node.
        let (to_node, sent): (Vec<_>, Vec<_>) = capture.finish().into_iter().partition(|seen| seen.outgoing);
        let is_request = |seen: &&lb_tests::capture::Seen| {
            seen.arp()
                .is_some_and(|arp| arp.operation == arp::Operation::Request && arp.target == VIP && arp.sender != VIP)
        };
        let requests = to_node.iter().filter(is_request).count();
        let to_server = |seen: &&lb_tests::capture::Seen| {
            seen.flow().is_some_and(|f| f.tuple.destination == VIP.into() && f.tuple.destination_port == 80)
                && seen.destination() == server.mac
        };
        let arps =
            sent.iter().filter(|seen| seen.arp().is_some_and(|arp| arp.sender == VIP && arp.target != VIP)).count();
        ensure!(requests >= 2 && arps == requests, "{what}: {arps} answers to {requests} ARP requests for the VIP");
        let others: Vec<_> = sent
            .iter()
            .filter(|seen| seen.arp().is_none() && !is_echo_reply(seen))
            .filter(|seen| !to_server(seen))
            .collect();
        ensure!(others.is_empty(), "{what}: the node also sent {others:02x?}");
        ensure!(sent.iter().filter(|seen| is_echo_reply(seen)).count() == 1, "{what}: one echo, one reply");
    }
    Ok(())
}

/// Frames for other stations, with VLAN tags, from the backend itself, with broken headers.
pub(crate) fn foreign_frames(engine: &'static str) -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine })?;
    site.start()?;
    let node = &site.nodes[0];
    let node_mac = site.node_hosts[0].port("eth0").mac;
    let stranger = Mac([2, 0, 0, 0, 9, 9]);
    let frame = |source: Mac, destination: Mac| {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(source.0, destination.0)
            .ipv4([192, 168, 1, 10], VIP.octets(), 64)
            .udp(5, 7)
            .write(&mut frame, b"x")?;
        anyhow::Ok(frame)
    };
    let router = site.router.port("eth1").mac;
    let mut tagged = frame(router, node_mac)?;
    tagged.splice(12..12, [0x81, 0x00, 0x00, 0x05]);
    // A last fragment whose first one never comes.
    let mut fragment = frame(router, node_mac)?;
    fragment[21] = 2;
    let mut lying = frame(router, node_mac)?;
    lying[16] = 0xff;
    let mut hairpin = frame(site.servers[0].mac, node_mac)?;
    hairpin[35] = 9;
    let mut nested = frame(router, node_mac)?;
    nested.splice(12..12, [0x88, 0xa8, 0x00, 0x05, 0x81, 0x00, 0x00, 0x06]);
    let mut cut = frame(router, node_mac)?;
    (cut[16], cut[17], cut[23]) = (0, 29, 6);
    let mut options = frame(router, node_mac)?;
    options[14] = 0x4f;
    let mut tunnel = frame(router, node_mac)?;
    tunnel[23] = 4;
    let mut odd_arp = arp::request(router, [192, 168, 2, 254].into(), VIP, Some(node_mac)).to_vec();
    odd_arp[15] = 6;
    let mut quote = frame(router, node_mac)?;
    quote.truncate(34);
    quote.extend([3, 4, 0, 0, 0, 0, 5, 0, 0x45]);
    (quote[17], quote[23]) = (29, 1);
    let mut long_datagram = frame(router, node_mac)?;
    long_datagram[39] = 10;
    let claim = arp::request(router, VIP, VIP, None).to_vec();
    let mut other_operation = arp::request(router, [192, 168, 2, 254].into(), VIP, Some(node_mac)).to_vec();
    other_operation[21] = 3;
    let short_arp = other_operation[..36].to_vec();
    let cases = [
        ("arp_conflict", claim),
        ("malformed", other_operation),
        ("malformed", short_arp),
        ("malformed", long_datagram),
        ("malformed", cut),
        ("malformed", options),
        ("protocol_unsupported", tunnel),
        ("malformed", odd_arp),
        ("icmp_unrelated", quote),
        ("bad_source", frame(node_mac, node_mac)?),
        ("bad_source", frame(Mac::ZERO, node_mac)?),
        ("bad_source", frame(Mac([0x33, 0x33, 0, 0, 0, 1]), node_mac)?),
        ("not_for_us", frame(router, stranger)?),
        ("not_for_us", frame(router, Mac::BROADCAST)?),
        ("vlan_tagged", tagged),
        ("vlan_tagged", nested),
        ("fragment_timeout", fragment),
        ("malformed", lying),
        ("hairpin", hairpin),
    ];
    // Whatever the node sends on but ARP, which it uses itself, and the errors of the client, who has asked nothing
    // and gets the answers.
    let is_error = |frame: &[u8]| frame.get(23) == Some(&1) && frame.get(34..36) == Some(&[3, 3]);
    let forwarded = move |frame: &[u8]| {
        frame.get(6..12) == Some(&node_mac.0) && frame.get(12..14) != Some(&[8, 6]) && !is_error(frame)
    };
    let at_server = Capture::start(&site.servers[0].host.ns, "eth0", forwarded)?;
    // From inside the switch's cable to the node, as a switch that floods would send them.
    let injector = Injector::new(site.net.switch(), &site.node_hosts[0].port("eth0").switch_port)?;
    for (reason, frame) in &cases {
        let before = node.drops(reason)?;
        injector.send(frame)?;
        wait::until(&format!("{engine}: {reason} is counted"), PATIENCE, || {
            node.drops(reason).is_ok_and(|now| now > before)
        });
    }
    // A tag with the null identifier names no VLAN, only a priority.
    let mut priority = frame(router, node_mac)?;
    priority.splice(12..12, [0x81, 0x00, 0x20, 0x00]);
    injector.send(&priority)?;
    injector.send(&frame(router, node_mac)?)?;
    wait::until("the sound frames arrive", PATIENCE, || at_server.so_far().len() >= 2);
    let arrived: Vec<_> = at_server.finish().into_iter().filter(|seen| !seen.outgoing).collect();
    let untagged = arrived.iter().filter(|seen| seen.frame.get(12..14) == Some(&[0x08, 0x00])).count();
    ensure!((arrived.len(), untagged) == (2, 2), "{engine}: {arrived:02x?} instead of the two sound frames");
    wait::until(&format!("{engine}: every frame is accounted for"), PATIENCE, || {
        node.accounts().is_ok_and(|(_, is_whole)| is_whole)
    });
    Ok(())
}
