//! Services.

use std::net::IpAddr;

use clap::{Args, Subcommand, ValueEnum};

use super::{
    check::{self, Check},
    values::{self, Port},
};
use crate::names;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Affinity {
    /// Each flow is placed by itself.
    Flow,
    /// All flows of a source address go to one backend.
    Source,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Add a service.
    ///
    /// Example: lbctl service add web --vip 192.0.2.1 --port 80/tcp --port 443/tcp --check http:80/healthz
    Add {
        /// Its name.
        name: String,
        /// The VIP it is on.
        #[arg(long, value_name = "IP")]
        #[arg(add = names::vips(), value_parser = values::address)]
        vip: IpAddr,
        /// Its ports: 80/tcp, 5000-5999/udp or any/tcp. Repeat it for several.
        #[arg(long = "port", value_name = "PORT/PROTO", required = true)]
        ports: Vec<Port>,
        /// What ties a client to a backend.
        #[arg(long, value_enum)]
        affinity: Option<Affinity>,
        /// Entries of its Maglev table: 4093, 16381, 65537 or 655373. About a hundred times the number
        /// of backends; fixed for good.
        #[arg(long, value_name = "SIZE", value_parser = values::number(1..=u32::MAX))]
        table_size: Option<u32>,
        #[command(flatten)]
        options: ServiceOptions,
    },
    /// Change a service.
    ///
    /// Example: lbctl service set web --affinity source --drain-timeout 10m
    Set {
        /// Its name.
        #[arg(add = names::services())]
        name: String,
        /// All its ports from now on.
        #[arg(long = "port", value_name = "PORT/PROTO")]
        ports: Vec<Port>,
        /// What ties a client to a backend.
        #[arg(long, value_enum)]
        affinity: Option<Affinity>,
        #[command(flatten)]
        options: ServiceOptions,
    },
    /// Remove a service.
    ///
    /// Example: lbctl service remove web
    Remove {
        /// Its name.
        #[arg(add = names::services())]
        name: String,
        /// With its backends.
        #[arg(long)]
        cascade: bool,
    },
    /// All services.
    ///
    /// Example: lbctl service list
    List,
}

/// What can be said of a service and changed.
#[derive(Debug, Args)]
pub(crate) struct ServiceOptions {
    /// What the owner of the VIP asks each backend.
    #[arg(long = "check", value_name = "CHECK", help = check::HELP)]
    pub(crate) checks: Vec<Check>,
    /// From one question to the next. A new one has 1s.
    #[arg(long, value_name = "TIME", value_parser = values::milliseconds)]
    pub(crate) check_interval: Option<u32>,
    /// For so long an answer is waited for. A new one has 500ms.
    #[arg(long, value_name = "TIME", value_parser = values::milliseconds)]
    pub(crate) check_timeout: Option<u32>,
    /// Intervals are longer or shorter by up to so many percent. A new one has 10.
    #[arg(long, value_name = "PERCENT", value_parser = values::number(1..=50))]
    pub(crate) check_jitter: Option<u32>,
    /// So many good answers in a row make a backend healthy. A new one has 2.
    #[arg(long, value_name = "N", value_parser = values::number(1..=u32::MAX))]
    pub(crate) rise: Option<u32>,
    /// So many bad ones make it unhealthy. A new one has 3.
    #[arg(long, value_name = "N", value_parser = values::number(1..=u32::MAX))]
    pub(crate) fall: Option<u32>,
    /// A drained backend keeps its flows for so long. A new one has 5m.
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    pub(crate) drain_timeout: Option<u32>,
    /// A backend that begins to take flows takes an eighth of its share at first, and all of it after so long. A new
    /// one has 0s: at once.
    #[arg(long, value_name = "TIME", value_parser = values::seconds_or_none)]
    pub(crate) slow_start: Option<u32>,
    /// With fewer backends of tier 1 that take new flows than this, those of tier 2 take them, too. A new one has 1.
    #[arg(long, value_name = "N")]
    pub(crate) min_healthy: Option<u32>,
    /// What becomes of new flows where nothing good was found of any backend. A new one has drop.
    #[arg(long, value_enum)]
    pub(crate) on_all_down: Option<OnAllDown>,
    /// What becomes of the TCP flows that a backend had when it is down. A new one has reselect.
    #[arg(long, value_enum)]
    pub(crate) on_backend_down: Option<OnBackendDown>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnBackendDown {
    /// They go to another backend, which does not know them and resets them itself.
    Reselect,
    /// The owner of the VIP resets them.
    Reset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnAllDown {
    /// They are dropped.
    Drop,
    /// All active backends take them.
    FailOpen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum State {
    /// It takes flows.
    Active,
    /// It keeps the flows it has and takes no new ones.
    Drain,
    /// It takes nothing.
    Down,
}
