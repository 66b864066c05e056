//! Measures what clients see of takeovers, and prints it beside what it should be: `cargo lb-takeover`.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use lb_dataplane::packet::arp;
use lb_proto::v1;
use lb_tests::{
    capture::{Capture, Injector},
    cluster,
    crowd::CrowdReport,
    faults::{Fault, Seen, Watch, measure, place_owner},
    flood::{self, Asker},
    grpc, runner,
    site::{PATIENCE, Plan, Site, VIP, VIP_TEXT},
    topology::{Cut, Host},
    wait,
};

const USAGE: &str = "usage: cargo lb-takeover [--runs N] [--soak SECONDS] [--only WORD]

Builds a cluster of three nodes in network namespaces and lets faults happen to the owner of a VIP, under a
datagram every millisecond from its segment and another through a router, and under the questions of 300 clients,
each with a socket of its own, ten a second. Prints the longest time without an answer for each fault, over N runs
(default 20), in half of which the owner is also the leader; the most datagrams of a stream without an answer; the
most questions of the crowd without an answer or answered later than after 100 ms; and the latest of its answers.
Nodes are started anew for 'rolling restart', so that each takes over from one that is warm while it is cold.
--soak keeps both cores busy for so long at the end and counts false takeovers, and then sends the owner a flood of a
million datagrams a second for as long, beside which the VIP is asked for (default 60; 0 leaves both out).
--only measures the events whose name contains the word.";

/// VIPs that move at once.
const MANY: u8 = 250;
const WRITES: usize = 500;
/// Services that are added while the owner dies; ports of one VIP, the first of which is this.
const SERVICES: u16 = 1000;
const FIRST_PORT: u16 = 20_000;
/// Adding them begins so long before the owner dies, in which time the table has grown already.
const GROWN_BEFORE: u16 = 300;

