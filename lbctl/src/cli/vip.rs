//! VIPs and segments.

use std::net::IpAddr;

use super::values;
use crate::names;
use clap::{ArgGroup, Subcommand, ValueEnum};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Unmatched {
    /// Dropped and counted.
    Drop,
    /// Refused: the sender is told by a reset or an ICMP error.
    Reject,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VipCommand {
    /// Add a VIP.
    ///
    /// Example: lbctl vip add 192.0.2.1 --prefer lb1
    Add {
        /// The address.
        #[arg(value_parser = values::address)]
        ip: IpAddr,
        /// The node that should own it while it is able to: it gets it first, and back as the setting failback says.
        #[arg(long, value_name = "NODE")]
        #[arg(add = names::nodes())]
        prefer: Option<String>,
        /// The network whose nodes answer for it, where that is not simply the one it is in.
        #[arg(long, value_name = "CIDR")]
        segment: Option<String>,
        /// What becomes of packets that no service takes.
        #[arg(long, value_enum)]
        unmatched: Option<Unmatched>,
    },
    /// Change a VIP.
    ///
    /// Example: lbctl vip set 192.0.2.1 --unmatched reject
    #[command(group = ArgGroup::new("what").required(true).multiple(true))]
    Set {
        /// The address.
        #[arg(add = names::vips(), value_parser = values::address)]
        ip: IpAddr,
        /// The node that should own it, or "none"; it gets it back as the setting failback says, 'lbctl vip move' at once.
        #[arg(group = "what", long, value_name = "NODE")]
        #[arg(add = names::nodes())]
        prefer: Option<String>,
        /// The network whose nodes answer for it, or "none".
        #[arg(group = "what", long, value_name = "CIDR")]
        segment: Option<String>,
        /// What becomes of packets that no service takes.
        #[arg(group = "what", long, value_enum)]
        unmatched: Option<Unmatched>,
    },
    /// Remove a VIP.
    ///
    /// Example: lbctl vip remove 192.0.2.1
    Remove {
        /// The address.
        #[arg(add = names::vips(), value_parser = values::address)]
        ip: IpAddr,
        /// With its services and their backends.
        #[arg(long)]
        cascade: bool,
    },
    /// Move a VIP to a node; returns when it is there.
    ///
    /// Example: lbctl vip move 192.0.2.1 lb2
    Move {
        /// The address.
        #[arg(add = names::vips(), value_parser = values::address)]
        ip: IpAddr,
        /// The node.
        #[arg(add = names::nodes())]
        node: String,
    },
    /// Spread the VIPs evenly over the nodes that can own them, without a loss; preferred nodes keep theirs.
    ///
    /// Example: lbctl vip rebalance
    Rebalance,
    /// All VIPs and their owners.
    ///
    /// Example: lbctl vip list
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SegmentCommand {
    /// Say more of a segment than the nodes find out themselves.
    ///
    /// Example: lbctl segment add 192.0.2.0/24 --gateway 192.0.2.254. All nodes there ask the gateway for its address five
    /// times a second. A node that alone does not hear it is cut off: its VIPs move to one that does.
    Add {
        /// The network, such as 192.0.2.0/24.
        #[arg(value_name = "CIDR")]
        network: String,
        /// A router there.
        #[arg(long, value_name = "IP", value_parser = values::address)]
        gateway: IpAddr,
    },
    /// Change what is said of a segment.
    ///
    /// Example: lbctl segment set 192.0.2.0/24 --gateway 192.0.2.253
    Set {
        /// The network.
        #[arg(value_name = "CIDR")]
        network: String,
        /// A router there.
        #[arg(long, value_name = "IP", value_parser = values::address)]
        gateway: IpAddr,
    },
    /// Say nothing of a segment any more.
    ///
    /// Example: lbctl segment remove 192.0.2.0/24
    Remove {
        /// The network.
        #[arg(value_name = "CIDR")]
        network: String,
    },
    /// All segments of which something was said, and the nodes that do not hear their gateways.
    ///
    /// Example: lbctl segment list
    List,
}
