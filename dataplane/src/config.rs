//! What a dataplane is started with.

use std::{sync::Arc, time::Duration};

use crate::{
    accel::{Accelerate, LinkKeeper},
    guard,
    io::{EngineKind, PortConfig},
};

/// What a dataplane is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The interfaces; a [`TableSpec`](crate::forward::spec::TableSpec)'s ports are these, in this order.
    pub ports: Vec<PortConfig>,
    /// The engine; `None` for the best that runs.
    pub engine: Option<EngineKind>,
    /// Threads that share the frames, up to [`MAX_WORKERS`](crate::forward::steering::MAX_WORKERS).
    pub workers: usize,
    /// Whether they go before all others on their cores, the kernel's receiving threads included ([`Scheduling`](crate::Scheduling)).
    pub realtime: bool,
    /// So long after a frame a worker looks for the next one without sleeping: nothing, unless its core has nothing else to do.
    pub busy_poll: Duration,
    /// The processors on which the workers run, in turn; anywhere if there are none.
    pub cpus: Vec<usize>,
    /// Slots for flows, of 32 bytes, over all workers. Up to half of them all flows find one. Their memory is taken at the
    /// start, see [`Dataplane::is_warm`](crate::Dataplane::is_warm).
    pub flow_capacity: usize,
    /// Whether an XDP program forwards known flows.
    pub accelerate: Accelerate,
    /// Who keeps that program on its interfaces when this process crashes, if somebody does.
    pub link_keeper: Option<Arc<dyn LinkKeeper>>,
    /// Whose the guard's table is.
    pub guard: guard::Ownership,
}

impl Config {
    /// Slots for a million flows, twice as many, so that hardly one finds its group of slots full: 64 MiB.
    pub const DEFAULT_FLOW_CAPACITY: usize = 1 << 21;
}
