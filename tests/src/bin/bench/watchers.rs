//! What it costs to be watched: the time of a write, and the processor time of the node that tells, with 100 watchers and with none.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use lb_proto::v1::{self, table_service_client::TableServiceClient};
use lb_tests::{
    cluster::LbNode,
    grpc, runner,
    site::{Plan, Site},
};

const WATCHERS: usize = 100;
const WRITES: u32 = 1000;
/// With and without, by turns.
const ROUNDS: usize = 5;

pub(crate) fn watchers() -> anyhow::Result<()> {
    anyhow::ensure!(runner::prepare(), "lbd and lbctl cannot be built");
    println!("Watchers: {WRITES} writes one after the other, to another node than the one that is watched");
    let mut site = Site::build(Plan { nodes: 3, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(round(&site, 0)?);
        with.push(round(&site, WATCHERS)?);
    }
    let [with, without] = [with, without].map(|mut rounds: Vec<(Duration, Duration)>| {
        rounds.sort_unstable();
        rounds[ROUNDS / 2]
    });
    let each = (with.1.as_secs_f64() - without.1.as_secs_f64()) * 1e6 / f64::from(WRITES) / WATCHERS as f64;
    let longer = 100.0 * (with.0.as_secs_f64() / without.0.as_secs_f64() - 1.0);
    println!(
        "  a write takes {:.2} ms without, {:.2} ms with {WATCHERS}: {longer:.0} % longer (medians)",
        without.0.as_secs_f64() * 1e3,
        with.0.as_secs_f64() * 1e3
    );
    println!("  a watcher costs {each:.1} us of processor time a change\n");
    Ok(())
}

/// The median time of a write, and what the watched node has used.
fn round(site: &Site, watchers: usize) -> anyhow::Result<(Duration, Duration)> {
    let watched = &site.nodes[2];
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let socket = watched.socket();
    let reader = thread::Builder::new().name("watchers".into()).spawn(move || -> anyhow::Result<()> {
        // They are on other machines: what they take of this one is not the nodes' to bear.
        let _ = rustix::process::nice(19);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..watchers {
                let mut client = TableServiceClient::new(grpc::connect(socket.clone()).await?);
                let mut messages = client.watch(v1::WatchRequest::default()).await?.into_inner();
                let mut stopped = stopped.clone();
                tasks.spawn(async move {
                    loop {
                        tokio::select! {
                            message = messages.message() => if !matches!(message, Ok(Some(_))) { return },
                            _ = stopped.wait_for(|stop| *stop) => return,
                        }
                    }
                });
            }
            tasks.join_all().await;
            Ok(())
        })
    })?;
    thread::sleep(Duration::from_millis(500));
    let before = processor_time(watched)?;
    let median = median_write(site, WRITES)?;
    let used = processor_time(watched)? - before;
    stop.send_replace(true);
    reader.join().map_err(|_| anyhow::anyhow!("the watchers panicked"))??;
    Ok((median, used))
}

/// The median time of writes by the first node, one after the other.
pub(crate) fn median_write(site: &Site, count: u32) -> anyhow::Result<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = TableServiceClient::new(grpc::connect(site.nodes[0].socket()).await?);
        let mut times = Vec::new();
        for number in 0..count {
            let request = v1::UpdateBackendRequest {
                service: "web".into(),
                address: site.servers[0].address.to_string(),
                weight: Some(1 + number % 2),
                ..Default::default()
            };
            let begun = Instant::now();
            client.update_backend(request).await?;
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        Ok(times[times.len() / 2])
    })
}

/// Of all the daemon's threads.
fn processor_time(node: &LbNode) -> anyhow::Result<Duration> {
    let worker = node.worker().context("the daemon does not run")?;
    let mut all = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{worker}/task"))? {
        // One that has just ended has nothing to say.
        let Ok(schedstat) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        let spent = schedstat.split(' ').next().and_then(|spent| spent.parse().ok());
        all += Duration::from_nanos(spent.context("schedstat")?);
    }
    Ok(all)
}
