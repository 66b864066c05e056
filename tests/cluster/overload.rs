//! More callers than a node can serve: nobody else notices. The short form of what `LB_OVERLOAD_S=60` does at full size.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use lb_proto::v1::{self, mutation::Change, table_service_client::TableServiceClient};
use lb_tests::{
    grpc,
    site::{PATIENCE, Plan, Site, VIP_TEXT},
    wait,
};
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt as _;

type Client = TableServiceClient<Channel>;

/// How much of it.
struct Size {
    span: Duration,
    rows: u32,
    writers: u32,
    idle: u32,
    watchers: u32,
    listers: u32,
}

impl Size {
    fn wanted() -> anyhow::Result<Self> {
        match std::env::var("LB_OVERLOAD_S") {
            Ok(seconds) => {
                let span = Duration::from_secs(seconds.parse().context("LB_OVERLOAD_S")?);
                Ok(Self { span, rows: 65_000, writers: 1000, idle: 1000, watchers: 100, listers: 8 })
            }
            Err(_) => {
                let span = Duration::from_secs(4);
                Ok(Self { span, rows: 5000, writers: 300, idle: 300, watchers: 50, listers: 2 })
            }
        }
    }
}

fn address(number: u32) -> String {
    std::net::Ipv4Addr::from(0x0a00_0001 + number).to_string()
}

/// What was answered.
#[derive(Default)]
struct Counts {
    written: AtomicU64,
    refused: AtomicU64,
    lists: AtomicU64,
    /// The first answer that was neither done nor a refusal that says when to come again.
    wrong: std::sync::Mutex<Option<String>>,
}

/// VIPs stay where they are, no lease lapses, memory is bounded, and whoever is refused is told so and served later.
pub(crate) fn callers() -> anyhow::Result<()> {
    let size = Size::wanted()?;
    let mut site = Site::build(Plan { nodes: 3, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    // The callers are on other machines: what they take of this one is not the nodes' to bear.
    let yields = || {
        let _ = rustix::process::nice(10);
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).on_thread_start(yields).enable_all().build()?;
    let sockets: Vec<_> = site.nodes.iter().map(lb_tests::cluster::LbNode::socket).collect();
    runtime.block_on(fill(&site, &size))?;
    let filled = peak_mib(&site)?;
    let epoch = site.nodes[0].epoch_of(VIP_TEXT);
    let lapses = || -> Vec<String> {
        let logs = site.nodes.iter().map(lb_tests::cluster::LbNode::log);
        logs.flat_map(|log| {
            log.lines().filter(|of| of.contains("lease has run out")).map(str::to_owned).collect::<Vec<_>>()
        })
        .collect()
    };
    let lapsed = lapses();
    let (counts, stop) = (Arc::<Counts>::default(), Arc::<AtomicBool>::default());
    let begun = Instant::now();
    let tasks = runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        let mut held: Vec<Channel> = Vec::new();
        for number in 0..size.idle {
            held.push(grpc::connect(sockets[number as usize % 3].clone()).await?);
        }
        let mut streams = Vec::new();
        for number in 0..size.watchers {
            let mut client = TableServiceClient::new(grpc::connect(sockets[number as usize % 3].clone()).await?);
            streams.push(client.watch(v1::WatchRequest::default()).await?);
        }
        for number in 0..size.writers {
            let client = TableServiceClient::new(grpc::connect(sockets[number as usize % 3].clone()).await?);
            tasks.spawn(write(client, number, counts.clone(), stop.clone()));
        }
        for number in 0..size.listers {
            let client = TableServiceClient::new(grpc::connect(sockets[number as usize % 3].clone()).await?);
            tasks.spawn(list(client, counts.clone(), stop.clone()));
        }
        tokio::time::sleep(size.span).await;
        stop.store(true, Ordering::Relaxed);
        drop((held, streams));
        anyhow::Ok(tasks)
    })?;
    // Each writer ends with a write that has come about.
    let ended = runtime.block_on(async { tokio::time::timeout(PATIENCE * 3, tasks.join_all()).await });
    ended.context("a writer was never served")?;
    let took = begun.elapsed();
    let load = |of: &AtomicU64| of.load(Ordering::Relaxed);
    println!(
        "{} writes ({:.0} a second), {} lists, {} refusals in {:.1} s; resident at most {} MiB, {filled} of them before",
        load(&counts.written),
        load(&counts.written) as f64 / took.as_secs_f64(),
        load(&counts.lists),
        load(&counts.refused),
        took.as_secs_f64(),
        peak_mib(&site)?
    );
    let wrong = counts.wrong.lock().map_err(|_| anyhow::anyhow!("a panic"))?.clone();
    ensure!(wrong.is_none(), "{}", wrong.unwrap_or_default());
    ensure!(load(&counts.written) >= u64::from(size.writers), "not each writer was served");
    let lapsed: Vec<String> = lapses().into_iter().filter(|line| !lapsed.contains(line)).collect();
    if let Some(first) = lapsed.first() {
        bail!("a lease has lapsed: {lapsed:#?}\n{}", logs_around(&site, first));
    }
    ensure!(site.nodes[0].epoch_of(VIP_TEXT) == epoch, "the VIP has moved");
    ensure!(peak_mib(&site)? < 1024, "{} MiB are resident", peak_mib(&site)?);
    wait::until_ok(PATIENCE, || {
        let status = site.nodes[1].lbctl(&["status", "--check"])?;
        ensure!(status.status.success(), "{}", String::from_utf8_lossy(&status.stdout));
        Ok(())
    })
}

