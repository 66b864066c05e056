//! What monitoring reads: as a scraper does, and compared with what `lbctl` says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use lb_tests::{
    cluster::SOON,
    pki::{Files, Pki},
    running::Running,
    site::{Plan, Site, VIP_TEXT},
    wait,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub(crate) const LOOPBACK: &str = "127.0.0.1:9400";

/// What Prometheus asks for.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0";

fn request(path: &str, accept: &str, host: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\nConnection: close\r\n\r\n")
}

/// The status and the body of an answer.
fn split(answer: &str) -> anyhow::Result<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

pub(crate) fn get(site: &Site, node: usize, path: &str) -> anyhow::Result<(u16, String)> {
    get_as(site, node, path, (OPENMETRICS, "lbd"))
}

/// As whoever takes the listener for another host.
pub(crate) fn get_under(site: &Site, node: usize, path: &str, host: &str) -> anyhow::Result<(u16, String)> {
    get_as(site, node, path, (OPENMETRICS, host))
}

fn get_as(site: &Site, node: usize, path: &str, (accept, host): (&str, &str)) -> anyhow::Result<(u16, String)> {
    site.node_hosts[node].ns.enter(|| get_from(LOOPBACK, path, (accept, host)))
}

fn get_from(address: &str, path: &str, (accept, host): (&str, &str)) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(request(path, accept, host).as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    split(&answer)
}

/// Each series and its value; what does not fit the text's form is an error (OpenMetrics, "ABNF").
pub(crate) fn series(text: &str) -> anyhow::Result<BTreeMap<String, f64>> {
    let (mut all, mut described) = (BTreeMap::new(), Vec::new());
    ensure!(text.ends_with("# EOF\n"), "it does not end with EOF");
    for line in text.lines() {
        if let Some(words) = line.strip_prefix("# ") {
            let mut words = words.split(' ');
            if words.next() == Some("TYPE") {
                let name = words.next().context("a type of nothing")?.to_owned();
                ensure!(!described.contains(&name), "{name} is described twice");
                described.push(name);
            }
            continue;
        }
        let (name, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
        let base = name.split('{').next().unwrap_or_default();
        let suffixes = ["", "_total", "_bucket", "_count", "_sum"];
        let is_described =
            described.iter().any(|of| suffixes.iter().any(|suffix| base.strip_suffix(suffix) == Some(of.as_str())));
        ensure!(is_described, "{base} has no type");
        ensure!(all.insert(name.to_owned(), value.parse()?).is_none(), "{name} stands there twice");
    }
    Ok(all)
}

/// With TLS, as the holder of a certificate.
fn get_by_tls(site: &Site, address: &str, files: &Files) -> anyhow::Result<(u16, String)> {
    let mut config = (*files.load_trusting_all()?).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let address: std::net::SocketAddr = address.parse()?;
    site.node_hosts[0].ns.enter(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await?;
            let mut stream = connector.connect(address.ip().into(), stream).await?;
            stream.write_all(request("/metrics", OPENMETRICS, "lbd").as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            split(&answer)
        })
    })
}

