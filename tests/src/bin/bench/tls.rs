//! What TLS costs: the time of a write and the gap of a takeover, in a cluster with TLS and in one without, by turns.

use std::time::Duration;

use lb_tests::{
    faults::{Fault, measure},
    runner,
    site::{Plan, Site},
    topology::Host,
};

use crate::watchers::median_write;

const WRITES: u32 = 300;
/// Of each, alternating.
const ROUNDS: usize = 10;

pub(crate) fn tls() -> anyhow::Result<()> {
    anyhow::ensure!(runner::prepare(), "lbd and lbctl cannot be built");
    println!("TLS: {ROUNDS} rounds each of {WRITES} writes one after the other and of a takeover, by turns");
    let mut sites = [site(false)?, site(true)?];
    let mut writes = [Vec::new(), Vec::new()];
    let mut gaps = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (at, (site, neighbor)) in sites.iter_mut().enumerate() {
            writes[at].push(median_write(site, WRITES)?);
            gaps[at].push(measure(site, neighbor, Fault::BothKilled, false)?.gap);
        }
    }
    for (what, rounds) in [("a write takes", writes), ("a takeover takes", gaps)] {
        let [without, with] = rounds.map(median);
        let ratio = with.as_secs_f64() / without.as_secs_f64();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        println!("  {what} {:.2} ms without, {:.2} ms with: {ratio:.2} (medians)", ms(without), ms(with));
    }
    println!();
    Ok(())
}

fn site(has_tls: bool) -> anyhow::Result<(Site, Host)> {
    let mut site = Site::build(Plan { nodes: 3, servers: 1, two_interfaces: false, engine: "ring" })?;
    if !has_tls {
        site.nodes.iter().try_for_each(lb_tests::cluster::LbNode::without_tls)?;
    }
    site.start()?;
    site.configure()?;
    let neighbor = site.add_neighbor()?;
    Ok((site, neighbor))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
