//! A fault campaign: a real cluster under traffic and writes, random troubles one after the other, and five
//! judges. [`claims`] looks for two owners of a VIP, [`register`] for a lost or reordered write, [`fickle`] for verdicts
//! about backends that differ or are wrong, a [`Follower`] for a change that `Watch` leaves out, and each round ends only when every node and every VIP is back. [`trouble`] says
//! what can happen.

pub mod claims;
pub mod fickle;
pub mod register;
pub mod trouble;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use claims::{Observer, judge};
use fastrand::Rng;
use fickle::Fickle;
use lb_dataplane::packet::Mac;
use trouble::Trouble;

use crate::{
    cluster::insist,
    follower::Follower,
    observe::UdpStream,
    site::{ECHO, HTTP_ADDRESS, PATIENCE, Plan, Site, VIP, VIP_TEXT},
    topology::Host,
    traffic::HttpClient,
    wait,
};

/// VIPs without services: their owners differ from the first one's, and one of them comes and goes.
const OTHERS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 2, 2), Ipv4Addr::new(192, 168, 2, 3)];
/// The one that is deleted and created again.
const PASSING: &str = "192.168.2.3";
/// From the end of the last trouble until every node votes and every VIP is answered.
const BOUND: Duration = Duration::from_secs(10);
/// Before the VIP that comes and goes is asked for again.
const ADD_AGAIN: Duration = Duration::from_secs(1);
/// Between two datagrams.
const PACE: Duration = Duration::from_millis(4);
/// A node's disk.
const DISK_BYTES: u64 = 48 << 20;

/// What a campaign does.
#[derive(Debug, Clone)]
pub struct Options {
    /// 3 or 5.
    pub nodes: u8,
    /// It ends with the first round that ends after this.
    pub span: Duration,
    /// Rounds at most.
    pub rounds: usize,
    /// All chances follow from it.
    pub seed: u64,
    /// Only troubles whose name contains it.
    pub only: String,
    /// A fault to plant in lbd, which must have been built with the feature `planted-faults`.
    pub plant: Option<String>,
}

/// What it saw.
#[derive(Debug, Default)]
pub struct Report {
    /// Rounds that were gone through.
    pub rounds: usize,
    /// The gaps that clients saw, by the trouble that made them.
    pub troubles: BTreeMap<&'static str, Vec<Duration>>,
    /// From the last mend until all was well.
    pub settled: Vec<Duration>,
    /// Answers that were in hand when a process went on after SIGSTOP.
    pub in_hand: usize,
    /// Acknowledged writes, answered reads.
    pub writes: u64,
    /// Answered reads.
    pub reads: u64,
    /// Requests on one TCP connection.
    pub requests: u64,
    /// Times that the connection broke.
    pub broken: u64,
    /// Times that all backends of a service went down or came back at once.
    pub storms: u64,
    /// How often whoever follows the table went on by another connection, and how often it had to begin anew.
    pub followed: (u64, u64),
}

fn pick<T: Copy>(random: &mut Rng, of: &[T]) -> T {
    of[random.usize(..of.len())]
}

/// Runs a campaign; an error is a broken promise, or a harness that does not work.
pub fn run(options: &Options, tell: impl Fn(&str)) -> anyhow::Result<Report> {
    let mut site = Site::build(Plan { nodes: options.nodes, servers: 2, two_interfaces: false, engine: "ring" })?;
    for node in &mut site.nodes {
        node.give_disk(DISK_BYTES)?;
        node.environment = options.plant.iter().map(|bug| ("LBD_PLANTED".to_owned(), bug.clone())).collect();
    }
    site.start()?;
    prepare(&site)?;
    let mut campaign = Campaign::start(&site, options)?;
    let started = Instant::now();
    let mut report = Report::default();
    while started.elapsed() < options.span && report.rounds < options.rounds {
        report.rounds += 1;
        let number = report.rounds;
        if let Err(error) = campaign.round(&mut site, &mut report, &tell) {
            let history = campaign.history.join("; ");
            let what = format!("round {number} of seed {} with {} nodes ({history})", options.seed, options.nodes);
            return Err(error.context(what).context(Evidence::gather(&site)));
        }
    }
    campaign.finish(report)
}

