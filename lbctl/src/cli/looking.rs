//! What is looked at, waited for and followed.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use lb_proto::v1;

use super::values::{Destination, Endpoint};
use crate::names;

/// One object, by its name.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Object {
    /// A VIP.
    Vip {
        /// The address.
        #[arg(add = names::vips())]
        ip: IpAddr,
    },
    /// A service.
    Service {
        /// Its name.
        #[arg(add = names::services())]
        name: String,
    },
    /// A backend.
    Backend {
        /// The service.
        #[arg(add = names::services())]
        service: String,
        /// The backend's own address.
        #[arg(add = names::backends())]
        ip: IpAddr,
    },
    /// A segment.
    Segment {
        /// The network, such as 192.0.2.0/24.
        network: String,
    },
    /// A node.
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
    #[arg(long = "kind", value_name = "KIND", value_enum)]
    pub(crate) kinds: Vec<RowKind>,
}

/// What a row of the table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RowKind {
    Vip,
    Service,
    Backend,
    Segment,
    Settings,
}

impl From<RowKind> for v1::Kind {
    fn from(kind: RowKind) -> Self {
        match kind {
            RowKind::Vip => Self::Vip,
            RowKind::Service => Self::Service,
            RowKind::Backend => Self::Backend,
            RowKind::Segment => Self::Segment,
            RowKind::Settings => Self::Settings,
        }
    }
}

/// What is waited for.
#[derive(Debug, Subcommand)]
pub(crate) enum WaitFor {
    /// A drained backend has no flows any more.
    Drained {
        /// The service.
        #[arg(add = names::services())]
        service: String,
        /// The backend's own address.
        #[arg(add = names::backends())]
        ip: IpAddr,
    },
    /// A VIP has an owner.
    Owned {
        /// The address.
        #[arg(add = names::vips())]
        ip: IpAddr,
        /// It is this node.
        #[arg(long, value_name = "NODE")]
        #[arg(add = names::nodes())]
        by: Option<String>,
    },
    /// All backends of a service, or one, are found healthy; where nothing is checked, nothing speaks against them.
    Healthy {
        /// The service.
        #[arg(add = names::services())]
        service: String,
        /// The backend's own address.
        #[arg(add = names::backends())]
        ip: Option<IpAddr>,
    },
    /// A node is a member of the cluster: it votes, and may own VIPs.
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
    #[arg(long = "kind", value_name = "KIND", value_enum)]
    pub(crate) kinds: Vec<EventKind>,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EventKind {
    Node,
    Vip,
    Lease,
    Leader,
    Configuration,
    Health,
    Conflict,
    Kernel,
    Certificate,
}

impl From<EventKind> for v1::EventKind {
    fn from(kind: EventKind) -> Self {
        match kind {
            EventKind::Node => Self::Node,
            EventKind::Vip => Self::Vip,
            EventKind::Lease => Self::Lease,
            EventKind::Leader => Self::Leader,
            EventKind::Configuration => Self::Configuration,
            EventKind::Health => Self::Health,
            EventKind::Conflict => Self::Conflict,
            EventKind::Kernel => Self::Kernel,
            EventKind::Certificate => Self::Certificate,
        }
    }
}

/// What is captured, and where it goes.
#[derive(Debug, Args)]
pub(crate) struct Capture {
    /// Only frames to, from or asking for this address.
    #[arg(long, value_name = "IP")]
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
