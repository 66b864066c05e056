//! The example in IPv6: a VIP, its neighbours, its backends of either family, and a takeover.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context as _, ensure};
use etherparse::PacketBuilder;
use lb_dataplane::packet::{Mac, Packet, ndp, parse};
use lb_tests::{
    capture::{Capture, Injector},
    cluster::wait_ready,
    site::{ECHO, HTTP_ADDRESS, HTTP_ADDRESSES, PATIENCE, Plan, Site, VIP6},
    traffic::http_who,
    wait,
};

const HTTP6: SocketAddr = HTTP_ADDRESSES[1];
const VIP6_TEXT: &str = "2001:db8:2::1";

fn start(nodes: u8, engine: &'static str) -> anyhow::Result<Site> {
    let mut site = Site::build(Plan { nodes, servers: 2, two_interfaces: false, engine })?;
    site.start_both()?;
    Ok(site)
}

/// Clients reach both backends; the packet arrives as it was sent, and from the VIP come the answers.
pub(crate) fn served(engine: &'static str) -> anyhow::Result<()> {
    let site = start(1, engine)?;
    let (node, router) = (&site.node_hosts[0], &site.router);
    let is_v6_tcp = |frame: &[u8]| frame.get(12..14) == Some(&[0x86, 0xdd]) && frame.get(20) == Some(&6);
    let sent = Capture::start(site.net.switch(), &node.port("eth0").switch_port, is_v6_tcp)?;
    let arrived: Vec<Capture> = site
        .servers
        .iter()
        .map(|server| Capture::start(&server.host.ns, "eth0", is_v6_tcp))
        .collect::<Result<_, _>>()?;
    let mut who = std::collections::BTreeSet::new();
    wait::until("both backends answer", PATIENCE, || {
        who.extend(http_who(&site.client.ns, HTTP6, PATIENCE));
        who.len() == 2
    });
    let sent: Vec<Vec<u8>> =
        sent.finish().into_iter().filter(|seen| seen.outgoing).map(|seen| seen.packet().to_vec()).collect();
    let arrived: Vec<_> = arrived.into_iter().flat_map(Capture::finish).filter(|seen| !seen.outgoing).collect();
    ensure!(!arrived.is_empty());
    for seen in arrived {
        ensure!(sent.iter().any(|packet| packet == seen.packet()), "{engine}: a packet was changed");
        ensure!(seen.source() == node.port("eth0").mac);
    }
    ensure!(router.neighbor("eth1", VIP6)? == Some(node.port("eth0").mac), "the router has another neighbour");
    // An IPv4 VIP, and a backend that is known by its IPv6 address alone.
    let lb = &site.nodes[0];
    for server in &site.servers {
        lb.change(&["backend", "remove", "web", &server.address.to_string()])?;
    }
    lb.change(&["backend", "add", "web", &site.servers[1].address6.to_string()])?;
    lb.wait_resolved(7);
    ensure!(http_who(&site.client.ns, HTTP_ADDRESS, PATIENCE)? == "web2", "{engine}");
    // The owner hears what is sent to the group of its VIP, and switches that snoop know it (MLD).
    let groups = node.ns.enter(|| fs::read_to_string("/proc/thread-self/net/igmp6"))?;
    ensure!(groups.contains("ff0200000000000000000001ff000001"), "{groups}");
    Ok(())
}

