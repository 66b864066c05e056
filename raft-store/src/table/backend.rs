//! Backends: the servers of a service.

use std::net::IpAddr;

use super::{
    patch::patches,
    types::{MacAddr, Name, Revision, Weight},
};
use crate::codec::{DecodeError, Field, numbered, recorded, recorded_with_settings};

/// What an operator wants of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AdminState {
    /// It takes flows.
    #[default]
    Active,
    /// It keeps the flows it has and takes no new ones.
    Drain,
    /// It takes nothing; its flows are placed anew.
    Down,
}

/// When a backend takes new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Tier {
    /// Always.
    #[default]
    First,
    /// While too few of the first tier do.
    Second,
}

impl Field<u32> for Tier {
    fn put(&self) -> u32 {
        *self as u32
    }

    fn read(number: u32) -> Result<Self, DecodeError> {
        match number {
            0 => Ok(Self::First),
            1 => Ok(Self::Second),
            _ => Err(DecodeError::too_new(0)),
        }
    }
}

/// What an operator says of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSettings {
    /// The service that it serves.
    pub service: Name,
    /// Its own address, which serves to find its MAC.
    pub address: IpAddr,
    /// Its share of new flows.
    pub weight: Weight,
    /// Its MAC, where it shall not be resolved.
    pub mac: Option<MacAddr>,
    /// What the operator wants of it.
    pub state: AdminState,
    /// Whether it is one of those that step in.
    pub tier: Tier,
}

impl BackendSettings {
    /// With what holds for a backend of which nothing else is said.
    pub fn new(service: Name, address: IpAddr) -> Self {
        Self { service, address, weight: Weight::DEFAULT, mac: None, state: AdminState::Active, tier: Tier::First }
    }
}

/// A server of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// What the operator said.
    pub settings: BackendSettings,
    /// Counted up with each backend ever added, so that a removed and re-added one is another one.
    pub id: u64,
    /// The revision of its last change.
    pub revision: Revision,
    /// Since when it is drained, by the clock of the node that was asked to, in milliseconds since 1970; 0 where it is not.
    pub draining_since_ms: u64,
    /// It was drained for as long as its service lets it: it keeps no flows any more.
    pub is_drained: bool,
    /// So many eighths of its share it takes; 0 for all of it.
    pub eighths: u32,
}

/// Eighths of a share.
pub(super) const ALL: u32 = 8;

/// A backend's share, while it rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The backend's id.
    pub backend: u64,
    /// So much of it.
    pub eighths: u32,
}

impl Backend {
    /// Its service and its address.
    pub fn key(&self) -> super::BackendKey {
        (self.settings.service.clone(), self.settings.address)
    }

    /// One of which nothing is known yet.
    pub(super) fn new(settings: BackendSettings, id: u64, revision: Revision) -> Self {
        Self { settings, id, revision, draining_since_ms: 0, is_drained: false, eighths: 0 }
    }

    /// How many eighths of its share it takes. Shares rise in steps in the table, so that all nodes choose alike.
    pub fn share(&self) -> u32 {
        if self.eighths == 0 { ALL } else { self.eighths.min(ALL) }
    }
}

/// A change of a backend's settings; `None` leaves a value as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the settings that they change")]
pub struct BackendPatch {
    pub service: Name,
    pub address: IpAddr,
    pub weight: Option<Weight>,
    pub mac: Option<Option<MacAddr>>,
    pub state: Option<AdminState>,
    pub tier: Option<Tier>,
}

numbered!(AdminState: Active, Drain, Down);
recorded!(BackendSettings => Backend { service, address, weight, mac, state, tier });
recorded_with_settings!(Backend => Backend { id, revision, draining_since_ms, is_drained, eighths });
patches!(BackendPatch of BackendSettings by { service: Name, address: IpAddr } { weight, mac, state, tier });
recorded!(BackendPatch => BackendPatch { service, address, weight, mac, state, tier });
recorded!(Share => Share { backend, eighths });