/// What the nodes knew when a promise was broken: without it nobody could tell why.
#[derive(Debug)]
struct Evidence(String);

impl Evidence {
    fn gather(site: &Site) -> Self {
        const LINES: usize = 60;
        let of_node = |node: &crate::cluster::LbNode| {
            let log = node.log();
            let lines: Vec<&str> = log.lines().filter(|line| !line.contains("method=\"UpdateBackend\"")).collect();
            let status = node.lbctl_ok(&["--timeout", "1s", "status"]).unwrap_or_else(|error| format!("{error:.300}"));
            format!("--- {}\n{status}\n{}\n", node.name, lines[lines.len().saturating_sub(LINES)..].join("\n"))
        };
        Self(site.nodes.iter().map(of_node).collect())
    }
}

impl std::fmt::Display for Evidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The other VIPs, and the registers.
fn prepare(site: &Site) -> anyhow::Result<()> {
    let first = &site.nodes[0];
    for vip in OTHERS {
        first.lbctl_ok(&["vip", "add", &vip.to_string()])?;
    }
    first.lbctl_ok(&["service", "add", register::SERVICE, "--vip", VIP_TEXT, "--port", "9999/tcp"])?;
    for number in 0..register::count() {
        let (address, mac) = (register::address(number), register::encode(0));
        first.lbctl_ok(&["backend", "add", register::SERVICE, &address, "--mac", &mac, "--state", "down"])?;
    }
    Ok(())
}

struct Campaign {
    random: Rng,
    troubles: Vec<Trouble>,
    observer: Observer,
    udp: UdpStream,
    tcp: Connection,
    load: register::Load,
    fickle: Fickle,
    follower: Follower,
    /// Which MAC address's process went on after SIGSTOP, and when.
    resumed: Vec<(Mac, Instant)>,
    /// What happened in this round.
    history: Vec<String>,
}

impl Campaign {
    fn start(site: &Site, options: &Options) -> anyhow::Result<Self> {
        let troubles: Vec<Trouble> =
            Trouble::ALL.into_iter().filter(|trouble| trouble.name().contains(&options.only)).collect();
        ensure!(!troubles.is_empty(), "no trouble's name contains {:?}", options.only);
        let vips: Vec<Ipv4Addr> = [VIP].into_iter().chain(OTHERS).collect();
        let asking = Ipv4Addr::new(192, 168, 2, 254);
        let nodes: Vec<&Host> = site.node_hosts.iter().collect();
        Ok(Self {
            random: Rng::with_seed(options.seed),
            troubles,
            observer: Observer::start(&site.net, &nodes, (&site.router, "eth1", asking), &vips)?,
            udp: UdpStream::start(&site.client, SocketAddrV4::new(VIP, ECHO), PACE)?,
            tcp: Connection::start(&site.client)?,
            load: register::Load::start(site.nodes.iter().map(crate::cluster::LbNode::socket).collect(), options.seed)?,
            fickle: Fickle::start(site)?,
            follower: Follower::start(site.nodes.iter().map(crate::cluster::LbNode::socket).collect())?,
            resumed: Vec::new(),
            history: Vec::new(),
        })
    }

