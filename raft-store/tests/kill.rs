//! kill -9 in the middle of writes, again and again: what was acknowledged is there. The writer is this program
//! itself, started with a variable in its environment.

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command as Process, Stdio},
    sync::Arc,
    time::Duration,
};

use lb_raft_store::{
    Consensus, Nobody, Settings,
    table::{Body, Command, Mutation, Role, Unmatched, VipSettings},
};
use tokio::time::Instant;

const WRITER: &str = "LB_KILL_WRITER";
/// How many rounds; LB_KILL_ROUNDS=200 takes about a minute.
const ROUNDS: &str = "LB_KILL_ROUNDS";
const SOON: Duration = Duration::from_secs(20);

async fn start(dir: &Path) -> Consensus {
    let settings = Settings {
        cluster_name: "lb".parse().unwrap(),
        name: "lb1".parse().unwrap(),
        role: Role::Lb,
        address: "127.0.0.1:1".into(),
        data_dir: dir.to_owned(),
        bootstrap: true,
        log_bytes: Settings::LOG_BYTES,
    };
    Consensus::start(settings, Arc::new(Nobody)).await.expect("the store opens, whenever its process was killed")
}

/// The number of the last VIP whose creation is in the table, and none is missing before it.
async fn present(consensus: &Consensus) -> u32 {
    let view = consensus.read(Instant::now() + SOON).await.unwrap();
    let numbers: Vec<u32> = view
        .table
        .vips()
        .map(|vip| match vip.settings.address {
            std::net::IpAddr::V4(address) => u32::from(address) - FIRST,
            std::net::IpAddr::V6(_) => 0,
        })
        .collect();
    assert!(numbers.iter().copied().eq(0..numbers.len() as u32), "one is missing: {numbers:?}");
    numbers.len() as u32
}

/// 10.0.0.1; the table holds 4096 of them.
const FIRST: u32 = 0x0a00_0001;
const MOST: u32 = 4000;

/// Writes and says what was acknowledged, until it is killed.
async fn write(dir: PathBuf) {
    let consensus = start(&dir).await;
    let first = present(&consensus).await;
    println!("present {first}");
    for number in first..MOST {
        let address = std::net::Ipv4Addr::from(FIRST + number).into();
        let vip = VipSettings { address, prefer: None, segment: None, unmatched: Unmatched::Drop };
        let mutations = vec![Mutation::CreateVip(vip)];
        let command = Command::from(Body::Mutate(mutations));
        consensus.propose(&command, Instant::now() + SOON).await.unwrap().result.unwrap();
        println!("acknowledged {}", number + 1);
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Ok(dir) = env::var(WRITER) {
        return runtime.block_on(write(dir.into()));
    }
    let rounds: u32 = env::var(ROUNDS).map_or(60, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut known = 0;
    for round in 0..rounds {
        let mut child = Process::new(env::current_exe().unwrap())
            .args(["nothing_acknowledged_is_lost_by_kill_9", "--exact", "--nocapture"])
            .env(WRITER, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // After a different number of acknowledgements each time, so at a different moment of a write.
        let mut wanted = 1 + round * 7 % 23;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            // The test harness writes its own words in front of the first line.
            let number = |word: &str| line.rsplit_once(word).and_then(|(_, number)| number.trim().parse::<u32>().ok());
            if let Some(present) = number("present ") {
                assert!(present >= known, "round {round}: {known} were acknowledged and {present} are there");
                known = present;
            }
            if let Some(acknowledged) = number("acknowledged ") {
                known = acknowledged;
                wanted -= 1;
            }
            if wanted == 0 || known == MOST {
                child.kill().unwrap();
                break;
            }
        }
        child.wait().unwrap();
    }
    println!("{rounds} rounds, {known} acknowledged writes, 0 lost");
    assert!(known >= rounds);
}
