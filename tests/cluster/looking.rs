//! What `lbctl` shows of single objects and of changes, what it waits for, and how it says that something is wrong.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use lb_tests::{
    binaries,
    cluster::LbNode,
    running::Running,
    site::{Plan, Site, VIP_TEXT},
    terminal::Terminal,
};
use serde_json::Value;

/// Exit code, output, complaints.
type Told = (Option<i32>, String, String);

fn told(command: &mut Command) -> anyhow::Result<Told> {
    let output = command.stdin(Stdio::null()).output()?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

fn command(endpoints: &[&str], arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(binaries::directory()?.join("lbctl"));
    for endpoint in endpoints {
        command.args(["--endpoint", endpoint]);
    }
    command.args(arguments);
    Ok(command)
}

pub(crate) fn at_one_object() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 2, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let node = &site.nodes[0];
    let socket = format!("unix:{}", node.socket().display());
    let run = |arguments: &[&str]| told(&mut command(&[&socket], arguments)?);
    objects(node, &run)?;
    waiting(&run)?;
    changes(&socket, &run)?;
    manners(&socket, site.root.path(), &run)
}

fn objects(node: &LbNode, run: &dyn Fn(&[&str]) -> anyhow::Result<Told>) -> anyhow::Result<()> {
    for (object, noun) in [
        (&["vip", VIP_TEXT][..], "vips"),
        (&["service", "web"], "services"),
        (&["backend", "web", "192.168.3.5"], "backends"),
        (&["node", "lb1"], "nodes"),
    ] {
        let got = node.lbctl_json(&[&["get"], object].concat())?;
        ensure!(got[noun].as_array().is_some_and(|rows| rows.len() == 1), "{got}");
        let described = node.lbctl_json(&[&["describe"], object].concat())?;
        ensure!(described[object[0]].is_object() && described["events"].is_array(), "{described}");
        let name = object.join(" ");
        let (code, text, _) = run(&[&["describe"], object].concat())?;
        ensure!(code == Some(0) && text.starts_with(&format!("{name}\n\n")), "{text}");
        let (_, names, _) = run(&[&["-o", "name", "get"], object].concat())?;
        ensure!(names == format!("{}\n", object[1..].join(" ")), "{names}");
    }
    let vip = node.lbctl_json(&["describe", "vip", VIP_TEXT])?;
    ensure!(vip["services"].as_array().map(Vec::len) == Some(2), "{vip}");
    ensure!(vip["backends"].as_array().map(Vec::len) == Some(4), "{vip}");
    let is_owned = |event: &Value| event["event"] == format!("VIP {VIP_TEXT} is owned by lb1");
    ensure!(vip["events"].as_array().is_some_and(|events| events.iter().any(is_owned)), "{vip}");
    let (code, _, why) = run(&["get", "node", "lb7"])?;
    ensure!((code, why.as_str()) == (Some(1), "lbctl: there is no node lb7; there are: lb1\n"), "{why}");
    let (code, _, why) = run(&["describe", "service", "wbe"])?;
    ensure!(code == Some(1) && why.contains("wbe"), "{why}");
    Ok(())
}

fn waiting(run: &dyn Fn(&[&str]) -> anyhow::Result<Told>) -> anyhow::Result<()> {
    for sound in [
        &["wait", "owned", VIP_TEXT][..],
        &["wait", "owned", VIP_TEXT, "--by", "lb1"],
        &["wait", "healthy", "web"],
        &["wait", "healthy", "web", "192.168.3.5"],
        &["wait", "member", "lb1"],
    ] {
        let (code, _, why) = run(sound)?;
        ensure!(code == Some(0), "{sound:?}: {why}");
    }
    for sound in ["drain", "enable"] {
        ensure!(run(&["backend", sound, "echo", "192.168.3.6"])?.0 == Some(0), "{sound}");
        let (code, _, why) = run(&["wait", "drained", "echo", "192.168.3.6"])?;
        ensure!(code == Some(if sound == "drain" { 0 } else { 1 }), "{sound}: {code:?}: {why}");
    }
    let (code, _, why) = run(&["wait", "drained", "web", "192.168.3.5"])?;
    ensure!(code == Some(1) && why.contains("is not drained"), "{code:?}: {why}");
    for (never, what) in [
        (&["wait", "owned", VIP_TEXT, "--by", "lb2"][..], "vip 192.168.2.1 is owned by lb1"),
        (&["wait", "healthy", "web", "192.168.3.99"], "service web has no backend 192.168.3.99"),
        (&["wait", "member", "lb2"], "there is no node lb2"),
    ] {
        let (code, _, why) = run(&[never, &["--timeout", "300ms"]].concat())?;
        ensure!(code == Some(4) && why.ends_with(&format!("lbctl: not within 300ms: {what}\n")), "{never:?}: {why}");
    }
    Ok(())
}

fn changes(socket: &str, run: &dyn Fn(&[&str]) -> anyhow::Result<Told>) -> anyhow::Result<()> {
    let revision = |text: &str| -> anyhow::Result<u64> {
        serde_json::from_str::<Value>(text)?["revision"].as_u64().context("a revision")
    };
    let before = revision(&run(&["-o", "json", "status"])?.1)?.to_string();
    for (format, expected) in [("table", "~ backend web 192.168.3.5  weight: 1 -> 5"), ("json", "\"weight\":5")] {
        ensure!(run(&["backend", "set", "web", "192.168.3.5", "--weight", "1"])?.0 == Some(0));
        let mut watch = command(&[socket], &["-o", format, "watch", "--from", &before, "--kind", "backend"])?;
        let mut follower = Running::start(watch.stdout(Stdio::piped()))?;
        let lines = BufReader::new(follower.0.stdout.take().context("its output")?).lines();
        ensure!(run(&["backend", "set", "web", "192.168.3.5", "--weight", "5"])?.0 == Some(0));
        // It ends with the first line that tells of it; the test with whatever the lines end by.
        let seen = lines.map_while(Result::ok).find(|line| line.contains(expected));
        ensure!(seen.is_some(), "{format}: nothing like {expected}");
    }
    Ok(())
}

