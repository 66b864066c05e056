//! The worked example exactly: client 192.168.1.10, VIP 192.168.2.1, server 192.168.3.5; and the same in IPv6.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::ensure;
use lb_tests::{
    capture::{Capture, Seen},
    site::{HTTP_ADDRESSES, PATIENCE, Plan, Site},
    traffic::HttpClient,
};

const BULK: usize = 100_000_000;

pub(crate) fn one_interface(engine: &'static str) -> anyhow::Result<()> {
    example(false, engine)
}

pub(crate) fn two_interfaces(engine: &'static str) -> anyhow::Result<()> {
    example(true, engine)
}

fn example(two_interfaces: bool, engine: &'static str) -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces, engine })?.with_offloads()?;
    site.start_both()?;
    ensure!(site.servers[0].address == Ipv4Addr::new(192, 168, 3, 5));
    let status = site.nodes[0].lbctl_json(&["status"])?;
    ensure!(status["dataplane"]["engine"] == engine, "{status}");
    for address in HTTP_ADDRESSES {
        transfer(&site, two_interfaces, address)?;
    }
    let (stats, is_whole) = site.nodes[0].accounts()?;
    ensure!(is_whole && stats["held"] == 0, "frames unaccounted for: {stats}");
    let vips = stats["vips"].as_array().map(Vec::as_slice).unwrap_or_default();
    ensure!(vips.len() == 2 && vips.iter().all(|vip| vip["bytes"].as_u64() > Some(BULK as u64)), "{stats}");
    ensure!(stats["segmented"] == 0, "{stats}");
    site.nodes[0].terminate()?;
    Ok(())
}

fn transfer(site: &Site, two_interfaces: bool, address: SocketAddr) -> anyhow::Result<()> {
    // A real HTTP exchange, seen at the switch's ports of the node and at the server.
    let keep = |frame: &[u8]| lb_tests::site::is_tcp(frame);
    let node = &site.node_hosts[0];
    let entering = Capture::start(site.net.switch(), &node.port("eth0").switch_port, keep)?;
    let leaving = match two_interfaces {
        true => Some(Capture::start(site.net.switch(), &node.port("eth1").switch_port, keep)?),
        false => None,
    };
    let at_server = Capture::start(&site.servers[0].host.ns, "eth0", keep)?;
    let mut http = HttpClient::connect(&site.client.ns, address, PATIENCE)?;
    ensure!(http.who()? == "web1");
    ensure!(http.get("/bytes/100000")?.len() == 100_000);
    ensure!(http.upload(100_000)? == "web1 100000");
    drop(http);
    let (at_node, at_server) = (entering.finish(), at_server.finish());
    let (to_node, mut from_node): (Vec<Seen>, Vec<Seen>) = at_node.into_iter().partition(|seen| seen.outgoing);
    from_node.extend(leaving.map(Capture::finish).unwrap_or_default());
    check_frames(site, two_interfaces, address.ip(), [&to_node, &from_node, &at_server])?;

    // 100 MB each way with the default offloads of veth: partial checksums and GSO frames.
    let mut http = HttpClient::connect(&site.client.ns, address, PATIENCE)?;
    ensure!(http.get(&format!("/bytes/{BULK}"))?.len() == BULK);
    ensure!(http.upload(BULK)? == format!("web1 {BULK}"));
    Ok(())
}

fn check_frames(
    site: &Site,
    two_interfaces: bool,
    vip: IpAddr,
    [to_node, from_node, at_server]: [&[Seen]; 3],
) -> anyhow::Result<()> {
    let node = &site.node_hosts[0];
    let out_mac = node.port(if two_interfaces { "eth1" } else { "eth0" }).mac;
    let server = &site.servers[0];
    // What enters for the VIP leaves again, byte for byte from the IP header up. In any order: two CPUs that send
    // at the same time pass the capture in one order and reach the node in another.
    let for_vip = |seen: &&Seen| seen.flow().is_some_and(|flow| flow.tuple.destination == vip.into());
    let mut entered: Vec<&[u8]> = to_node.iter().filter(for_vip).map(Seen::packet).collect();
    let mut left: Vec<&[u8]> = from_node.iter().filter(for_vip).map(Seen::packet).collect();
    let in_order = left.clone();
    entered.sort_unstable();
    left.sort_unstable();
    ensure!(entered.len() > 10, "only {} frames were captured", entered.len());
    ensure!(entered == left, "from the IP header up something changed: {} in, {} out", entered.len(), left.len());
    // At the server: from the node to the server; the source MAC is the node's.
    let arrived: Vec<&Seen> = at_server.iter().filter(|seen| !seen.outgoing).filter(for_vip).collect();
    ensure!(arrived.iter().all(|seen| seen.destination() == server.mac && seen.source() == out_mac));
    ensure!(arrived.iter().map(|seen| seen.packet()).collect::<Vec<_>>() == in_order);
    ensure!(arrived.iter().any(|seen| seen.packet().len() > 1500), "no GSO frame went through whole");
    // The answers: from the VIP to the client, and none of them by the node.
    let answer = |seen: &&Seen| seen.flow().is_some_and(|flow| flow.tuple.source == vip.into());
    let answers: Vec<&Seen> = at_server.iter().filter(answer).collect();
    ensure!(!answers.is_empty() && answers.iter().all(|seen| seen.outgoing && seen.destination() != out_mac));
    let by_node = to_node.iter().chain(from_node).filter(answer);
    let addressed_to_node = by_node.filter(|seen| {
        [node.port("eth0").mac, out_mac].iter().any(|mac| seen.destination() == *mac || seen.source() == *mac)
    });
    ensure!(addressed_to_node.count() == 0, "an answer passed the node");
    Ok(())
}
