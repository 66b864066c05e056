//! What the owners of VIPs have found of their backends. It stands beside the configuration, whose revision it does not move.

use crate::codec::{numbered, recorded};

/// What was found of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// Nothing that speaks against it.
    #[default]
    Unchecked,
    /// It does not answer for its address (ARP, neighbour discovery): it takes no new flows, and keeps those it has.
    Unreachable,
}

/// What the owner of a VIP has found of one of its backends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// The backend's id.
    pub backend: u64,
    /// What was found.
    pub health: Health,
    /// Why, for people.
    pub reason: String,
    /// Since when, by the clock of the node that found it, in milliseconds since 1970.
    pub since_ms: u64,
}

numbered!(Health: Unchecked, Unreachable);
recorded!(Verdict => Verdict { backend, health, reason, since_ms });
