//! What does not fit into one frame: path MTU discovery on both sides of the node, fragments in any order.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::ensure;
use etherparse::{IpFragOffset, IpNumber, Ipv4Header};
use lb_tests::{
    capture::{Capture, Injector},
    site::{ECHO, HTTP_ADDRESSES, PATIENCE, Plan, Site, VIP, VIPS, is_tcp},
    traffic::HttpClient,
    wait,
};

/// A hop of smaller MTU behind the client's router: the errors that it sends to the VIP reach the backend.
pub(crate) fn path_mtu_behind_the_client(engine: &'static str) -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 2, two_interfaces: false, engine })?;
    site.start_both()?;
    site.router.set_mtu("eth0", 1400)?;
    for address in HTTP_ADDRESSES {
        let is_error = |frame: &[u8]| match frame.get(12..14) {
            Some([0x08, 0]) => frame.get(23) == Some(&1) && frame.get(34..36) == Some(&[3, 4]),
            Some([0x86, 0xdd]) => frame.get(20) == Some(&58) && frame.get(54) == Some(&2),
            _ => false,
        };
        let at_servers: Vec<Capture> = site
            .servers
            .iter()
            .map(|server| Capture::start(&server.host.ns, "eth0", is_error))
            .collect::<Result<_, _>>()?;
        let mut http = HttpClient::connect(&site.client.ns, address, PATIENCE)?;
        ensure!(http.get("/bytes/1000000")?.len() == 1_000_000, "{engine}: {address}");
        wait::until(&format!("{engine}: {address}: an error has reached a backend"), PATIENCE, || {
            at_servers.iter().any(|capture| capture.received() > 0)
        });
    }
    Ok(())
}

/// The node's own way to the backends takes less than what clients send: it says so itself. The MTU changes while
/// it runs, and back.
pub(crate) fn path_mtu_at_the_node(engine: &'static str) -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: true, engine })?;
    site.start_both()?;
    let upload = |address: SocketAddr| -> anyhow::Result<()> {
        let mut http = HttpClient::connect(&site.client.ns, address, PATIENCE)?;
        let said = http.upload(1_000_000)?;
        ensure!(said == "web1 1000000", "{engine}: {said}");
        Ok(())
    };
    for address in HTTP_ADDRESSES {
        upload(address)?;
        let stats = || -> anyhow::Result<(u64, Option<u64>)> {
            Ok((site.nodes[0].drops("too_big")?, site.nodes[0].stats()?["originated"].as_u64()))
        };
        let before = stats()?;
        site.node_hosts[0].set_mtu("eth1", 1300)?;
        wait::until(&format!("{engine}: the node works for {address} with the new MTU"), PATIENCE, || {
            upload(address).is_ok() && stats().is_ok_and(|now| now.0 > before.0 && now.1 > before.1)
        });
        site.node_hosts[0].set_mtu("eth1", 1500)?;
        // The client remembers the path's MTU; that the transfer goes on is what matters.
        upload(address)?;
    }
    Ok(())
}

/// The way to the backends goes by an interface that takes no GSO frames: the kernel segments them, and it is counted.
pub(crate) fn segmented(engine: &'static str) -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: true, engine })?.with_offloads()?;
    site.start_both()?;
    let node = &site.node_hosts[0];
    node.ns.enter(|| lb_tests::sys::reference::disable_tso("eth1"))?;
    for address in HTTP_ADDRESSES {
        let segmented = || -> anyhow::Result<u64> {
            let mut http = HttpClient::connect(&site.client.ns, address, PATIENCE)?;
            ensure!(http.upload(1_000_000)? == "web1 1000000");
            Ok(site.nodes[0].stats()?["segmented"].as_u64().unwrap_or(0))
        };
        let before = segmented()?;
        wait::until(&format!("{engine}: the node knows of it"), PATIENCE, || segmented().is_ok_and(|now| now > before));
        let to_server = Capture::start(site.net.switch(), &node.port("eth1").switch_port, is_tcp)?;
        let before = segmented()?;
        ensure!(segmented()? > before, "{engine}: {address}");
        let longest = to_server.finish().into_iter().map(|seen| seen.packet().len()).max();
        ensure!(longest == Some(1500), "{engine}: {address}: {longest:?}");
    }
    Ok(())
}

