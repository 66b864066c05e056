//! The fault campaign in its short form; the long one is `cargo lb-campaign`.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use lb_dataplane::packet::{Mac, arp};
use lb_tests::{
    campaign::{
        Options,
        claims::{Observer, judge},
        run,
    },
    capture::Injector,
    site::{PATIENCE, Plan, Site, VIP},
    wait,
};

/// Random troubles, one after the other, and no promise is broken.
pub(crate) fn no_promise_is_broken() -> anyhow::Result<()> {
    let options =
        Options { nodes: 3, span: Duration::from_secs(25), rounds: 14, seed: 5, only: String::new(), plant: None };
    let report = run(&options, |line| println!("{line}"))?;
    ensure!(report.rounds >= 5 && report.writes > 100 && report.reads > 100, "{report:?}");
    ensure!(report.broken == 0, "a TCP connection broke {} times", report.broken);
    Ok(())
}

/// The judge is trusted because it finds a second owner: somebody else who answers for the VIP.
pub(crate) fn a_second_owner_is_found() -> anyhow::Result<()> {
    const ROGUE: Mac = Mac([2, 0, 0, 0, 9, 9]);
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let neighbor = site.add_neighbor()?;
    let asking = Ipv4Addr::new(192, 168, 2, 254);
    let observer =
        Observer::start(&site.net, &[&site.node_hosts[0], &neighbor], (&site.router, "eth1", asking), &[VIP])?;
    wait::until("the VIP is claimed", PATIENCE, || observer.last(VIP).is_some());
    let honest = observer.take();
    ensure!(judge(&honest[&VIP], &[]).two_owners.is_none(), "one owner is taken for two");
    let claims = Injector::new(&neighbor.ns, "eth0")?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let rogue = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            let [request, _] = arp::announcements(ROGUE, VIP);
            drop(claims.send(&request));
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let mut seen = Vec::new();
    wait::until("the second owner is found", PATIENCE, || {
        seen.extend(observer.take().remove(&VIP).unwrap_or_default());
        judge(&seen, &[]).two_owners.is_some()
    });
    stop.store(true, Ordering::Relaxed);
    drop(rogue.join());
    Ok(())
}
