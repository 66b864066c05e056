//! Health checks by the way that a client's packets take.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lb_tests::{
    checked::{self, Authority, Servers},
    cluster::LbNode,
    site::{HTTP, PATIENCE, Plan, Site, VIP, VIP_TEXT, VIP6, VIPS},
    traffic::{HttpClient, http_who},
    wait,
};

/// As often as can be, and the first answer counts.
const FAST: [&str; 8] = ["--check-interval", "150ms", "--check-timeout", "140ms", "--rise", "1", "--fall", "1"];

/// What a node shows of the backends of a service.
fn health(node: &LbNode, service: &str) -> anyhow::Result<Vec<(String, String)>> {
    let backends = node.lbctl_json(&["backend", "list", service])?;
    let text = |row: &serde_json::Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
    let rows = backends["backends"].as_array().context("no backends")?;
    Ok(rows.iter().map(|row| (text(row, "health"), text(row, "health_reason"))).collect())
}

/// Waits until all backends of a service are healthy, or unhealthy for a reason.
fn becomes(node: &LbNode, service: &str, expected: Result<(), &str>) -> anyhow::Result<()> {
    let is_so = |(health, reason): &(String, String)| match expected {
        Ok(()) => health == "healthy",
        Err(because) => health == "unhealthy" && reason.contains(because),
    };
    wait::until_ok(PATIENCE, || {
        let found = health(node, service)?;
        ensure!(!found.is_empty() && found.iter().all(is_so), "{service} should become {expected:?} and is {found:?}");
        Ok(())
    })
}

fn check(node: &LbNode, service: &str, checks: &[&str]) -> anyhow::Result<()> {
    let checks = checks.iter().flat_map(|check| ["--check", check]);
    let arguments: Vec<&str> = ["service", "set", service].into_iter().chain(checks).chain(FAST).collect();
    node.lbctl_ok(&arguments).map(drop)
}

