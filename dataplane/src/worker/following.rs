//! Interfaces that change under a running worker.

use std::time::Duration;

use crate::{
    forward::table::{PortSpec, Snapshot},
    io::{Engine, EngineError, EngineFactory, PortConfig},
};

/// Before an interface that could not be opened is tried again.
const REOPEN_NS: u64 = 1_000_000_000;
/// Before a worker looks whether it is its turn to open its sockets.
const TURN_NS: u64 = 1_000_000;

/// The engine of a worker, which follows its interfaces.
pub(super) struct Following {
    pub(super) engine: Box<dyn Engine>,
    /// Makes another one.
    factory: EngineFactory,
    /// What this one was made for.
    ports: Vec<PortConfig>,
    retry_at_ns: u64,
    is_waiting: bool,
}

impl Following {
    /// An engine, and what it was made of.
    pub(super) fn new(engine: Box<dyn Engine>, factory: EngineFactory, ports: Vec<PortConfig>) -> Self {
        Self { engine, factory, ports, retry_at_ns: 0, is_waiting: false }
    }

    /// For how long a worker may sleep.
    pub(super) fn patience(&self) -> Duration {
        if self.is_waiting { Duration::from_nanos(TURN_NS) } else { Duration::MAX }
    }

    /// Opens the sockets anew where an interface is another one than before: it was gone, or its frames have
    /// another size. Frames that come meanwhile are lost, or, if several workers change over one after the other, may
    /// be forwarded twice.
    pub(super) fn follow(&mut self, snapshot: &Snapshot, now_ns: u64) {
        let wanted = || self.ports.iter().zip(&snapshot.ports);
        // Nobody has the index 0: it would stand for all interfaces.
        let same = |(open, port): (&PortConfig, &PortSpec)| {
            port.ifindex == 0 || (open.ifindex, open.mtu) == (port.ifindex, port.mtu)
        };
        if now_ns < self.retry_at_ns || wanted().all(same) {
            return;
        }
        self.retry_at_ns = now_ns + REOPEN_NS;
        self.is_waiting = false;
        let ports: Vec<PortConfig> =
            wanted().map(|(open, port)| PortConfig { ifindex: port.ifindex, mtu: port.mtu, ..open.clone() }).collect();
        match self.factory.start(&ports, &snapshot.filter) {
            Ok(engine) => {
                tracing::info!("the interfaces have changed: their sockets are open again");
                (self.engine, self.ports) = (engine, ports);
            }
            Err(EngineError::NotInTurn) => {
                self.retry_at_ns = now_ns + TURN_NS;
                self.is_waiting = true;
            }
            Err(error) => tracing::warn!(%error, "an interface has changed and cannot be opened: tried again"),
        }
    }
}
