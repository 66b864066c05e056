//! Which worker owns a packet's flow, where there are several: its frames go there, are judged there, and leave from there.

use std::sync::Arc;

use super::{mailbox::Handed, shared::Workers};
use crate::{packet::Packet, speaker::routers::Routers};

/// From where a frame came to this worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Came {
    FromWire,
    /// Another worker handed it off, because its flow is here.
    FromWorker,
}

/// A worker's place among several.
pub(super) struct Handoff {
    workers: Arc<Workers>,
    index: usize,
}

impl Handoff {
    /// `None` for a worker that is alone.
    pub(super) fn new(workers: &Arc<Workers>, index: usize) -> Option<Self> {
        (workers.all.len() > 1).then(|| Self { workers: workers.clone(), index })
    }

    pub(super) fn workers(&self) -> u64 {
        self.workers.all.len() as u64
    }

    pub(super) fn routers(&self) -> Arc<Routers> {
        self.workers.routers.clone()
    }

    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// The worker that owns a packet's flow, if it is another one.
    pub(super) fn owner_of(&self, packet: &Packet, came: Came) -> Option<usize> {
        if came == Came::FromWorker {
            return None;
        }
        self.workers.steering.packet(packet).filter(|owner| *owner != self.index)
    }

    /// Hands a frame off. Whether there was room.
    pub(super) fn hand(&self, owner: usize, frame: Handed) -> bool {
        self.workers.all[owner].mailbox.hand(frame)
    }
}