/// Each kind of check against a real server, in both families, and what is said of servers that misbehave.
pub(crate) fn kinds() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine: "ring" })?;
    let authority = Authority::new()?;
    let trusted = site.root.path().join("trusted.pem");
    fs::write(&trusted, &authority.pem)?;
    site.nodes[0].environment.push(("SSL_CERT_FILE".into(), trusted.display().to_string()));
    site.start_both()?;
    let host = &site.servers[0].host;
    let servers = VIPS.map(|vip| Servers::serve(&host.ns, vip, &authority));
    let _servers = servers.into_iter().collect::<Result<Vec<_>, _>>()?;
    let node = &site.nodes[0];
    for (service, vip) in ["web", "web6"].into_iter().zip(VIPS) {
        node.lbctl_ok(&["service", "remove", service, "--cascade"])?;
        node.lbctl_ok(&["service", "add", service, "--vip", &vip.to_string(), "--port", "80/tcp"])?;
        node.lbctl_ok(&["backend", "add", service, &site.servers[0].address.to_string()])?;
    }
    for service in ["web", "web6"] {
        // What is asked of a new service with a TCP port, unless something else is said.
        becomes(node, service, Ok(()))?;
    }
    let host_of = |vip: IpAddr| std::net::SocketAddr::new(vip, checked::HTTP).to_string().replace('[', "%5B");
    let of_vips = VIPS.map(|vip| format!("http:8080/ok?body=all%20is%20well%20at%20{}", host_of(vip)));
    let cases: &[(&str, Result<(), &str>)] = &[
        ("tcp:8080", Ok(())),
        ("tcp:8081", Err("tcp 8081: it refuses the connection (lb1 asks)")),
        ("http:8080/ok", Ok(())),
        ("http:8080/ok?host=b.example&body=well%20at%20b.example", Ok(())),
        ("http:8080/ok?body=all%20is%20lost", Err("http 8080/ok: \"all is lost\" is not in the first")),
        ("http:8080/503", Err("http 8080/503: status 503, not 200 to 299")),
        ("http:8080/503?status=503", Ok(())),
        ("http:8080/503?status=200-503&method=HEAD", Ok(())),
        ("http:8080/redirect", Err("status 302, not 200 to 299")),
        ("http:8080/slow", Err("no answer within 140 ms")),
        ("http:8080/endless?body=never", Err("\"never\" is not in the first 65536 bytes of the content")),
        ("http:8080/headers", Err("HTTP: ")),
        ("http:8080/garbage", Err("HTTP: ")),
        ("http:8080/nothing", Err("HTTP: ")),
        ("https:8443/ok?host=a.example", Ok(())),
        ("https:8443/ok?sni=a.example&host=b.example&body=b.example", Ok(())),
        ("https:8443/ok?sni=b.example", Err("TLS: invalid peer certificate: certificate not valid for name")),
        ("https:8443/ok?verify=off", Ok(())),
        ("https:8444/ok?host=a.example", Err("TLS: invalid peer certificate: certificate expired")),
        ("https:8444/ok?verify=off", Ok(())),
        ("https:8080/ok?verify=off", Err("TLS: ")),
        ("grpc:9000", Ok(())),
        ("grpc:9000/a.v1.Serving", Ok(())),
        ("grpc:9000/a.v1.NotServing", Err("grpc 9000: service a.v1.NotServing is NOT_SERVING")),
        ("grpc:9000/a.v1.Other", Err("service a.v1.Other is not known there")),
        ("grpc:8080", Err("grpc 8080: gRPC: ")),
        ("udp:9?send=ping&expect=pong%20ping", Ok(())),
        ("udp:9?send=ping&expect=pang", Err("udp 9: the answer is \"pong ping\"")),
        ("udp:10?send=ping", Err("no answer within 140 ms")),
        ("dns:53?name=www.example.org", Ok(())),
        ("dns:53?name=www.example.org&type=AAAA", Err("the answer has no AAAA record of www.example.org")),
        ("dns:53?name=ftp.example.org", Err("the answer to ftp.example.org A is Non-Existent Domain")),
        ("dns:9?name=www.example.org", Err("dns 9: what came is no")),
        ("icmp", Ok(())),
    ];
    check(node, "web", &["http:8080/ok"])?;
    let shown = node.lbctl_json(&["service", "list"])?;
    let web = shown["services"].as_array().into_iter().flatten().find(|row| row["name"] == "web");
    let probe = web.map(|web| web["checks"]["checks"][0]["probe"]["http"]["path"].clone());
    ensure!(probe.is_some_and(|path| path == "/ok"), "{shown}");
    for (text, expected) in cases {
        for service in ["web", "web6"] {
            check(node, service, &[text])?;
        }
        for service in ["web", "web6"] {
            becomes(node, service, *expected).with_context(|| text.to_string())?;
        }
    }
    for (service, of_vip) in ["web", "web6"].into_iter().zip(&of_vips) {
        check(node, service, &[of_vip])?;
        becomes(node, service, Ok(())).context("the host is the VIP and the port")?;
        // All must be answered well.
        check(node, service, &["tcp:8080", "icmp"])?;
        becomes(node, service, Ok(()))?;
        check(node, service, &["tcp:8080", "http:8080/503"])?;
        becomes(node, service, Err("status 503"))?;
        check(node, service, &["none"])?;
        wait::until("it is not checked any more", PATIENCE, || {
            health(node, service).is_ok_and(|all| all.iter().all(|(health, _)| health == "unchecked"))
        });
    }
    Ok(())
}

/// What is alive by its own address and does not know the VIP is not healthy; whatever the node's kernel thinks of the way
/// back, by one interface and by two, for a VIP that is routed.
pub(crate) fn ways(two_interfaces: bool) -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 2, servers: 2, two_interfaces, engine: "ring" })?;
    site.start_both()?;
    let routed: IpAddr = Ipv4Addr::new(198, 51, 100, 7).into();
    let node = &site.nodes[0];
    node.lbctl_ok(&["vip", "add", &routed.to_string()])?;
    node.lbctl_ok(&["service", "add", "routed", "--vip", &routed.to_string(), "--port", "80/tcp"])?;
    for server in &site.servers {
        node.lbctl_ok(&["backend", "add", "routed", &server.address.to_string()])?;
    }
    let services = ["web", "web6", "routed"];
    for service in services {
        check(node, service, &["tcp"])?;
    }
    becomes(node, "routed", Err("tcp 80: no answer within 140 ms"))?;
    let mut servers = Vec::new();
    for server in &site.servers {
        server.host.make_backend(routed)?;
        servers.push(lb_tests::traffic::Backend::serve(&server.host.ns, "routed", routed, HTTP, 7)?);
    }
    for filter in ["0", "1", "2"] {
        for host in &site.node_hosts {
            host.ns.sysctl("ipv4.conf.all.rp_filter", filter, false)?;
            host.ns.sysctl("ipv4.conf.eth0.rp_filter", filter, false)?;
        }
        for service in services {
            becomes(node, service, Ok(()))?;
        }
        for server in &site.servers {
            for vip in [VIP.into(), VIP6.into(), routed] {
                server.host.remove_address("lo", vip)?;
            }
        }
        for service in services {
            becomes(node, service, Err("tcp 80: no answer within 140 ms")).context("the VIP is missing on lo")?;
        }
        for server in &site.servers {
            for vip in [VIP.into(), VIP6.into(), routed] {
                server.host.make_backend(vip)?;
            }
        }
    }
    Ok(())
}