/// Neighbour discovery for the VIP, by the letter; and an echo.
pub(crate) fn neighbors() -> anyhow::Result<()> {
    let site = start(1, "ring")?;
    let (node_mac, router_mac) = (site.node_hosts[0].port("eth0").mac, site.router.port("eth1").mac);
    let router: std::net::Ipv6Addr = "2001:db8:2::fe".parse()?;
    // Its first owner answers for it only after it has asked whether anybody else does.
    http_who(&site.client.ns, HTTP6, PATIENCE)?;
    let capture = Capture::start(&site.router.ns, "eth1", |_| true)?;
    let injector = Injector::new(&site.router.ns, "eth1")?;
    let advertised = |solicited: bool| {
        capture.so_far().iter().any(|seen| {
            let flags = if solicited { 0x60 } else { 0x20 };
            !seen.outgoing
                && seen.frame.get(58) == Some(&flags)
                && matches!(parse(&seen.frame), Packet::Neighbor(told) if told.target == VIP6 && told.mac == Some(node_mac))
        })
    };
    for last_known in [None, Some(node_mac)] {
        injector.send(&ndp::solicitation(router_mac, router, VIP6, last_known))?;
    }
    wait::until("a solicitation is answered with R=0 S=1 O=1", PATIENCE, || advertised(true));
    // Another station tests whether it may have the address.
    let before = site.nodes[0].drops("ndp_conflict")?;
    injector.send(&ndp::probe(router_mac, VIP6))?;
    wait::until("it is told that it may not", PATIENCE, || {
        site.nodes[0].drops("ndp_conflict").is_ok_and(|now| now > before) && advertised(false)
    });
    let mut echo = Vec::new();
    PacketBuilder::ethernet2(router_mac.0, node_mac.0)
        .ipv6(router.octets(), VIP6.octets(), 64)
        .icmpv6_echo_request(1, 1)
        .write(&mut echo, b"are you there")?;
    injector.send(&echo)?;
    wait::until("the echo is answered", PATIENCE, || {
        capture.so_far().iter().any(|seen| !seen.outgoing && seen.frame.get(54) == Some(&129))
    });
    // Switches that snoop are told of the group of another VIP, and when it is left (MLDv2, RFC 3810 5.2.12).
    let second = "2001:db8:2::2";
    let group: [u8; 16] = "ff02::1:ff00:2".parse::<std::net::Ipv6Addr>()?.octets();
    let (joined, left) = (4, 3);
    let reported = |change: u8| {
        let record = [&[change, 0, 0, 0][..], &group].concat();
        capture.so_far().iter().any(|seen| {
            seen.source() == node_mac
                && seen.frame.get(62) == Some(&143)
                && seen.frame.windows(record.len()).any(|window| window == record)
        })
    };
    site.nodes[0].lbctl_ok(&["vip", "add", second])?;
    wait::until("the group is reported", PATIENCE, || reported(joined));
    site.nodes[0].lbctl_ok(&["vip", "remove", second])?;
    wait::until("it is reported as left", PATIENCE, || reported(left));
    // Neither the router's address nor one nobody has is answered for.
    injector.send(&ndp::solicitation(router_mac, router, "2001:db8:2::99".parse()?, None))?;
    let before = site.nodes[0].drops("ndp_not_ours")?;
    injector.send(&ndp::solicitation(router_mac, router, "2001:db8:2::98".parse()?, None))?;
    wait::until("a foreign solicitation is counted", PATIENCE, || {
        site.nodes[0].drops("ndp_not_ours").is_ok_and(|now| now > before)
    });
    let foreign = |seen: &lb_tests::capture::Seen| {
        matches!(parse(&seen.frame), Packet::Neighbor(told)
            if matches!(told.kind, ndp::Kind::Advertisement { .. }) && told.target != VIP6 && told.mac == Some(node_mac)
                && ![0x11u8, 0x12, 0x13].contains(&told.target.octets()[15]))
    };
    ensure!(!capture.finish().iter().any(|seen| !seen.outgoing && foreign(seen)), "a foreign address was claimed");
    Ok(())
}

/// The node's kernel has nothing to say about the VIP, even if somebody has put it on its loopback.
pub(crate) fn kernel_is_silent() -> anyhow::Result<()> {
    let site = start(1, "ring")?;
    http_who(&site.client.ns, HTTP6, PATIENCE)?;
    for (forwarding, vip_on_loopback) in [("0", false), ("1", false), ("0", true), ("1", true)] {
        let node = &site.node_hosts[0];
        node.ns.sysctl("ipv6.conf.all.forwarding", forwarding, false)?;
        if vip_on_loopback && forwarding == "0" {
            node.add_address("lo", &format!("{VIP6}/128"))?;
        }
        kernel_says_nothing(&site)
            .with_context(|| format!("forwarding={forwarding}, VIP on loopback: {vip_on_loopback}"))?;
    }
    Ok(())
}

