//! A fault campaign of any length: `cargo lb-campaign`.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lb_tests::{
    binaries,
    campaign::{Options, Report, run},
    runner,
};

const USAGE: &str = "usage: cargo lb-campaign [--nodes 3|5] [--minutes N] [--seed N] [--only WORD] [--plant BUG]

Builds a cluster in network namespaces and lets random troubles happen to it: processes killed and stopped,
links down, cables cut in one direction or both, partitions, full disks, restarts, nodes removed and added,
VIPs moved, deleted and created again; under UDP, TCP and writes. Fails at the first VIP with two owners,
the first lost or stale write, and the first round after which not every VIP is answered within 10 seconds.
--nodes: the size of the cluster (default 3).  --minutes: how long (default 5).
--seed: which troubles; it is printed.  --only: troubles whose name contains the word.
--plant: builds lbd with a fault put in on purpose (ActsWithoutLease), which the campaign must find.";

fn main() -> ExitCode {
    let Some(options) = read(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if options.plant.is_some() {
        binaries::plant_faults();
    }
    if !runner::prepare() {
        return ExitCode::FAILURE;
    }
    println!("seed {}, {} nodes, {} minutes", options.seed, options.nodes, options.span.as_secs() / 60);
    match run(&options, |line| println!("{line}")) {
        Ok(report) => {
            print(&report);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("BROKEN: {error:#}");
            eprintln!("again: cargo lb-campaign --nodes {} --seed {}", options.nodes, options.seed);
            ExitCode::FAILURE
        }
    }
}

fn read(mut arguments: impl Iterator<Item = String>) -> Option<Options> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let mut options = Options {
        nodes: 3,
        span: Duration::from_secs(300),
        rounds: usize::MAX,
        seed: now.as_secs(),
        only: String::new(),
        plant: None,
    };
    while let Some(name) = arguments.next() {
        let value = arguments.next()?;
        match name.as_str() {
            "--nodes" => options.nodes = value.parse().ok().filter(|nodes| [3, 5].contains(nodes))?,
            "--minutes" => options.span = Duration::from_secs(60 * value.parse::<u64>().ok()?),
            "--seed" => options.seed = value.parse().ok()?,
            "--only" => options.only = value,
            "--plant" => options.plant = Some(value),
            _ => return None,
        }
    }
    Some(options)
}

/// The longest time without an answer, by what happened.
fn print(report: &Report) {
    const EDGES_MS: [u128; 6] = [10, 50, 100, 200, 500, 1000];
    let heads: Vec<String> = EDGES_MS.iter().map(|edge| format!("<{edge}")).collect();
    println!("\n{:<32} {:>6} {:>6}  gaps in ms {}   more", "trouble", "times", "max", heads.join("  "));
    for (name, gaps) in &report.troubles {
        let mut counts = [0; EDGES_MS.len() + 1];
        for gap in gaps {
            counts[EDGES_MS.iter().position(|edge| gap.as_millis() < *edge).unwrap_or(EDGES_MS.len())] += 1;
        }
        let max = gaps.iter().max().copied().unwrap_or_default().as_millis();
        let counts: Vec<String> = counts.iter().map(|count| format!("{count:>5}")).collect();
        println!("{name:<32} {:>6} {max:>6}           {}", gaps.len(), counts.join(""));
    }
    let longest = report.settled.iter().max().copied().unwrap_or_default();
    println!(
        "\n{} rounds; 0 VIPs with two owners; {} acknowledged writes, 0 lost; {} linearizable reads; {} requests on a \
         TCP connection that broke {} times; {} storms of verdicts, the tables alike after each; \
         the table followed without a gap over {} connections, {} times from the beginning; {} answers in hand after SIGCONT; all well again after {} ms at the latest",
        report.rounds,
        report.writes,
        report.reads,
        report.requests,
        report.broken,
        report.storms,
        report.followed.0,
        report.followed.1,
        report.in_hand,
        longest.as_millis()
    );
}
