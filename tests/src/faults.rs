//! What can happen to a node of a site, and how it is put right again.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lb_dataplane::packet::Mac;
use rustix::process::Signal;

use crate::{
    cluster,
    crowd::{Crowd, CrowdReport},
    observe::{ArpObserver, UdpReport, UdpStream, owners_in_turn},
    site::{ECHO, PATIENCE, Site, VIP, VIP_TEXT},
    topology::{Cut, Host},
    wait,
};

/// Between two datagrams of a measuring stream.
pub const PACE: Duration = Duration::from_millis(1);
/// Between two questions for the VIP.
const ASK_EVERY: Duration = Duration::from_millis(2);
/// After the VIP is back: the streams go on for so long, so that a second gap would be seen.
const AFTERWARDS: Duration = Duration::from_millis(400);
/// What a process that was stopped still had in hand may leave within this time.
const IN_HAND: Duration = Duration::from_millis(1);

/// A fault of the node that owns the VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of the working process; its parent tells the others.
    WorkerKilled,
    /// SIGKILL of both processes.
    BothKilled,
    /// All its cables are cut and keep their carrier, as when the power goes behind a switch.
    CutOff,
    /// It hears, and is not heard.
    Mute,
    /// It is heard, and does not hear.
    Deaf,
    /// Both processes are stopped by SIGSTOP, and go on later.
    Stopped,
    /// The worker's thread alone is halted, and goes on later.
    WorkerHalted,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::WorkerKilled, Self::BothKilled, Self::CutOff, Self::Mute, Self::Deaf, Self::Stopped, Self::WorkerHalted];

    /// Whether what is in hand when it happens may be answered when it is over.
    pub fn goes_on(self) -> bool {
        matches!(self, Self::Stopped | Self::WorkerHalted)
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::WorkerKilled => "SIGKILL of the working process",
            Self::BothKilled => "SIGKILL of both processes",
            Self::CutOff => "silent cut (power loss)",
            Self::Mute => "owner mute",
            Self::Deaf => "owner deaf",
            Self::Stopped => "SIGSTOP",
            Self::WorkerHalted => "worker thread halted",
        }
    }

    /// Lets it happen.
    pub fn strike(self, site: &mut Site, node: usize) -> anyhow::Result<()> {
        match self {
            Self::WorkerKilled => site.nodes[node].kill_worker()?,
            Self::BothKilled => site.nodes[node].kill()?,
            Self::CutOff => cut(site, node, Cut::Silent)?,
            Self::Mute => cut(site, node, Cut::Mute)?,
            Self::Deaf => cut(site, node, Cut::Deaf)?,
            Self::Stopped => site.nodes[node].signal_both(Signal::STOP)?,
            Self::WorkerHalted => site.nodes[node].halt_worker()?,
        }
        Ok(())
    }

    /// Puts it right.
    pub fn mend(self, site: &mut Site, node: usize) -> anyhow::Result<()> {
        match self {
            Self::WorkerKilled => {
                site.nodes[node].wait_for_end(PATIENCE)?;
                site.nodes[node].start()?;
            }
            Self::BothKilled => site.nodes[node].start()?,
            Self::CutOff | Self::Mute | Self::Deaf => cut(site, node, Cut::None)?,
            Self::Stopped => site.nodes[node].signal_both(Signal::CONT)?,
            Self::WorkerHalted => site.nodes[node].unhalt_worker(),
        }
        Ok(())
    }
}

/// Cuts all cables of a node.
pub fn cut(site: &Site, node: usize, cut: Cut) -> anyhow::Result<()> {
    for interface in ["eth0", "mgmt"] {
        site.net.cut(&site.node_hosts[node], interface, cut).with_context(|| format!("cutting {interface}"))?;
    }
    Ok(())
}

/// What a fault of the owner did to the VIP.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// For how long no datagram was answered, on the worse of the two streams.
    pub gap: Duration,
    /// Datagrams without an answer, on the worse of the two.
    pub lost: usize,
    /// What became of the questions of many clients.
    pub crowd: CrowdReport,
    /// Answers that the old owner still had in hand when it went on after SIGSTOP.
    pub in_hand: usize,
}

/// Measuring streams to the VIP and an observer of its owner.
pub struct Watch {
    arps: ArpObserver,
    near: UdpStream,
    far: UdpStream,
    crowd: Crowd,
}

