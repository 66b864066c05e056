//! Fragments: every one of a datagram goes to the backend of its first, which alone names the flow.

use super::{Came, Core, NotSent, Origin, Outgoing, To, balanced_before, dispatch};
use crate::{
    forward::{
        DropReason, Verdict,
        decide::{Place, decide},
        flow::Tick,
        fragment::{Course, Step, Waiting},
        table::{Backend, BackendState},
    },
    io::FrameMeta,
    packet::{self, Address, FlowPacket, Fragment, Packet},
};

impl Core {
    /// Every fragment of a datagram goes to the backend of the first.
    pub(super) fn fragment(&mut self, port: usize, meta: FrameMeta, frame: &mut [u8], fragment: &Fragment) -> Verdict {
        let id = fragment.datagram;
        let Some(vip) = self.snapshot.vip(id.destination) else { return Verdict::Drop(DropReason::NotVip) };
        if self.snapshot.is_peer(packet::source(frame).unwrap_or_default()) {
            return balanced_before(frame, vip.is_served_here);
        }
        match (self.fragments.arrive(fragment, self.now_ns), &fragment.flow) {
            (Step::Follow(course), _) => {
                self.follow(port, meta, frame, id.destination, course).unwrap_or_else(|why| Verdict::Drop(why.reason()))
            }
            (Step::Decide, Some(flow)) => {
                let outcome = self.course(flow);
                // The first goes first.
                let sent = outcome.map_err(NotSent::For);
                let sent = sent.and_then(|course| self.follow(port, meta, frame, id.destination, course));
                // Of all fragments only the first is complained of (RFC 1122 3.2.2); none is longer.
                if let Err(NotSent::TooBig { mtu }) = sent {
                    self.say_too_big(port, frame, flow, mtu);
                }
                let verdict = sent.unwrap_or_else(|why| Verdict::Drop(why.reason()));
                for waiting in self.fragments.decided(id, outcome) {
                    self.let_go(waiting, id.destination, outcome);
                }
                verdict
            }
            (Step::Wait | Step::Decide, _) => {
                let waiting = Waiting { port, vnet: meta.vnet, frame: frame.to_vec() };
                let given_up = self.fragments.hold(id, waiting, self.now_ns);
                self.own.stats.dropped(DropReason::FragmentNoRoom).add(given_up as u64);
                self.count_held();
                Verdict::Hold
            }
            (Step::Drop(reason), _) => Verdict::Drop(reason),
        }
    }

    /// Where a datagram goes whose first fragment names its flow: to a backend, if the flow is this worker's.
    pub(super) fn course(&mut self, flow: &FlowPacket) -> Result<Course, DropReason> {
        // Also a fragment that was handed over, to this worker as the one that follows its datagram.
        if let Some(home) = self.other_home(&Packet::Flow(*flow), Came::FromWire) {
            return Ok(Course::Worker(home));
        }
        let (place, now) = (Place::find(&self.snapshot, &flow.tuple)?, Tick::from_ns(self.now_ns));
        let decision = decide(&self.snapshot, &mut self.flows, flow, &place, now)?;
        Ok(Course::Backend(decision.backend.reference))
    }

    pub(super) fn follow(
        &self,
        port: usize,
        meta: FrameMeta,
        frame: &mut [u8],
        vip: Address,
        course: Course,
    ) -> Result<Verdict, NotSent> {
        let backend = match course {
            Course::Worker(home) => return Ok(self.hand_over(home, port, meta, frame)),
            Course::Backend(backend) => self.snapshot.backend(backend),
        };
        let vip = self.snapshot.vip(vip).ok_or(DropReason::NotVip)?;
        let alive = |backend: &&Backend| backend.state != BackendState::Down;
        let backend = backend.filter(alive).ok_or(DropReason::NoBackend)?;
        let (source, len) = (packet::source(frame).unwrap_or_default(), frame.len());
        dispatch(&self.snapshot, self.own.index, source, len, frame, (vip, backend))
    }

    /// A fragment has waited for the first one, and this is what became of it.
    pub(super) fn let_go(&mut self, waiting: Waiting, vip: Address, outcome: Result<Course, DropReason>) {
        let Waiting { port, vnet, mut frame } = waiting;
        let meta = FrameMeta { vlan_tagged: false, vnet };
        let sent = outcome.map_err(NotSent::For);
        let sent = sent.and_then(|course| self.follow(port, meta, &mut frame, vip, course));
        let verdict = sent.unwrap_or_else(|why| Verdict::Drop(why.reason()));
        self.count(verdict, &vnet);
        let to = match verdict {
            Verdict::Forward { port } => Some(To::Port(port)),
            Verdict::Deliver => Some(To::OwnKernel),
            _ => None,
        };
        self.outbox.extend(to.map(|to| Outgoing { to, vnet, frame, kind: Origin::Received }));
        self.count_held();
    }

    pub(super) fn count_held(&self) {
        self.own.stats.held.set(self.fragments.waiting() as u64);
    }
}
