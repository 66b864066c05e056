//! The benchmark: `cargo lb-bench`. Packets forwarded per second at a saturating rate, all load-balancer work on one
//! core, each engine and its peers in one run; the accelerator beside them; then what many VIPs, many flows and new flows cost, the latency at low
//! load, bulk TCP, and what health checks, watchers, pages and TLS cost. What a packet costs without the kernel: `cargo bench -p lb-dataplane`.
//!
//! Absolute numbers are those of this machine; quote the ratios.

mod bulk;
mod chain;
mod checks;
mod forwarders;
mod helper;
mod latency;
mod pages;
mod tls;
mod watchers;

use std::{process::ExitCode, thread, time::Duration};

use lb_dataplane::{
    Config, Dataplane, XdpMode,
    guard::{self, Guard},
    io::EngineKind,
    packet::{Mac, Protocol},
    verdict::DropReason,
};
use lb_tests::sys;

use crate::{
    bulk::Segment,
    chain::{Chain, FEW_FLOWS, Figures, GENERATOR_CPU, KNOWN_FLOWS, LB_CPU, LB_MAC, Load, VIP},
    forwarders::{Forwarder, Manner, Site, with_engine},
    helper::{Helper, Task},
};

const BACKENDS: u8 = 8;
/// Odd, so that there is a median.
const ROUNDS: usize = 5;
const RING: Forwarder = Forwarder::Engine(EngineKind::Ring);
/// In the driver.
const ACCELERATOR: Forwarder = Forwarder::Accelerated(XdpMode::Native);
const ENGINES: [Forwarder; 3] = [RING, Forwarder::Engine(EngineKind::Multishot), Forwarder::Engine(EngineKind::Mmsg)];
/// Until a worker's counters are up to date.
const COUNTED: Duration = Duration::from_millis(300);
/// Until a million flows are known, and the memory for them is there.
const LEARNING: Duration = Duration::from_millis(4000);
/// Until hardly one of them is unknown to the accelerator: it leaves 50,000 frames of unknown flows a second to the worker, which
/// enters each with the second.
const LEARNING_TWICE: Duration = Duration::from_millis(45_000);
/// Of [`Load::flows`], so many that each packet opens another one.
const NEW_FLOWS: u32 = 1 << 28;

const HELP: &str =
    "usage: cargo lb-bench [saturation | accelerator | tables | captures | headroom | latency | bulk | checks | watchers | pages | tls]...

Measures on two cores: one does all load-balancer work, the other one generates and swallows the packets. As root, for
XDP, pinned kernel threads and nftables; as an ordinary user the figures flatter everyone. Without arguments all tables
are printed, which takes some twenty minutes.";

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(outcome) = helper::run(&wanted) {
        return outcome.map_or_else(
            |error| {
                eprintln!("a helper of the benchmark: {error}");
                ExitCode::FAILURE
            },
            |()| ExitCode::SUCCESS,
        );
    }
    type Part = fn() -> anyhow::Result<()>;
    let parts: [(&str, Part); 11] = [
        ("saturation", saturation),
        ("accelerator", accelerator),
        ("tables", tables),
        ("captures", captures),
        ("headroom", headroom),
        ("latency", latencies),
        ("bulk", bulk),
        ("checks", checks::checks),
        ("watchers", watchers::watchers),
        ("pages", pages::pages),
        ("tls", tls::tls),
    ];
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

fn site(chain: &Chain, load: &Load, flow_capacity: usize) -> Site {
    Site {
        namespace: chain.lb.clone(),
        interface: "l0",
        ifindex: chain.lb_ifindex,
        mac: LB_MAC,
        vip: VIP,
        vips: load.vips,
        protocol: load.protocol,
        port: 53,
        backends: (1..=BACKENDS).map(|number| Mac([2, 0, 0, 0, 1, number])).collect(),
        flow_capacity,
        cpu: LB_CPU,
    }
}

/// One measurement.
fn measure(chain: &Chain, forwarder: Forwarder, load: &Load, flow_capacity: usize) -> anyhow::Result<Figures> {
    let site = site(chain, load, flow_capacity);
    let destination = if forwarder == Forwarder::Bridge { site.backends[0] } else { load.destination };
    let load = Load { destination, ..*load };
    forwarder.during(&site, || chain.measure(&load, forwarder.threads()))
}