/// What all nodes logged before a line of one of them, and right after it.
fn logs_around(site: &Site, line: &str) -> String {
    let of_node = |node: &lb_tests::cluster::LbNode| {
        let log = node.log();
        // Each begins with its time, in a form that is sorted by it.
        let lines: Vec<&str> = log.lines().collect();
        let at = lines.iter().rposition(|of| *of <= line).unwrap_or(0);
        let around = &lines[at.saturating_sub(200)..lines.len().min(at + 20)];
        format!("---- {}\n{}\n", node.name, around.join("\n"))
    };
    site.nodes.iter().map(of_node).collect()
}

async fn fill(site: &Site, size: &Size) -> anyhow::Result<()> {
    let mut client = TableServiceClient::new(grpc::connect(site.nodes[0].socket()).await?);
    let numbers: Vec<u32> = (0..size.rows).collect();
    let create = |number: &u32| {
        let backend = v1::Backend {
            service: "web".into(),
            address: address(*number),
            mac: "02:00:00:00:00:01".into(),
            state: v1::AdminState::Down.into(),
            ..Default::default()
        };
        let create = v1::CreateBackendRequest { backend: Some(backend), ..Default::default() };
        v1::Mutation { change: Some(Change::CreateBackend(create)) }
    };
    let part = |some: &[u32]| v1::ApplyRequest { mutations: some.iter().map(create).collect(), ..Default::default() };
    let parts: Vec<v1::ApplyRequest> = numbers.chunks(5000).map(part).collect();
    client.apply_stream(futures::stream::iter(parts)).await?;
    Ok(())
}

/// Changes a row of its own as fast as it can.
async fn write(mut client: Client, number: u32, counts: Arc<Counts>, stop: Arc<AtomicBool>) {
    let mut weight = 0;
    loop {
        weight = (weight + 1) % 1000;
        let request = v1::UpdateBackendRequest {
            request_id: uuid::Uuid::now_v7().to_string(),
            service: "web".into(),
            address: address(number),
            weight: Some(weight),
            ..Default::default()
        };
        loop {
            match client.update_backend(request.clone()).await {
                Ok(_) => break,
                Err(status) => {
                    counts.refused.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(after(&status, &counts)).await;
                }
            }
        }
        counts.written.fetch_add(1, Ordering::Relaxed);
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Reads the whole table again and again.
async fn list(mut client: Client, counts: Arc<Counts>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let mut request = v1::ListBackendsRequest::default();
        loop {
            match client.list_backends(request.clone()).await {
                Ok(page) => request.page_token = page.into_inner().next_page_token,
                Err(status) => {
                    counts.refused.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(after(&status, &counts)).await;
                }
            }
            if request.page_token.is_empty() || stop.load(Ordering::Relaxed) {
                break;
            }
        }
        counts.lists.fetch_add(1, Ordering::Relaxed);
    }
}

/// When to come again, as the refusal says; one that says nothing of that is wrong.
fn after(status: &tonic::Status, counts: &Counts) -> Duration {
    let details = status.get_error_details();
    let retry = details.retry_info().and_then(|info| info.retry_delay);
    let may_come_about = matches!(status.code(), Code::DeadlineExceeded);
    if retry.is_none()
        && !may_come_about
        && let Ok(mut wrong) = counts.wrong.lock()
    {
        wrong.get_or_insert_with(|| format!("{status}"));
    }
    retry.unwrap_or(Duration::from_millis(200))
}

/// The most memory that a node has had.
pub(crate) fn peak_mib(site: &Site) -> anyhow::Result<u64> {
    let mut most = 0;
    for worker in site.nodes.iter().filter_map(lb_tests::cluster::LbNode::worker) {
        let status = std::fs::read_to_string(format!("/proc/{worker}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        most = most.max(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024);
    }
    Ok(most)
}