fn kernel_says_nothing(site: &Site) -> anyhow::Result<()> {
    let node = &site.node_hosts[0];
    let (node_mac, router_mac) = (node.port("eth0").mac, site.router.port("eth1").mac);
    let (client, router) = ("2001:db8:1::10".parse::<std::net::Ipv6Addr>()?, "2001:db8:2::fe".parse()?);
    let capture = Capture::start(site.net.switch(), &node.port("eth0").switch_port, |_| true)?;
    let injector = Injector::new(&site.router.ns, "eth1")?;
    let packet = || PacketBuilder::ethernet2(router_mac.0, node_mac.0).ipv6(client.octets(), VIP6.octets(), 64);
    let (mut syn, mut udp, mut echo) = (Vec::new(), Vec::new(), Vec::new());
    packet().tcp(41000, 81, 1, 1000).syn().write(&mut syn, b"")?;
    packet().udp(1, 9).write(&mut udp, b"x")?;
    packet().icmpv6_echo_request(1, 1).write(&mut echo, b"are you there")?;
    let solicitations = [None, Some(node_mac)].map(|known| ndp::solicitation(router_mac, router, VIP6, known).to_vec());
    // The echo comes last: when it is answered, everything before has been handled.
    for frame in [syn, udp].into_iter().chain(solicitations).chain([echo]) {
        injector.send(&frame)?;
    }
    let is_reply = |seen: &lb_tests::capture::Seen| seen.frame.get(20) == Some(&58) && seen.frame.get(54) == Some(&129);
    wait::until("the echo is answered", PATIENCE, || {
        capture.so_far().iter().any(|seen| !seen.outgoing && is_reply(seen))
    });
    let sent: Vec<_> = capture.finish().into_iter().filter(|seen| !seen.outgoing).collect();
    let tells = |seen: &lb_tests::capture::Seen, solicits: bool| {
        matches!(parse(&seen.frame), Packet::Neighbor(told)
            if told.target == VIP6 && (told.kind == ndp::Kind::Solicitation) == solicits)
    };
    let answers = sent.iter().filter(|seen| tells(seen, false) && seen.frame.get(58) == Some(&0x60)).count();
    ensure!(answers == 2, "{answers} answers to 2 solicitations");
    ensure!(sent.iter().filter(|seen| is_reply(seen)).count() == 1, "one echo, one reply");
    let from_vip = |seen: &&lb_tests::capture::Seen| seen.frame.get(22..38) == Some(&VIP6.octets()[..]);
    let others: Vec<_> = sent.iter().filter(from_vip).filter(|seen| !is_reply(seen) && !tells(seen, false)).collect();
    ensure!(others.is_empty(), "the node also sent {others:02x?}");
    // The end of a connection that was there before may pass yet, by the dataplane.
    let of_service = |seen: &lb_tests::capture::Seen| seen.flow().is_some_and(|flow| flow.tuple.destination_port == 80);
    let forwarded =
        |seen: &&lb_tests::capture::Seen| seen.frame.get(38..54) == Some(&VIP6.octets()[..]) && !of_service(seen);
    ensure!(sent.iter().find(forwarded).is_none(), "the node's kernel forwarded a packet to the VIP");
    Ok(())
}

