//! What has happened can be read, with its reason, on every node.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use anyhow::{Context as _, ensure};
use lb_dataplane::packet::{Mac, arp};
use lb_tests::{
    binaries,
    capture::Injector,
    cluster::{LbNode, SOON},
    pki::Pki,
    running::Running,
    site::{PATIENCE, Plan, Site, VIP, VIP_TEXT},
    wait,
};
use serde_json::Value;

fn events(node: &LbNode, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
    let told = node.lbctl_json(&[&["events"], arguments].concat())?;
    Ok(told["events"].as_array().context("a list")?.clone())
}

fn has(events: &[Value], kind: &str, words: &str) -> bool {
    events.iter().any(|event| event["kind"] == kind && event["event"].as_str().is_some_and(|text| text.contains(words)))
}

/// What the cluster has agreed on, which all nodes tell alike.
fn agreed(events: &[Value]) -> Vec<(u64, String)> {
    let of_entries = events.iter().filter_map(|event| Some((event["revision"].as_u64()?, event["event"].to_string())));
    of_entries.filter(|(revision, _)| *revision > 0).collect()
}

pub(crate) fn of_a_takeover() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let owner = site.owner()?;
    let name = site.nodes[owner].name.clone();
    let others: Vec<usize> = (0..3).filter(|at| *at != owner).collect();
    let [one, other] = [&site.nodes[others[0]], &site.nodes[others[1]]];
    let before = events(&site.nodes[0], &[])?;
    for (kind, words) in [
        ("node", "node lb3 was added, at 10.77.1.3:7401"),
        ("configuration", &*format!("vip {VIP_TEXT} added by unix:uid=")),
        ("lease", "lb3 has a lease"),
    ] {
        ensure!(has(&before, kind, words), "{kind} {words:?} is not among {before:#?}");
    }
    // It may have moved since, to a node that was not able to own it before: the last one says whose it is.
    let newest = before.iter().rev().find(|event| event["kind"] == "vip").context("whose the VIP is")?;
    let newest = newest["event"].as_str().unwrap_or_default();
    let is_owned = newest == format!("VIP {VIP_TEXT} is owned by {name}");
    let has_moved =
        newest.starts_with(&format!("VIP {VIP_TEXT} has moved from ")) && newest.contains(&format!(" to {name}"));
    ensure!(is_owned || has_moved, "{newest:?} and {name}");
    // From here on, as it happens.
    let last = events(one, &[])?.last().and_then(|event| event["number"].as_u64()).context("an event")?;
    let from = (last + 1).to_string();
    let mut command = std::process::Command::new(binaries::directory()?.join("lbctl"));
    command.arg("--endpoint").arg(format!("unix:{}", one.socket().display()));
    command.args(["-o", "json", "events", "--follow", "--kind", "vip", "--from", &from]);
    let mut follower = Running::start(command.stdout(Stdio::piped()))?;
    let mut lines = BufReader::new(follower.0.stdout.take().context("its output")?).lines();
    site.nodes[owner].signal(rustix::process::Signal::KILL)?;
    let line = lines.next().context("it has ended")??;
    let event: Value = serde_json::from_str(&line)?;
    let text = event["event"].as_str().unwrap_or_default();
    let moved = format!("VIP {VIP_TEXT} has moved from {name} to ");
    let is_why = [": its process is dead", ": it is not heard by "].iter().any(|why| text.contains(why));
    ensure!(text.starts_with(&moved) && is_why, "{line}");
    ensure!(event["node"] == *one.name && event["number"].as_u64() > Some(last), "{line}");
    ensure!(event["objects"][0] == format!("vip {VIP_TEXT}"), "{line}");
    // A node that is not heard is told of by each that does not hear it.
    for node in [one, other] {
        wait::until_ok(PATIENCE, || {
            let told = events(node, &["--kind", "node"])?;
            let silent = "no answer to heartbeats (UDP) from";
            ensure!(has(&told, "node", silent) && told.iter().any(|event| event["warning"] == true), "{told:#?}");
            Ok(())
        })?;
    }
    let kinds = ["--kind", "vip", "--kind", "lease", "--kind", "configuration"];
    wait::until_ok(SOON, || {
        let of_one = agreed(&events(one, &[&["--from", &*from], &kinds[..]].concat())?);
        let of_other = agreed(&events(other, &kinds)?);
        let since = of_one.first().context("nothing was agreed on")?.0;
        let of_other: Vec<_> = of_other.into_iter().filter(|(revision, _)| *revision >= since).collect();
        ensure!(of_one == of_other, "{of_one:#?}\n{of_other:#?}");
        Ok(())
    })?;
    // The log has them, too.
    ensure!(one.log().contains(&moved), "{}", one.log());
    // People read a line each.
    let told = one.lbctl_ok(&["events", "--kind", "vip"])?;
    ensure!(told.starts_with("TIME") && told.contains(&moved), "{told}");
    Ok(())
}

