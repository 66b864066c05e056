//! Which backends take new flows.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use lb_tests::{
    cluster::LbNode,
    site::{HTTP_ADDRESSES, PATIENCE, Plan, Site, VIP_TEXT},
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
    wait::until("nobody new comes to it", PATIENCE, || lands(&site, FLOWS).is_ok_and(|on| on[1] == 0));
    // By the other owner too, who has been told.
    let other = site.nodes[1 - site.owner()?].name.clone();
    site.nodes[0].lbctl_ok(&["vip", "move", VIP_TEXT, &other])?;
    for _ in 0..3 {
        let on = lands(&site, FLOWS).context("while it is away")?;
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
    wait::until("new flows come to it", PATIENCE, || lands(&site, FLOWS).is_ok_and(|on| on[1] > 0));
    // The flows that it had have stayed its own.
    open.iter_mut().try_for_each(|(name, client)| answers(name, client))?;
    ensure!(site.nodes[0].log().contains("a backend answers again"));
    Ok(())
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

/// On which servers so many new connections to each VIP land.
fn lands(site: &Site, flows: usize) -> anyhow::Result<[usize; 3]> {
    let mut on = [0; 3];
    for to in HTTP_ADDRESSES {
        for _ in 0..flows {
            let name = http_who(&site.client.ns, to, PATIENCE)?;
            let at = ["web1", "web2", "web3"].iter().position(|known| *known == name).context("an unknown server")?;
            on[at] += 1;
        }
    }
    Ok(on)
}