/// Of an odd number of values.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
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
    println!(
        "Forwarded packets a second at saturation, one core, {KNOWN_FLOWS} UDP flows; medians of {ROUNDS} rounds, also"
    );
    println!(
        "of the ratios within a round; microseconds of the core a packet in the process and in the receiving thread"
    );
    let chain = Chain::build(true)?;
    let _awake = Helper::start(&chain.lb, &Task::KeepAwake { cpu: LB_CPU })?;
    let [ring, multishot, mmsg] = ENGINES;
    let [realtime, two] = [Forwarder::Realtime(EngineKind::Ring), Forwarder::TwoWorkers(EngineKind::Ring)];
    let kernel = [Forwarder::Nftables, Forwarder::Bridge];
    let rows = present(&[Forwarder::Reference, mmsg, multishot, ring, two, realtime, kernel[0], kernel[1]]);
    for size in [60, 512, 1400] {
        let rounds =
            rounds(&rows, |forwarder| measure(&chain, *forwarder, &Load { size, ..Load::default() }, FEW_FLOWS))?;
        let forwarded = |round: &[Figures], wanted: Forwarder| {
            rows.iter().position(|row| *row == wanted).map_or(f64::NAN, |at| round[at].forwarded)
        };
        println!(
            "  {:22} {:>10} {:>11} {:>6} {:>8} {:>8}",
            format!("{size} bytes"),
            "packets/s",
            "x recvmmsg",
            "x nft",
            "process",
            "softirq"
        );
        for (at, forwarder) in rows.iter().enumerate() {
            let of = |figure: fn(&Figures) -> f64| median(rounds.iter().map(|round| figure(&round[at])));
            let ratio = |to| median(rounds.iter().map(|round| round[at].forwarded / forwarded(round, to)));
            println!(
                "  {:22} {:10.0} {:11.2} {:6.2} {:8.2} {:8.2}",
                forwarder.to_string(),
                of(|figures| figures.forwarded),
                ratio(Forwarder::Reference),
                ratio(Forwarder::Nftables),
                of(|figures| figures.process_us),
                of(|figures| figures.softirq_us)
            );
        }
    }
    Ok(())
}

/// More than a bare program sends back on one core.
const FLOOD: u64 = 8_000_000;
/// What a site of some size has.
const MODERATE: u64 = 200_000;

fn accelerator() -> anyhow::Result<()> {
    println!(
        "\nThe accelerator (XDP in the driver): microseconds of one core a forwarded packet, all of receiving and sending in it"
    );
    println!("included; medians of {ROUNDS} rounds, also of the ratios within a round");
    let chain = Chain::build(true)?;
    let _awake = Helper::start(&chain.lb, &Task::KeepAwake { cpu: LB_CPU })?;
    const ROOMY: usize = Config::DEFAULT_FLOW_CAPACITY;
    let rows = present(&[Forwarder::Reflector, ACCELERATOR, RING, Forwarder::Nftables]);
    let flood = Load { offered: FLOOD, ..Load::default() };
    let million = Load { vips: 1000, flows: 1 << 20, warm_up: LEARNING, ..flood };
    let loads = [
        ("60 bytes, 16384 flows", flood),
        ("512 bytes", Load { size: 512, ..flood }),
        ("1400 bytes", Load { size: 1400, ..flood }),
        ("1000 VIPs, 1 million flows", million),
        ("only new flows", Load { flows: NEW_FLOWS, ..flood }),
        ("a flood of SYNs", Load { flows: NEW_FLOWS, protocol: Protocol::Tcp, ..flood }),
        ("200000 packets a second", Load { offered: MODERATE, ..flood }),
    ];
    for (name, load) in loads {
        let rounds = rounds(&rows, |forwarder| {
            let learns = *forwarder == ACCELERATOR && load.warm_up == LEARNING;
            let warm_up = if learns { LEARNING_TWICE } else { load.warm_up };
            measure(&chain, *forwarder, &Load { warm_up, ..load }, ROOMY)
        })?;
        let cost = |of: &Figures| of.process_us + of.softirq_us * of.received / of.forwarded;
        let row = |wanted| rows.iter().position(|row| *row == wanted);
        println!("  {name:28} {:>10} {:>8} {:>8} {:>8} {:>12}", "packets/s", "us", "x ring", "x nft", "of reflector");
        for (at, forwarder) in rows.iter().enumerate() {
            let forwarded = median(rounds.iter().map(|round| round[at].forwarded));
            let us = median(rounds.iter().map(|round| cost(&round[at])));
            let against = |wanted| {
                let of = |round: &Vec<Figures>| row(wanted).map_or(f64::NAN, |to| cost(&round[to]) / cost(&round[at]));
                median(rounds.iter().map(of))
            };
            let [ring, nft, bare] = [RING, Forwarder::Nftables, Forwarder::Reflector].map(against);
            println!("  {:28} {forwarded:10.0} {us:8.2} {ring:8.2} {nft:8.2} {bare:12.2}", forwarder.to_string());
        }
    }
    Ok(())
}