impl Watch {
    /// Starts when both streams are answered. `neighbor` is a host on the VIP's segment.
    pub fn start(site: &Site, neighbor: &Host) -> anyhow::Result<Self> {
        let to = SocketAddrV4::new(VIP, ECHO);
        let observed = Ipv4Addr::new(192, 168, 2, 254);
        let watch = Self {
            arps: ArpObserver::start(&site.router, "eth1", observed, VIP, ASK_EVERY)?,
            near: UdpStream::start(neighbor, to, PACE)?,
            far: UdpStream::start(&site.client, to, PACE)?,
            crowd: Crowd::start(&site.client, to)?,
        };
        wait::until("both streams are answered", PATIENCE, || watch.last_answer().is_some());
        Ok(watch)
    }

    /// The moment at which both streams were last answered.
    pub fn last_answer(&self) -> Option<Instant> {
        Some(self.near.last_answer()?.min(self.far.last_answer()?))
    }

    /// Goes on for `span`.
    pub fn go_on(&self, span: Duration) {
        let until = Instant::now() + span;
        wait::until("the streams go on", PATIENCE + span, || self.last_answer().is_some_and(|at| at > until));
    }

    /// Stops the streams and the observer.
    pub fn finish(self) -> anyhow::Result<Seen> {
        let crowd = self.crowd.finish()?;
        Ok(Seen { claims: self.arps.finish(), near: self.near.finish(), far: self.far.finish(), crowd })
    }
}

/// What a [`Watch`] saw.
pub struct Seen {
    /// Each answer or announcement for the VIP.
    pub claims: Vec<(Instant, Mac)>,
    /// From the end of the segment.
    pub near: UdpReport,
    /// Through the router.
    pub far: UdpReport,
    /// Of many clients through the router.
    pub crowd: CrowdReport,
}

impl Seen {
    /// The longer of both gaps.
    pub fn gap(&self) -> Duration {
        self.near.longest_gap.max(self.far.longest_gap)
    }

    /// The more lost datagrams of both streams.
    pub fn lost(&self) -> usize {
        self.near.lost.max(self.far.lost)
    }
}

/// Has the VIP owned by the leader, or by another node.
pub fn place_owner(site: &Site, at_leader: bool) -> anyhow::Result<usize> {
    let status = site.nodes[0].lbctl_json(&["status"])?;
    let leader = status["leader"].as_str().unwrap_or_default().to_owned();
    let wanted = site.nodes.iter().find(|node| (node.name == leader) == at_leader);
    let wanted = wanted.context("there is no such node")?.name.clone();
    // One that has just begun hears nobody on the segment for a moment, and cannot own it until then.
    wait::until_ok(PATIENCE, || site.nodes[0].lbctl_ok(&["vip", "move", VIP_TEXT, &wanted]))?;
    let owner = site.nodes.iter().position(|node| node.name == wanted);
    owner.context("the owner is a node")
}

/// Lets a fault happen to the owner under traffic, checks that one owner followed the other, and puts all
/// right again.
pub fn measure(site: &mut Site, neighbor: &Host, fault: Fault, at_leader: bool) -> anyhow::Result<Outcome> {
    let owner = place_owner(site, at_leader)?;
    let watch = Watch::start(site, neighbor)?;
    watch.go_on(AFTERWARDS);
    let struck = Instant::now();
    fault.strike(site, owner)?;
    // What is on its way is answered yet; then comes the gap.
    let back = |watch: &Watch| watch.last_answer().is_some_and(|at| at > struck + Duration::from_millis(5));
    wait::until("the VIP is answered again", PATIENCE, || back(&watch));
    watch.go_on(AFTERWARDS);
    let mended = Instant::now();
    fault.mend(site, owner)?;
    watch.go_on(AFTERWARDS);
    let seen = watch.finish()?;
    let (gap, lost, crowd, claims) = (seen.gap(), seen.lost(), seen.crowd, seen.claims);
    let old = site.node_hosts[owner].port("eth0").mac;
    let late = |at: &Instant, mac: &Mac| fault.goes_on() && *mac == old && *at >= mended && *at <= mended + IN_HAND;
    let in_hand = claims.iter().filter(|(at, mac)| late(at, mac)).count();
    let claims: Vec<(Instant, Mac)> = claims.into_iter().filter(|(at, mac)| !late(at, mac)).collect();
    let owners = owners_in_turn(&claims).map_err(|error| anyhow::anyhow!("two owners: {error}"))?;
    ensure!(owners.len() == 2 && owners[0] == old, "{}: the owners were {owners:?}", fault.name());
    let alive = (owner + 1) % site.nodes.len();
    cluster::wait_ready(&site.nodes[alive], site.nodes.len());
    wait::until("the nodes are one cluster again", PATIENCE, || {
        site.nodes.iter().all(|node| node.lbctl_json(&["status"]).is_ok_and(|status| status["stale"] == false))
    });
    site.wait_resolved();
    Ok(Outcome { gap, lost, crowd, in_hand })
}