/// Nodes that are backends themselves.
pub(crate) fn own_backends() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 2, servers: 0, two_interfaces: false, engine: "ring" })?;
    site.add_ipv6()?;
    site.start()?;
    let node = &site.nodes[0];
    let vip6 = VIP6.to_string();
    node.lbctl_ok(&["vip", "add", &vip6])?;
    node.lbctl_ok(&["service", "add", "web6", "--vip", &vip6, "--port", "80/tcp"])?;
    for number in [11, 12] {
        node.lbctl_ok(&["backend", "add", "web", &format!("192.168.3.{number}")])?;
        node.lbctl_ok(&["backend", "add", "web6", &format!("192.168.3.{number}")])?;
    }
    for service in ["web", "web6"] {
        check(node, service, &["tcp"])?;
    }
    let says = |service: &str, what: &str| {
        let all = || health(node, service).unwrap_or_default();
        wait::until(what, PATIENCE, || all().iter().any(|(_, reason)| reason.contains(what)));
    };
    for service in ["web", "web6"] {
        says(service, "this node is the backend, and the VIP is not on its loopback");
        says(service, "no answer within 140 ms");
    }
    let mut servers = Vec::new();
    for host in &site.node_hosts {
        host.ns.sysctl("ipv4.conf.all.rp_filter", "0", false)?;
        host.default_route(Ipv4Addr::new(192, 168, 3, 1))?;
        host.default_route("2001:db8:3::1".parse::<IpAddr>()?)?;
        for vip in VIPS {
            host.make_backend(vip)?;
        }
    }
    for service in ["web", "web6"] {
        becomes(node, service, Err("tcp 80: it refuses the connection"))?;
    }
    for host in &site.node_hosts {
        for vip in VIPS {
            servers.push(lb_tests::traffic::Backend::serve(&host.ns, "own", vip, HTTP, 7)?);
        }
    }
    for service in ["web", "web6"] {
        becomes(node, service, Ok(()))?;
        for kind in ["icmp", "udp:7?send=a"] {
            check(node, service, &[kind])?;
            becomes(node, service, Ok(())).context(kind)?;
        }
    }
    Ok(())
}