/// What is read is what was sent, and what `lbctl` says.
pub(crate) fn are_read() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 2, servers: 2, two_interfaces: false, engine: "ring" })?;
    let beyond = format!("{}:9400", site.nodes[0].address.trim_end_matches(":7401"));
    for (at, node) in site.nodes.iter().enumerate() {
        let listen = format!("[metrics]\nlisten = \"{}\"\n[dataplane]", [LOOPBACK, LOOPBACK][at]);
        node.reconfigure("[dataplane]", &listen)?;
    }
    site.nodes[0].start()?;
    site.nodes[1].start()?;
    let (status, reason) = get(&site, 1, "/readyz")?;
    ensure!(status == 503 && reason.contains("waits to be added"), "{status}: {reason}");
    ensure!(get(&site, 1, "/healthz")?.0 == 200 && get(&site, 1, "/nothing")?.0 == 404);
    lb_tests::cluster::wait_for_leader(&site.nodes[0]);
    let second = site.nodes[1].address.clone();
    site.nodes[0].lbctl_ok(&["node", "add", "lb2", &second])?;
    lb_tests::cluster::wait_ready(&site.nodes[0], 2);
    site.configure()?;
    site.nodes[0].lbctl_ok(&["vip", "move", VIP_TEXT, "lb1"])?;
    wait::until("it is ready", SOON, || get(&site, 1, "/readyz").is_ok_and(|(status, _)| status == 200));

    wait::until("the way to the other node is measured", SOON, || {
        get(&site, 0, "/metrics").is_ok_and(|(_, text)| text.contains("lbd_heartbeat_round_trip_seconds{"))
    });
    let stats = site.nodes[0].stats()?;
    let (status, text) = get(&site, 0, "/metrics")?;
    ensure!(status == 200, "{text}");
    let all = series(&text)?;
    let of = |name: &str| all.get(name).copied().with_context(|| format!("{name} is not among {:?}", all.keys()));
    let received = stats["received"].as_f64().context("received")?;
    ensure!(of("lbd_received_total")? >= received, "{} and {received}", of("lbd_received_total")?);
    ensure!(of(&format!("lbd_vip_owner{{vip=\"{VIP_TEXT}\",node=\"lb1\"}}"))? == 1.0);
    ensure!(of("lbd_ready")? == 1.0 && of("lbd_raft_has_leader")? == 1.0);
    ensure!(of("lbd_node_heard{node=\"lb2\"}")? == 1.0);
    let address = site.servers[0].address;
    ensure!(of(&format!("lbd_backend_weight{{service=\"web\",backend=\"{address}\"}}"))? == 1.0);
    ensure!(of("lbd_certificate_expiry_timestamp_seconds")? > 1.7e9);
    ensure!(of("lbd_events_total{kind=\"vip\"}")? >= 1.0 && of("lbd_data_dir_free_bytes")? > 0.0);
    ensure!(of("lbd_takeovers_total")? <= 1.0 && of("lbd_store_sync_seconds_count")? > 0.0);
    ensure!(of("lbd_store_size_bytes{part=\"journal\"}")? > 0.0);
    ensure!(of("lbd_thread_cpu_seconds_total{thread=\"dataplane-0\"}")? >= 0.0);
    alerts_fit(&all)?;
    dashboard_fits(&all)?;

    // Beyond loopback by TLS, for those who may read.
    let text = fs::read_to_string(site.nodes[0].config())?;
    fs::write(site.nodes[0].config(), text.replace(LOOPBACK, &beyond))?;
    site.nodes[0].terminate()?;
    site.nodes[0].start()?;
    let pki = Pki::below(site.root.path())?;
    let (viewer, node) = (pki.issue("viewer", "prometheus", &[])?, pki.issue("node", "lb7", &[])?);
    let (status, text) = get_by_tls(&site, &beyond, &viewer)?;
    ensure!(status == 200 && text.contains("lbd_build_info"), "{status}: {text}");
    ensure!(get_by_tls(&site, &beyond, &node)?.0 == 403);
    Ok(())
}

/// Each name in expressions of PromQL is one that a node has.
fn names_fit<'a>(expressions: impl Iterator<Item = &'a str>, live: &BTreeMap<String, f64>) -> anyhow::Result<()> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let used: BTreeSet<&str> =
        expressions.flat_map(|line| line.split(|c| !is_of_name(c))).filter(|word| word.starts_with("lbd_")).collect();
    ensure!(used.len() > 10, "{used:?}");
    let names: BTreeSet<&str> = live.keys().filter_map(|series| series.split('{').next()).collect();
    let absent: Vec<&&str> = used.iter().filter(|name| !names.contains(**name)).collect();
    ensure!(absent.is_empty(), "no node has {absent:?}");
    Ok(())
}

/// What the dashboard asks for.
fn dashboard() -> anyhow::Result<Vec<String>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/grafana/lbd.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(file)?)?;
    let panels = dashboard["panels"].as_array().context("panels")?;
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    Ok(targets.filter_map(|target| target["expr"].as_str()).map(str::to_owned).collect())
}

/// The dashboard shows what there is.
fn dashboard_fits(live: &BTreeMap<String, f64>) -> anyhow::Result<()> {
    names_fit(dashboard()?.iter().map(String::as_str), live)
}

/// Whether this machine has Prometheus.
pub(crate) fn prometheus_is_there() -> Result<(), String> {
    let asked = Command::new("prometheus").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match asked {
        Ok(status) if status.success() => Ok(()),
        _ => Err("there is no prometheus (Debian: apt-get install prometheus)".into()),
    }
}

