//! What a campaign lets happen to a node, and how it is put right.

use std::{fs, io::Write as _};

use anyhow::Context as _;

use crate::{
    cluster::{SOON, form_one, insist},
    faults::Fault,
    nft,
    site::Site,
    topology::{Cut, Lane},
};
use fastrand::Rng;

/// Datagrams a second: more than a node forwards beside all else on this machine, and few enough for those who watch.
const FLOOD: u64 = 300_000;

/// A kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// A fault of the node itself or of all its cables.
    Node(Fault),
    /// The carrier of its interface on the VIPs' segment goes.
    LinkDown,
    /// It is cut off from the other nodes, and from nobody else.
    Partition,
    /// It and one other node do not reach each other; everybody else reaches both.
    PartialPartition,
    /// Its heartbeats do not get out; its Raft messages do.
    HeartbeatsOnly,
    /// The reverse.
    RaftOnly,
    /// Its disk is full.
    FullDisk,
    /// SIGTERM and a start.
    Restart,
    /// It is removed, its data is wiped, and it is added again.
    Replaced,
    /// Another program flushes the whole nftables ruleset.
    GuardFlushed,
    /// It starts with another cluster address, and is told of in the table only afterwards.
    Renumbered,
    /// It gets more datagrams than it can forward.
    Flooded,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Node(Fault::WorkerKilled),
        Self::Node(Fault::BothKilled),
        Self::Node(Fault::CutOff),
        Self::Node(Fault::Mute),
        Self::Node(Fault::Deaf),
        Self::Node(Fault::Stopped),
        Self::Node(Fault::WorkerHalted),
        Self::GuardFlushed,
        Self::Renumbered,
        Self::Flooded,
        Self::LinkDown,
        Self::Partition,
        Self::PartialPartition,
        Self::HeartbeatsOnly,
        Self::RaftOnly,
        Self::FullDisk,
        Self::Restart,
        Self::Replaced,
    ];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Node(fault) => fault.name(),
            Self::LinkDown => "link down",
            Self::Partition => "partition of the nodes",
            Self::PartialPartition => "partial partition",
            Self::HeartbeatsOnly => "heartbeats cut",
            Self::RaftOnly => "Raft cut",
            Self::FullDisk => "full disk",
            Self::Restart => "restart (SIGTERM)",
            Self::Replaced => "removed, wiped and added",
            Self::GuardFlushed => "nft flush ruleset",
            Self::Renumbered => "another address",
            Self::Flooded => "flood",
        }
    }

    /// Lets it happen to a node. `other` is another one.
    pub fn strike(self, site: &mut Site, node: usize, other: usize) -> anyhow::Result<()> {
        match self {
            Self::Node(fault) => fault.strike(site, node)?,
            Self::LinkDown => site.net.plug(&site.node_hosts[node], "eth0", false)?,
            Self::Partition => site.net.cut(&site.node_hosts[node], "mgmt", Cut::Silent)?,
            Self::PartialPartition => separate(site, [node, other], true)?,
            Self::HeartbeatsOnly => site.node_hosts[node].block(Lane::Heartbeats, true)?,
            Self::RaftOnly => site.node_hosts[node].block(Lane::Raft, true)?,
            Self::FullDisk => fill(site, node)?,
            Self::Restart => {
                site.nodes[node].terminate()?;
                site.nodes[node].start()?;
            }
            Self::Replaced => {
                // A leader that could not be reached in time, or two at once: the same command goes on.
                let (name, by) = (site.nodes[node].name.clone(), &site.nodes[other]);
                insist(|| by.lbctl(&["--timeout", "5s", "node", "remove", &name]))?;
                site.nodes[node].wait_for_end(SOON)?;
                site.nodes[node].wipe()?;
                site.nodes[node].start()?;
                form_one(&site.nodes[other], &site.nodes[node])?;
            }
            Self::GuardFlushed => nft::flush_ruleset(&site.node_hosts[node].ns)?,
            Self::Renumbered => {
                site.nodes[node].terminate()?;
                site.renumber(node)?;
                site.nodes[node].start()?;
            }
            Self::Flooded => site.flood(node, FLOOD)?,
        }
        Ok(())
    }

    /// Puts it right.
    pub fn mend(self, site: &mut Site, node: usize, other: usize) -> anyhow::Result<()> {
        match self {
            Self::Node(fault) => fault.mend(site, node)?,
            Self::LinkDown => site.net.plug(&site.node_hosts[node], "eth0", true)?,
            Self::Partition => site.net.cut(&site.node_hosts[node], "mgmt", Cut::None)?,
            Self::PartialPartition => separate(site, [node, other], false)?,
            Self::HeartbeatsOnly => site.node_hosts[node].block(Lane::Heartbeats, false)?,
            Self::RaftOnly => site.node_hosts[node].block(Lane::Raft, false)?,
            // It ends when it meets the full disk, maybe only now: whoever waits for it starts it again.
            Self::FullDisk => fs::remove_file(filler(site, node))?,
            Self::Restart | Self::Replaced | Self::GuardFlushed => {}
            Self::Flooded => site.end_flood()?,
            Self::Renumbered => {
                let (name, address) = (site.nodes[node].name.clone(), site.nodes[node].address.clone());
                let by = &site.nodes[other];
                insist(|| by.lbctl(&["--timeout", "5s", "node", "set", &name, "--address", &address]))?;
            }
        }
        Ok(())
    }

    /// For how long it lasts, in milliseconds.
    pub fn lasts_ms(self, random: &mut Rng) -> u64 {
        match self {
            // Shorter than a lease, about as long, and longer.
            Self::Node(Fault::Stopped) => [40, 120, 160, 250, 1500][random.usize(..5)],
            _ => 100 + random.u64(..1900),
        }
    }
}

fn separate(site: &Site, nodes: [usize; 2], apart: bool) -> anyhow::Result<()> {
    for node in nodes {
        site.net.isolate(&site.node_hosts[node], "mgmt", apart)?;
    }
    Ok(())
}

fn filler(site: &Site, node: usize) -> std::path::PathBuf {
    site.nodes[node].data_dir().join("filler")
}

/// Writes zeros until nothing more fits.
fn fill(site: &Site, node: usize) -> anyhow::Result<()> {
    let mut file = fs::File::create(filler(site, node)).context("filling the disk")?;
    for len in [1 << 20, 4096, 1] {
        let zeros = vec![0; len];
        while file.write_all(&zeros).is_ok() {}
    }
    Ok(())
}