fn main() -> ExitCode {
    let Some(options) = Options::read(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if !runner::prepare() {
        return ExitCode::FAILURE;
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    runs: usize,
    soak: Duration,
    only: String,
}

impl Options {
    fn read(mut arguments: impl Iterator<Item = String>) -> Option<Self> {
        let mut options = Self { runs: 20, soak: Duration::from_secs(60), only: String::new() };
        while let Some(argument) = arguments.next() {
            let value = arguments.next()?;
            match argument.as_str() {
                "--runs" => options.runs = value.parse().ok().filter(|runs| *runs > 0)?,
                "--soak" => options.soak = Duration::from_secs(value.parse().ok()?),
                "--only" => options.only = value,
                _ => return None,
            }
        }
        Some(options)
    }

    fn wants(&self, name: &str) -> bool {
        name.contains(&self.only)
    }
}

const GROWING: &str = "SIGKILL, while 1000 services are being added";
const FAST: &str = "silent cut, timing=fast";
const HEALED: &str = "after a partition heals";
const NEW_LEADER: &str = "new leader after SIGKILL of the leader";
const WRITE: &str = "acknowledged write";
const MANY_VIPS: &str = "250 VIPs of a dead node answered";
const FALSE_TAKEOVERS: &str = "false takeovers";
const FLOODED: &str = "flood";
/// Datagrams of a flood a second: several times what a node forwards here.
const FLOOD: u64 = 1_000_000;
const ASK_EVERY: Duration = Duration::from_millis(5);

fn run(options: &Options) -> anyhow::Result<()> {
    let runs = options.runs;
    let mut site = Site::build(Plan { nodes: 3, servers: 2, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let neighbor = site.add_neighbor()?;
    println!(
        "{:<46} {:>5} {:>9} {:>9} {:>9} {:>9} {:>9} {:>12}",
        "event", "runs", "median ms", "max ms", "lost max", "of crowd", "latest ms", "goal ms"
    );
    for fault in Fault::ALL.into_iter().filter(|fault| options.wants(fault.name())) {
        let goal = match fault {
            Fault::WorkerKilled => "30 / 60",
            Fault::Deaf | Fault::WorkerHalted => "220 / 300",
            _ => "170 / 230",
        };
        row(&mut site, &neighbor, fault, fault.name(), goal, runs)?;
    }
    if options.wants(GROWING) {
        growing(&mut site, &neighbor, runs)?;
    }
    if options.wants(FAST) {
        site.nodes[0].lbctl_ok(&["cluster", "set", "timing=fast"])?;
        row(&mut site, &neighbor, Fault::CutOff, FAST, "50 / 90", runs)?;
        site.nodes[0].lbctl_ok(&["cluster", "set", "timing=default"])?;
    }
    for name in GRACEFUL.into_iter().filter(|name| options.wants(name)) {
        graceful(&mut site, &neighbor, name, runs)?;
    }
    if options.wants(HEALED) {
        partition(&mut site, &neighbor, runs)?;
    }
    if options.wants(NEW_LEADER) {
        new_leader(&mut site, runs)?;
    }
    if options.wants(WRITE) {
        writes(&site)?;
    }
    if options.wants(MANY_VIPS) {
        many_vips(&mut site)?;
    }
    if !options.soak.is_zero() && options.wants(FALSE_TAKEOVERS) {
        false_takeovers(&site, &neighbor, options.soak)?;
    }
    if !options.soak.is_zero() && options.wants(FLOODED) {
        flooded(&mut site, &neighbor, options.soak)?;
    }
    Ok(())
}

fn row(site: &mut Site, neighbor: &Host, fault: Fault, name: &str, goal: &str, runs: usize) -> anyhow::Result<()> {
    let (mut seen, mut in_hand) = (Row::default(), 0);
    for run in 0..runs {
        let outcome = measure(site, neighbor, fault, run % 2 == 0).with_context(|| format!("{name}, run {run}"))?;
        seen.add(outcome.gap, outcome.lost, &outcome.crowd);
        in_hand += outcome.in_hand;
    }
    seen.print(name, goal);
    if in_hand > 0 {
        println!("    {in_hand} answers were in hand when the process went on");
    }
    Ok(())
}

/// What was seen in the runs of one event.
#[derive(Default)]
struct Row {
    gaps: Vec<Duration>,
    /// The most in one run.
    lost: usize,
    /// The most in one run that were lost or late.
    of_crowd: usize,
    latest: Duration,
}

impl Row {
    fn add(&mut self, gap: Duration, lost: usize, crowd: &CrowdReport) {
        self.gaps.push(gap);
        self.lost = self.lost.max(lost);
        self.of_crowd = self.of_crowd.max(crowd.failed());
        self.latest = self.latest.max(crowd.longest);
    }

    fn of(&mut self, seen: &Seen) {
        self.add(seen.gap(), seen.lost(), &seen.crowd);
    }

    fn print(mut self, name: &str, goal: &str) {
        let (of_crowd, latest) = (self.of_crowd.to_string(), format!("{:.1}", self.latest.as_secs_f64() * 1e3));
        print_row(name, &mut self.gaps, [&self.lost.to_string(), &of_crowd, &latest], goal);
    }
}

fn print_row(name: &str, times: &mut [Duration], [lost, of_crowd, latest]: [&str; 3], goal: &str) {
    times.sort_unstable();
    let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
    let (median, max) = (ms(times.get((times.len() - 1) / 2)), ms(times.last()));
    println!("{name:<46} {:>5} {median:>9.1} {max:>9.1} {lost:>9} {of_crowd:>9} {latest:>9} {goal:>12}", times.len());
}

const GRACEFUL: [&str; 3] = ["vip move", "node drain and undrain", "rolling restart (SIGTERM)"];

/// The owner's working process is killed while services are added by way of another node, as fast as it takes them.
fn growing(site: &mut Site, neighbor: &Host, runs: usize) -> anyhow::Result<()> {
    let (mut seen, mut meanwhile) = (Row::default(), Vec::new());
    for run in 0..runs {
        let at_leader = run % 2 == 0;
        let owner = place_owner(site, at_leader)?;
        let services = Services {
            socket: site.nodes[(owner + 1) % site.nodes.len()].socket(),
            backend: site.servers[0].address.to_string(),
            added: AtomicU16::new(0),
            is_enough: AtomicBool::new(false),
        };
        let outcome = thread::scope(|scope| {
            let adding = scope.spawn(|| services.add());
            wait::until("the table grows", PATIENCE, || services.added.load(Ordering::Relaxed) >= GROWN_BEFORE);
            let outcome = measure(site, neighbor, Fault::WorkerKilled, at_leader);
            services.is_enough.store(true, Ordering::Relaxed);
            adding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            outcome
        });
        let outcome = outcome.with_context(|| format!("{GROWING}, run {run}"))?;
        seen.add(outcome.gap, outcome.lost, &outcome.crowd);
        meanwhile.push(services.added.load(Ordering::Relaxed));
        services.remove()?;
    }
    seen.print(GROWING, "+ 50");
    println!("    {meanwhile:?} services were added in the runs");
    Ok(())
}

/// Services that are added to the VIP and taken away again by way of one node, each with a backend.
struct Services {
    socket: PathBuf,
    backend: String,
    added: AtomicU16,
    is_enough: AtomicBool,
}

impl Services {
    fn name(number: u16) -> String {
        format!("growing-{number}")
    }

    async fn client(&self) -> anyhow::Result<v1::table_service_client::TableServiceClient<tonic::transport::Channel>> {
        Ok(v1::table_service_client::TableServiceClient::new(grpc::connect(self.socket.clone()).await?))
    }

    #[tokio::main(flavor = "current_thread")]
    async fn add(&self) -> anyhow::Result<()> {
        let mut client = self.client().await?;
        for number in 0..SERVICES {
            if self.is_enough.load(Ordering::Relaxed) {
                break;
            }
            let port = u32::from(FIRST_PORT + number);
            let ports = vec![v1::PortRange { protocol: v1::Protocol::Udp.into(), first: port, last: port }];
            let service =
                v1::Service { name: Self::name(number), vip: VIP_TEXT.into(), ports, ..v1::Service::default() };
            let backend = v1::Backend {
                service: Self::name(number),
                address: self.backend.clone(),
                weight: Some(1),
                ..v1::Backend::default()
            };
            let service = v1::CreateServiceRequest { service: Some(service), ..v1::CreateServiceRequest::default() };
            client.create_service(service).await?;
            let backend = v1::CreateBackendRequest { backend: Some(backend), ..v1::CreateBackendRequest::default() };
            client.create_backend(backend).await?;
            self.added.store(number + 1, Ordering::Relaxed);
        }
        Ok(())
    }

    #[tokio::main(flavor = "current_thread")]
    async fn remove(&self) -> anyhow::Result<()> {
        let mut client = self.client().await?;
        for number in 0..self.added.load(Ordering::Relaxed) {
            let request = v1::DeleteServiceRequest {
                name: Self::name(number),
                cascade: true,
                ..v1::DeleteServiceRequest::default()
            };
            client.delete_service(request).await?;
        }
        Ok(())
    }
}

/// A move, a drain, or a restart of all nodes one after the other.
fn graceful(site: &mut Site, neighbor: &Host, name: &str, runs: usize) -> anyhow::Result<()> {
    let mut row = Row::default();
    for run in 0..runs {
        let owner = place_owner(site, run % 2 == 0)?;
        let watch = Watch::start(site, neighbor)?;
        let (from, other) = (site.nodes[owner].name.clone(), (owner + 1) % site.nodes.len());
        match name {
            "vip move" => {
                let to = site.nodes[other].name.clone();
                site.nodes[other].lbctl_ok(&["vip", "move", VIP_TEXT, &to])?;
            }
            "node drain and undrain" => {
                site.nodes[other].lbctl_ok(&["node", "drain", &from])?;
                site.nodes[other].lbctl_ok(&["node", "undrain", &from])?;
            }
            _ => {
                for number in 0..site.nodes.len() {
                    restart(site, number)?;
                }
            }
        }
        watch.go_on(Duration::from_millis(1500));
        row.of(&watch.finish()?);
    }
    row.print(name, "0 lost");
    Ok(())
}

fn restart(site: &mut Site, number: usize) -> anyhow::Result<()> {
    site.nodes[number].terminate()?;
    site.nodes[number].start()?;
    let count = site.nodes.len();
    cluster::wait_ready(&site.nodes[number], count);
    site.nodes[number].wait_resolved(2 * site.servers.len());
    Ok(())
}

/// The owner is cut off from the other nodes for a while, and from nobody else.
fn partition(site: &mut Site, neighbor: &Host, runs: usize) -> anyhow::Result<()> {
    let mut row = Row::default();
    for run in 0..runs {
        let owner = place_owner(site, run % 2 == 0)?;
        site.net.cut(&site.node_hosts[owner], "mgmt", Cut::Silent)?;
        let other = &site.nodes[(owner + 1) % site.nodes.len()];
        let name = site.nodes[owner].name.clone();
        wait::until("the VIP has moved", PATIENCE, || {
            other.owner_of(VIP_TEXT).is_ok_and(|now| !now.is_empty() && now != name)
        });
        let watch = Watch::start(site, neighbor)?;
        watch.go_on(Duration::from_millis(200));
        site.net.cut(&site.node_hosts[owner], "mgmt", Cut::None)?;
        watch.go_on(Duration::from_millis(1500));
        let seen = watch.finish()?;
        let owners = lb_tests::observe::owners_in_turn(&seen.claims).map_err(anyhow::Error::msg)?;
        ensure!(owners.len() == 1, "after the partition healed the owners were {owners:?}");
        row.of(&seen);
        cluster::wait_ready(&site.nodes[owner], site.nodes.len());
    }
    row.print(HEALED, "0 lost");
    Ok(())
}

/// From the SIGKILL of the leader to another one, as the survivors' own status shows it.
fn new_leader(site: &mut Site, runs: usize) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut times = Vec::new();
    for _ in 0..runs {
        let status = site.nodes[0].lbctl_json(&["status"])?;
        let leader = status["leader"].as_str().unwrap_or_default().to_owned();
        let at = site.nodes.iter().position(|node| node.name == leader).context("there is a leader")?;
        let survivor = site.nodes[(at + 1) % site.nodes.len()].socket();
        let taken = runtime.block_on(async {
            let channel = grpc::connect(survivor).await?;
            let mut client = v1::cluster_service_client::ClusterServiceClient::new(channel);
            // The first call opens the connection.
            client.get_status(v1::GetStatusRequest { local: true, brief: true, ..Default::default() }).await?;
            let killed = Instant::now();
            site.nodes[at].kill_worker()?;
            while killed.elapsed() < PATIENCE {
                let status = client
                    .get_status(v1::GetStatusRequest { local: true, brief: true, ..Default::default() })
                    .await?
                    .into_inner();
                if !status.leader.is_empty() && status.leader != leader {
                    return Ok::<_, anyhow::Error>(killed.elapsed());
                }
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
            bail!("no new leader")
        })?;
        times.push(taken);
        Fault::WorkerKilled.mend(site, at)?;
        cluster::wait_ready(&site.nodes[at], site.nodes.len());
    }
    print_row(NEW_LEADER, &mut times, ["-"; 3], "15 / 60");
    Ok(())
}

/// Writes one after the other, through the node's own socket.
fn writes(site: &Site) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut times = runtime.block_on(async {
        let channel = grpc::connect(site.nodes[0].socket()).await?;
        let mut client = v1::table_service_client::TableServiceClient::new(channel);
        let mut times = Vec::new();
        for number in 0..WRITES {
            let request = v1::UpdateBackendRequest {
                service: "web".into(),
                address: site.servers[0].address.to_string(),
                weight: Some(1 + u32::try_from(number % 2)?),
                ..v1::UpdateBackendRequest::default()
            };
            let begun = Instant::now();
            client.update_backend(request).await?;
            times.push(begun.elapsed());
        }
        Ok::<_, anyhow::Error>(times)
    })?;
    times.sort_unstable();
    let ms = |part: usize| times[times.len() * part / 100].as_secs_f64() * 1e3;
    println!("{:<46} {:>5} p50 {:>5.1}   p99 {:>5.1} {:>19}", WRITE, WRITES, ms(50), ms(99), "3 / 10");
    Ok(())
}

/// A node with many VIPs dies: within which time is each of them answered?
fn many_vips(site: &mut Site) -> anyhow::Result<()> {
    let owner = place_owner(site, false)?;
    let name = site.nodes[owner].name.clone();
    let vips: Vec<Ipv4Addr> = (1..=MANY).map(|last| Ipv4Addr::new(198, 51, 100, last)).collect();
    for vip in &vips {
        let vip = vip.to_string();
        site.nodes[owner].lbctl_ok(&["vip", "add", &vip, "--prefer", &name, "--segment", "192.168.2.0/24"])?;
    }
    for vip in &vips {
        let vip = vip.to_string();
        if site.nodes[owner].owner_of(&vip)? != name {
            site.nodes[owner].lbctl_ok(&["vip", "move", &vip, &name])?;
        }
    }
    let old = site.node_hosts[owner].port("eth0").mac;
    let capture = Capture::start(&site.router.ns, "eth1", |frame| frame.get(12..14) == Some(&[8, 6]))?;
    let injector = Injector::new(&site.router.ns, "eth1")?;
    let own = site.router.port("eth1").mac;
    Fault::WorkerKilled.strike(site, owner)?;
    let mut first: BTreeMap<Ipv4Addr, Instant> = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    while first.len() < vips.len() && Instant::now() < deadline {
        for vip in vips.iter().filter(|vip| !first.contains_key(vip)) {
            injector.send(&arp::request(own, Ipv4Addr::new(192, 168, 2, 254), *vip, None))?;
        }
        for seen in capture.so_far().into_iter().filter(|seen| !seen.outgoing) {
            if let Some(arp) = seen.arp().filter(|arp| arp.sender_mac != old && vips.contains(&arp.sender)) {
                first.entry(arp.sender).or_insert(seen.at);
            }
        }
    }
    ensure!(first.len() == vips.len(), "only {} of {MANY} VIPs are answered", first.len());
    let (from, to) = (first.values().min().context("answers")?, first.values().max().context("answers")?);
    let span = (*to - *from).as_secs_f64() * 1e3;
    println!("{:<46} {:>5} from the first to the last {span:.1} ms {:>8}", MANY_VIPS, 1, "20");
    Fault::WorkerKilled.mend(site, owner)?;
    cluster::wait_ready(&site.nodes[owner], site.nodes.len());
    for vip in &vips {
        site.nodes[owner].lbctl_ok(&["vip", "remove", &vip.to_string()])?;
    }
    Ok(())
}

/// Both cores are kept busy, and nothing else happens: the owner stays the owner.
fn false_takeovers(site: &Site, neighbor: &Host, span: Duration) -> anyhow::Result<()> {
    let before = site.nodes[0].epoch_of(VIP_TEXT).context("the VIP has an epoch")?;
    let watch = Watch::start(site, neighbor)?;
    let until = Instant::now() + span;
    let spinners: Vec<_> = (0..thread::available_parallelism()?.get())
        .map(|_| {
            thread::spawn(move || {
                let mut number = 0u64;
                while Instant::now() < until {
                    number = std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
                }
            })
        })
        .collect();
    for spinner in spinners {
        drop(spinner.join());
    }
    let seen = watch.finish()?;
    let owners: std::collections::BTreeSet<_> = seen.claims.iter().map(|(_, mac)| mac.0).collect();
    let moved = u8::from(site.nodes[0].epoch_of(VIP_TEXT) != Some(before));
    println!(
        "{:<46} {:>5} {moved} moves, {} owners seen, {} datagrams lost, longest gap {:.1} ms {:>4}",
        format!("{FALSE_TAKEOVERS}, {} s with both cores busy", span.as_secs()),
        1,
        owners.len(),
        seen.lost(),
        // One without a loss is the machine's, which stood still as a whole.
        seen.gap().as_secs_f64() * 1e3,
        "0"
    );
    Ok(())
}

/// The owner gets several times what it can forward: no VIP moves, no backend is forgotten, and who asks for the VIP is
/// answered.
fn flooded(site: &mut Site, neighbor: &Host, span: Duration) -> anyhow::Result<()> {
    let port = format!("{}/udp", flood::PORT);
    site.nodes[0].lbctl_ok(&["service", "add", "flooded", "--vip", VIP_TEXT, "--port", &port])?;
    for server in &site.servers {
        site.nodes[0].lbctl_ok(&["backend", "add", "flooded", &server.address.to_string()])?;
    }
    let owner = place_owner(site, false)?;
    site.nodes[owner].wait_resolved(3 * site.servers.len());
    let before = site.nodes[0].epoch_of(VIP_TEXT).context("the VIP has an epoch")?;
    let count = |site: &Site| -> anyhow::Result<[u64; 3]> {
        let stats = site.nodes[owner].stats()?;
        let arrived = site.node_hosts[owner].ns.received("eth0").unwrap_or(0);
        let [forwarded, lost] = ["forwarded", "control_lost"].map(|key| stats[key].as_u64().unwrap_or(0));
        Ok([arrived, forwarded, lost])
    };
    let (counted, begun) = (count(site)?, Instant::now());
    let asker = Asker::start(neighbor, &site.node_hosts[owner], VIP, ASK_EVERY)?;
    site.flood(owner, FLOOD)?;
    let (mut moved, mut forgotten) = (0, 0);
    while begun.elapsed() < span {
        thread::sleep(Duration::from_millis(500));
        moved += u32::from(site.nodes[0].epoch_of(VIP_TEXT).is_some_and(|epoch| epoch != before));
        for node in &site.nodes {
            let stats = node.stats().unwrap_or_default();
            let rows = stats["backends"].as_array().map_or(&[][..], Vec::as_slice);
            forgotten += rows.iter().filter(|row| row["mac"] == "").count();
        }
    }
    site.end_flood()?;
    let (seconds, answered, after) = (begun.elapsed().as_secs_f64(), asker.finish()?, count(site)?);
    let rate = |at: usize| (after[at] - counted[at]) as f64 / seconds / 1e3;
    println!(
        "{:<46} {:>5} {:.0} k/s arrived, {:.0} were forwarded ({:.1} times as many); {moved} moves, {forgotten} backends \
         forgotten",
        format!("{FLOODED}, {seconds:.0} s"),
        1,
        rate(0),
        rate(1),
        rate(0) / rate(1),
    );
    println!(
        "    of {} ARP requests {} reached the owner's tap, {} of them were answered within {} ms, at the latest after {:.1} ms; \
         the control sockets lost {}",
        answered.asked,
        answered.arrived,
        answered.in_time,
        flood::IN_TIME.as_millis(),
        answered.longest.as_secs_f64() * 1e3,
        after[2] - counted[2],
    );
    site.nodes[0].lbctl_ok(&["service", "remove", "flooded", "--cascade"])?;
    Ok(())
}
