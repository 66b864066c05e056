//! Services: the ports of a VIP that share one set of backends.

use std::{fmt, net::IpAddr};

use super::{
    check::Check,
    patch::patches,
    types::{Name, Revision},
};
use crate::codec::{numbered, recorded, recorded_with_settings};

/// Transport protocols that are balanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// RFC 9293
    Tcp,
    /// RFC 768
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Destination ports of a service, inclusive. `first = 0` stands for any port that no other service
/// of the VIP names, `last` is then 0 too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
}

impl PortRange {
    /// Whether it takes every port that no other service of the VIP names.
    pub fn is_any(&self) -> bool {
        self.first == 0
    }

    /// Whether both claim a port. Any port gives way to a named one, so the two do not collide.
    pub fn collides_with(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.is_any() == other.is_any()
            && self.first <= other.last
            && other.first <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            (0, _) => write!(f, "any/{}", self.protocol),
            (first, last) if first == last => write!(f, "{first}/{}", self.protocol),
            (first, last) => write!(f, "{first}-{last}/{}", self.protocol),
        }
    }
}

/// What ties a client to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Affinity {
    /// Each flow (5-tuple) is placed by itself.
    #[default]
    Flow,
    /// All flows of a source address go to one backend.
    Source,
}

/// The sizes that a Maglev table may have: primes near the powers of two.
pub const TABLE_SIZES: [u32; 4] = [4093, 16381, 65537, 655_373];

/// The table size of a service that names none.
pub const DEFAULT_TABLE_SIZE: u32 = 16381;

/// What an operator says of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSettings {
    /// Its name, unique in the cluster.
    pub name: Name,
    /// The VIP it is on.
    pub vip: IpAddr,
    /// The ports that share its backends, sorted.
    pub ports: Vec<PortRange>,
    /// What ties a client to a backend.
    pub affinity: Affinity,
    /// Entries of its Maglev table; fixed at creation.
    pub table_size: u32,
    /// With fewer backends of the first tier that take new flows, those of the second take them, too; 0 is as good as 1.
    pub min_healthy: u32,
    /// Where nothing good was found of any backend, new flows go to all, and are not dropped.
    pub fails_open: bool,
    /// What is asked of its backends; nothing where it is empty.
    pub checks: Vec<Check>,
    /// How often and how long they are asked, and how many answers count; for 0, see [`Self::rhythm`].
    pub check_interval_ms: u32,
    /// See [`super::Rhythm`].
    pub check_timeout_ms: u32,
    /// See [`super::Rhythm`].
    pub check_jitter_percent: u32,
    /// See [`super::Rhythm`].
    pub rise: u32,
    /// See [`super::Rhythm`].
    pub fall: u32,
    /// A backend that is drained keeps its flows for so long; for 0, [`Self::DRAIN_TIMEOUT_S`].
    pub drain_timeout_s: u32,
    /// A backend that begins to take flows takes its whole share only after so long; 0 for at once.
    pub slow_start_s: u32,
    /// Flows of TCP whose backend is down are reset, and not placed anew.
    pub resets_flows: bool,
}

impl ServiceSettings {
    /// For how long a drained backend keeps its flows where nothing else is said.
    pub const DRAIN_TIMEOUT_S: u32 = 300;
    const DAY_S: u32 = 86_400;

    /// For how long a drained backend keeps its flows.
    pub fn drain_timeout_s(&self) -> u32 {
        if self.drain_timeout_s == 0 { Self::DRAIN_TIMEOUT_S } else { self.drain_timeout_s }
    }

    /// What cannot be, if so: the field, and what is wrong with it.
    pub(super) fn problem_of_times(&self) -> Option<(String, String)> {
        let all = [("drain_timeout_s", self.drain_timeout_s), ("slow_start_s", self.slow_start_s)];
        let (field, value) = all.into_iter().find(|(_, value)| *value > Self::DAY_S)?;
        Some((field.to_owned(), format!("{value} s is more than a day")))
    }

    /// With what holds for a service of which nothing else is said.
    pub fn new(name: Name, vip: IpAddr, ports: Vec<PortRange>) -> Self {
        Self {
            name,
            vip,
            ports,
            affinity: Affinity::Flow,
            table_size: DEFAULT_TABLE_SIZE,
            min_healthy: 0,
            fails_open: false,
            checks: Vec::new(),
            check_interval_ms: 0,
            check_timeout_ms: 0,
            check_jitter_percent: 0,
            rise: 0,
            fall: 0,
            drain_timeout_s: 0,
            slow_start_s: 0,
            resets_flows: false,
        }
    }

    pub(super) fn needs_level(&self) -> u32 {
        let rhythm = [self.check_interval_ms, self.check_timeout_ms, self.check_jitter_percent, self.rise, self.fall];
        if self.resets_flows {
            10
        } else if self.drain_timeout_s > 0 || self.slow_start_s > 0 {
            9
        } else if !self.checks.is_empty() || rhythm != [0; 5] {
            8
        } else if self.min_healthy > 0 || self.fails_open {
            7
        } else {
            1
        }
    }
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// What the operator said.
    pub settings: ServiceSettings,
    /// The revision of its last change.
    pub revision: Revision,
}

/// A change of a service's settings; `None` leaves a value as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the settings that they change")]
pub struct ServicePatch {
    pub name: Name,
    pub ports: Option<Vec<PortRange>>,
    pub affinity: Option<Affinity>,
    pub min_healthy: Option<u32>,
    pub fails_open: Option<bool>,
    pub checks: Option<Vec<Check>>,
    pub check_interval_ms: Option<u32>,
    pub check_timeout_ms: Option<u32>,
    pub check_jitter_percent: Option<u32>,
    pub rise: Option<u32>,
    pub fall: Option<u32>,
    pub drain_timeout_s: Option<u32>,
    pub slow_start_s: Option<u32>,
    pub resets_flows: Option<bool>,
}

impl ServicePatch {
    pub(super) fn needs_level(&self) -> u32 {
        let rhythm = [self.check_interval_ms, self.check_timeout_ms, self.check_jitter_percent, self.rise, self.fall];
        if self.resets_flows.is_some() {
            10
        } else if self.drain_timeout_s.is_some() || self.slow_start_s.is_some() {
            9
        } else if self.checks.is_some() || rhythm != [None; 5] {
            8
        } else if self.min_healthy.is_some() || self.fails_open.is_some() {
            7
        } else {
            1
        }
    }
}

numbered!(Protocol: Tcp, Udp);
numbered!(Affinity: Flow, Source);
recorded!(PortRange => Port { protocol, first, last });
recorded!(ServiceSettings => Service {
    name, vip, ports, affinity, table_size, min_healthy, fails_open, checks, check_interval_ms, check_timeout_ms,
    check_jitter_percent, rise, fall, drain_timeout_s, slow_start_s, resets_flows,
});
recorded_with_settings!(Service => Service { revision });
patches!(ServicePatch of ServiceSettings by { name: Name } {
    ports, affinity, min_healthy, fails_open, checks, check_interval_ms, check_timeout_ms, check_jitter_percent, rise, fall, drain_timeout_s, slow_start_s, resets_flows,
});
recorded!(ServicePatch => ServicePatch {
    name, ports, affinity, min_healthy, fails_open, checks, check_interval_ms, check_timeout_ms, check_jitter_percent, rise, fall, drain_timeout_s, slow_start_s, resets_flows,
});
