//! What health checks cost: a node that asks 2000 backends once a second, each as a client of the VIP would, alone and while it
//! forwards as much as it can; and how soon all nodes know of all backends that go down at once.

use std::{
    collections::HashMap,
    fs, thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use lb_proto::v1::Health;
use lb_tests::{
    cluster::LbNode,
    flood::{self, Flood},
    grpc, runner,
    site::{Plan, Site, VIP, VIP_TEXT},
    traffic::Doorman,
    wait,
};

const SERVICES: u16 = 100;
const BACKENDS: u8 = 20;
const FIRST_PORT: u16 = 10_000;
const PATIENCE: Duration = Duration::from_secs(30);
const MEASURE: Duration = Duration::from_secs(10);
/// With and without checks, by turns.
const ROUNDS: usize = 5;
const FORWARD: Duration = Duration::from_secs(3);
/// More than a worker can forward.
const FLOOD: u64 = 3_000_000;
/// The name of the daemon's thread.
const THREAD: &str = "checks";

pub(crate) fn checks() -> anyhow::Result<()> {
    anyhow::ensure!(runner::prepare(), "lbd and lbctl cannot be built");
    let all = u32::from(SERVICES) * u32::from(BACKENDS);
    println!("Health checks: {all} backends, each asked for a TCP connection once a second");
    let mut site = Site::build(Plan { nodes: 2, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let owner = site.owner()?;
    let (node, server) = (&site.nodes[owner], &site.servers[0]);
    let ports = (0..SERVICES).map(|at| (VIP, FIRST_PORT + at).into());
    let doorman = Doorman::listen(&server.host.ns, ports)?;
    let (all, mac) = (all as usize, server.mac.to_string());
    measure(node, &mac, all)?;
    beside_a_flood(&site, owner, &mac)?;
    // All of them at once: what a switch that dies does.
    wait::until("all are healthy", PATIENCE, || count(node, "healthy").is_ok_and(|healthy| healthy == all));
    let begun = Instant::now();
    drop(doorman);
    let delays = thread::scope(|scope| {
        let watch = |node| scope.spawn(move || found_down(node, all));
        let watchers: Vec<_> = site.nodes.iter().map(watch).collect();
        let joined =
            watchers.into_iter().map(|watcher| watcher.join().map_err(|_| anyhow::anyhow!("a watcher panicked"))?);
        joined.collect::<anyhow::Result<Vec<Vec<Duration>>>>()
    })?;
    let took = begun.elapsed().as_millis();
    let mut delays: Vec<Duration> = delays.into_iter().flatten().collect();
    delays.sort_unstable();
    let (median, last) = (delays[delays.len() / 2], delays[delays.len() - 1]);
    println!(
        "  all {all} servers end at once: after {took} ms both nodes say so of the last one, which was asked once a second"
    );
    println!(
        "  from finding it to both tables saying so: {} ms at the median, {} ms at most\n",
        median.as_millis(),
        last.as_millis()
    );
    Ok(())
}

/// How long after each backend was found to be down a node's table says so; looked at again and again.
fn found_down(node: &LbNode, all: usize) -> anyhow::Result<Vec<Duration>> {
    use lb_proto::v1::{ListBackendsRequest, table_service_client::TableServiceClient};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = TableServiceClient::new(grpc::connect(node.socket()).await?);
        let mut known = HashMap::new();
        let deadline = Instant::now() + PATIENCE;
        while known.len() < all {
            anyhow::ensure!(Instant::now() < deadline, "{} of {all} are down", known.len());
            let backends = client.list_backends(ListBackendsRequest::default()).await?.into_inner().backends;
            let now = SystemTime::now();
            for row in backends.iter().filter(|row| row.health() == Health::Unhealthy) {
                let since = humantime::parse_rfc3339(&row.health_since)?;
                let key = (row.service.clone(), row.address.clone());
                known.entry(key).or_insert_with(|| now.duration_since(since).unwrap_or_default());
            }
        }
        Ok(known.into_values().collect())
    })
}

/// What a node forwards that gets more than it can, with checks and without, by turns.
fn beside_a_flood(site: &Site, owner: usize, mac: &str) -> anyhow::Result<()> {
    let node = &site.nodes[owner];
    node.lbctl_ok(&["service", "add", "flood", "--vip", VIP_TEXT, "--port", &format!("{}/udp", flood::PORT)])?;
    node.lbctl_ok(&["backend", "add", "flood", "192.168.3.99", "--mac", mac])?;
    let flood = Flood::start(&site.net, &site.node_hosts[owner], "eth0", VIP, flood::FLOWS, FLOOD)?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (is_checked, rates) in [(true, &mut with), (false, &mut without)] {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(set_checks(node, is_checked))?;
            let checked = usize::from(is_checked) * usize::from(SERVICES) * usize::from(BACKENDS);
            wait::until("as many are checked", PATIENCE, || {
                count(node, "healthy").is_ok_and(|healthy| healthy == checked)
            });
            let forwarded = || anyhow::Ok(node.stats()?["forwarded"].as_u64().context("no counter")?);
            let (before, begun) = (forwarded()?, Instant::now());
            thread::sleep(FORWARD);
            rates.push((forwarded()? - before) as f64 / begun.elapsed().as_secs_f64());
        }
    }
    flood.finish()?;
    let [with, without] = [with, without].map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[ROUNDS / 2]
    });
    println!(
        "  at saturation it forwards {:.0} kpps with the checks and {:.0} kpps without: {:.1} % less",
        with / 1e3,
        without / 1e3,
        100.0 * (1.0 - with / without)
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(set_checks(node, true))
}