    /// One trouble, or two where a majority stays; then everything must come back.
    fn round(&mut self, site: &mut Site, report: &mut Report, tell: &impl Fn(&str)) -> anyhow::Result<()> {
        self.history.clear();
        // Their verdicts are on their way when the trouble begins.
        self.fickle.turn(site)?;
        let under_way = Duration::from_millis(self.random.u64(..600));
        thread::sleep(under_way);
        let struck = Instant::now();
        let first = self.strike(site, None)?;
        let second = if site.nodes.len() >= 5 && self.random.u64(..3) == 0 {
            Some(self.strike(site, Some(first.1))?)
        } else {
            None
        };
        let lasts = Duration::from_millis(first.0.lasts_ms(&mut self.random));
        self.meddle(site, struck + lasts, [Some(first), second].into_iter().flatten().map(|of| of.1).collect());
        for (trouble, node, other) in [Some(first), second].into_iter().flatten() {
            if matches!(trouble, Trouble::Node(fault) if fault.goes_on()) {
                self.resumed.push((site.node_hosts[node].port("eth0").mac, Instant::now()));
            }
            trouble.mend(site, node, other).with_context(|| format!("mending {}", trouble.name()))?;
        }
        let mended = Instant::now();
        let full = [Some(first), second].into_iter().flatten().find(|of| of.0 == Trouble::FullDisk).map(|of| of.1);
        let settled = self.settle(site, full, mended)?;
        self.fickle.judge(site)?;
        wait::until_ok(BOUND, || {
            ensure!(self.follower.wrong().is_none(), "{}", self.follower.wrong().unwrap_or_default());
            self.follower.is_up_to_date(0)
        })
        .context("what is told of the table does not fit")?;
        let gap = self.udp.longest_gap_since(struck);
        report.settled.push(settled);
        report.troubles.entry(first.0.name()).or_default().push(gap);
        if let Some(second) = second {
            report.troubles.entry(second.0.name()).or_default().push(gap);
        }
        tell(&format!(
            "{:>5}  gap {:>5} ms  settled {:>5} ms  {}",
            report.rounds,
            gap.as_millis(),
            settled.as_millis(),
            self.history.join("; ")
        ));
        self.judge(report)
    }

    fn strike(&mut self, site: &mut Site, but: Option<usize>) -> anyhow::Result<(Trouble, usize, usize)> {
        let trouble = pick(&mut self.random, &self.troubles.clone());
        let nodes: Vec<usize> = (0..site.nodes.len()).filter(|node| Some(*node) != but).collect();
        // Half of the time it hits the owner of the VIP with the traffic.
        let owner = site.owner().ok().filter(|owner| Some(*owner) != but);
        let node = match owner.filter(|_| self.random.bool()) {
            Some(owner) => owner,
            None => pick(&mut self.random, &nodes),
        };
        let others: Vec<usize> = nodes.into_iter().filter(|other| *other != node).collect();
        let other = pick(&mut self.random, &others);
        self.history.push(format!("{} of {}", trouble.name(), site.nodes[node].name));
        trouble
            .strike(site, node, other)
            .with_context(|| format!("{} of {}", trouble.name(), site.nodes[node].name))?;
        Ok((trouble, node, other))
    }

    /// VIPs are moved, deleted and created again until then, by way of nodes that are not in trouble. Whether that
    /// succeeds is for the cluster to say.
    fn meddle(&mut self, site: &Site, until: Instant, troubled: Vec<usize>) {
        while Instant::now() < until {
            let sound: Vec<usize> = (0..site.nodes.len()).filter(|node| !troubled.contains(node)).collect();
            let by = &site.nodes[pick(&mut self.random, &sound)];
            let to = site.nodes[self.random.usize(..site.nodes.len())].name.clone();
            let arguments: &[&str] = match self.random.u64(..4) {
                0 => &["vip", "move", VIP_TEXT, &to],
                1 => &["vip", "move", "192.168.2.2", &to],
                2 => &["vip", "remove", PASSING],
                _ => &["vip", "add", PASSING],
            };
            let arguments = [&["--timeout", "500ms"], arguments].concat();
            if let Ok(output) = by.lbctl(&arguments) {
                self.history.push(format!("{} ({})", arguments[2..].join(" "), output.status.code().unwrap_or(-1)));
            }
            let pause = Duration::from_millis(self.random.u64(..300));
            thread::sleep(pause.min(until.saturating_duration_since(Instant::now())));
        }
    }

