//! The benchmark: `cargo lb-bench`. Packets forwarded per second at a saturating rate, all load-balancer work on one
//! core, each engine and its peers in one run; then what many VIPs, many flows and new flows cost, the latency at low
//! load, and bulk TCP. What a packet costs without the kernel: `cargo bench -p lb-dataplane`.
//!
//! Absolute numbers are those of this machine; quote the ratios.

mod bulk;
mod chain;
mod forwarders;
mod latency;

use std::{process::ExitCode, thread};

use lb_dataplane::{
    io::EngineKind,
    packet::{Mac, Protocol},
};
use lb_tests::sys;

use crate::{
    bulk::Segment,
    chain::{Chain, Figures, KNOWN_FLOWS, LB_CPU, LB_MAC, Load, VIP, keep_awake},
    forwarders::{Forwarder, Site},
};

const BACKENDS: u8 = 8;
const ROUNDS: usize = 3;
const RING: Forwarder = Forwarder::Engine(EngineKind::Ring);
const ENGINES: [Forwarder; 3] = [RING, Forwarder::Engine(EngineKind::Multishot), Forwarder::Engine(EngineKind::Mmsg)];
/// Of [`Load::flows`], so many that each packet opens another one.
const NEW_FLOWS: u32 = 1 << 28;

const HELP: &str = "usage: cargo lb-bench [saturation | tables | latency | bulk]...