/// Extension headers that lie, fragments of fragments, and neighbour discovery that breaks a rule.
pub(crate) fn hostile_frames(engine: &'static str) -> anyhow::Result<()> {
    let site = start(1, engine)?;
    http_who(&site.client.ns, HTTP6, PATIENCE)?;
    let (node, router) = (site.node_hosts[0].port("eth0").mac, site.router.port("eth1").mac);
    let client: std::net::Ipv6Addr = "2001:db8:1::10".parse()?;
    let mut plain = Vec::new();
    PacketBuilder::ethernet2(router.0, node.0)
        .ipv6(client.octets(), VIP6.octets(), 64)
        .udp(5, ECHO)
        .write(&mut plain, b"x")?;
    // The first kind, and headers of eight bytes, each naming the next.
    let with = |kind: u8, headers: &[[u8; 8]]| {
        let mut frame = plain.clone();
        frame.splice(54..54, headers.concat());
        (frame[19], frame[20]) = (9 + 8 * headers.len() as u8, kind);
        frame
    };
    let mut longer = plain.clone();
    longer[18] = 1;
    let with_source = |source: Mac| {
        let mut frame = plain.clone();
        frame[6..12].copy_from_slice(&source.0);
        frame
    };
    let tagged = |tags: &[u8]| {
        let mut frame = plain.clone();
        frame.splice(12..12, tags.iter().copied());
        frame
    };
    let mut elsewhere = plain.clone();
    elsewhere[..6].copy_from_slice(&[2, 0, 0, 0, 9, 9]);
    let mut hairpin = with_source(site.servers[0].mac);
    // By whichever of the two it was chosen for: one of 64 ports at least is this one's.
    let hairpins: Vec<Vec<u8>> = (0..64)
        .map(|port| {
            hairpin[55] = port;
            hairpin.clone()
        })
        .collect();
    let mut unrelated = plain.clone();
    unrelated.truncate(54);
    unrelated.extend([1, 4, 0, 0, 0, 0, 0, 0, 0x60]);
    (unrelated[19], unrelated[20]) = (9, 58);
    let mut long_datagram = plain.clone();
    long_datagram[59] = 10;
    let mut neither = plain.clone();
    neither[20] = 132;
    let mut distant = ndp::solicitation(router, client, VIP6, Some(node));
    distant[21] = 64;
    let mut forged = ndp::solicitation(router, client, VIP6, Some(node));
    forged[57] ^= 1;
    let mut endless_option = ndp::solicitation(router, client, VIP6, Some(node));
    endless_option[79] = 0;
    let cases = [
        ("bad_source", with_source(node)),
        ("bad_source", with_source(Mac::ZERO)),
        ("bad_source", with_source(Mac([0x33, 0x33, 0, 0, 0, 1]))),
        ("not_for_us", elsewhere),
        ("vlan_tagged", tagged(&[0x81, 0, 0, 5])),
        ("vlan_tagged", tagged(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6])),
        ("icmp_unrelated", unrelated),
        ("malformed", long_datagram),
        ("ndp_conflict", ndp::announcement(router, VIP6).to_vec()),
        ("protocol_unsupported", neither),
        ("malformed", longer),
        ("malformed", plain[..56].to_vec()),
        ("malformed", with(60, &[[17, 9, 0, 0, 0, 0, 0, 0]])),
        ("malformed", with(60, &[[0, 0, 1, 4, 0, 0, 0, 0], [17, 0, 1, 4, 0, 0, 0, 0]])),
        ("malformed", with(44, &[[44, 0, 0, 1, 0, 0, 0, 1], [17, 0, 0, 1, 0, 0, 0, 1]])),
        ("malformed", with(60, &[[60, 0, 1, 4, 0, 0, 0, 0]; 12])),
        ("protocol_unsupported", with(43, &[[17, 0, 0, 1, 0, 0, 0, 0]])),
        ("fragment_timeout", with(44, &[[17, 0, 0, 8, 0, 0, 0, 9]])),
        ("malformed", distant.to_vec()),
        ("malformed", forged.to_vec()),
        ("malformed", endless_option.to_vec()),
    ];
    // Whatever the node sends on but neighbour discovery, which it uses itself, the end of the TCP connection above, and the
    // errors of the client, who has asked nothing and gets the answers.
    let is_tcp = |frame: &[u8]| frame.get(20) == Some(&6);
    let is_error = |frame: &[u8]| frame.get(20) == Some(&58) && frame.get(54..56) == Some(&[1, 4]);
    let forwarded = move |frame: &[u8]| {
        frame.get(6..12) == Some(&node.0)
            && !is_tcp(frame)
            && !is_error(frame)
            && frame.get(12..14) == Some(&[0x86, 0xdd])
            && !matches!(parse(frame), Packet::Neighbor(_))
    };
    let at_servers: Vec<Capture> = site
        .servers
        .iter()
        .map(|server| Capture::start(&server.host.ns, "eth0", forwarded))
        .collect::<Result<_, _>>()?;
    // From inside the switch's cable to the node, as a switch that floods would send them.
    let injector = Injector::new(site.net.switch(), &site.node_hosts[0].port("eth0").switch_port)?;
    for (number, (reason, frame)) in cases.iter().enumerate() {
        let before = site.nodes[0].drops(reason)?;
        injector.send(frame)?;
        wait::until(&format!("{engine}: {reason} of case {number} is counted"), PATIENCE, || {
            site.nodes[0].drops(reason).is_ok_and(|now| now > before)
        });
    }
    let before = site.nodes[0].drops("hairpin")?;
    hairpins.iter().try_for_each(|frame| injector.send(frame))?;
    wait::until(&format!("{engine}: hairpin is counted"), PATIENCE, || {
        site.nodes[0].drops("hairpin").is_ok_and(|now| now > before)
    });
    // What is sound arrives as it was sent: options in two headers, a traffic class, a flow label.
    let mut sound = with(0, &[[60, 0, 1, 4, 0, 0, 0, 0], [17, 0, 1, 4, 0, 0, 0, 0]]);
    sound[14..18].copy_from_slice(&[0x6b, 0x81, 0x23, 0x45]);
    injector.send(&sound)?;
    // MLD reports go out as well.
    let to_vip = |seen: &lb_tests::capture::Seen| seen.frame.get(38..54) == Some(&VIP6.octets()[..]);
    let is_sound = |seen: &lb_tests::capture::Seen| seen.packet() == &sound[14..];
    wait::until(&format!("{engine}: the sound frame arrives"), PATIENCE, || {
        at_servers.iter().flat_map(Capture::so_far).any(|seen| to_vip(&seen) && is_sound(&seen))
    });
    let arrived: Vec<_> = at_servers.into_iter().flat_map(Capture::finish).filter(to_vip).collect();
    // Those that would have gone to the other server are sound there.
    let hostile = arrived.iter().filter(|seen| !is_sound(seen) && !hairpins.iter().any(|f| f[14..] == *seen.packet()));
    ensure!(hostile.count() == 0, "{engine}: hostile frames reached a server: {arrived:02x?}");
    ensure!(arrived.iter().filter(|seen| is_sound(seen)).count() == 1, "{engine}: the sound frame arrived twice");
    Ok(())
}

