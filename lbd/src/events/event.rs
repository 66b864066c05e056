//! One thing that has happened.

use std::time::SystemTime;

use lb_proto::v1;

/// What it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A node: it came, went, is drained, cannot own VIPs, is not heard.
    Node,
    /// A VIP's owner.
    Vip,
    Lease,
    /// Who leads, and whether anybody does.
    Leader,
    /// What callers have changed.
    Configuration,
    /// What was found of a backend.
    Health,
    /// Somebody else answers for a VIP.
    Conflict,
    /// Disk, memory, tables.
    Kernel,
    Certificate,
}

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Node,
        Self::Vip,
        Self::Lease,
        Self::Leader,
        Self::Configuration,
        Self::Health,
        Self::Conflict,
        Self::Kernel,
        Self::Certificate,
    ];
}

impl From<Kind> for v1::EventKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Node => Self::Node,
            Kind::Vip => Self::Vip,
            Kind::Lease => Self::Lease,
            Kind::Leader => Self::Leader,
            Kind::Configuration => Self::Configuration,
            Kind::Health => Self::Health,
            Kind::Conflict => Self::Conflict,
            Kind::Kernel => Self::Kernel,
            Kind::Certificate => Self::Certificate,
        }
    }
}

/// What has happened, before it has a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) kind: Kind,
    /// It is something to look after.
    pub(crate) is_bad: bool,
    /// What, and why; one line.
    pub(crate) reason: String,
    /// Such as `vip 192.0.2.1`.
    pub(crate) objects: Vec<String>,
    /// The entry with which it came; 0 for what a node sees itself.
    pub(crate) revision: u64,
}

impl News {
    /// What this node sees itself.
    pub(crate) fn of_node(kind: Kind, is_bad: bool, reason: String) -> Self {
        Self { kind, is_bad, reason, objects: Vec::new(), revision: 0 }
    }
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// It grows with each, on one node and over its restarts.
    pub(crate) number: u64,
    /// When this node came to know of it.
    pub(crate) at: SystemTime,
    pub(crate) news: News,
}
