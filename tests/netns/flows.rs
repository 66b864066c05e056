//! Which backend a flow gets, and that it keeps it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use lb_dataplane::{Config, Dataplane, guard, io::PortConfig};
use lb_tests::{
    capture::{Capture, Injector},
    frame::Path,
    site::{ECHO, HTTP, HTTP_ADDRESSES, PATIENCE, Plan, Site, VIP, VIP_TEXT, VIP6},
    traffic::{HttpClient, http_who},
    wait,
};

use crate::kernel_faults;

/// 10,000 flows and then all source ports, at equal and at unequal weights, in both families.
pub(crate) fn shares() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 4, two_interfaces: false, engine: "ring" })?;
    site.start_both()?;
    for (round, weights) in (1u8..).zip([[1, 1, 1, 1], [1, 2, 3, 4]]) {
        for (server, weight) in site.servers.iter().zip(weights) {
            for (service, address) in [("echo", server.address.into()), ("echo6", server.address_on_vip6())] {
                let (address, weight) = (address.to_string(), weight.to_string());
                site.nodes[0].change(&["backend", "set", service, &address, "--weight", &weight])?;
            }
        }
        shares_at(&site, round, weights, VIP.into())?;
        shares_at(&site, round, weights, VIP6.into())?;
    }
    Ok(())
}

fn shares_at(site: &Site, round: u8, weights: [i32; 4], vip: IpAddr) -> anyhow::Result<()> {
    // Clients of the VIP's family.
    let client = |number: u32| match vip {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::from(number)),
        IpAddr::V6(_) => Ipv6Addr::from((0x2001_0db8_0001 << 80) + u128::from(number)).into(),
    };
    let total: i32 = weights.iter().sum();
    // The cluster's hash key is random: 10,000 flows miss by 1.5 points once in a few hundred samples, and
    // twice in a row only if something is wrong.
    let mut worst = f64::INFINITY;
    for sample in 0..2 {
        // Ten flows from each of a thousand clients, each of three packets; other clients each time, since
        // known flows keep their backend.
        let clients = (10 << 24) + (u32::from(round) << 16) + (sample << 12);
        let flows: Vec<(IpAddr, u16)> =
            (0..10_000u32).map(|i| (client(clients + i / 10), 1024 + (i % 10) as u16 * 7)).collect();
        let landed = send_and_see(site, vip, &flows, 3)?;
        ensure!(landed.values().all(|backends| backends.len() == 1), "a flow is spread over several backends");
        let off = |(at, share): (usize, f64)| (share - f64::from(weights[at]) / f64::from(total)).abs();
        worst = shares_of(site, &landed).into_iter().map(off).fold(0.0, f64::max);
        if worst < 0.015 {
            break;
        }
    }
    ensure!(worst < 0.015, "{vip}, weights {weights:?}: a backend's share is off by {worst} in two samples");
    let client = client(u32::from(Ipv4Addr::new(192, 168, 1, 100 + round)));
    let ports: Vec<(IpAddr, u16)> = (0..=u16::MAX).map(|port| (client, port)).collect();
    let landed = send_and_see(site, vip, &ports, 1)?;
    for (at, share) in shares_of(site, &landed) {
        let expected = f64::from(weights[at]) / f64::from(total);
        ensure!((share / expected - 1.0).abs() < 0.02, "{vip}, weights {weights:?}: web{} has {share}", at + 1);
    }
    Ok(())
}

type Landed = HashMap<(IpAddr, u16), BTreeSet<usize>>;

/// Sends `packets` datagrams of each flow to the node, and sees on which servers they land.
fn send_and_see(site: &Site, vip: IpAddr, flows: &[(IpAddr, u16)], packets: usize) -> anyhow::Result<Landed> {
    let is_v4 = vip.is_ipv4();
    let is_udp = move |frame: &[u8]| frame.get(if is_v4 { 23 } else { 20 }) == Some(&17);
    let captures: Vec<Capture> =
        site.servers.iter().map(|server| Capture::start(&server.host.ns, "eth0", is_udp)).collect::<Result<_, _>>()?;
    let injector = Injector::new(&site.router.ns, "eth1")?;
    let path = site.path(vip, ECHO);
    let arrived = || captures.iter().map(Capture::received).sum::<usize>();
    let mut sent = 0;
    for _ in 0..packets {
        for burst in flows.chunks(256) {
            for (source, port) in burst {
                let path = Path { client: SocketAddr::new(*source, *port), ..path };
                injector.send(&path.udp(b"datagram"))?;
            }
            sent += burst.len();
            // Not more at once than a capture's socket holds, where its size may not be raised.
            wait::until("the datagrams have arrived", PATIENCE, || arrived() >= sent);
        }
    }
    let mut landed = Landed::new();
    for (at, capture) in captures.into_iter().enumerate() {
        for seen in capture.finish().into_iter().filter(|seen| !seen.outgoing) {
            if let Some(flow) = seen.flow() {
                landed.entry((flow.tuple.source.into(), flow.tuple.source_port)).or_default().insert(at);
            }
        }
    }
    ensure!(landed.len() == flows.len(), "{} of {} flows have landed", landed.len(), flows.len());
    Ok(landed)
}