fn manners(socket: &str, root: &Path, run: &dyn Fn(&[&str]) -> anyhow::Result<Told>) -> anyhow::Result<()> {
    // What is not there is as good as removed; a name that is misspelt is not.
    let none = |what: &str| (Some(0), format!("{what}: unchanged: there is none\n"), String::new());
    let found = run(&["vip", "remove", "192.168.2.99"])?;
    ensure!(found == none("vip 192.168.2.99 removed"), "{found:?}");
    let found = run(&["backend", "remove", "web", "192.168.3.99"])?;
    ensure!(found == none("backend 192.168.3.99 removed from web"), "{found:?}");
    let (code, _, why) = run(&["backend", "remove", "wbe", "192.168.3.5"])?;
    ensure!(code == Some(1) && why.contains("wbe"), "{why}");

    // For programs an error is data, too.
    let (code, _, why) = run(&["-o", "json", "get", "vip", "192.168.2.99"])?;
    let error: Value = serde_json::from_str(&why).context("JSON")?;
    ensure!(code == Some(1) && error["error"]["exit_code"] == 1, "{why}");
    ensure!(error["error"]["message"].as_str().is_some_and(|text| text.contains("192.168.2.99")), "{why}");

    // Tables fit; all there is to see is in wide ones.
    for list in [&["vip", "list"][..], &["service", "list"], &["backend", "list"], &["node", "list"]] {
        let (_, narrow, _) = run(list)?;
        let widest = narrow.lines().map(str::len).max().unwrap_or_default();
        ensure!(widest <= 80, "{widest} columns:\n{narrow}");
        let (_, wide, _) = run(&[list, &["-o", "wide"]].concat())?;
        ensure!(wide.lines().map(str::len).max().unwrap_or_default() > widest, "{wide}");
    }

    // An endpoint that takes a connection and says nothing holds nobody up.
    let path = root.join("silent.sock");
    let _silent = UnixListener::bind(&path)?;
    let silent = format!("unix:{}", path.display());
    let (code, names, why) =
        told(&mut command(&["unix:/nowhere/lbd.sock", &silent, socket], &["-o", "name", "node", "list"])?)?;
    ensure!((code, names.as_str()) == (Some(0), "lb1\n"), "{why}");
    let (code, _, why) = told(&mut command(&["unix:/nowhere/lbd.sock", "unix:/nowhere/else"], &["status"])?)?;
    ensure!(code == Some(3) && why.contains("/nowhere/lbd.sock: ") && why.contains("/nowhere/else: "), "{why}");
    clusters_by_name(socket, root)
}

/// A file names clusters, so that neither endpoints nor certificates stand on the command line.
fn clusters_by_name(socket: &str, root: &Path) -> anyhow::Result<()> {
    let file = root.join("clusters.toml");
    let text = format!(
        "default = \"gone\"\n[clusters.lab]\nendpoints = [{socket:?}]\n[clusters.gone]\nendpoints = [\"unix:/nowhere\"]\n"
    );
    fs::write(&file, text)?;
    let run = |arguments: &[&str], cluster: Option<&str>| {
        let mut lbctl = command(&[], arguments)?;
        lbctl.env("LBCTL_CONFIG", &file).envs(cluster.map(|name| ("LBCTL_CLUSTER", name)));
        told(&mut lbctl)
    };
    let nodes = &["-o", "name", "node", "list"][..];
    for found in [run(&[&["--cluster", "lab"], nodes].concat(), None)?, run(nodes, Some("lab"))?] {
        ensure!((found.0, found.1.as_str()) == (Some(0), "lb1\n"), "{found:?}");
    }
    let (code, _, why) = run(nodes, None)?;
    ensure!(code == Some(3) && why.contains("/nowhere"), "the default is another one: {why}");
    let (code, _, why) = run(nodes, Some("lba"))?;
    ensure!(code == Some(2) && why.contains("there is no cluster lba; it has: gone, lab"), "{why}");
    let mut completing = command(&[], &[])?;
    completing.env("LBCTL_CONFIG", &file);
    completing.env("LBCTL_COMPLETE", "fish").args(["--", "lbctl", "--cluster", ""]);
    let (_, names, _) = told(&mut completing)?;
    ensure!(names.lines().any(|line| line.starts_with("lab")), "{names:?}");
    Ok(())
}

/// `lbctl top` on a terminal of 80 by 24: it shows the VIP and its owner, and gives the terminal back.
pub(crate) fn on_a_terminal() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let socket = format!("unix:{}", site.nodes[0].socket().display());
    let (code, _, why) = told(&mut command(&[&socket], &["top"])?)?;
    ensure!(code == Some(2) && why.contains("lbctl stats --rates"), "{why}");
    let top = binaries::directory()?.join("lbctl");
    let mut terminal = Terminal::start(&format!("{} --endpoint {socket} top", top.display()), &[])?;
    terminal.until(&["PACKETS/S", VIP_TEXT, "lb1", "q ends"])?;
    terminal.type_in("3")?;
    terminal.until(&["leads"])?;
    terminal.type_in("q")?;
    // It leaves the alternate screen, as it was.
    terminal.until(&["\u{1b}[?1049l"])?;
    let status = terminal.wait()?;
    ensure!(status.success(), "{status}");
    Ok(())
}