/// A server that ends: who notices, how soon, and what the next owner knows.
pub(crate) fn verdicts() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 2, servers: 2, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let (address, mac) = (site.servers[1].address.to_string(), site.servers[1].mac.to_string());
    site.nodes[0].lbctl_ok(&["backend", "set", "web", &address, "--mac", &mac])?;
    site.nodes[0].lbctl_ok(&["service", "set", "web", "--check", "tcp"])?;
    let revision = site.nodes[0].lbctl_json(&["cluster", "show"])?;
    for node in &site.nodes {
        becomes(node, "web", Ok(()))?;
    }
    let owner = site.owner()?;
    let name = site.nodes[owner].name.clone();
    let (first, last) = (site.servers.remove(0), site.servers.remove(0));
    let lands = || http_who(&site.client.ns, (VIP, HTTP), Duration::from_millis(200));
    let (host, ended) = (first.host, Instant::now());
    drop(first.backend);
    let down = |node: &LbNode| {
        health(node, "web")
            .is_ok_and(|all| all[0] == ("unhealthy".into(), format!("tcp 80: it refuses the connection ({name} asks)")))
    };
    for node in &site.nodes {
        wait::until("the backend is unhealthy", PATIENCE, || down(node));
    }
    println!("unhealthy {} ms after its server has ended", ended.elapsed().as_millis());
    for _ in 0..40 {
        ensure!(lands()? == "web2");
    }
    let shown = site.nodes[0].lbctl_json(&["backend", "list", "web"])?;
    ensure!(shown["backends"][0]["health_since"].as_str().is_some_and(|since| since.ends_with('Z')), "{shown}");
    // The next owner starts from what is known.
    let other = site.nodes[1 - owner].name.clone();
    site.nodes[0].lbctl_ok(&["vip", "move", VIP_TEXT, &other])?;
    for _ in 0..40 {
        ensure!(lands()? == "web2");
    }
    let status = site.nodes[0].lbctl(&["status", "--check"])?;
    ensure!(status.status.success(), "one of two serves");

    let server = lb_tests::traffic::Backend::serve(&host.ns, "web1", VIP, HTTP, 7)?;
    for node in &site.nodes {
        becomes(node, "web", Ok(()))?;
        let told = |what: &str| wait::until(what, PATIENCE, || node.log().contains(what));
        told("a backend is unhealthy: no flows for it");
        told("a backend is healthy again");
    }
    ensure!(site.nodes[0].lbctl_json(&["cluster", "show"])? == revision, "the configuration has changed");
    drop(server);
    let _last = last.host;
    drop(last.backend);
    wait::until("the service has nobody", PATIENCE, || {
        let status = site.nodes[0].lbctl_ok(&["status"]).unwrap_or_default();
        status.contains("service web has no backend that takes new flows: 2 unhealthy")
    });
    Ok(())
}