/// By its id a request is found in the log of every node: where it was proposed, applied, and in force.
pub(crate) fn of_a_request() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 2, servers: 1, two_interfaces: false, engine: "ring" })?;
    for node in &mut site.nodes {
        node.environment.push(("RUST_LOG".to_owned(), "request=debug".to_owned()));
    }
    site.start()?;
    let done = site.nodes[1].lbctl_json(&["vip", "add", "192.168.2.77"])?;
    let (request, revision) = (done["request_id"].as_str().context("an id")?, &done["revision"]);
    let lines = |node: &LbNode| -> Vec<String> {
        node.log()
            .lines()
            .filter(|line| line.contains(&format!("request{{id=\"{request}\"}}")))
            .map(str::to_owned)
            .collect()
    };
    let has = |lines: &[String], words: &str| lines.iter().any(|line| line.contains(words));
    wait::until_ok(SOON, || {
        for node in &site.nodes {
            let lines = lines(node);
            for words in
                [format!("applied to the table revision={revision}"), format!("in the dataplane revision={revision}")]
            {
                ensure!(has(&lines, &words), "{} does not say {words:?}: {lines:#?}", node.name);
            }
        }
        Ok(())
    })?;
    let of_asked = lines(&site.nodes[1]);
    ensure!(has(&of_asked, "proposed method=\"CreateVip\"") && has(&of_asked, "agreed on"), "{of_asked:#?}");
    ensure!(!has(&lines(&site.nodes[0]), "proposed"), "{:#?}", lines(&site.nodes[0]));
    Ok(())
}

/// A thing of each kind is made to happen. What the cluster has agreed on is told alike by all nodes that live, and what a node sees
/// itself by that one.
pub(crate) fn of_every_kind() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    site.configure()?;
    let owner = site.owner()?;
    let leads = |node: &LbNode| node.lbctl_json(&["status"]).map(|status| status["leader"] == *node.name);
    let leader = (0..3).find(|at| leads(&site.nodes[*at]).unwrap_or(false)).context("nobody leads")?;
    let tells = |at: usize, kind: &str, words: &str| -> anyhow::Result<()> {
        let told = events(&site.nodes[at], &["--kind", kind])?;
        ensure!(has(&told, kind, words), "{} tells of no {kind} {words:?}: {told:#?}", site.nodes[at].name);
        Ok(())
    };
    // Its certificate ends soon.
    let address = site.nodes[owner].address.trim_end_matches(":7401").to_owned();
    let name = site.nodes[owner].name.clone();
    Pki::below(site.root.path())?.issue("node", &name, &["--san", &address, "--days", "5"])?;
    // A stranger claims the VIP.
    let stranger = Injector::new(&site.router.ns, "eth1")?;
    let claims = arp::announcements(Mac([2, 0, 0, 9, 9, 9]), VIP);
    wait::until_ok(SOON, || {
        claims.iter().try_for_each(|claim| stranger.send(claim))?;
        tells(owner, "conflict", "02:00:00:09:09:09")
    })?;
    // A backend that is not there, and a cable that is pulled.
    site.nodes[0].lbctl_ok(&["backend", "add", "web", "192.168.3.99"])?;
    let (other, switch) = ((0..3).find(|at| *at != owner && *at != leader).unwrap_or(owner), site.net.switch());
    let port = site.node_hosts[other].port("eth0").switch_port.clone();
    wait::until_ok(SOON, || tells(owner, "health", "192.168.3.99"))?;
    switch.set_up(&port, false)?;
    wait::until_ok(SOON, || tells(other, "kernel", "eth0 has lost its carrier"))?;
    switch.set_up(&port, true)?;
    wait::until_ok(SOON, || tells(other, "kernel", "eth0 has its carrier back"))?;
    wait::until_ok(SOON, || tells(owner, "certificate", "this node's certificate expires in"))?;
    // The leader dies: another one leads, and the dead one's lease ends.
    site.nodes[leader].signal_both(rustix::process::Signal::KILL)?;
    let living: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    let dead = &site.nodes[leader].name;
    for at in &living {
        wait::until_ok(SOON, || {
            tells(*at, "leader", " leads (term ")?;
            tells(*at, "lease", &format!("the lease of {dead} has ended: it is not heard by"))?;
            tells(*at, "node", "was added, at ")?;
            tells(*at, "vip", "is owned by")?;
            tells(*at, "configuration", "backend web 192.168.3.99 added by")
        })?;
    }
    wait::until_ok(SOON, || {
        let told = living.iter().map(|at| Ok(agreed(&events(&site.nodes[*at], &[])?)));
        let told = told.collect::<anyhow::Result<Vec<_>>>()?;
        // A node tells from the entry on with which it was added.
        let from = told.iter().filter_map(|of| Some(of.first()?.0)).max().context("nothing was agreed on")?;
        let since = |of: &[(u64, String)]| -> Vec<_> { of.iter().filter(|(at, _)| *at >= from).cloned().collect() };
        ensure!(since(&told[0]).len() > 10 && since(&told[0]) == since(&told[1]), "{told:#?}");
        Ok(())
    })
}
