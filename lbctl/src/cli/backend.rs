//! Backends.

use std::net::IpAddr;

use clap::{Args, Subcommand};

use super::{service::State, values};
use crate::names;

/// What can be said of a backend.
#[derive(Debug, Args)]
pub(crate) struct BackendOptions {
    /// Its share of new flows, 0 to 1000; with 0 it takes none and keeps those it has. A new one has 1.
    #[arg(long, value_parser = values::number(0..=1000))]
    pub(crate) weight: Option<u32>,
    /// Its MAC address, where it shall not be resolved by ARP or neighbour discovery; "none" to resolve it.
    #[arg(long)]
    pub(crate) mac: Option<String>,
    /// What it takes.
    #[arg(long, value_enum)]
    pub(crate) state: Option<State>,
    /// 2: it takes new flows only while too few of tier 1 do, see --min-healthy of the service. A new one has 1.
    #[arg(long, value_parser = values::number(1..=2))]
    pub(crate) tier: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BackendCommand {
    /// Add a backend to a service.
    ///
    /// Example: lbctl backend add web 192.0.2.11 --weight 2
    Add {
        /// The service.
        #[arg(add = names::services())]
        service: String,
        /// The backend's own address.
        #[arg(value_parser = values::address)]
        ip: IpAddr,
        #[command(flatten)]
        options: BackendOptions,
    },
    /// Change a backend.
    ///
    /// Example: lbctl backend set web 192.0.2.11 --weight 0
    Set {
        /// The service.
        #[arg(add = names::services())]
        service: String,
        /// The backend's own address.
        #[arg(add = names::backends(), value_parser = values::address)]
        ip: IpAddr,
        #[command(flatten)]
        options: BackendOptions,
    },
    /// Let a backend keep the flows it has and give it no new ones.
    ///
    /// Example: lbctl backend drain web 192.0.2.11, then lbctl wait drained web 192.0.2.11 --timeout 10m
    Drain {
        #[command(flatten)]
        names: BackendNames,
        /// Return when it has no flows any more.
        #[arg(long)]
        wait: bool,
    },
    /// Let a backend take flows again.
    ///
    /// Example: lbctl backend enable web 192.0.2.11
    Enable(BackendNames),
    /// Give a backend nothing; its flows are placed anew.
    ///
    /// Example: lbctl backend disable web 192.0.2.11
    Disable(BackendNames),
    /// Remove a backend.
    ///
    /// Example: lbctl backend remove web 192.0.2.11
    Remove(BackendName),
    /// The backends of a service, or all.
    ///
    /// Example: lbctl backend list web -o wide
    List {
        /// The service.
        #[arg(add = names::services())]
        service: Option<String>,
        /// Do not ask the nodes how many flows each backend has: quicker, also where a node does not answer.
        #[arg(long)]
        no_flows: bool,
    },
}

/// A backend of one service, or of all.
#[derive(Debug, Args)]
pub(crate) struct BackendNames {
    /// The service.
    #[arg(required_unless_present = "all_services")]
    #[arg(add = names::services())]
    pub(crate) service: Option<String>,
    /// The backend's own address.
    #[arg(required_unless_present = "all_services")]
    #[arg(add = names::backends(), value_parser = values::address)]
    pub(crate) ip: Option<IpAddr>,
    /// The machine with this address, in all services that it serves: all of them change at once, or none.
    #[arg(long, value_name = "IP", conflicts_with_all = ["service", "ip"])]
    #[arg(add = names::backends(), value_parser = values::address)]
    pub(crate) all_services: Option<IpAddr>,
}

#[derive(Debug, Args)]
pub(crate) struct BackendName {
    /// The service.
    #[arg(add = names::services())]
    pub(crate) service: String,
    /// The backend's own address.
    #[arg(add = names::backends(), value_parser = values::address)]
    pub(crate) ip: IpAddr,
}