Measures on two cores: one does all load-balancer work, the other one generates and swallows the packets. As root, for
XDP, pinned kernel threads and nftables; as an ordinary user the figures flatter everyone. Without arguments all tables
are printed, which takes some six minutes.";

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    type Part = fn() -> anyhow::Result<()>;
    let parts: [(&str, Part); 4] =
        [("saturation", saturation), ("tables", tables), ("latency", latencies), ("bulk", bulk)];
    if wanted.iter().any(|word| parts.iter().all(|(name, _)| name != word)) {
        let asked_for = wanted.iter().any(|word| word == "--help" || word == "-h");
        eprintln!("{HELP}");
        return if asked_for { ExitCode::SUCCESS } else { ExitCode::from(64) };
    }
    if cfg!(debug_assertions) {
        eprintln!("a debug build measures nothing: use 'cargo lb-bench'");
        return ExitCode::FAILURE;
    }
    let run = || {
        sys::gain_namespace_rights()?;
        anyhow::ensure!(thread::available_parallelism()?.get() >= 2, "two cores are needed");
        for (name, part) in parts {
            if wanted.is_empty() || wanted.iter().any(|word| word == name) {
                part()?;
            }
        }
        anyhow::Ok(())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("not measured: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn site(chain: &Chain, vips: u32) -> Site {
    Site {
        namespace: chain.lb.clone(),
        interface: "l0",
        ifindex: chain.lb_ifindex,
        mac: LB_MAC,
        vip: VIP,
        vips,
        protocol: Protocol::Udp,
        port: 53,
        backends: (1..=BACKENDS).map(|number| Mac([2, 0, 0, 0, 1, number])).collect(),
    }
}

/// The median of several rounds, by what was forwarded.
fn median(chain: &Chain, forwarder: Forwarder, load: &Load) -> anyhow::Result<Figures> {
    let site = site(chain, load.vips);
    let destination = if forwarder == Forwarder::Bridge { site.backends[0] } else { load.destination };
    let load = Load { destination, ..*load };
    let round = |_| forwarder.during(&site, || chain.measure(&load, forwarder.threads()));
    let mut rounds = keep_awake(LB_CPU, || (0..ROUNDS).map(round).collect::<anyhow::Result<Vec<_>>>())?;
    rounds.sort_by(|one, other| one.forwarded.total_cmp(&other.forwarded));
    Ok(rounds[ROUNDS / 2])
}

/// Those that can run here.
fn present(forwarders: &[Forwarder]) -> Vec<Forwarder> {
    let is_present = |forwarder: &&Forwarder| match forwarder.missing() {
        None => true,
        Some(why) => {
            println!("  {forwarder}: {why}");
            false
        }
    };
    forwarders.iter().filter(is_present).copied().collect()
}

fn saturation() -> anyhow::Result<()> {
    println!("Forwarded packets a second at saturation, one core, {KNOWN_FLOWS} UDP flows, median of {ROUNDS}");
    println!("and microseconds of the core a packet of 60 bytes, in the process and in the kernel's receiving thread");
    let chain = Chain::build(true)?;
    let [ring, multishot, mmsg] = ENGINES;
    let others = [Forwarder::Reference, Forwarder::Nftables, Forwarder::Bridge];
    let mut rows: Vec<(Forwarder, Vec<Figures>)> = Vec::new();
    for forwarder in present(&[others[0], mmsg, multishot, ring, others[1], others[2]]) {
        let sizes = [60, 512, 1400].map(|size| median(&chain, forwarder, &Load { size, ..Load::default() }));
        rows.push((forwarder, sizes.into_iter().collect::<anyhow::Result<_>>()?));
    }
    let of = |wanted| rows.iter().find(|(forwarder, _)| *forwarder == wanted).map(|(_, figures)| figures[0].forwarded);
    println!(
        "  {:22} {:>9} {:>10} {:>10} {:>11} {:>6} {:>8} {:>8}",
        "", "60 bytes", "512 bytes", "1400 bytes", "x recvmmsg", "x nft", "process", "softirq"
    );
    for (forwarder, figures) in &rows {
        let small = figures[0];
        let ratio = |to: Option<f64>| to.map_or_else(|| "-".to_owned(), |to| format!("{:.2}", small.forwarded / to));
        println!(
            "  {:22} {:9.0} {:10.0} {:10.0} {:>11} {:>6} {:8.2} {:8.2}",
            forwarder.to_string(),
            small.forwarded,
            figures[1].forwarded,
            figures[2].forwarded,
            ratio(of(Forwarder::Reference)),
            ratio(of(Forwarder::Nftables)),
            small.process_us,
            small.softirq_us
        );
    }
    Ok(())
}

fn tables() -> anyhow::Result<()> {
    println!("\nThe ring engine, 60 bytes: many VIPs, many flows, and only new flows");
    let chain = Chain::build(true)?;
    let mut first = None;
    let loads =
        [(1, KNOWN_FLOWS), (100, KNOWN_FLOWS), (1000, KNOWN_FLOWS), (1, 1 << 20), (1000, 1 << 20), (1, NEW_FLOWS)];
    println!("  {:>6} {:>12} {:>10} {:>10} {:>8}", "VIPs", "flows", "packets/s", "x first", "process");
    for (vips, flows) in loads {
        let figures = median(&chain, RING, &Load { vips, flows, ..Load::default() })?;
        let known = *first.get_or_insert(figures.forwarded);
        let flows = if flows == NEW_FLOWS { "only new".to_owned() } else { flows.to_string() };
        let ratio = figures.forwarded / known;
        println!("  {vips:6} {flows:>12} {:10.0} {ratio:10.2} {:8.2}", figures.forwarded, figures.process_us);
    }
    Ok(())
}

fn latencies() -> anyhow::Result<()> {
    println!("\nA frame there and back, one at a time, microseconds");
    let chain = Chain::build(false)?;
    let site = site(&chain, 1);
    println!("  {:22} {:>8} {:>8}", "", "p50", "p99");
    for forwarder in present(&[Forwarder::Nftables, Forwarder::Bridge, RING, ENGINES[1], ENGINES[2]]) {
        let (p50, p99) = keep_awake(LB_CPU, || latency::round_trip(&chain, &site, forwarder))?;
        println!("  {:22} {p50:8.1} {p99:8.1}", forwarder.to_string());
    }
    Ok(())
}

fn bulk() -> anyhow::Result<()> {
    println!("\nOne TCP connection with default offloads, gigabits a second, median of {ROUNDS}");
    let segment = Segment::build()?;
    let median = |forwarder| -> anyhow::Result<f64> {
        let mut rates = (0..ROUNDS).map(|_| segment.measure(forwarder)).collect::<anyhow::Result<Vec<_>>>()?;
        rates.sort_by(f64::total_cmp);
        Ok(rates[ROUNDS / 2])
    };
    println!("  {:22} {:8.1}", "past the balancer", median(None)?);
    let mut nftables = None;
    for forwarder in present(&[Forwarder::Nftables, Forwarder::Reference, RING, ENGINES[1], ENGINES[2]]) {
        let rate = median(Some(forwarder))?;
        let fwd = *nftables.get_or_insert(rate);
        println!("  {:22} {rate:8.1} {:8.2} x nft", forwarder.to_string(), rate / fwd);
    }
    Ok(())
}
