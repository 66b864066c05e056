//! Which backends take new flows.

use std::{net::SocketAddr, time::Instant};

use anyhow::{Context as _, ensure};
use lb_tests::{
    cluster::LbNode,
    site::{HTTP_ADDRESS, HTTP_ADDRESSES, PATIENCE, Plan, Site, VIP_TEXT},
    topology::Cut,
    traffic::{HttpClient, http_who},
    wait,
};

/// New flows, in each of the families.
const FLOWS: usize = 60;

/// The cable of a backend is pulled, and put back, without any check configured.
pub(crate) fn unplugged() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 2, servers: 3, two_interfaces: false, engine: "ring" })?;
    site.start_both()?;
    let mut open = connections(&site)?;
    let before = site.nodes[0].lbctl_json(&["cluster", "show"])?;
    let host = &site.servers[1].host;

    site.net.plug(host, "eth0", false)?;
    let unplugged = Instant::now();
    for node in &site.nodes {
        wait::until("the backend is unreachable", PATIENCE, || health(node).is_ok_and(|h| h == ["unreachable"; 4]));
    }
    println!("unreachable {} ms after its cable was pulled", unplugged.elapsed().as_millis());
    let shown = site.nodes[1].lbctl_ok(&["backend", "list"])?;
    ensure!(
        shown.contains("it does not answer ARP (lb") && shown.contains("does not answer neighbour discovery"),
        "{shown}"
    );
    for node in &site.nodes {
        let told = || node.log().matches("a backend is unreachable: no new flows for it").count() == 4;
        wait::until("each node tells of each backend", PATIENCE, told);
        ensure!(node.lbctl_json(&["cluster", "show"])? == before, "the configuration has changed");
    }
    let silent = || site.nodes[0].stats().is_ok_and(|stats| stats["backend_silent"] == 2);
    wait::until("it is counted, by address", PATIENCE, silent);
    wait::until("nobody new comes to it", PATIENCE, || lands(&site, &HTTP_ADDRESSES).is_ok_and(|on| on[1] == 0));
    // By the other owner too, who has been told.
    let other = site.nodes[1 - site.owner()?].name.clone();
    site.nodes[0].lbctl_ok(&["vip", "move", VIP_TEXT, &other])?;
    for _ in 0..3 {
        let on = lands(&site, &HTTP_ADDRESSES).context("while it is away")?;
        ensure!(on[1] == 0, "{on:?}");
    }
    let mut elsewhere = open.iter_mut().filter(|(name, _)| name != "web2");
    elsewhere.try_for_each(|(name, client)| answers(name, client))?;

    site.net.plug(host, "eth0", true)?;
    let plugged = Instant::now();
    for node in &site.nodes {
        wait::until("the backend is back", PATIENCE, || health(node).is_ok_and(|h| h == ["unchecked"; 4]));
    }
    println!("back {} ms after its cable was plugged", plugged.elapsed().as_millis());
    wait::until("new flows come to it", PATIENCE, || lands(&site, &HTTP_ADDRESSES).is_ok_and(|on| on[1] > 0));
    // The flows that it had have stayed its own.
    open.iter_mut().try_for_each(|(name, client)| answers(name, client))?;
    ensure!(site.nodes[0].log().contains("a backend answers again"));
    Ok(())
}