/// Measures each of several things, round after round: machines change their speed from minute to minute, and what
/// is compared has to be near in time.
fn rounds<T>(things: &[T], measure: impl Fn(&T) -> anyhow::Result<Figures>) -> anyhow::Result<Vec<Vec<Figures>>> {
    (0..ROUNDS).map(|_| things.iter().map(&measure).collect()).collect()
}

fn tables() -> anyhow::Result<()> {
    println!("\nThe ring engine, 60 bytes: many VIPs, many flows, and only new flows; medians of {ROUNDS} rounds");
    let chain = Chain::build(true)?;
    let _awake = Helper::start(&chain.lb, &Task::KeepAwake { cpu: LB_CPU })?;
    const ROOMY: usize = Config::DEFAULT_FLOW_CAPACITY;
    let loads = [
        (1, KNOWN_FLOWS, ROOMY),
        (100, KNOWN_FLOWS, ROOMY),
        (1000, KNOWN_FLOWS, ROOMY),
        (1, 1 << 20, ROOMY),
        (1000, 1 << 20, ROOMY),
        (1, NEW_FLOWS, ROOMY),
        // Full long before it is measured: each new flow takes the place of another one.
        (1, NEW_FLOWS, FEW_FLOWS),
    ];
    let rounds = rounds(&loads, |(vips, flows, capacity)| {
        let load = Load { vips: *vips, flows: *flows, warm_up: LEARNING, ..Load::default() };
        measure(&chain, RING, &load, *capacity)
    })?;
    println!("  {:>6} {:>14} {:>10} {:>8} {:>8}", "VIPs", "flows", "packets/s", "x first", "process");
    for (at, (vips, flows, capacity)) in loads.into_iter().enumerate() {
        let flows = match (flows, capacity) {
            (NEW_FLOWS, ROOMY) => "only new".to_owned(),
            (NEW_FLOWS, _) => "new, no room".to_owned(),
            _ => flows.to_string(),
        };
        let forwarded = median(rounds.iter().map(|round| round[at].forwarded));
        let ratio = median(rounds.iter().map(|round| round[at].forwarded / round[0].forwarded));
        let process = median(rounds.iter().map(|round| round[at].process_us));
        println!("  {vips:6} {flows:>14} {forwarded:10.0} {ratio:8.2} {process:8.2}");
    }
    Ok(())
}

fn captures() -> anyhow::Result<()> {
    println!("\nThe ring engine, 60 bytes, while somebody captures ('lbctl capture'); medians of {ROUNDS} rounds");
    let chain = Chain::build(true)?;
    let _awake = Helper::start(&chain.lb, &Task::KeepAwake { cpu: LB_CPU })?;
    let rows = [RING, Forwarder::Captured { only_drops: false }, Forwarder::Captured { only_drops: true }];
    let rounds = rounds(&rows, |forwarder| measure(&chain, *forwarder, &Load::default(), FEW_FLOWS))?;
    println!("  {:22} {:>10} {:>9}", "", "packets/s", "x without");
    for (at, forwarder) in rows.iter().enumerate() {
        let forwarded = median(rounds.iter().map(|round| round[at].forwarded));
        let ratio = median(rounds.iter().map(|round| round[at].forwarded / round[0].forwarded));
        println!("  {:22} {forwarded:10.0} {ratio:9.2}", forwarder.to_string());
    }
    Ok(())
}

fn headroom() -> anyhow::Result<()> {
    println!("\nThe ring engine at 80 % of what it has just forwarded at saturation, 60 bytes; packets a second");
    let chain = Chain::build(true)?;
    let _awake = Helper::start(&chain.lb, &Task::KeepAwake { cpu: LB_CPU })?;
    let site = site(&chain, &Load::default(), FEW_FLOWS);
    let lost = |dataplane: &Dataplane| {
        thread::sleep(COUNTED);
        let report = dataplane.report();
        let failed = report.drops.iter().find(|(reason, _)| *reason == DropReason::SendFailed);
        (report.totals.ring_full, failed.map_or(0, |(_, count)| *count))
    };
    println!(
        "  {:>10} {:>10} {:>10} {:>16} {:>12}",
        "saturated", "received", "forwarded", "lost at the ring", "sends failed"
    );
    for _ in 0..ROUNDS {
        with_engine(&site, EngineKind::Ring, Manner::Usual, |dataplane| {
            let saturated = chain.measure(&Load::default(), RING.threads())?.forwarded;
            let offer = |offered: f64| {
                let load = Load { offered: offered as u64, ..Load::default() };
                chain.measure(&load, RING.threads())
            };
            let wanted = saturated * 0.8;
            // The generator sends somewhat less than it was told.
            let told = wanted * wanted / offer(wanted)?.received;
            let before = lost(dataplane);
            let Figures { received, forwarded, .. } = offer(told)?;
            let after = lost(dataplane);
            let (ring, failed) = (after.0 - before.0, after.1 - before.1);
            println!("  {saturated:10.0} {received:10.0} {forwarded:10.0} {ring:16} {failed:12}");
            Ok(())
        })?;
    }
    // Nobody forwards: the guard drops them.
    let mut guard = site.namespace.enter(|| Guard::keep(guard::Ownership::Own))?;
    guard.install(&[site.interface.into()], &[site.vip.into()])?;
    let alone = chain.measure(&Load { offered: 8_000_000, ..Load::default() }, "");
    guard.remove()?;
    println!("  the generator alone, into a dropping rule: {:.0} a second", alone?.received);
    Ok(())
}