/// A Prometheus that scrapes a node has an answer to all that the dashboard asks, and to what the alerts ask too.
pub(crate) fn dashboard_is_evaluated() -> anyhow::Result<()> {
    const PROMETHEUS: &str = "127.0.0.1:9090";
    let mut site = Site::build(Plan { nodes: 2, servers: 2, two_interfaces: false, engine: "ring" })?;
    for node in &site.nodes {
        node.reconfigure("[dataplane]", &format!("[metrics]\nlisten = {LOOPBACK:?}\n[dataplane]"))?;
    }
    site.start()?;
    site.configure()?;
    let dir = tempfile::tempdir()?;
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus/lbd.rules.yml").canonicalize()?;
    let config = format!(
        "global: {{ scrape_interval: 200ms, evaluation_interval: 200ms }}\n\
         scrape_configs: [{{ job_name: lbd, static_configs: [{{ targets: [{LOOPBACK:?}] }}] }}]\n\
         rule_files: [{rules:?}]\n"
    );
    fs::write(dir.path().join("prometheus.yml"), config)?;
    let mut command = site.node_hosts[0].ns.command("prometheus")?;
    command.arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()));
    command.arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()));
    command.arg(format!("--web.listen-address={PROMETHEUS}")).stdout(Stdio::null()).stderr(Stdio::null());
    let _prometheus = Running::start(&mut command)?;
    let ask = |path: &str| -> anyhow::Result<Value> {
        let (status, body) = site.node_hosts[0].ns.enter(|| get_from(PROMETHEUS, path, ("*/*", PROMETHEUS)))?;
        ensure!(status == 200, "{path}: {status}: {body}");
        // It may come in pieces (RFC 9112, section 7.1): the object is what stands between the braces.
        let (from, to) = (body.find('{').context("no object")?, body.rfind('}').context("no object")?);
        Ok(serde_json::from_str(&body[from..=to])?)
    };
    for expression in dashboard()? {
        // What the dashboard's variables stand for.
        let expression = expression.replace("$__rate_interval", "2s").replace("$job", "lbd");
        let escaped: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        wait::until_ok(SOON, || {
            let answer = ask(&format!("/api/v1/query?query={escaped}"))?;
            let rows = answer["data"]["result"].as_array().context("no result")?;
            ensure!(answer["status"] == "success" && !rows.is_empty(), "{expression}: {answer}");
            Ok(())
        })?;
    }
    wait::until_ok(SOON, || {
        let groups = ask("/api/v1/rules")?;
        let groups = groups["data"]["groups"].as_array().context("no groups")?;
        let rules: Vec<&Value> =
            groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten()).collect();
        ensure!(rules.len() > 10 && rules.iter().all(|rule| rule["health"] == "ok"), "{rules:#?}");
        Ok(())
    })
}

/// Each name that the alerts use is one that a node has, and each alert's section of the documents is there.
fn alerts_fit(live: &BTreeMap<String, f64>) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let rules = fs::read_to_string(root.join("deploy/prometheus/lbd.rules.yml"))?;
    let expressions = rules.lines().filter(|line| !line.contains("description:") && !line.contains("https://"));
    names_fit(expressions, live)?;
    let sections = rules.lines().filter_map(|line| line.trim().strip_prefix("runbook_url: \"https://example.org/lbd/"));
    for section in sections {
        let (file, anchor) =
            section.trim_end_matches('"').split_once('#').unwrap_or((section.trim_end_matches('"'), ""));
        let text = fs::read_to_string(root.join(file)).with_context(|| file.to_owned())?;
        let has = |line: &str| {
            line.trim_start_matches('#').trim().to_lowercase().replace('?', "").replace(' ', "-") == anchor
        };
        let is_there = anchor.is_empty() || text.lines().filter(|line| line.starts_with('#')).any(has);
        ensure!(is_there, "{file} has no section {anchor}");
    }
    Ok(())
}

/// Prometheus' own parser reads what a node says, and has nothing against it.
fn no_lint_is_found() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.nodes[0].reconfigure("[dataplane]", &format!("[metrics]\nlisten = {LOOPBACK:?}\n[dataplane]"))?;
    site.start()?;
    site.configure()?;
    let (_, text) = get_as(&site, 0, "/metrics", ("text/plain", "lbd"))?;
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = command.spawn()?;
    promtool.stdin.take().context("its input")?.write_all(text.as_bytes())?;
    let output = promtool.wait_with_output()?;
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    ensure!(output.status.success() && told.is_empty(), "{told}");
    Ok(())
}

/// Whether this machine has what tests alerts.
pub(crate) fn promtool_is_there() -> Result<(), String> {
    match Command::new("promtool").arg("--version").output() {
        Ok(output) if output.status.success() => Ok(()),
        _ => Err("promtool is missing (Debian: apt-get install --no-install-recommends prometheus)".to_owned()),
    }
}

/// Each alert comes when it should, as Prometheus itself evaluates it.
pub(crate) fn alerts_come() -> anyhow::Result<()> {
    no_lint_is_found()?;
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus");
    for arguments in [["check", "rules", "lbd.rules.yml"], ["test", "rules", "lbd.rules.test.yml"]] {
        let output = Command::new("promtool").args(arguments).current_dir(&dir).output()?;
        let told = [output.stdout, output.stderr].concat();
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&told));
    }
    Ok(())
}
