//! A node with an accelerator: it forwards what is known, and nobody notices.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use lb_dataplane::{Accelerate, Config, Dataplane, LinkKeeper, StartError, guard, io::PortConfig};
use lb_tests::{
    cluster::SOON,
    faults::{Fault, Watch, measure},
    manager::ServiceManager,
    site::{HTTP_ADDRESSES, PATIENCE, Plan, Site, VIP, VIP_TEXT},
    sys::reference,
    topology::Network,
    traffic::HttpClient,
    wait,
};
use serde_json::Value;

use crate::kernel_faults::config;

const ACCELERATED: Plan = Plan { nodes: 1, servers: 2, two_interfaces: false, engine: "ring+xdp" };
const BULK: usize = 3_000_000;
/// Of some thousand datagrams so many may look as if their checksums were left to hardware, one in 65536 by chance: they are for a
/// worker, and there is none.
const BY_CHANCE: usize = 2;
/// A second: three times what a processor leaves to the workers.
const NEW_FLOWS: u64 = 150_000;
/// Streams are known after that, and a process that is dead is missed.
const AT_WORK: Duration = Duration::from_millis(500);

fn site(plan: Plan) -> anyhow::Result<Site> {
    let mut site = Site::build(plan)?;
    site.start_both()?;
    Ok(site)
}

fn status(site: &Site) -> anyhow::Result<Value> {
    let status = site.nodes[0].lbctl_json(&["status"])?;
    Ok(status["dataplane"]["accelerator"].clone())
}

fn forwarded(site: &Site) -> anyhow::Result<u64> {
    let status = status(site)?;
    status["forwarded"].as_u64().with_context(|| format!("no accelerator: {status}"))
}

pub(crate) fn forwards_what_is_known() -> anyhow::Result<()> {
    for two_interfaces in [false, true] {
        let site = site(Plan { two_interfaces, ..ACCELERATED })?;
        let before = status(&site)?;
        let interfaces = before["interfaces"].as_array().context("interfaces")?;
        ensure!(interfaces.len() == 1 + usize::from(two_interfaces), "{before}");
        ensure!(interfaces.iter().all(|of| of["mode"] == "generic" && of["reason"] != ""), "{before}");
        let mut earlier = 0;
        for address in HTTP_ADDRESSES {
            let mut http = HttpClient::connect(&site.client.ns, address, PATIENCE)?;
            let backend = http.who()?;
            ensure!(http.upload(BULK)? == format!("{backend} {BULK}"));
            ensure!(http.get("/bytes/100000")?.len() == 100_000);
            let now = forwarded(&site)?;
            ensure!(now > earlier + 1000, "{now} frames of {address} were accelerated, {earlier} before");
            earlier = now;
        }
        // They are counted where all others are.
        wait::until("all frames are accounted for", SOON, || {
            let accounts = site.nodes[0].accounts();
            accounts.is_ok_and(|(stats, is_whole)| {
                let vips = stats["vips"].as_array().map(Vec::as_slice).unwrap_or_default();
                is_whole && vips.iter().all(|vip| vip["bytes"].as_u64() > Some(BULK as u64))
            })
        });
        let text = site.nodes[0].lbctl_ok(&["status"])?;
        ensure!(text.contains("xdp       eth0 generic ("), "{text}");
    }
    Ok(())
}

pub(crate) fn goes_on_after_a_crash() -> anyhow::Result<()> {
    let mut site = site(ACCELERATED)?;
    let mut http = HttpClient::connect(&site.client.ns, HTTP_ADDRESSES[0], PATIENCE)?;
    let backend = http.who()?;
    ensure!(http.upload(BULK)? == format!("{backend} {BULK}"));
    ensure!(forwarded(&site)? > 1000);
    for both in [false, true] {
        if both {
            site.nodes[0].kill()?;
        } else {
            site.nodes[0].kill_worker()?;
            site.nodes[0].wait_for_end(SOON)?;
        }
        site.nodes[0].start()?;
        ensure!(http.upload(BULK)? == format!("{backend} {BULK}"), "the connection has lost its backend");
        wait::until("it is accelerated again", SOON, || {
            http.upload(BULK).is_ok() && forwarded(&site).is_ok_and(|forwarded| forwarded > 1000)
        });
    }
    Ok(())
}

/// Of streams that are known, and of many clients, nothing is lost when the owner's working process is killed.
pub(crate) fn loses_nothing_in_a_takeover() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, ..ACCELERATED })?;
    site.start()?;
    let neighbor = site.add_neighbor()?;
    for at_leader in [false, true] {
        let outcome = measure(&mut site, &neighbor, Fault::WorkerKilled, at_leader)?;
        let (lost, failed) = (outcome.lost, outcome.crowd.failed());
        ensure!(lost == 0 && failed == 0, "{lost} datagrams were lost; {:?}", outcome.crowd);
    }
    Ok(())
}

