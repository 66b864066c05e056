//! One thing that has happened.

use std::time::SystemTime;

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

    /// In a word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Vip => "vip",
            Self::Lease => "lease",
            Self::Leader => "leader",
            Self::Configuration => "configuration",
            Self::Health => "health",
            Self::Conflict => "conflict",
            Self::Kernel => "kernel",
            Self::Certificate => "certificate",
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
