//! Fragments: every one of a datagram goes to the backend of its first, which alone names the flow.

use super::{Came, Core, Origin, Outgoing, To, balanced_before, dispatch};
use crate::{
    forward::{
        DropReason, Verdict,
        decide::{Place, decide},
        flow::Tick,
        fragment::{Course, Step, Waiting},
        table::BackendState,
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
            (Step::Follow(course), _) => self.follow(port, meta, frame, id.destination, course),
            (Step::Decide, Some(flow)) => {
                let outcome = self.course(flow);
                // The first goes first.
                let verdict = match outcome {
                    Ok(course) => self.follow(port, meta, frame, id.destination, course),
                    Err(reason) => Verdict::Drop(reason),
                };
                for waiting in self.fragments.decided(id, outcome) {
                    self.let_go(waiting, id.destination, outcome);
                }
                verdict
            }
            (Step::Wait | Step::Decide, _) => {
                let waiting = Waiting { port, vnet: meta.vnet, frame: frame.to_vec() };
                let held = self.fragments.hold(id, waiting, self.now_ns);
                self.count_held();
                if held { Verdict::Hold } else { Verdict::Drop(DropReason::FragmentNoRoom) }
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
    ) -> Verdict {
        let backend = match course {
            Course::Worker(home) => return self.hand_over(home, port, meta, frame),
            Course::Backend(backend) => self.snapshot.backend(backend),
        };
        let Some(vip) = self.snapshot.vip(vip) else { return Verdict::Drop(DropReason::NotVip) };
        let Some(backend) = backend.filter(|backend| backend.state != BackendState::Down) else {
            return Verdict::Drop(DropReason::NoBackend);
        };
        let (source, len) = (packet::source(frame).unwrap_or_default(), frame.len());
        dispatch(&self.snapshot, self.own.index, source, len, frame, (vip, backend))
            .unwrap_or_else(|why| Verdict::Drop(why.reason()))
    }

    /// A fragment has waited for the first one, and this is what became of it.
    pub(super) fn let_go(&mut self, waiting: Waiting, vip: Address, outcome: Result<Course, DropReason>) {
        let Waiting { port, vnet, mut frame } = waiting;
        let meta = FrameMeta { vlan_tagged: false, vnet };
        let verdict = match outcome {
            Ok(course) => self.follow(port, meta, &mut frame, vip, course),
            Err(reason) => Verdict::Drop(reason),
        };
        self.count(verdict);
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