/// Large datagrams, which the client's kernel fragments, are echoed whole; in both families.
pub(crate) fn fragments(engine: &'static str) -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 2, two_interfaces: false, engine })?;
    site.start_both()?;
    for vip in VIPS {
        let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        for flow in 0..10u8 {
            let socket = site.client.ns.enter(|| UdpSocket::bind(any))?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            let datagram: Vec<u8> = (0..20_000u32).map(|i| (i % 251) as u8 ^ flow).collect();
            let mut answer = vec![0; 1 << 16];
            wait::until(&format!("{engine}: a datagram to {vip} is echoed whole"), PATIENCE, || {
                drop(socket.send_to(&datagram, (vip, ECHO)));
                socket.recv(&mut answer).is_ok_and(|len| answer[..len].starts_with(&datagram))
            });
        }
    }
    out_of_order(&site)?;
    let (stats, is_whole) = site.nodes[0].accounts()?;
    ensure!(is_whole, "{engine}: not every frame is accounted for: {stats}");
    Ok(())
}

/// Every order of three fragments; then an overlap, which is dropped.
fn out_of_order(site: &Site) -> anyhow::Result<()> {
    let injector = Injector::new(&site.router.ns, "eth1")?;
    let (router, node) = (site.router.port("eth1").mac, site.node_hosts[0].port("eth0").mac);
    let fragment = |id: u16, number: u16| {
        let mut payload = vec![number as u8; if number == 2 { 96 } else { 800 }];
        if number == 0 {
            // Ports 4000 to 7, a length, no checksum.
            payload[..8].copy_from_slice(&[0x0f, 0xa0, 0, 7, 0x06, 0xa8, 0, 0]);
        }
        let mut ip = Ipv4Header::new(payload.len() as u16, 64, IpNumber::UDP, [192, 168, 1, 10], VIP.octets())?;
        ip.identification = id;
        ip.dont_fragment = false;
        ip.more_fragments = number < 2;
        ip.fragment_offset = IpFragOffset::try_new(number * 100)?;
        ip.header_checksum = ip.calc_header_checksum();
        let mut frame = [node.0, router.0].concat();
        frame.extend([0x08, 0x00]);
        ip.write(&mut frame)?;
        frame.extend(payload);
        anyhow::Ok(frame)
    };
    let orders: [[u16; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for (order, id) in orders.into_iter().zip(1000u16..) {
        let is_ours =
            move |frame: &[u8]| frame.get(12..14) == Some(&[8, 0]) && frame.get(18..20) == Some(&id.to_be_bytes());
        let captures: Vec<Capture> = site
            .servers
            .iter()
            .map(|server| Capture::start(&server.host.ns, "eth0", is_ours))
            .collect::<Result<_, _>>()?;
        for number in order {
            injector.send(&fragment(id, number)?)?;
        }
        wait::until(&format!("all fragments of the order {order:?} arrive"), PATIENCE, || {
            captures.iter().map(Capture::received).sum::<usize>() == 3
        });
        let at: Vec<usize> = captures.into_iter().map(|capture| capture.finish().len()).collect();
        ensure!(at.contains(&3), "{order:?}: they are spread over the servers: {at:?}");
    }
    let before = site.nodes[0].drops("fragment_overlap")?;
    for number in [0, 1, 1] {
        injector.send(&fragment(2000, number)?)?;
    }
    wait::until("a repeated fragment is counted", PATIENCE, || {
        site.nodes[0].drops("fragment_overlap").is_ok_and(|now| now == before + 1)
    });
    Ok(())
}