fn latencies() -> anyhow::Result<()> {
    println!("\nA frame there and back, one at a time, microseconds; medians of {ROUNDS} rounds");
    let [ring, multishot, mmsg] = ENGINES;
    // A wake-up across cores takes longer than everything else, above all between virtual ones.
    latencies_on("all on one core", GENERATOR_CPU, &[Forwarder::Nftables, Forwarder::Bridge, ring, multishot, mmsg])?;
    let busy = Forwarder::BusyPolling(EngineKind::Ring);
    latencies_on("the load balancer on a core of its own", LB_CPU, &[Forwarder::Nftables, ring, busy])
}

fn latencies_on(which: &str, cpu: usize, forwarders: &[Forwarder]) -> anyhow::Result<()> {
    let chain = Chain::build(false)?;
    let site = Site { cpu, ..site(&chain, &Load::default(), FEW_FLOWS) };
    let _awake = Helper::start(&chain.lb, &Task::KeepAwake { cpu })?;
    let _generator_awake = Helper::start(&chain.lb, &Task::KeepAwake { cpu: GENERATOR_CPU })?;
    let rows = present(forwarders);
    let round = |_| rows.iter().map(|row| latency::round_trip(&chain, &site, *row)).collect();
    let rounds: Vec<Vec<(f64, f64)>> = (0..ROUNDS).map(round).collect::<anyhow::Result<_>>()?;
    println!("  {which:40} {:>8} {:>8} {:>12} {:>8}", "p50", "p99", "p50 - first", "x first");
    for (at, forwarder) in rows.iter().enumerate() {
        let p50 = median(rounds.iter().map(|round| round[at].0));
        let p99 = median(rounds.iter().map(|round| round[at].1));
        let added = median(rounds.iter().map(|round| round[at].0 - round[0].0));
        let ratio = median(rounds.iter().map(|round| round[at].0 / round[0].0));
        println!("  {:40} {p50:8.1} {p99:8.1} {added:12.1} {ratio:8.2}", forwarder.to_string());
    }
    Ok(())
}

fn bulk() -> anyhow::Result<()> {
    println!("\nOne TCP connection, gigabits a second; medians of {ROUNDS} rounds");
    let mut segment = Segment::build()?;
    let [ring, multishot, mmsg] = ENGINES;
    let generic = Forwarder::Accelerated(XdpMode::Generic);
    let all = [Forwarder::Nftables, Forwarder::Reference, ring, multishot, mmsg, generic, ACCELERATOR];
    bulk_of(&segment, "with default offloads", &all)?;
    segment.complete_checksums()?;
    bulk_of(&segment, "the client makes segments and checksums", &[Forwarder::Nftables, ring, generic, ACCELERATOR])
}

fn bulk_of(segment: &Segment, how: &str, rows: &[Forwarder]) -> anyhow::Result<()> {
    let rows = present(rows);
    let round = |_| -> anyhow::Result<(f64, Vec<f64>)> {
        let direct = segment.measure(None)?;
        Ok((direct, rows.iter().map(|row| segment.measure(Some(*row))).collect::<anyhow::Result<_>>()?))
    };
    let rounds: Vec<(f64, Vec<f64>)> = (0..ROUNDS).map(round).collect::<anyhow::Result<_>>()?;
    let ring = rows.iter().position(|row| *row == RING);
    println!("  {how:40} {:>8} {:>8}", "Gbit/s", "x ring");
    println!("  {:40} {:8.1}", "past the balancer", median(rounds.iter().map(|(direct, _)| *direct)));
    for (at, forwarder) in rows.iter().enumerate() {
        let rate = median(rounds.iter().map(|(_, rates)| rates[at]));
        let of = |(_, rates): &(f64, Vec<f64>)| ring.map_or(f64::NAN, |ring| rates[at] / rates[ring]);
        println!("  {:40} {rate:8.1} {:8.2}", forwarder.to_string(), median(rounds.iter().map(of)));
    }
    Ok(())
}
