//! VIPs and segments.

use std::net::IpAddr;

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
    Add {
        /// The address.
        ip: IpAddr,
        /// The node that should own it while it is able to.
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
    #[command(group = ArgGroup::new("what").required(true).multiple(true))]
    Set {
        /// The address.
        #[arg(add = names::vips())]
        ip: IpAddr,
        /// The node that should own it, or "none".
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
    Remove {
        /// The address.
        #[arg(add = names::vips())]
        ip: IpAddr,
        /// With its services and their backends.
        #[arg(long)]
        cascade: bool,
    },
    /// Move a VIP to a node; returns when it is there.
    Move {
        /// The address.
        #[arg(add = names::vips())]
        ip: IpAddr,
        /// The node.
        #[arg(add = names::nodes())]
        node: String,
    },
    /// Spread the VIPs evenly over the nodes that can own them, without a loss; preferred nodes keep theirs.
    Rebalance,
    /// All VIPs and their owners.
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
        #[arg(long, value_name = "IP")]
        gateway: IpAddr,
    },
    /// Change what is said of a segment.
    Set {
        /// The network.
        #[arg(value_name = "CIDR")]
        network: String,
        /// A router there.
        #[arg(long, value_name = "IP")]
        gateway: IpAddr,
    },
    /// Say nothing of a segment any more.
    Remove {
        /// The network.
        #[arg(value_name = "CIDR")]
        network: String,
    },
    /// All segments of which something was said, and the nodes that do not hear their gateways.
    List,
}