/// Nor when there is no other node, and a service manager starts it anew; but by chance.
pub(crate) fn loses_nothing_in_a_restart() -> anyhow::Result<()> {
    let mut site = Site::build(ACCELERATED)?;
    site.nodes[0].manager = Some(ServiceManager::start(&site.root.path().join("notify"))?);
    site.start()?;
    let neighbor = site.add_neighbor()?;
    // Until the VIP is answered for the first time.
    Watch::start(&site, &neighbor)?.finish()?;
    let kept = |site: &Site| site.nodes[0].manager.as_ref().map(ServiceManager::kept).unwrap_or_default();
    for both in [false, true] {
        let watch = Watch::start(&site, &neighbor)?;
        watch.go_on(AT_WORK);
        ensure!(kept(&site).len() == 1, "the manager keeps {:?}", kept(&site));
        if both {
            site.nodes[0].kill()?;
        } else {
            site.nodes[0].kill_worker()?;
            site.nodes[0].wait_for_end(SOON)?;
        }
        watch.go_on(AT_WORK);
        site.nodes[0].start()?;
        wait::until("the new process forwards", SOON, || forwarded(&site).is_ok_and(|forwarded| forwarded > 1000));
        watch.go_on(AT_WORK);
        let seen = watch.finish()?;
        // A late answer is none that was lost: a start takes the time of others.
        let lost = seen.lost() + seen.crowd.lost;
        ensure!(lost <= BY_CHANCE, "both killed: {both}: {lost} datagrams were lost; {:?}", seen.crowd);
    }
    // What it takes off itself nobody keeps.
    site.nodes[0].terminate()?;
    ensure!(kept(&site).is_empty(), "the manager keeps {:?}", kept(&site));
    Ok(())
}

/// Descriptors that outlive a dataplane.
#[derive(Debug, Default)]
struct Kept(Mutex<BTreeMap<String, OwnedFd>>);

impl Kept {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LinkKeeper for Kept {
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) {
        self.all().extend(descriptor.try_clone_to_owned().map(|descriptor| (name.to_owned(), descriptor)));
    }

    fn let_go(&self, name: &str) {
        self.all().remove(name);
    }

    fn of_before(&self) -> Vec<(String, OwnedFd)> {
        let all = self.all();
        all.iter().filter_map(|(name, link)| Some((name.clone(), link.try_clone().ok()?))).collect()
    }
}

/// A dataplane that ends by a fault leaves the program where it is, and one that stops takes it away.
pub(crate) fn stays_after_a_fault() -> anyhow::Result<()> {
    let net = Network::for_engine(ACCELERATED.engine)?;
    net.segment("lan")?;
    let host = net.host("lb")?;
    net.attach(&host, "eth0", "lan", &["192.168.2.11/24"])?;
    host.ns.enter(|| reference::keep_tags("eth0"))?;
    let port = PortConfig { name: "eth0".into(), ifindex: host.ns.ifindex("eth0")?, mtu: 1500 };
    let kept = Arc::<Kept>::default();
    let start = |keeper: Option<&Arc<Kept>>| {
        // The guard of the one before goes when no descriptor of it is left: another test's process may have one until it begins.
        wait::until_ok(SOON, || {
            let link_keeper = keeper.map(|keeper| keeper.clone() as Arc<dyn LinkKeeper>);
            let usual = config(vec![port.clone()], "ring", 1, guard::Ownership::Own);
            match host.ns.enter(|| Dataplane::start(&Config { accelerate: Accelerate::Xdp, link_keeper, ..usual })) {
                Err(StartError::Guard(error)) => Err(error.into()),
                started => Ok(started),
            }
        })
    };
    let stop = |dataplane: Dataplane| host.ns.enter(|| dataplane.stop());

    let first = start(Some(&kept))??;
    ensure!(kept.all().len() == 1, "{kept:?}");
    first.leave_accelerator();
    stop(first)?;
    let refused = start(None)?.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(kept.all().len() == 1 && refused.contains("another program has it"), "{kept:?}: {refused}");
    let second = start(Some(&kept))??;
    let report = second.accelerator().context("an accelerator")?.map_err(anyhow::Error::msg)?;
    ensure!(report.interfaces.iter().all(|of| of.mode.is_some()), "{report:?}");
    stop(second)?;
    ensure!(kept.all().is_empty(), "{kept:?}");
    stop(start(None)??)?;
    Ok(())
}

pub(crate) fn is_switched_under_connections() -> anyhow::Result<()> {
    let mut site = site(ACCELERATED)?;
    let mut http = HttpClient::connect(&site.client.ns, HTTP_ADDRESSES[0], PATIENCE)?;
    let backend = http.who()?;
    for (before, after, works) in [("\"xdp\"", "\"off\"", false), ("\"off\"", "\"auto\"", true)] {
        ensure!(http.upload(BULK)? == format!("{backend} {BULK}"));
        site.nodes[0].reconfigure(&format!("accelerator = {before}"), &format!("accelerator = {after}"))?;
        site.nodes[0].terminate()?;
        site.nodes[0].start()?;
        ensure!(http.upload(BULK)? == format!("{backend} {BULK}"));
        ensure!(forwarded(&site).is_ok() == works, "{after}");
    }
    Ok(())
}

