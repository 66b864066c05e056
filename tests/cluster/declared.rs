//! A table is what its file says: applied in one change, compared, exported, and nothing happens twice.

use std::{
    fs,
    io::Write as _,
    process::{Output, Stdio},
};

use anyhow::{Context as _, ensure};
use lb_tests::{
    binaries,
    cluster::LbNode,
    site::{Plan, Site, VIP_TEXT},
    terminal::Terminal,
};

use crate::metrics;

/// `lbctl` with a file for its standard input: exit code, output, complaints.
fn lbctl(node: &LbNode, arguments: &[&str], input: &str) -> anyhow::Result<(Option<i32>, String, String)> {
    let mut command = std::process::Command::new(binaries::directory()?.join("lbctl"));
    command.arg("--endpoint").arg(format!("unix:{}", node.socket().display())).args(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("its input")?.write_all(input.as_bytes())?;
    let Output { status, stdout, stderr } = child.wait_with_output()?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok((status.code(), text(&stdout), text(&stderr)))
}

pub(crate) fn by_a_file() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.nodes[0].reconfigure("[dataplane]", &format!("[metrics]\nlisten = {:?}\n[dataplane]", metrics::LOOPBACK))?;
    site.start()?;
    let node = &site.nodes[0];
    let run = |arguments: &[&str], input: &str| lbctl(node, arguments, input);
    let apply = |input: &str| run(&["apply", "--yes", "-f", "-"], input);
    let revision =
        || -> anyhow::Result<u64> { node.lbctl_json(&["status"])?["revision"].as_u64().context("the revision") };

    // What is exported is how it is.
    let (code, before, _) = run(&["export"], "")?;
    ensure!(code == Some(0) && before.contains(&format!("- address: \"{VIP_TEXT}\"\n")), "{before}");
    let at = revision()?;
    let unchanged = |input: &str| -> anyhow::Result<()> {
        let told = apply(input)?;
        ensure!(told == (Some(0), "-: unchanged\n".into(), String::new()), "{told:?} to {input}");
        Ok(())
    };
    unchanged(&before)?;
    let compared = run(&["diff", "-f", "-", "--prune"], &before)?;
    ensure!(compared == (Some(0), String::new(), String::new()), "{compared:?}");
    let (code, json, _) = run(&["-o", "json", "export"], "")?;
    ensure!(code == Some(0), "{json}");
    unchanged(&json)?;
    ensure!(revision()? == at, "nothing has changed");

    // More of it: shown, tried, done, done again.
    let more = format!(
        "
settings:
  flow_udp_s: 31
vips:
  - address: {VIP_TEXT}
    unmatched: reject
services:
  - name: dns
    vip: {VIP_TEXT}
    ports:
      - {{protocol: udp, first: 53, last: 53}}
    checks: {{checks: []}}
backends:
  - {{service: dns, address: 192.168.3.91, weight: 3, mac: '02:00:00:00:00:99'}}
"
    );
    let changes = format!(
        "+ service dns\n+     vip: {VIP_TEXT}\n+     ports: 53/udp\n+     affinity: flow\n\
         +     table_size: 16381\n"
    );
    let (code, shown, _) = run(&["diff", "-f", "-"], &more)?;
    ensure!(code == Some(1) && shown.contains(&changes), "{shown}");
    ensure!(shown.contains(&format!("~ vip {VIP_TEXT}\n~     unmatched: drop -> reject\n")), "{shown}");
    ensure!(shown.contains("~ settings\n~     flow_udp_s: 30 -> 31\n"), "{shown}");
    let (code, tried, _) = run(&["apply", "--dry-run", "-f", "-"], &more)?;
    ensure!(code == Some(0) && tried == format!("{shown}4 rows change: nothing is done\n"), "{tried}");
    ensure!(revision()? == at, "nothing has changed");
    let (code, done, told) = apply(&more)?;
    ensure!(code == Some(0) && done.starts_with(&shown) && told.is_empty(), "{done}{told}");
    ensure!(done.contains("- applied: 4 rows change (revision "), "{done}");
    unchanged(&more)?;
    let weight = || -> anyhow::Result<Option<u64>> {
        Ok(node.lbctl_json(&["backend", "list", "dns"])?["backends"][0]["weight"].as_u64())
    };
    ensure!(weight()? == Some(3));

    // What a file does not say is by default, the second time as the first.
    let little =
        format!("services: [{{name: bare, vip: {VIP_TEXT}, ports: [{{protocol: tcp, first: 81, last: 81}}]}}]");
    let (code, done, _) = apply(&little)?;
    ensure!(code == Some(0) && done.contains("+     checks: tcp (by default)\n"), "{done}");
    unchanged(&little)?;
    node.lbctl_ok(&["service", "remove", "bare"])?;

    // A field that is left out gets its default; a row that is left out goes where it is asked for, and not else.
    let less = "backends: [{service: dns, address: 192.168.3.91}]";
    let (code, done, _) = apply(less)?;
    ensure!(code == Some(0) && done.starts_with("~ backend dns 192.168.3.91\n"), "{done}");
    ensure!(done.contains("~     mac: 02:00:00:00:00:99 -> none\n~     weight: 3 -> 1\n"), "{done}");
    let (code, shown, _) = run(&["diff", "--prune", "-f", "-"], &before)?;
    ensure!(code == Some(1) && shown.ends_with("- service dns\n- backend dns 192.168.3.91\n"), "{shown}");
    ensure!(run(&["apply", "--prune", "-f", "-"], &before)?.0 == Some(0));
    ensure!(run(&["export"], "")?.1 == before, "it is as it was");

    // What is wrong is told by its row and line, and nothing is done: not the sound half either.
    let at = revision()?;
    let heavy = format!("{more}  - {{service: dns, address: 192.168.3.92, weight: 1001}}\n");
    let (code, done, told) = apply(&heavy)?;
    ensure!(code == Some(1) && done.is_empty(), "{code:?} {done}");
    ensure!(told.starts_with("lbctl: line 15: backend dns 192.168.3.92: ") && told.contains("weight"), "{told}");
    let (code, _, told) = apply("backends:\n  - {service: web, adress: 192.168.3.92}\n")?;
    ensure!(code == Some(2) && told.contains("-: line 2: there is no field 'adress' in a backend"), "{told}");
    ensure!(told.contains("did you mean 'address'?"), "{told}");
    let (code, _, told) = run(&["apply", "-f", "/nowhere/table.yaml"], "")?;
    ensure!(
        code == Some(2) && told == "lbctl: /nowhere/table.yaml: No such file or directory (os error 2)\n",
        "{told}"
    );
    ensure!(revision()? == at, "nothing has changed");

    // Many at once are one change.
    let rows: String = (0..10_000u32)
        .map(|at| {
            format!(
                "  - {{service: dns, address: 10.1.{}.{}, mac: '02:00:00:00:00:01'}}\n",
                100 + at / 250,
                at % 250 + 1
            )
        })
        .collect();
    let many = format!("{}{rows}", more.split("backends:").next().unwrap_or_default().to_owned() + "backends:\n");
    let (code, _, told) = apply(&many)?;
    ensure!(code == Some(0), "{told}");
    unchanged(&many)?;
    // Somebody who looks on sees how far it is.
    let file = site.root.path().join("many.yaml");
    fs::write(&file, &many)?;
    let lbctl = binaries::directory()?.join("lbctl");
    let socket = node.socket();
    let line = format!("{} --endpoint unix:{} diff -f {}", lbctl.display(), socket.display(), file.display());
    let mut terminal = Terminal::start(&line, &[])?;
    terminal.until(&["comparing [", " rows, "])?;
    ensure!(terminal.wait()?.success());
    let count = node.lbctl_json(&["backend", "list", "dns", "--no-flows"])?["backends"].as_array().map(Vec::len);
    ensure!(count == Some(10_000), "{count:?}");
    // A scrape of all of them, and the page, which shows some.
    let begun = std::time::Instant::now();
    let (status, text) = metrics::get(&site, 0, "/metrics")?;
    let took = begun.elapsed();
    eprintln!("a scrape of 10,000 backends: {} ms, {} kB", took.as_millis(), text.len() / 1000);
    let series = text.lines().filter(|line| line.starts_with("lbd_backend_up{")).count();
    ensure!(status == 200 && series >= 10_000 && text.len() < 20_000_000, "{status}: {series} series");
    Ok(())
}

/// As scripts do it: each backend by a process of its own. The time is printed, and is a figure of the documents.
pub(crate) fn a_thousand_processes() -> anyhow::Result<()> {
    const COUNT: u32 = 1000;
    let mut site = Site::build(Plan { nodes: 3, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let node = &site.nodes[0];
    node.lbctl_ok(&["service", "add", "dns", "--vip", VIP_TEXT, "--port", "53/udp", "--check", "none"])?;
    let begun = std::time::Instant::now();
    for at in 0..COUNT {
        let address = format!("10.1.{}.{}", at / 250, at % 250 + 1);
        node.lbctl_ok(&["backend", "add", "dns", &address, "--mac", "02:00:00:00:00:01"])?;
    }
    eprintln!("{COUNT} times 'lbctl backend add', one after the other: {:.1} s", begun.elapsed().as_secs_f64());
    let listed = node.lbctl_ok(&["backend", "list", "dns", "-o", "name"])?;
    ensure!(listed.lines().count() == COUNT as usize, "{listed}");
    Ok(())
}