fn shares_of(site: &Site, landed: &Landed) -> Vec<(usize, f64)> {
    let mut counts = BTreeMap::new();
    for backends in landed.values() {
        for at in backends {
            *counts.entry(*at).or_insert(0.0) += 1.0;
        }
    }
    (0..site.servers.len()).map(|at| (at, counts.get(&at).unwrap_or(&0.0) / landed.len() as f64)).collect()
}

/// 300 open connections of both families, also those that only the flow table can know: another number of workers breaks none, and each
/// gets its frames from the kernel.
pub(crate) fn workers_come_and_go() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 3, two_interfaces: false, engine: "ring" })?;
    site.start_both()?;
    let is_accelerated = !site.nodes[0].lbctl_json(&["status"])?["dataplane"]["accelerator"].is_null();
    let mut connections = Vec::new();
    for address in HTTP_ADDRESSES.into_iter().cycle().take(300) {
        let mut http = HttpClient::connect(&site.client.ns, address, PATIENCE)?;
        connections.push((http.who()?, http));
    }
    // By Maglev they would go elsewhere.
    site.change_backend("drain", 1)?;
    ensure!(connections.iter().any(|(who, _)| who == "web2"));
    let packets = |site: &Site| -> anyhow::Result<u64> {
        let stats = site.nodes[0].stats()?;
        Ok(stats["backends"].as_array().into_iter().flatten().filter_map(|row| row["packets"].as_u64()).sum())
    };
    for workers in [3, 2, 1] {
        let before = packets(&site)?;
        site.nodes[0].set_workers(workers)?;
        for (who, http) in &mut connections {
            ensure!(http.who()? == *who, "a connection broke when there were {workers} workers");
        }
        let stats = site.nodes[0].stats()?;
        for worker in stats["workers"].as_array().into_iter().flatten() {
            // What the kernel gives a worker is what that worker thinks it has.
            ensure!(worker["handed_over"] == 0, "{stats}");
            ensure!(is_accelerated || worker["received"].as_u64() > Some(50), "{stats}");
        }
        ensure!(packets(&site)? >= before + 300, "counters were lost: {before} before, {stats}");
    }
    Ok(())
}

/// Asked for real-time priority, the workers have it, or status says why not; either way they forward.
pub(crate) fn realtime() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine: "ring/2" })?;
    let config = site.nodes[0].config();
    std::fs::write(&config, std::fs::read_to_string(&config)? + "realtime = true\n")?;
    site.start()?;
    ensure!(http_who(&site.client.ns, HTTP_ADDRESSES[0], PATIENCE)? == "web1");
    let status = site.nodes[0].lbctl_json(&["status"])?;
    let told = status["dataplane"]["scheduling"].as_str().unwrap_or_default();
    let mut policies = Vec::new();
    for thread in site.nodes[0].worker_threads()?.values() {
        let stat = std::fs::read_to_string(thread.join("stat"))?;
        let (_, fields) = stat.split_once(") ").context("the fields behind the name")?;
        // proc_pid_stat(5): the 41st field, of which the state is the third.
        policies.extend(fields.split(' ').nth(38).map(str::to_owned));
    }
    // The node has the rights of this process.
    let (normal, fifo) = ("0", "1");
    let expected = if lb_tests::sys::may_be_realtime()? { fifo } else { normal };
    ensure!(policies == [expected; 2], "{told}: {policies:?}");
    ensure!(if expected == fifo { told == "realtime" } else { told.contains("CAP_SYS_NICE") }, "{told}");
    Ok(())
}