/// A backend loses its power under many flows, and another one has lost the VIP and sends its packets back to where they came
/// from.
pub(crate) fn dying() -> anyhow::Result<()> {
    const FLOWS: usize = 1000;
    let mut site = Site::build(Plan { nodes: 2, servers: 3, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let node = &site.nodes[0];
    check(node, "web", &["tcp"])?;
    node.lbctl_ok(&["service", "set", "web", "--on-backend-down", "reset"])?;
    becomes(node, "web", Ok(()))?;
    let mut open = Vec::new();
    for _ in 0..FLOWS {
        let mut http = HttpClient::connect(&site.client.ns, (VIP, HTTP), PATIENCE)?;
        open.push((http.who()?, http));
    }
    let of_second = open.iter().filter(|(who, _)| who == "web2").count();
    ensure!((200..500).contains(&of_second), "{of_second} of {FLOWS} flows have come to the second server");

    site.net.plug(&site.servers[1].host, "eth0", false)?;
    let off = Instant::now();
    for node in &site.nodes {
        wait::until("it is down", PATIENCE, || health(node, "web").is_ok_and(|all| all[1].0 == "unhealthy"));
    }
    println!("down on all nodes {} ms after its power has gone", off.elapsed().as_millis());
    for _ in 0..60 {
        ensure!(http_who(&site.client.ns, (VIP, HTTP), PATIENCE)? != "web2");
    }
    let mut reset = 0;
    for (who, http) in &mut open {
        match http.who() {
            Ok(now) => ensure!(*who != "web2" && now == *who, "a flow to {who} is answered by {now}"),
            Err(error) => {
                ensure!(who == "web2", "a flow to {who}: {error}");
                ensure!(error.kind() == std::io::ErrorKind::ConnectionReset, "{error}");
                reset += 1;
            }
        }
    }
    ensure!(reset == of_second, "{reset} of {of_second} flows were reset");
    site.net.plug(&site.servers[1].host, "eth0", true)?;
    becomes(node, "web", Ok(()))?;

    // What it gets it routes: back to the VIP's owner, until the packets' time to live is over.
    let third = &site.servers[2].host;
    third.make_router()?;
    third.remove_address("lo", VIP.into())?;
    wait::until("it is down", PATIENCE, || health(node, "web").is_ok_and(|all| all[2].0 == "unhealthy"));
    ensure!(health(node, "web")?[2].1.contains("no answer within 140 ms"), "{:?}", health(node, "web")?);
    for _ in 0..60 {
        ensure!(http_who(&site.client.ns, (VIP, HTTP), PATIENCE)? != "web3");
    }
    Ok(())
}

/// A drained backend keeps its connections until its time is over, and one that begins takes its share by and by.
pub(crate) fn drained() -> anyhow::Result<()> {
    const CONNECTIONS: usize = 200;
    let mut site = Site::build(Plan { nodes: 2, servers: 2, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let node = &site.nodes[0];
    let address = site.servers[0].address.to_string();
    let state = || -> anyhow::Result<String> {
        let list = node.lbctl_ok(&["-o", "wide", "backend", "list", "web"])?;
        let row = list.lines().find(|line| line.contains(&address)).context("no such backend")?;
        Ok(row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).nth(5).unwrap_or_default().to_owned())
    };
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut http = HttpClient::connect(&site.client.ns, (VIP, HTTP), PATIENCE)?;
        open.push((http.who()?, http));
    }
    ensure!(open.iter().any(|(who, _)| who == "web1") && open.iter().any(|(who, _)| who == "web2"));
    node.lbctl_ok(&["backend", "drain", "web", &address])?;
    ensure!(state()? == "drain", "{}", node.lbctl_ok(&["backend", "list", "web"])?);
    for _ in 0..20 {
        ensure!(http_who(&site.client.ns, (VIP, HTTP), PATIENCE)? == "web2", "a drained backend gets a new connection");
    }
    for (who, http) in &mut open {
        ensure!(http.who()? == *who, "a connection broke");
    }
    // All nodes are asked for its flows; who waits is told when there are none.
    let flows = || -> anyhow::Result<u64> {
        let list = node.lbctl_json(&["backend", "list", "web"])?;
        let rows = list["backends"].as_array().context("no backends")?;
        let row = rows.iter().find(|row| row["address"] == address.as_str()).context("no such backend")?;
        row["flows"].as_u64().context("its flows are not known")
    };
    let of_first = open.iter().filter(|(who, _)| who == "web1").count() as u64;
    let told = flows()?;
    ensure!(told >= of_first, "{told} flows, and {of_first} connections are open");
    let path = node.socket();
    let waiter = std::thread::spawn(move || {
        lb_tests::cluster::lbctl(&path, &["backend", "drain", "web", "192.168.3.5", "--wait", "--timeout", "20s"])
    });
    wait::until("it is waited for", PATIENCE, || state().is_ok_and(|state| state == "drain"));
    ensure!(!waiter.is_finished(), "nobody waits");
    // Its time is over: what is left of it is cut.
    node.lbctl_ok(&["service", "set", "web", "--drain-timeout", "1s"])?;
    wait::until("the time is over", PATIENCE, || state().is_ok_and(|state| state == "drained"));
    let waited = waiter.join().map_err(|_| anyhow::anyhow!("the waiting panicked"))??;
    let told = String::from_utf8_lossy(&waited.stderr).into_owned();
    ensure!(waited.status.success() && told.contains("192.168.3.5 has no flows any more"), "{told}");
    let mut cut = 0;
    for (who, http) in &mut open {
        match http.who() {
            Ok(now) => ensure!(now == *who && now == "web2", "{who} became {now}"),
            Err(_) => {
                ensure!(who == "web1", "a connection of {who} broke");
                cut += 1;
            }
        }
    }
    ensure!(cut > 0, "no connection was the drained backend's");

    node.lbctl_ok(&["service", "set", "web", "--slow-start", "8s"])?;
    node.lbctl_ok(&["backend", "enable", "web", &address])?;
    ensure!(state()? == "active 1/8", "{}", state()?);
    let share = || -> anyhow::Result<usize> {
        let mut of_first = 0;
        for _ in 0..CONNECTIONS {
            of_first += usize::from(http_who(&site.client.ns, (VIP, HTTP), PATIENCE)? == "web1");
        }
        Ok(of_first)
    };
    let first = share()?;
    wait::until("it has its whole share", 2 * PATIENCE, || state().is_ok_and(|state| state == "active"));
    let whole = share()?;
    println!("of {CONNECTIONS} connections {first} at first, and {whole} at last");
    ensure!(first < CONNECTIONS / 4 && whole > CONNECTIONS / 3, "{first}, {whole}");
    Ok(())
}