/// The owner dies: the router learns the new one from its unsolicited advertisements.
pub(crate) fn taken_over() -> anyhow::Result<()> {
    let mut site = start(3, "ring")?;
    for node in &site.nodes {
        wait_ready(node, 3);
    }
    ensure!(http_who(&site.client.ns, HTTP6, PATIENCE)?.starts_with("web"));
    let owner = site.nodes[0].owner_of(VIP6_TEXT)?;
    let owner = site.nodes.iter().position(|node| node.name == owner).expect("the VIP is owned");
    let before = site.router.neighbor("eth1", VIP6)?;
    ensure!(before == Some(site.node_hosts[owner].port("eth0").mac));
    site.nodes[owner].kill()?;
    wait::until("the router has another neighbour for the VIP", PATIENCE, || {
        site.router.neighbor("eth1", VIP6).is_ok_and(|now| now.is_some() && now != before)
    });
    wait::until("the VIP is served again", PATIENCE, || {
        http_who(&site.client.ns, HTTP6, Duration::from_secs(1)).is_ok()
    });
    let udp = site.client.ns.enter(|| std::net::UdpSocket::bind("[::]:0"))?;
    udp.set_read_timeout(Some(Duration::from_millis(500)))?;
    wait::until("datagrams are answered", PATIENCE, || {
        drop(udp.send_to(b"who", (VIP6, ECHO)));
        udp.recv_from(&mut [0; 64]).is_ok_and(|(_, from)| from.ip() == VIP6)
    });
    Ok(())
}