/// Workers stay on the processors that are named for them, in turn; one that is not there is refused by its number.
pub(crate) fn stay_on_their_processors() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine: "ring/2" })?;
    let config = site.nodes[0].config();
    std::fs::write(&config, std::fs::read_to_string(&config)? + "cpus = [0]\n")?;
    site.start()?;
    ensure!(http_who(&site.client.ns, HTTP_ADDRESSES[0], PATIENCE)? == "web1");
    let mut allowed = Vec::new();
    for thread in site.nodes[0].worker_threads()?.values() {
        let status = std::fs::read_to_string(thread.join("status"))?;
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t"));
        allowed.extend(list.map(str::to_owned));
    }
    ensure!(allowed == ["0"; 2], "{allowed:?}");

    let host = &site.node_hosts[0];
    let port = PortConfig { name: "eth0".into(), ifindex: host.ns.ifindex("eth0")?, mtu: 1500 };
    let usual = kernel_faults::config(vec![port], "ring", 1, guard::Ownership::Own);
    site.nodes[0].terminate()?;
    let refused = host.ns.enter(|| Dataplane::start(&Config { cpus: vec![1023], ..usual })).err();
    let refused = refused.map(|error| error.to_string()).unwrap_or_default();
    ensure!(refused.starts_with("a worker cannot run on processor 1023: "), "{refused}");
    Ok(())
}

/// 500 open connections of both families: a new backend breaks none, a removed one only its own.
pub(crate) fn backends_come_and_go() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 4, two_interfaces: false, engine: "ring" })?;
    site.start_both()?;
    site.change_backend("remove", 3)?;
    let mut connections = Vec::new();
    for address in HTTP_ADDRESSES.into_iter().cycle().take(500) {
        let mut http = HttpClient::connect(&site.client.ns, address, PATIENCE)?;
        let who = http.who()?;
        connections.push((who, http));
    }
    ensure!(connections.iter().all(|(who, _)| who != "web4"));
    site.change_backend("add", 3)?;
    site.nodes[0].wait_resolved(4 * site.servers.len());
    for (who, http) in &mut connections {
        ensure!(http.who()? == *who, "a connection broke when a backend was added");
    }
    for address in HTTP_ADDRESSES {
        wait::until("the new backend gets connections", PATIENCE, || {
            http_who(&site.client.ns, address, PATIENCE).is_ok_and(|who| who == "web4")
        });
    }
    site.change_backend("remove", 0)?;
    let mut broken = 0;
    for (who, http) in &mut connections {
        match http.who() {
            Ok(now) => ensure!(now == *who && now != "web1", "{who} became {now}"),
            Err(_) => {
                ensure!(who == "web1", "a connection of {who} broke when web1 was removed");
                broken += 1;
            }
        }
    }
    ensure!(broken > 100, "only {broken} connections were web1's");
    // A drained backend keeps its connections and gets no new ones.
    site.change_backend("drain", 1)?;
    for (who, http) in connections.iter_mut().filter(|(who, _)| who == "web2") {
        ensure!(http.who()? == *who, "a drained backend lost a connection");
    }
    for address in HTTP_ADDRESSES.into_iter().cycle().take(50) {
        ensure!(http_who(&site.client.ns, address, PATIENCE)? != "web2");
    }
    Ok(())
}

/// VIPs in no attached subnet: a router sends their packets to the node.
pub(crate) fn routed_vip() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 2, two_interfaces: false, engine: "ring" })?;
    site.add_ipv6()?;
    site.start()?;
    let lb = &site.nodes[0];
    let routed: [(IpAddr, IpAddr); 2] = [
        (Ipv4Addr::new(198, 51, 100, 7).into(), Ipv4Addr::new(192, 168, 2, 11).into()),
        ("2001:db8:ffff::7".parse()?, "2001:db8:2::11".parse()?),
    ];
    let mut backends = Vec::new();
    for (vip, node) in routed {
        let (address, service) = (vip.to_string(), format!("routed{}", backends.len()));
        lb.lbctl_ok(&["vip", "add", &address])?;
        lb.lbctl_ok(&["service", "add", &service, "--vip", &address, "--port", "80/tcp"])?;
        let vips = lb.lbctl_json(&["vip", "list"])?;
        let row = |address: &str| vips["vips"].as_array().into_iter().flatten().find(|row| row["address"] == address);
        ensure!(row(&address).is_some_and(|row| row["routed"] == true && row["owner"] == "lb1"), "{vips}");
        ensure!(row(VIP_TEXT).is_some_and(|row| row["routed"] == false), "{vips}");
        site.router.route(vip, node)?;
        for server in &site.servers {
            lb.lbctl_ok(&["backend", "add", &service, &server.address.to_string()])?;
            server.host.make_backend(vip)?;
            backends.push(lb_tests::traffic::Backend::serve(&server.host.ns, "routed", vip, HTTP, ECHO)?);
        }
        wait::until("the routed VIP answers", PATIENCE, || {
            http_who(&site.client.ns, (vip, HTTP), Duration::from_secs(1)).is_ok_and(|who| who == "routed")
        });
    }
    Ok(())
}
