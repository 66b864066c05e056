//! The quickstart: a whole cluster on this machine, in network namespaces, with real traffic and a real
//! failover. `cargo demo`.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lb_dataplane::packet::FlowPacket;
use lb_tests::{
    capture::Capture,
    cluster::{LbNode, wait_for_leader, wait_ready},
    observe::{ArpObserver, UdpStream, owners_in_turn},
    runner,
    site::{ECHO, HTTP, HTTP_ADDRESS, PATIENCE, Plan, Site, VIP, VIP_TEXT},
    traffic::{Backend, HttpClient, http_who},
    wait,
};

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
const REQUESTS: usize = 400;
const OPEN_CONNECTIONS: usize = 40;

fn main() -> ExitCode {
    println!("Building lbd and lbctl...");
    if !runner::prepare() {
        return ExitCode::FAILURE;
    }
    let begun = Instant::now();
    match demo() {
        Ok(()) => {
            println!(
                "\nEverything held, in {:.1} s. All namespaces and processes are gone.",
                begun.elapsed().as_secs_f64()
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nFAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> anyhow::Result<()> {
    step("1. A network: a client, a router, three load balancers, four servers");
    println!("{TOPOLOGY}");
    let mut site = Site::build(Plan { nodes: 3, servers: 4, two_interfaces: false, engine: "auto" })?;

    step("2. Three lbd start. lb1 creates a cluster, the others wait to be added");
    for node in &mut site.nodes {
        node.start()?;
        println!("   {} runs at {}", node.name, node.address);
    }
    wait_for_leader(&site.nodes[0]);
    for number in [1, 2] {
        let (name, address) = (site.nodes[number].name.clone(), site.nodes[number].address.clone());
        lbctl(&site.nodes[0], &["node", "add", &name, &address])?;
    }
    wait_ready(&site.nodes[0], 3);

    step("3. A VIP, its services, and their backends. Any node takes any command");
    lbctl(&site.nodes[1], &["vip", "add", VIP_TEXT])?;
    lbctl(&site.nodes[2], &["service", "add", "web", "--vip", VIP_TEXT, "--port", "80/tcp"])?;
    lbctl(&site.nodes[0], &["service", "add", "echo", "--vip", VIP_TEXT, "--port", "7/udp"])?;
    for server in &site.servers {
        for service in ["web", "echo"] {
            lbctl(&site.nodes[1], &["backend", "add", service, &server.address.to_string()])?;
        }
    }
    site.wait_resolved();
    lbctl(&site.nodes[0], &["status"])?;

    step("4. HTTP from the client through the VIP");
    let owner = site.owner()?;
    spread_and_proof(&site, owner)?;

    step("5. A server ends. The owner of the VIP asks all of them once a second, as a client would");
    end_a_server(&mut site)?;

    step("6. The owner dies under load (SIGKILL)");
    let (owner, new) = kill_the_owner(&mut site)?;

    step("7. The dead node comes back and catches up with what has changed");
    let last = site.servers[3].address.to_string();
    lbctl(&site.nodes[new], &["backend", "set", "web", &last, "--weight", "2"])?;
    site.nodes[owner].start()?;
    wait_ready(&site.nodes[owner], 3);
    let applied = |node: &LbNode| -> anyhow::Result<(u64, u64)> {
        let status = node.lbctl_json(&["status"])?;
        Ok((status["revision"].as_u64().unwrap_or(0), status["applied"].as_u64().unwrap_or(0)))
    };
    let (revision, at) = applied(&site.nodes[owner])?;
    ensure!(revision == applied(&site.nodes[new])?.0, "the restarted node has another table");
    println!("   {} has the table of revision {revision} again (log entry {at})", site.nodes[owner].name);
    lbctl(&site.nodes[owner], &["backend", "list", "web"])?;
    lbctl(&site.nodes[owner], &["vip", "list"])?;

    step("8. Every node lets go and stops (SIGTERM)");
    for node in &mut site.nodes {
        let status = node.terminate()?;
        ensure!(status.success(), "{} ended with {status}", node.name);
        println!("   {} stopped", node.name);
    }
    Ok(())
}

/// How the requests spread, and that no answer passed a load balancer.
fn spread_and_proof(site: &Site, owner: usize) -> anyhow::Result<()> {
    let port = site.node_hosts[owner].port("eth0");
    let at_node = Capture::start(site.net.switch(), &port.switch_port, lb_tests::site::is_tcp)?;
    let at_client = Capture::start(&site.client.ns, "eth0", lb_tests::site::is_tcp)?;
    let mut spread = BTreeMap::<String, usize>::new();
    for _ in 0..REQUESTS {
        *spread.entry(http_who(&site.client.ns, HTTP_ADDRESS, PATIENCE)?).or_default() += 1;
    }
    for (name, count) in &spread {
        println!("   {name} answered {count:3} of {REQUESTS} requests {}", "#".repeat(count / 5));
    }
    ensure!(spread.len() == 4, "only {} servers answered", spread.len());
    let (at_node, at_client) = (at_node.finish(), at_client.finish());
    let answers = at_client.iter().filter(|seen| !seen.outgoing).count();
    let through = at_node.iter().filter(|seen| {
        let from_vip = |flow: FlowPacket| flow.tuple.source == VIP.into() && flow.tuple.destination == CLIENT.into();
        seen.flow().is_some_and(from_vip) && (seen.destination() == port.mac || seen.source() == port.mac)
    });
    let through = through.count();
    // Not what it asks the servers itself.
    let is_clients = |flow: FlowPacket| flow.tuple.source == CLIENT.into();
    let of_client = at_node.iter().filter(|seen| seen.flow().is_some_and(is_clients));
    let forwarded = of_client.filter(|seen| !seen.outgoing && seen.source() == port.mac).count();
    println!(
        "   Direct server return: {} forwarded {forwarded} frames to the servers; of the {answers} answer frames that \
         reached the client, {through} passed a load balancer",
        site.nodes[owner].name
    );
    ensure!(through == 0 && answers > REQUESTS, "answers passed the load balancer");
    Ok(())
}

/// Its share goes to the others, and returns with it.
fn end_a_server(site: &mut Site) -> anyhow::Result<()> {
    let health = |node: &LbNode| -> anyhow::Result<String> {
        let backends = node.lbctl_json(&["backend", "list", "web"])?;
        Ok(backends["backends"][1]["health"].as_str().unwrap_or_default().to_owned())
    };
    let becomes = |expected: &str| {
        let is_so = || site.nodes.iter().all(|node| health(node).is_ok_and(|found| found == expected));
        wait::until(&format!("web2 is {expected}"), PATIENCE, is_so);
    };
    becomes("healthy");
    println!("   web2's servers end");
    site.servers[1].backend.stop();
    let ended = Instant::now();
    becomes("unhealthy");
    println!("   every node knows it     {} ms later", ended.elapsed().as_millis());
    lbctl(&site.nodes[0], &["backend", "list", "web"])?;
    let mut spread = BTreeMap::<String, usize>::new();
    for _ in 0..REQUESTS {
        *spread.entry(http_who(&site.client.ns, HTTP_ADDRESS, PATIENCE)?).or_default() += 1;
    }
    let spread: Vec<String> = spread.iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!("   new connections         {}; none was lost", spread.join(", "));
    ensure!(spread.len() == 3, "web2 still gets connections");
    let server = &mut site.servers[1];
    server.backend = Backend::serve(&server.host.ns, "web2", VIP, HTTP, ECHO)?;
    let begun = Instant::now();
    let is_back = || site.nodes.iter().all(|node| health(node).is_ok_and(|found| found == "healthy"));
    wait::until("web2 is healthy again", PATIENCE, is_back);
    println!(
        "   they begin anew         healthy {} ms later, by two good answers in a row",
        begun.elapsed().as_millis()
    );
    Ok(())
}

/// Who was killed, and who owns the VIP now.
fn kill_the_owner(site: &mut Site) -> anyhow::Result<(usize, usize)> {
    let observed = Ipv4Addr::new(192, 168, 2, 254);
    let arps = ArpObserver::start(&site.router, "eth1", observed, VIP, Duration::from_millis(5))?;
    let mut connections = Vec::new();
    for _ in 0..OPEN_CONNECTIONS {
        let mut http = HttpClient::connect(&site.client.ns, HTTP_ADDRESS, PATIENCE)?;
        connections.push((http.who()?, http));
    }
    let stream = UdpStream::start(&site.client, SocketAddrV4::new(VIP, ECHO), Duration::from_millis(1))?;
    wait::until("answers come", PATIENCE, || stream.last_answer().is_some());
    println!("   load: 1000 UDP datagrams a second, {OPEN_CONNECTIONS} open HTTP connections");
    // On a slow machine it may be another one by now.
    let owner = site.owner()?;
    println!("   kill -9 {}", site.nodes[owner].name);
    let died = Instant::now();
    site.nodes[owner].kill()?;
    wait::until("answers come again", PATIENCE, || {
        stream.last_answer().is_some_and(|at| at > died + Duration::from_millis(50))
    });
    for (who, http) in &mut connections {
        let now = http.who().context("an open connection broke")?;
        ensure!(now == *who, "a connection moved from {who} to {now}");
    }
    let report = stream.finish();
    let owners = owners_in_turn(&arps.finish()).map_err(anyhow::Error::msg)?;
    let new = site.owner()?;
    println!("   the VIP was silent for  {} ms", report.longest_gap.as_millis());
    println!("   its new owner           {}", site.nodes[new].name);
    println!("   datagrams lost          {} of {}", report.lost, report.sent);
    println!("   connections lost        0 of {OPEN_CONNECTIONS}");
    println!("   owners seen by ARP      {} in turn, never two at once", owners.len());
    ensure!(owners.len() == 2, "owners: {owners:?}");
    ensure!(report.longest_gap < Duration::from_secs(2), "the gap is too long");
    let entry = site.router.neighbor("eth1", VIP)?;
    ensure!(entry == owners.last().copied(), "the router still has {entry:?}");
    Ok((owner, new))
}

/// Shows a command as an operator would type it, and what it prints.
fn lbctl(node: &LbNode, arguments: &[&str]) -> anyhow::Result<()> {
    println!("   {}$ lbctl {}", node.name, arguments.join(" "));
    for line in node.lbctl_ok(arguments)?.lines() {
        println!("      {line}");
    }
    Ok(())
}

fn step(title: &str) {
    println!("\n{title}");
}

const TOPOLOGY: &str = "
   client ------- router ------+-- lb1, lb2, lb3    VIP 192.168.2.1, owned by one of them
   192.168.1.10                |
                               +-- web1 .. web4     192.168.3.5 .. .8, the VIP on their loopback";