/// The cable of the owner to the backends is dead and shows its carrier, and then all backends are away: of two nodes alone
/// the backends tell which it is.
pub(crate) fn cut_off() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 2, servers: 3, two_interfaces: true, engine: "ring" })?;
    site.start()?;
    let owner = site.owner()?;
    let host = &site.node_hosts[owner];
    site.net.cut(host, "eth1", Cut::Silent)?;
    let cut = Instant::now();
    wait::until("the VIP has moved", PATIENCE, || site.owner().is_ok_and(|now| now != owner));
    wait::until("it is served again", PATIENCE, || http_who(&site.client.ns, HTTP_ADDRESS, PATIENCE).is_ok());
    println!("served by the other node {} ms after the owner's cable was cut", cut.elapsed().as_millis());
    let status = site.nodes[1 - owner].lbctl_json(&["status"])?;
    let warns =
        |about: &str| status["warnings"].as_array().into_iter().flatten().any(|w| w.to_string().contains(about));
    ensure!(warns("hears hardly any backend on eth1"), "{status}");
    let list = site.nodes[0].lbctl_ok(&["node", "list"])?;
    ensure!(list.contains("eth1 192.168.3.1") && list.contains("HEARS NO BACKENDS"), "{list}");
    for node in &site.nodes {
        ensure!(health_of_all(node)?.iter().all(|health| health == "unchecked"), "the node says what it cannot know");
        ensure!(!node.log().contains("a backend is unreachable"));
    }
    site.net.cut(host, "eth1", Cut::None)?;
    wait::until("it hears them again", PATIENCE, || {
        site.nodes[0].lbctl_ok(&["node", "list"]).is_ok_and(|list| !list.contains("HEARS NO BACKENDS"))
    });

    let epoch = site.nodes[0].epoch_of(VIP_TEXT);
    for server in &site.servers {
        site.net.plug(&server.host, "eth0", false)?;
    }
    let unplugged = Instant::now();
    for node in &site.nodes {
        wait::until("all are unreachable", PATIENCE, || {
            health_of_all(node).is_ok_and(|all| all.iter().all(|health| health == "unreachable"))
        });
    }
    let status = site.nodes[0].lbctl_ok(&["status"])?;
    ensure!(status.contains("service web has no backend that takes new flows: 3 unreachable"), "{status}");
    println!("all unreachable {} ms after their cables were pulled", unplugged.elapsed().as_millis());
    ensure!(site.nodes[0].epoch_of(VIP_TEXT) == epoch, "a VIP has moved for nothing");
    Ok(())
}

/// The owner alone does not hear the segment's gateway, though it hears the other node and the backends; and then nobody
/// hears it.
pub(crate) fn gateway() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 2, servers: 1, two_interfaces: true, engine: "ring" })?;
    site.start()?;
    let lb = &site.nodes[0];
    let refused = lb.lbctl(&["segment", "add", "192.168.2.0/24", "--gateway", VIP_TEXT])?;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1) && told.contains("192.168.2.1 is a VIP"), "{told}");
    lb.lbctl_ok(&["segment", "add", "192.168.2.0/24", "--gateway", "192.168.2.9"])?;
    let unheard = |by: &str| lb.lbctl_ok(&["segment", "list"]).is_ok_and(|list| list.contains(by));
    wait::until("nobody hears a gateway that is not there", PATIENCE, || unheard("lb1, lb2"));
    ensure!(site.owner().is_ok(), "and nobody is blamed for it");
    lb.lbctl_ok(&["segment", "set", "192.168.2.0/24", "--gateway", "192.168.2.254"])?;
    wait::until("all hear it", PATIENCE, || unheard("192.168.2.254  -"));

    let owner = site.owner()?;
    let (name, other) = (site.nodes[owner].name.clone(), site.nodes[1 - owner].name.clone());
    let parted = |isolated| -> anyhow::Result<()> {
        site.net.isolate(&site.node_hosts[owner], "eth0", isolated)?;
        Ok(site.net.isolate(&site.router, "eth1", isolated)?)
    };
    parted(true)?;
    let cut = Instant::now();
    wait::until("the VIP has moved", PATIENCE, || site.owner().is_ok_and(|now| now != owner));
    wait::until("it is served again", PATIENCE, || http_who(&site.client.ns, HTTP_ADDRESS, PATIENCE).is_ok());
    println!("served by the other node {} ms after the owner lost the gateway", cut.elapsed().as_millis());
    let status = lb.lbctl_ok(&["status"])?;
    ensure!(status.contains(&format!("{name} does not hear the gateway on eth0, and others hear it")), "{status}");
    ensure!(unheard(&name) && !unheard(&other), "{}", lb.lbctl_ok(&["segment", "list"])?);
    ensure!(lb.lbctl_ok(&["node", "list"])?.contains("HEARS NO GATEWAY"));
    parted(false)?;
    wait::until("it hears it again", PATIENCE, || unheard("192.168.2.254  -"));

    let epoch = lb.epoch_of(VIP_TEXT);
    site.net.plug(&site.router, "eth1", false)?;
    wait::until("nobody hears it", PATIENCE, || unheard("lb1, lb2"));
    ensure!(lb.epoch_of(VIP_TEXT) == epoch, "a VIP has moved for nothing");
    lb.lbctl_ok(&["segment", "remove", "192.168.2.0/24"])?;
    ensure!(!unheard("192.168.2.0/24"));
    Ok(())
}

