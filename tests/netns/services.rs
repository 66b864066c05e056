//! What services take, and where their flows go; in both families, over every engine.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::ensure;
use lb_tests::{
    site::{PATIENCE, Plan, Site, VIPS},
    wait,
};

use crate::landings::{Landings, QUIET, add_quiet_services};

fn site(engine: &'static str) -> anyhow::Result<Site> {
    let mut site = Site::build(Plan { nodes: 1, servers: 3, two_interfaces: false, engine })?;
    site.start_both()?;
    Ok(site)
}

/// A single port, ranges and any port have one set of backends, and a client stays with one of them.
pub(crate) fn ports_and_affinity(engine: &'static str) -> anyhow::Result<()> {
    let site = site(engine)?;
    let lb = &site.nodes[0];
    for (vip, suffix) in VIPS.into_iter().zip(["", "6"]) {
        let address = vip.to_string();
        let (many, rest) = (format!("many{suffix}"), format!("rest{suffix}"));
        let ports = ["--port", "5000-5099/udp", "--port", "6000/udp", "--port", "8000/tcp"];
        let ties = ["--affinity", "source", "--table-size", "4093"];
        lb.lbctl_ok(&[&["service", "add", &many, "--vip", &address, "--check", "none"][..], &ports, &ties].concat())?;
        lb.lbctl_ok(&["service", "add", &rest, "--vip", &address, "--port", "any/tcp", "--check", "none"])?;
        for (server, service) in site.servers.iter().flat_map(|server| [(server, &many), (server, &rest)]) {
            lb.lbctl_ok(&["backend", "add", service, &server.address.to_string()])?;
        }
    }
    lb.wait_resolved(8 * site.servers.len());
    for vip in VIPS {
        let landings = Landings::watch(&site)?;
        let mut met = BTreeSet::new();
        for number in 0..12u8 {
            let mut path = site.path(vip, 0);
            path.client.set_ip(match path.client.ip() {
                IpAddr::V4(ip) => IpAddr::V4((u32::from(ip) + u32::from(number)).into()),
                IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) + u128::from(number)).into()),
            });
            let mut landed = BTreeSet::new();
            for (from, port) in (2000..).zip([5000, 5050, 5099, 6000]) {
                let frame = path.from_port(from).to_port(port).udp(b"x");
                landed.insert(landings.of(&format!("{engine}: a datagram to {vip} port {port}"), &frame)?);
            }
            let syn = path.to_port(8000).syn();
            landed.insert(landings.of(&format!("{engine}: a segment to {vip} port 8000"), &syn)?);
            ensure!(landed.len() == 1, "{engine}: {} is at {landed:?}", path.client);
            met.extend(landed);
        }
        ensure!(met.len() > 1, "{engine}: all clients are at one server, so this shows nothing");
        for port in [1, 81, 7999, 65535] {
            landings.of(&format!("{engine}: {vip} port {port}"), &site.path(vip, port).syn())?;
        }
        for port in [4999, 5100, 8000] {
            let before = lb.drops("no_service")?;
            landings.injector.send(&site.path(vip, port).udp(b"x"))?;
            wait::until(&format!("{engine}: nobody serves {vip} port {port}"), PATIENCE, || {
                lb.drops("no_service").is_ok_and(|now| now == before + 1)
            });
        }
        let explained = |port: &str| {
            let path = site.path(vip, 0);
            let service = std::net::SocketAddr::new(vip, 0).to_string();
            let service = service.trim_end_matches('0');
            let answer = lb.lbctl_json(&["explain", &path.client.to_string(), &format!("{service}{port}")])?;
            anyhow::Ok(answer["explanations"][0].clone())
        };
        for (port, service, size) in [("5099/udp", "many", 4093), ("80/tcp", "web", 16381), ("81/tcp", "rest", 16381)] {
            let explained = explained(port)?;
            let named = explained["service"].as_str().is_some_and(|name| name.trim_end_matches('6') == service);
            ensure!(named && explained["table_size"] == size, "{port}: {explained}");
        }
    }
    Ok(())
}

/// A UDP flow leaves a dead backend with its next datagram. A drained one keeps its connections; a new one from the
/// same port is placed anew.
pub(crate) fn flows_are_placed_anew(engine: &'static str) -> anyhow::Result<()> {
    let site = site(engine)?;
    add_quiet_services(&site)?;
    let landings = Landings::watch(&site)?;
    let lb = &site.nodes[0];
    for (vip, service) in VIPS.into_iter().zip(["quiet", "quiet6"]) {
        let change =
            |how: &str, at: usize| lb.change(&["backend", how, service, &site.servers[at].address.to_string()]);
        let path = site.path(vip, QUIET);
        let datagram = path.udp(b"x");
        let first = landings.of("the first datagram", &datagram)?;
        ensure!(landings.of("the second one", &datagram)? == first, "{engine}: a flow was moved");
        change("disable", first)?;
        let second = landings.of("the third one", &datagram)?;
        ensure!(second != first, "{engine}: a flow to {vip} stays with a dead backend");
        change("enable", first)?;
        ensure!(landings.of("the fourth one", &datagram)? == second, "{engine}: a flow was moved back");

        let mut data = Vec::new();
        path.ip().tcp(path.client.port(), QUIET, 2, 1000).ack(1).write(&mut data, b"data")?;
        let first = landings.of("a connection", &path.syn())?;
        change("drain", first)?;
        ensure!(landings.of("its data", &data)? == first, "{engine}: a drained backend lost a connection");
        let second = landings.of("a new connection from its port", &path.syn())?;
        ensure!(second != first, "{engine}: a drained backend of {vip} got a new connection");
        ensure!(landings.of("the data of the new one", &data)? == second);
        change("enable", first)?;
    }
    Ok(())
}
