//! What the owners of VIPs have found of their backends. It stands beside the configuration, whose revision it does not move.

use std::collections::BTreeSet;

use super::{
    Table,
    backend::{AdminState, Backend, Tier},
    service::Service,
};
use crate::codec::{numbered, recorded};

/// What was found of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// Nothing that speaks against it.
    #[default]
    Unchecked,
    /// It does not answer for its address (ARP, neighbour discovery): it takes no new flows, and keeps those it has.
    Unreachable,
    /// All its checks are answered well.
    Healthy,
    /// One of its checks is not: it takes no flows, and those that it had are placed anew.
    Unhealthy,
}

impl Health {
    /// Whether something speaks against it.
    pub fn is_bad(self) -> bool {
        matches!(self, Self::Unreachable | Self::Unhealthy)
    }

    /// Whether checks have found it.
    pub(super) fn is_of_checks(self) -> bool {
        matches!(self, Self::Healthy | Self::Unhealthy)
    }

    /// Whether a backend takes new flows.
    pub(super) fn is_good(self) -> bool {
        match self {
            Self::Unchecked | Self::Healthy => true,
            Self::Unreachable | Self::Unhealthy => false,
        }
    }
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

numbered!(Health: Unchecked, Unreachable, Healthy, Unhealthy);
impl Verdict {
    pub(super) fn needs_level(&self) -> u32 {
        if self.health.is_of_checks() { 8 } else { 6 }
    }
}

recorded!(Verdict => Verdict { backend, health, reason, since_ms });

/// What a backend takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// New flows, and those that it has.
    All,
    /// The flows that it has.
    Known,
    /// The flows of TCP that it has: it may only be cut off for a moment, which TCP survives and nobody of UDP would notice
    /// the end of.
    KnownTcp,
    /// Nothing.
    Nothing,
}

/// Which backends of a service take new flows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Takers {
    /// Their ids.
    pub backends: BTreeSet<u64>,
    /// How many of the first tier could.
    pub first_tier: usize,
    /// Nothing good was found of any: all take them.
    pub is_open: bool,
}

impl Table {
    /// Which backends of a service take new flows: those of the first tier, with those of the second where they are fewer than
    /// the service's minimum, or, where nothing good was found of any and the service fails open, all that shall.
    pub fn takers(&self, service: &Service) -> Takers {
        let Service { settings, .. } = service;
        let shall =
            |backend: &&Backend| backend.settings.state == AdminState::Active && backend.settings.weight.get() > 0;
        let can = |backend: &&Backend| self.verdict(backend).is_none_or(|verdict| verdict.health.is_good());
        let of =
            |tier| self.backends_of(&settings.name).filter(shall).filter(move |backend| backend.settings.tier == tier);
        let ids = |tier| of(tier).filter(can).map(|backend| backend.id);
        let mut backends: BTreeSet<u64> = ids(Tier::First).collect();
        let first_tier = backends.len();
        if first_tier < (settings.min_healthy as usize).max(1) {
            backends.extend(ids(Tier::Second));
        }
        let is_open = backends.is_empty() && settings.fails_open;
        if is_open {
            let all = of(Tier::First).chain(of(Tier::Second));
            backends.extend(all.map(|backend| backend.id));
        }
        Takers { is_open: is_open && !backends.is_empty(), backends, first_tier }
    }

    /// What a backend takes. `takers`: of its service.
    pub fn takes(&self, backend: &Backend, takers: &Takers) -> Takes {
        match (backend.settings.state, self.health(backend)) {
            (AdminState::Down, _) => Takes::Nothing,
            (AdminState::Active, _) if takers.backends.contains(&backend.id) => Takes::All,
            (AdminState::Drain, _) if backend.is_drained => Takes::Nothing,
            // Its flows have nobody to talk to.
            (_, Health::Unhealthy) => Takes::Nothing,
            (_, Health::Unreachable) => Takes::KnownTcp,
            (_, Health::Unchecked | Health::Healthy) => Takes::Known,
        }
    }
}