/// The second tier steps in while the first is away.
pub(crate) fn tiers() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 2, servers: 3, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let lb = &site.nodes[0];
    for server in &site.servers[1..] {
        lb.change(&["backend", "set", "web", &server.address.to_string(), "--tier", "2"])?;
    }
    let vips = [HTTP_ADDRESSES[0]];
    let lands = || lands(&site, &vips);
    wait::until("all go to the first tier", PATIENCE, || lands().is_ok_and(|on| on == [FLOWS, 0, 0]));
    let host = &site.servers[0].host;
    site.net.plug(host, "eth0", false)?;
    let is = |health: &str| health_of_all(lb).is_ok_and(|all| all.iter().any(|of| of == health));
    wait::until("it is unreachable", PATIENCE, || is("unreachable"));
    wait::until("all go to the second", PATIENCE, || lands().is_ok_and(|on| on[0] == 0 && on[1] > 0 && on[2] > 0));
    let status = lb.lbctl_ok(&["status"])?;
    let told = "service web has 0 backends of tier 1 that take new flows, not 1; 2 of tier 2 do: 1 unreachable";
    ensure!(status.contains(told), "{status}");
    site.net.plug(host, "eth0", true)?;
    wait::until("it is back", PATIENCE, || !is("unreachable"));
    wait::until("all go to the first tier again", PATIENCE, || lands().is_ok_and(|on| on == [FLOWS, 0, 0]));
    lb.change(&["service", "set", "web", "--min-healthy", "2"])?;
    wait::until("with a minimum of two both tiers serve", PATIENCE, || lands().is_ok_and(|on| !on.contains(&0)));
    Ok(())
}

/// What a node shows of all backends.
fn health_of_all(node: &LbNode) -> anyhow::Result<Vec<String>> {
    let backends = node.lbctl_json(&["backend", "list"])?;
    let rows = backends["backends"].as_array().into_iter().flatten();
    Ok(rows.map(|row| row["health"].as_str().unwrap_or_default().to_owned()).collect())
}

/// Open connections to each backend, by either VIP.
fn connections(site: &Site) -> anyhow::Result<Vec<(String, HttpClient)>> {
    let mut open = Vec::new();
    for to in HTTP_ADDRESSES {
        for _ in 0..FLOWS {
            let mut client = HttpClient::connect(&site.client.ns, to, PATIENCE)?;
            open.push((client.who()?, client));
        }
    }
    ensure!(open.iter().any(|(name, _)| name == "web2"));
    Ok(open)
}

fn answers(name: &str, client: &mut HttpClient) -> anyhow::Result<()> {
    let now = client.who().with_context(|| format!("a connection to {name}"))?;
    ensure!(now == name, "a connection to {name} is answered by {now}");
    Ok(())
}

/// What a node shows of the second server, in each service.
fn health(node: &LbNode) -> anyhow::Result<Vec<String>> {
    let backends = node.lbctl_json(&["backend", "list"])?;
    let rows = backends["backends"].as_array().into_iter().flatten();
    let second = rows.filter(|row| ["192.168.3.6", "2001:db8:3::6"].iter().any(|address| row["address"] == *address));
    Ok(second.map(|row| row["health"].as_str().unwrap_or_default().to_owned()).collect())
}

/// On which servers new connections to each VIP land.
fn lands(site: &Site, vips: &[SocketAddr]) -> anyhow::Result<[usize; 3]> {
    let mut on = [0; 3];
    for to in vips {
        for _ in 0..FLOWS {
            let name = http_who(&site.client.ns, *to, PATIENCE)?;
            let at = ["web1", "web2", "web3"].iter().position(|known| *known == name).context("an unknown server")?;
            on[at] += 1;
        }
    }
    Ok(on)
}