async fn set_checks(node: &LbNode, are_checked: bool) -> anyhow::Result<()> {
    use lb_proto::v1::{self, mutation::Change, table_service_client::TableServiceClient};
    let tcp = v1::Check { port: 0, probe: Some(v1::check::Probe::Tcp(v1::TcpProbe {})) };
    let checks = Some(v1::CheckList { checks: if are_checked { vec![tcp] } else { Vec::new() } });
    let set = |at: u16| {
        let (name, checks) = (format!("s{at}"), checks.clone());
        let update = v1::UpdateServiceRequest { name, checks, ..Default::default() };
        v1::Mutation { change: Some(Change::UpdateService(update)) }
    };
    let mutations = (0..SERVICES).map(set).collect();
    let mut client = TableServiceClient::new(grpc::connect(node.socket()).await?);
    client.apply(v1::ApplyRequest { mutations, ..Default::default() }).await?;
    Ok(())
}

/// Backends in that state.
fn count(node: &LbNode, state: &str) -> anyhow::Result<usize> {
    let backends = node.lbctl_json(&["backend", "list", "--no-flows"])?;
    let rows = backends["backends"].as_array().into_iter().flatten();
    Ok(rows.filter(|row| row["health"] == state).count())
}

fn measure(node: &LbNode, mac: &str, all: usize) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for at in 0..SERVICES {
        runtime.block_on(add(node, at, mac))?;
    }
    wait::until("all are healthy", PATIENCE, || count(node, "healthy").is_ok_and(|healthy| healthy == all));
    let (before, begun) = (thread_time(node)?, Instant::now());
    thread::sleep(MEASURE);
    let (used, took) = (thread_time(node)? - before, begun.elapsed());
    let share = used.as_secs_f64() / took.as_secs_f64();
    let each = 1e6 * share / all as f64;
    println!("  the thread that checks took {:.1} % of a core, {each:.1} us a check", 100.0 * share);
    let is_stretched = node.lbctl_ok(&["status"])?.contains("the checks of backends");
    println!("  intervals are {}", if is_stretched { "stretched" } else { "as they should be" });
    Ok(())
}

/// A service and its backends, which are one machine by many addresses.
async fn add(node: &LbNode, at: u16, mac: &str) -> anyhow::Result<()> {
    use lb_proto::v1::{self, mutation::Change, table_service_client::TableServiceClient};
    let name = format!("s{at}");
    let port = u32::from(FIRST_PORT + at);
    let ports = vec![v1::PortRange { protocol: v1::Protocol::Tcp.into(), first: port, last: port }];
    let service =
        v1::Service { name: name.clone(), vip: VIP_TEXT.into(), ports, table_size: 4093, ..Default::default() };
    let create = |number: u8| {
        let address = format!("192.168.3.{}", 100 + number);
        let backend = v1::Backend { service: name.clone(), address, mac: mac.to_owned(), ..Default::default() };
        Change::CreateBackend(v1::CreateBackendRequest { backend: Some(backend), ..Default::default() })
    };
    let service = Change::CreateService(v1::CreateServiceRequest { service: Some(service), ..Default::default() });
    let changes = std::iter::once(service).chain((0..BACKENDS).map(create));
    let mutations = changes.map(|change| v1::Mutation { change: Some(change) }).collect();
    let mut client = TableServiceClient::new(grpc::connect(node.socket()).await?);
    client.apply(v1::ApplyRequest { mutations, ..Default::default() }).await?;
    Ok(())
}

/// The processor time of the daemon's thread.
fn thread_time(node: &LbNode) -> anyhow::Result<Duration> {
    let worker = node.worker().context("the daemon does not run")?;
    for thread in fs::read_dir(format!("/proc/{worker}/task"))? {
        let path = thread?.path();
        if fs::read_to_string(path.join("comm"))?.trim() == THREAD {
            // Nanoseconds on a processor come first.
            let schedstat = fs::read_to_string(path.join("schedstat"))?;
            let spent = schedstat.split(' ').next().and_then(|spent| spent.parse().ok());
            return Ok(Duration::from_nanos(spent.context("schedstat")?));
        }
    }
    anyhow::bail!("there is no thread {THREAD}")
}
