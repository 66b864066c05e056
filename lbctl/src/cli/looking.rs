//! What is looked at, waited for and followed.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use lb_proto::v1;

use super::values::{self, Destination, Endpoint};
use crate::names;

/// One object, by its name.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Object {
    /// A VIP.
    ///
    /// Examples: lbctl get vip 192.0.2.1; lbctl describe vip 192.0.2.1
    Vip {
        /// The address.
        #[arg(add = names::vips(), value_parser = values::address)]
        ip: IpAddr,
    },
    /// A service.
    ///
    /// Examples: lbctl get service web; lbctl describe service web
    Service {
        /// Its name.
        #[arg(add = names::services())]
        name: String,
    },
    /// A backend.
    ///
    /// Examples: lbctl get backend web 192.0.2.11; lbctl describe backend web 192.0.2.11
    Backend {
        /// The service.
        #[arg(add = names::services())]
        service: String,
        /// The backend's own address.
        #[arg(add = names::backends(), value_parser = values::address)]
        ip: IpAddr,
    },
    /// A segment.
    ///
    /// Examples: lbctl get segment 192.0.2.0/24; lbctl describe segment 192.0.2.0/24
    Segment {
        /// The network, such as 192.0.2.0/24.
        network: String,
    },
    /// A node.
    ///
    /// Examples: lbctl get node lb1; lbctl describe node lb1
    Node {
        /// Its name.
        #[arg(add = names::nodes())]
        name: String,
    },
}

/// Which changes.
#[derive(Debug, Args)]
pub(crate) struct WatchFilter {
    /// Begin with what has changed after this revision; 0 begins with the whole table. Only what comes from now on, if not given.
    #[arg(long, value_name = "REVISION")]
    pub(crate) from: Option<u64>,
    /// Only changes of this kind. Repeat it for several.
    #[arg(long = "kind", value_name = "KIND", value_parser = values::labelled::<v1::Kind>())]
    pub(crate) kinds: Vec<v1::Kind>,
}

/// What is waited for.
#[derive(Debug, Subcommand)]
pub(crate) enum WaitFor {
    /// A drained backend has no flows any more.
    ///
    /// Example: lbctl wait drained web 192.0.2.11 --timeout 10m
    Drained {
        /// The service.
        #[arg(add = names::services())]
        service: String,
        /// The backend's own address.
        #[arg(add = names::backends(), value_parser = values::address)]
        ip: IpAddr,
    },
    /// A VIP has an owner.
    ///
    /// Example: lbctl wait owned 192.0.2.1 --timeout 5s
    Owned {
        /// The address.
        #[arg(add = names::vips(), value_parser = values::address)]
        ip: IpAddr,
        /// It is this node.
        #[arg(long, value_name = "NODE")]
        #[arg(add = names::nodes())]
        by: Option<String>,
    },
    /// All backends of a service, or one, are found healthy; where nothing is checked, nothing speaks against them.
    ///
    /// Example: lbctl wait healthy web --timeout 1m
    Healthy {
        /// The service.
        #[arg(add = names::services())]
        service: String,
        /// The backend's own address.
        #[arg(add = names::backends(), value_parser = values::address)]
        ip: Option<IpAddr>,
    },
    /// A node is a member of the cluster: it votes, and may own VIPs.
    ///
    /// Example: lbctl wait member lb3 --timeout 1m
    Member {
        /// Its name.
        #[arg(add = names::nodes())]
        name: String,
    },
}

/// Which events.
#[derive(Debug, Args)]
pub(crate) struct EventFilter {
    /// Do not end: print each as it comes.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Begin with the event of this number. Numbers are the asked node's own.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) from: Option<u64>,
    /// Only events of this kind. Repeat it for several.
    #[arg(long = "kind", value_name = "KIND", value_parser = values::labelled::<v1::EventKind>())]
    pub(crate) kinds: Vec<v1::EventKind>,
}

/// What is captured, and where it goes.
#[derive(Debug, Args)]
pub(crate) struct Capture {
    /// Only frames to, from or asking for this address.
    #[arg(long, value_name = "IP", value_parser = values::address)]
    pub(crate) vip: Option<IpAddr>,
    /// End after so many frames.
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// Only frames that are dropped.
    #[arg(long)]
    pub(crate) drops: bool,
    /// So many bytes of each frame at most; 0 for all.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub(crate) snaplen: u32,
    /// Where it goes: pcapng; - for standard output.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) write: PathBuf,
}

/// A packet, or many.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The client, such as 192.0.2.9:40000 or `[2001:db8::9]:40000`.
    #[arg(value_name = "SRC:PORT", required_unless_present = "pcap", requires = "destination")]
    pub(crate) source: Option<Endpoint>,
    /// The service, such as 192.0.2.1:80/tcp or `[2001:db8::1]:53/udp`.
    #[arg(value_name = "DST:PORT/PROTO")]
    pub(crate) destination: Option<Destination>,
    /// The frames of a capture (pcap or pcapng, of Ethernet): the node judges them, nothing is sent.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["source", "destination"])]
    pub(crate) pcap: Option<PathBuf>,
}

/// Which counters.
#[derive(Debug, Clone, Args)]
pub(crate) struct Stats {
    /// Those of all nodes: sums, and each node's own totals.
    #[arg(long)]
    pub(crate) all: bool,
    /// How fast those of all nodes grow, in a second: over this time, or one second. Example: lbctl stats --rates=10s
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "1s",
          value_parser = humantime::parse_duration)]
    pub(crate) rates: Option<Duration>,
}
