//! What it costs a node under a flood to be looked at: a scrape each second and ten open pages, by turns with none.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use lb_tests::{
    netns::Namespace,
    runner,
    site::{Plan, Site, VIP_TEXT},
};

const LISTEN: &str = "127.0.0.1:9400";
const PAGES: usize = 10;
/// More than a node can forward.
const FLOOD: u64 = 1_000_000;
/// With and without, by turns: a minute of each.
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(12);

pub(crate) fn pages() -> anyhow::Result<()> {
    ensure!(runner::prepare(), "lbd and lbctl cannot be built");
    println!("\nA node under a flood while it is looked at: a scrape each second and {PAGES} open pages");
    let mut site = Site::build(Plan { nodes: 1, servers: 3, two_interfaces: false, engine: "ring" })?;
    site.nodes[0].reconfigure("[dataplane]", &format!("[metrics]\nlisten = {LISTEN:?}\n[dataplane]"))?;
    site.start()?;
    site.nodes[0].lbctl_ok(&["vip", "add", VIP_TEXT])?;
    let port = format!("{}/udp", lb_tests::flood::PORT);
    site.nodes[0].lbctl_ok(&["service", "add", "flood", "--vip", VIP_TEXT, "--port", &port])?;
    for server in &site.servers {
        site.nodes[0].lbctl_ok(&["backend", "add", "flood", &server.address.to_string()])?;
    }
    site.wait_resolved();
    site.flood(0, FLOOD)?;
    thread::sleep(Duration::from_secs(2));
    let (mut with, mut without, mut shown) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        without.push(forwarded(&site)?);
        let (rate, states) = watched(&site)?;
        with.push(rate);
        shown += states;
    }
    site.end_flood()?;
    let ratios: Vec<f64> = with.iter().zip(&without).map(|(with, without)| with / without).collect();
    let [with, without, ratio] = [with, without, ratios].map(crate::median);
    println!("  {without:10.0} packets/s without, {with:10.0} with: {ratio:.3} (medians of {ROUNDS} rounds)");
    println!(
        "  each page was told {:.1} times a second\n",
        shown as f64 / (PAGES * ROUNDS) as f64 / ROUND.as_secs_f64()
    );
    Ok(())
}

/// Packets forwarded in a second.
fn forwarded(site: &Site) -> anyhow::Result<f64> {
    let count = || anyhow::Ok(site.nodes[0].stats()?["forwarded"].as_f64().unwrap_or_default());
    let (begun, before) = (Instant::now(), count()?);
    thread::sleep(ROUND);
    let after = count()?;
    Ok((after - before) / begun.elapsed().as_secs_f64())
}

/// The same while it is looked at, and how often the pages were told something.
fn watched(site: &Site) -> anyhow::Result<(f64, usize)> {
    let (stop, states) = (AtomicBool::new(false), AtomicUsize::new(0));
    let namespace = &site.node_hosts[0].ns.clone();
    thread::scope(|scope| {
        for _ in 0..PAGES {
            scope.spawn(|| open_page(namespace, &stop, &states));
        }
        scope.spawn(|| {
            let _ = rustix::process::nice(19);
            while !stop.load(Ordering::Relaxed) {
                let mut text = String::new();
                let scraped = namespace.enter(|| ask("/metrics")?.read_to_string(&mut text));
                assert!(scraped.is_ok_and(|length| length > 1000), "the scrape failed");
                thread::sleep(Duration::from_secs(1));
            }
        });
        let forwarded = forwarded(site);
        stop.store(true, Ordering::Relaxed);
        anyhow::Ok((forwarded?, states.load(Ordering::Relaxed)))
    })
}

/// They are on other machines: what they take of this one is not the node's to bear.
fn open_page(namespace: &Namespace, stop: &AtomicBool, states: &AtomicUsize) {
    let _ = rustix::process::nice(19);
    let Ok(stream) = namespace.enter(|| ask("/live")) else { return };
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    for line in lines.take_while(|_| !stop.load(Ordering::Relaxed)) {
        states.fetch_add(usize::from(line.starts_with("data:")), Ordering::Relaxed);
    }
}

fn ask(path: &str) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(LISTEN)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    Ok(stream)
}
