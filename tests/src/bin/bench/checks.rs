//! What health checks cost: a node that asks 2000 backends once a second, each as a client of the VIP would.

use std::{
    fs,
    net::TcpListener,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use lb_tests::{
    cluster::LbNode,
    grpc, runner,
    site::{Plan, Site, VIP, VIP_TEXT},
    wait,
};

const SERVICES: u16 = 20;
const BACKENDS: u8 = 100;
const FIRST_PORT: u16 = 10_000;
const PATIENCE: Duration = Duration::from_secs(30);
const MEASURE: Duration = Duration::from_secs(10);
/// The name of the daemon's thread.
const THREAD: &str = "checks";

pub(crate) fn checks() -> anyhow::Result<()> {
    anyhow::ensure!(runner::prepare(), "lbd and lbctl cannot be built");
    let all = u32::from(SERVICES) * u32::from(BACKENDS);
    println!("Health checks: {all} backends, each asked for a TCP connection once a second");
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let (node, server) = (&site.nodes[0], &site.servers[0]);
    let listen = |port: u16| server.host.ns.enter(|| TcpListener::bind((VIP, port)));
    let listeners = (0..SERVICES).map(|at| listen(FIRST_PORT + at)).collect::<Result<Vec<_>, _>>()?;
    let stop = AtomicBool::new(false);
    let all = all as usize;
    thread::scope(|scope| {
        // Connections that nobody takes would fill the listeners' queues.
        scope.spawn(|| accept(&listeners, &stop));
        let measured = measure(node, &server.mac.to_string(), all);
        stop.store(true, Ordering::Relaxed);
        measured
    })?;
    // All of them at once: what a switch that dies does.
    drop(listeners);
    let begun = Instant::now();
    wait::until("all are unhealthy", PATIENCE, || count(node, "unhealthy").is_ok_and(|unhealthy| unhealthy == all));
    let took = begun.elapsed().as_millis();
    println!(
        "  after all {all} servers have ended at once it takes {took} ms until the table says so of the last one\n"
    );
    Ok(())
}

fn accept(listeners: &[TcpListener], stop: &AtomicBool) {
    for listener in listeners {
        // A listener that cannot be asked without waiting would hold the others up: what is measured then shows it.
        let _ = listener.set_nonblocking(true);
    }
    while !stop.load(Ordering::Relaxed) {
        listeners.iter().for_each(|listener| while listener.accept().is_ok() {});
        thread::sleep(Duration::from_millis(10));
    }
}

/// Backends in that state.
fn count(node: &LbNode, state: &str) -> anyhow::Result<usize> {
    let backends = node.lbctl_json(&["backend", "list"])?;
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