    /// Waits until every node holds a lease again and every VIP is answered. How long that took.
    fn settle(&mut self, site: &mut Site, full: Option<usize>, mended: Instant) -> anyhow::Result<Duration> {
        let sound = &site.nodes[(0..site.nodes.len()).find(|node| Some(*node) != full).unwrap_or(0)];
        let sound = sound.socket();
        let add_passing = || insist(|| crate::cluster::lbctl(&sound, &["--timeout", "2s", "vip", "add", PASSING]));
        add_passing()?;
        let mut added = Instant::now();
        let vips: Vec<Ipv4Addr> = [VIP].into_iter().chain(OTHERS).collect();
        loop {
            if let Some(node) = full
                && site.nodes[node].has_ended()?
            {
                let status = site.nodes[node].wait_for_end(PATIENCE)?;
                ensure!(status.code() == Some(75), "with a full disk {} ended with {status}", site.nodes[node].name);
                self.history.push(format!("{} ended with 75", site.nodes[node].name));
                site.nodes[node].start()?;
            }
            let answered = |vip: &Ipv4Addr| self.observer.last(*vip).is_some_and(|at| at > mended);
            let streams = self.udp.last_answer().is_some_and(|at| at > mended);
            if streams && vips.iter().all(answered) && all_ready(site) {
                return Ok(mended.elapsed());
            }
            // A removal that timed out may have come about after all.
            if added.elapsed() > ADD_AGAIN {
                add_passing()?;
                added = Instant::now();
            }
            if mended.elapsed() >= BOUND {
                let status = site.nodes[0].lbctl_ok(&["status"]).unwrap_or_else(|error| error.to_string());
                let missing: Vec<&Ipv4Addr> = vips.iter().filter(|vip| !answered(vip)).collect();
                bail!(
                    "after {BOUND:?} not all is well: VIPs without an answer {missing:?}, datagrams {streams}\n{status}"
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn judge(&mut self, report: &mut Report) -> anyhow::Result<()> {
        for (vip, claims) in self.observer.take() {
            let verdict = judge(&claims, &self.resumed);
            report.in_hand += verdict.in_hand;
            if let Some(how) = verdict.two_owners {
                bail!("{vip} had two owners: {how}");
            }
        }
        self.resumed.clear();
        match self.load.wrong() {
            Some(wrong) => bail!("a write was lost or a read was stale: {wrong}"),
            None => Ok(()),
        }
    }

    fn finish(self, mut report: Report) -> anyhow::Result<Report> {
        let wrong = self.load.wrong();
        let load = self.load.finish();
        (report.writes, report.reads) = (load.writes, load.reads);
        (report.requests, report.broken) = self.tcp.finish();
        report.storms = self.fickle.storms;
        report.followed = self.follower.interruptions();
        let _ = self.udp.finish();
        if let Some(wrong) = wrong {
            bail!("a write was lost or a read was stale: {wrong}");
        }
        Ok(report)
    }
}

fn all_ready(site: &Site) -> bool {
    site.nodes.iter().all(|node| {
        let Ok(status) = node.lbctl_json(&["--timeout", "1s", "status"]) else { return false };
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        status["stale"] == false
            && status["waiting"] == ""
            && nodes.len() == site.nodes.len()
            && nodes.iter().all(|node| node["ready"] == true && node["voter"] == true)
    })
}

/// A request after the other on one TCP connection, by way of the VIP.
struct Connection {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    broken: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Connection {
    fn start(client: &Host) -> anyhow::Result<Self> {
        let (stop, requests, broken) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::default());
        let (stopped, counted, breaks): (_, _, Arc<AtomicU64>) = (stop.clone(), requests.clone(), Arc::clone(&broken));
        let namespace = client.ns.clone();
        // As long as TCP itself would try.
        let patience = 6 * PATIENCE;
        let mut http = HttpClient::connect(&namespace, HTTP_ADDRESS, patience)?;
        let thread = thread::Builder::new().name("connection".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match http.who() {
                    Ok(_) => drop(counted.fetch_add(1, Ordering::Relaxed)),
                    Err(_) => {
                        breaks.fetch_add(1, Ordering::Relaxed);
                        if let Ok(again) = HttpClient::connect(&namespace, HTTP_ADDRESS, patience) {
                            http = again;
                        }
                    }
                }
                thread::sleep(5 * PACE);
            }
        })?;
        Ok(Self { stop, requests, broken, thread: Some(thread) })
    }

    /// Answered requests, and how often the connection broke.
    fn finish(mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        (self.requests.load(Ordering::Relaxed), self.broken.load(Ordering::Relaxed))
    }
}
