//! Frames whose flows another worker has: they go there, are judged there, and leave from there.

use super::{Came, Core, Origin, Outgoing, Sight, Speaker, To};
use crate::{
    forward::{DropReason, Verdict, flow::FlowTable, steering::SPEAKER},
    io::FrameMeta,
    mailbox::{Handed, Inbox},
    packet::Packet,
};

impl Core {
    /// The worker that a frame is to be handed over to, if this is not the one.
    pub(super) fn other_home(&self, packet: &Packet, came: Came) -> Option<usize> {
        if self.crew.members.len() == 1 || came == Came::FromWorker {
            return None;
        }
        self.crew.steering.packet(packet).filter(|home| *home != self.own.index)
    }

    /// Whether this worker speaks for the node.
    pub(super) fn is_speaker(&self) -> bool {
        self.own.index == SPEAKER
    }

    pub(super) fn hand_over(&self, home: usize, port: usize, meta: FrameMeta, frame: &[u8]) -> Verdict {
        match self.crew.members[home].mailbox.hand(Handed { port, meta, frame: frame.to_vec() }) {
            true => Verdict::HandOver,
            false => Verdict::Drop(DropReason::HandoverFull),
        }
    }

    /// Judges a frame that another worker has handed over.
    pub(super) fn take_over(&mut self, handed: Handed) {
        let Handed { port, meta, mut frame } = handed;
        self.own.stats.taken_over.add(1);
        let mut sight = Sight::NOTHING;
        self.look(&frame, &mut sight);
        let verdict = self.consider(port, meta, &mut frame, &sight, Came::FromWorker);
        self.count(verdict, &meta.vnet);
        let (to, kind) = match verdict {
            Verdict::Forward { port } => (To::Port(port), Origin::Received),
            Verdict::Deliver => (To::OwnKernel, Origin::Received),
            Verdict::Answer => (To::Port(port), Origin::Answer),
            Verdict::Hold | Verdict::HandOver | Verdict::Drop(_) => return,
        };
        self.outbox.push(Outgoing { to, vnet: meta.vnet, frame, kind });
    }

    /// The worker has ended: what it still holds is dropped.
    pub(crate) fn give_up(mut self, inbox: &Inbox) -> Self {
        let stats = &self.own.stats;
        for _ in inbox.rest() {
            stats.taken_over.add(1);
            stats.dropped(DropReason::HandoverFull).add(1);
        }
        let held = self.fragments.waiting() as u64;
        stats.dropped(DropReason::FragmentTimeout).add(held);
        self.fragments = Default::default();
        self.count_held();
        self
    }

    /// What others go on with.
    pub(crate) fn retire(self) -> (Option<Speaker>, FlowTable) {
        let is_speaker = self.is_speaker();
        (is_speaker.then_some(self.speaker), self.flows)
    }
}
