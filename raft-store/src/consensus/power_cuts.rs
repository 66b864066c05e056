//! A rack loses its power: all three nodes of a cluster stop in the same moment, while they write, and each disk keeps what a
//! power cut can leave of it. They start again by themselves, with every write that was acknowledged and no vote forgotten.
//!
//! `LB_POWER_CUT_ROUNDS=100 cargo test --release -p lb-raft-store rack -- --nocapture` for a long run.

use std::{
    collections::BTreeMap,
    env,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::{
    Consensus, Lane, Settings, Speaker, StoreReport, Transport, TransportError, inspect,
    raft::Vote,
    store::{
        camera::{Camera, Image, put},
        keys::WITNESS_FILE,
        watermark::WatermarkFile,
    },
    table::{BOOTSTRAP_NODE, Body, Mutation, Role, Unmatched, VipSettings},
};

const ROUNDS: u64 = 4;
const NODES: usize = 3;
/// A write, or a start of the whole cluster, must not take longer; the goal for a start is 5 s on a quiet machine.
const SOON: Duration = Duration::from_secs(30);
/// The log is short, so that snapshots and purges happen in each round.
const LOG_BYTES: u64 = 3000;

/// The nodes' network, in this process.
#[derive(Default)]
struct Rack(Mutex<BTreeMap<String, Consensus>>);

impl Transport for Rack {
    fn call(
        &self,
        address: &str,
        _: Option<&str>,
        _: Lane,
        message: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, TransportError>> {
        let (node, address) = (self.0.lock().unwrap().get(address).cloned(), address.to_owned());
        Box::pin(async move {
            let gone =
                |reason: &str| TransportError::Unreachable { address: address.clone(), reason: reason.to_owned() };
            let node = node.ok_or_else(|| gone("it has no power"))?;
            tokio::time::timeout(timeout, async { node.serve(&Speaker::Anybody, &message).await.message })
                .await
                .map_err(|_| gone("it takes too long"))
        })
    }
}

fn address(node: usize) -> String {
    format!("192.0.2.{}:7401", node + 1)
}

fn settings(dir: &TempDir, node: usize) -> Settings {
    Settings {
        cluster_name: "lb".parse().unwrap(),
        name: format!("lb{}", node + 1).parse().unwrap(),
        role: Role::Lb,
        address: address(node),
        data_dir: dir.path().to_owned(),
        bootstrap: node == 0,
        log_bytes: LOG_BYTES,
    }
}

type Disk = Arc<Camera<()>>;

async fn start(dirs: &[TempDir], rack: &Arc<Rack>) -> (Vec<Consensus>, Vec<Disk>) {
    let (mut nodes, mut disks) = (Vec::new(), Vec::new());
    for (node, dir) in dirs.iter().enumerate() {
        let disk = Arc::new(Camera::new(dir.path(), Arc::default(), false));
        let started = Consensus::start_on(settings(dir, node), rack.clone(), disk.clone()).await;
        let started = started.unwrap_or_else(|error| panic!("lb{} does not start by itself: {error}", node + 1));
        rack.0.lock().unwrap().insert(address(node), started.clone());
        nodes.push(started);
        disks.push(disk);
    }
    (nodes, disks)
}

fn vip(number: u32) -> VipSettings {
    let address = Ipv4Addr::from(0x0a00_0001 + number).into();
    VipSettings { address, prefer: None, segment: None, unmatched: Unmatched::Drop }
}

async fn write(node: &Consensus, number: u32) -> bool {
    let command = Body::Mutate(vec![Mutation::CreateVip(vip(number))]).into();
    node.propose(&command, Instant::now() + SOON).await.is_ok_and(|reply| reply.result.is_ok())
}

async fn all_there(node: &Consensus, acknowledged: u32, round: u64) {
    let view = node.read(Instant::now() + SOON).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
    for number in 0..acknowledged {
        assert!(view.table.vip(vip(number).address).is_some(), "round {round}: write {number} is lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rack_without_power_needs_nobody() {
    let rounds = env::var("LB_POWER_CUT_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    let mut random = fastrand::Rng::with_seed(5);
    let mut dirs: Vec<TempDir> = (0..NODES).map(|_| tempfile::tempdir().unwrap()).collect();
    let rack = Arc::new(Rack::default());
    let (mut nodes, mut disks) = start(&dirs, &rack).await;
    let until = Instant::now() + SOON;
    while nodes[0].view().table.node(BOOTSTRAP_NODE).is_none() {
        assert!(Instant::now() < until, "the cluster does not begin");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for node in 1..NODES {
        let name = format!("lb{}", node + 1).parse().unwrap();
        nodes[0].add_node(&name, Role::Lb, &address(node), Instant::now() + SOON).await.unwrap();
    }
    // Each write has the next number, so all below this one were acknowledged.
    let acknowledged = Arc::new(AtomicU32::new(0));
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let writing = {
            let (nodes, acknowledged) = (nodes.clone(), acknowledged.clone());
            tokio::spawn(async move {
                // The last one of the round before may have been done, and not acknowledged.
                for number in acknowledged.load(Ordering::SeqCst).. {
                    let node = &nodes[number as usize % NODES];
                    let is_there = |view: &crate::View| view.table.vip(vip(number).address).is_some();
                    if !is_there(&node.view()) && !write(node, number).await {
                        return;
                    }
                    acknowledged.store(number + 1, Ordering::SeqCst);
                }
            })
        };
        let wanted = acknowledged.load(Ordering::SeqCst) + random.u32(3..30);
        let until = Instant::now() + SOON;
        while acknowledged.load(Ordering::SeqCst) < wanted {
            assert!(Instant::now() < until, "round {round}: the cluster does not write");
            tokio::time::sleep(Duration::from_micros(random.u64(100..2000))).await;
        }
        let images: Vec<Image> = disks.iter().map(|disk| disk.cut_power(&mut random)).collect();
        let known = acknowledged.load(Ordering::SeqCst);
        // Written after the journal was synced: each vote in it was durable.
        let witness = |dir: &TempDir| WatermarkFile::open(&dir.path().join(WITNESS_FILE)).unwrap().1.vote;
        let votes: Vec<_> = dirs.iter().map(witness).collect();
        writing.abort();
        rack.0.lock().unwrap().clear();
        for node in nodes.drain(..) {
            node.shutdown().await;
        }
        dirs = images
            .iter()
            .map(|image| {
                let dir = tempfile::tempdir().unwrap();
                put(dir.path(), image);
                dir
            })
            .collect();
        for (node, dir) in dirs.iter().enumerate() {
            let StoreReport { vote, damage, .. } = inspect(dir.path()).unwrap();
            assert!(damage.is_empty(), "round {round}: {damage:?}");
            let vote = vote.map(|(term, node, committed)| match committed {
                true => Vote::new_committed(term, node),
                false => Vote::new(term, node),
            });
            assert!(
                vote >= votes[node],
                "round {round}: lb{} has forgotten its vote {:?}: {vote:?}",
                node + 1,
                votes[node]
            );
        }
        let begun = Instant::now();
        (nodes, disks) = start(&dirs, &rack).await;
        all_there(&nodes[round as usize % NODES], known, round).await;
        slowest = slowest.max(begun.elapsed());
    }
    let writes = acknowledged.load(Ordering::SeqCst);
    println!("{rounds} rounds, {writes} acknowledged writes, 0 lost; served again after at most {slowest:?}");
    for node in &nodes {
        node.shutdown().await;
    }
}
