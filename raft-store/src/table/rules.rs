//! The constants that decide what applying an entry does, bound to the feature level: builds that agree on the level agree on
//! them, so the same log makes the same table on every node.

/// How much a table of some feature level holds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// VIPs of the cluster.
    pub vips: usize,
    /// Services of all VIPs.
    pub services: usize,
    /// Backends of all services.
    pub backends: usize,
    /// Segments of which more is known.
    pub segments: usize,
    /// Port ranges of one service.
    pub ports_per_service: usize,
    /// Nodes, witnesses among them.
    pub nodes: usize,
    /// Remembered request ids; the oldest is forgotten first.
    pub requests: usize,
    /// The address of a VIP that is being removed may be a backend's: what changes places does so in one entry.
    pub leaving_vip_may_be_backend: bool,
    /// What no host of a segment may have is no VIP and no backend, and a node's cluster address no VIP.
    pub reserved_addresses_are_refused: bool,
    /// Remembered request ids that nodes made; the oldest is forgotten first.
    pub own_requests: usize,
    /// Request ids are forgotten by time where they carry it, and revisions are those of objects and of the configuration.
    pub requests_have_time: bool,
    /// Drained backends lose their flows after a time, and shares rise by and by.
    pub backends_take_time: bool,
}

/// Of the first level, and of all since that change nothing.
pub(super) const FIRST: Rules = Rules {
    vips: 4096,
    services: 16_384,
    backends: 65_536,
    segments: 256,
    ports_per_service: 64,
    nodes: 9,
    requests: 16_384,
    own_requests: 0,
    requests_have_time: false,
    leaving_vip_may_be_backend: false,
    reserved_addresses_are_refused: false,
    backends_take_time: false,
};

/// Of feature level 3.
pub(super) const THIRD: Rules = Rules { leaving_vip_may_be_backend: true, ..FIRST };

/// Of feature level 5.
pub(super) const FIFTH: Rules = Rules { reserved_addresses_are_refused: true, ..THIRD };

/// Of feature level 9.
pub(super) const NINTH: Rules = Rules { backends_take_time: true, ..FIFTH };

/// Of feature level 11.
pub(super) const ELEVENTH: Rules = Rules { requests: 200_000, own_requests: 16_384, requests_have_time: true, ..NINTH };