/// New flows that are more than workers shall look at are placed all the same, and known ones go on.
pub(crate) fn places_a_flood() -> anyhow::Result<()> {
    let mut site = Site::build(ACCELERATED)?;
    site.start()?;
    let backends: Vec<String> =
        site.servers.iter().map(|of| format!("- {{service: many, address: {}}}", of.address)).collect();
    let file = site.root.path().join("many.yaml");
    let service = format!("services: [{{name: many, vip: {VIP}, ports: [{{protocol: udp, first: 9, last: 9}}]}}]");
    fs::write(&file, format!("{service}\nbackends:\n{}\n", backends.join("\n")))?;
    site.nodes[0].lbctl_ok(&["apply", "--yes", "-f", &file.display().to_string()])?;
    site.wait_resolved();
    let neighbor = site.add_neighbor()?;
    let watch = Watch::start(&site, &neighbor)?;
    watch.go_on(AT_WORK);
    // More flows than are learned meanwhile.
    site.flood_of_flows(0, 1 << 22, NEW_FLOWS)?;
    watch.go_on(AT_WORK);
    let placed = |site: &Site| status(site).ok().and_then(|status| status["placed"].as_u64()).unwrap_or_default();
    wait::until("many are placed", SOON, || placed(&site) > 10_000);
    // None are, until those that a change has moved are found.
    let weight = ["backend", "set", "many", &site.servers[0].address.to_string(), "--weight", "3"];
    site.nodes[0].change(&weight)?;
    let before = placed(&site);
    wait::until("many are placed again", SOON, || placed(&site) > before + NEW_FLOWS);
    watch.go_on(AT_WORK);
    site.end_flood()?;
    watch.go_on(AT_WORK);
    watch.finish()?;
    wait::until("all frames are accounted for", SOON, || {
        let accounts = site.nodes[0].accounts();
        accounts.is_ok_and(|(stats, is_whole)| {
            let services = stats["vips"].as_array().map(Vec::as_slice).unwrap_or_default();
            is_whole && services.iter().any(|vip| vip["new_flows"].as_u64() > Some(10_000))
        })
    });
    Ok(())
}

/// An interface that begins to take VLAN tags off is not accelerated any more, until it leaves them again; its flows go on.
pub(crate) fn leaves_what_takes_tags_off() -> anyhow::Result<()> {
    let site = site(ACCELERATED)?;
    let mut http = HttpClient::connect(&site.client.ns, HTTP_ADDRESSES[0], PATIENCE)?;
    let backend = http.who()?;
    let node = &site.nodes[0];
    for off in [false, true, false] {
        site.node_hosts[0].ns.enter(|| reference::take_tags_off("eth0", off))?;
        // The interfaces are looked at with each table.
        node.change(&["vip", "set", VIP_TEXT, "--unmatched", if off { "reject" } else { "drop" }])?;
        wait::until_ok(SOON, || {
            let interface = status(&site)?["interfaces"][0].clone();
            let reason = interface["reason"].as_str().unwrap_or_default();
            let mode = interface["mode"].as_str().unwrap_or_default();
            ensure!(mode == if off { "" } else { "generic" }, "{interface}");
            ensure!(!off || reason.contains("rxvlan off"), "{interface}");
            let told = String::from_utf8(node.lbctl(&["-o", "json", "doctor"])?.stdout)?;
            ensure!(told.contains("not-accelerated") == off, "{told}");
            Ok(())
        })?;
        let before = forwarded(&site)?;
        ensure!(http.upload(BULK)? == format!("{backend} {BULK}"));
        let more = forwarded(&site)? - before;
        ensure!((more == 0) == off, "{more} frames were accelerated");
    }
    Ok(())
}

/// While somebody captures, everything is shown.
pub(crate) fn is_quiet_during_captures() -> anyhow::Result<()> {
    let site = site(ACCELERATED)?;
    let mut http = HttpClient::connect(&site.client.ns, HTTP_ADDRESSES[0], PATIENCE)?;
    http.upload(BULK)?;
    ensure!(forwarded(&site)? > 1000);
    let captured = thread::scope(|scope| {
        let capture = scope.spawn(|| {
            let file = site.root.path().join("captured.pcapng").display().to_string();
            site.nodes[0].lbctl(&["capture", "--vip", &VIP.to_string(), "--count", "500", "--write", &file])
        });
        while !capture.is_finished() {
            http.upload(BULK)?;
        }
        capture.join().map_err(|_| anyhow::anyhow!("the capture panicked"))?
    })?;
    ensure!(captured.status.success(), "{}", String::from_utf8_lossy(&captured.stderr));
    let status = status(&site)?;
    let stale = status["passed"].as_array().into_iter().flatten().find(|passed| passed["reason"] == "stale");
    ensure!(stale.is_some_and(|passed| passed["frames"].as_u64() >= Some(500)), "{status}");
    Ok(())
}
