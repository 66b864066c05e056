//! A worker's judgement of frames, without a thread, a socket or a ring: [`Pipeline::peek`], [`Pipeline::look_ahead`],
//! [`Pipeline::look_closer`] and [`Pipeline::judge`] are the whole way of a frame. [`super::classify`] decides; here the decision is carried out: the
//! frame is rewritten, counted, held, handed off or answered.
//!
//! Before: an engine of [`crate::io`] receives. After: it sends what the verdict says, and [`super`] sends the outbox.

use std::{mem, net::IpAddr, sync::Arc};

use super::{
    classify::{Arrival, Form, Intent, Judge, Peek, Rare, Remembering, Seen},
    handoff::{Came, Handoff},
    limit::Limiter,
    mailbox::Handed,
    outbox::{NOT_TAKEN, Outgoing, To},
    tap::{Before, Taps},
};
use crate::{
    accel::Accelerator,
    forward::{
        decide::{Place, Why},
        egress::Egress,
        flow::{FlowTable, Inserted},
        fragment::{Course, Fragments, Waiting},
        runtime::BackendRef,
        snapshot::{Backend, Snapshot, Vip},
    },
    io::{engine::FrameJudge, sys::memory::prefetch},
    packet::{
        self, ADDRESSES_LEN, Address, DatagramId, FlowPacket, FrameMeta, Mac, OwnedFrame, Packet, VnetHeader, checksum,
        fragments::{fragments, may_be_fragmented},
        icmp::Reply,
        rewrite,
    },
    speaker::{
        Ear, Saying, Speaker,
        answers::{Answer, Contest, Reaction},
        neighbor::{Change, Heard},
        permit::{LeaseClock, Owned, Permit},
        routers::Routers,
    },
    stats::WorkerStats,
    verdict::{DropReason, Sent, Verdict},
};

/// ICMP errors of our own, and refusals, a second (Linux has the same in icmp_msgs_per_sec).
pub(super) const REPLIES_PER_S: u64 = 1000;
/// Echo requests that are answered, a second.
pub(super) const ECHOES_PER_S: u64 = 10_000;
/// Between two lines in the log about claims that are not believed.
const COMPLAIN_EVERY_NS: u64 = 10_000_000_000;
/// Before an announcement that the lease did not allow is tried again.
const LEASE_RETRY_NS: u64 = 5_000_000;
/// VIPs that are asked for at the same time.
const PROBES: usize = 256;

/// What a worker knows and decides.
pub struct Pipeline {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) permit: Permit,
    pub(super) flows: FlowTable,
    pub(super) fragments: Fragments,
    /// `None` in a worker that does not speak for the node.
    pub(super) speaker: Option<Speaker>,
    /// Of ICMP errors that senders need to go on, and of refusals that only spare them waiting: apart, so that whoever
    /// scans ports does not stop the discovery of path MTUs.
    pub(super) errors: Limiter,
    pub(super) refusals: Limiter,
    /// Of answers to echo requests: a flood of them is not worth as many frames as it has.
    pub(super) echoes: Limiter,
    pub(super) outbox: Vec<Outgoing>,
    pub(super) taps: Taps,
    pub(super) accelerator: Option<Arc<Accelerator>>,
    pub(super) stats: Arc<WorkerStats>,
    /// Which part of the counters of VIPs and backends is this worker's.
    index: usize,
    /// `None` in a worker that is alone.
    pub(super) handoff: Option<Handoff>,
    pub(super) routers: Arc<Routers>,
    /// No line about claims that are not believed before this.
    complain_at_ns: u64,
    /// Frames of our own were not sent since the last tick.
    has_lost_questions: bool,
    /// Of the last look at the clock, once a turn.
    pub(super) now_ns: u64,
}

impl Pipeline {
    /// One that is alone: it has all flows, and speaks for the node.
    pub fn new(snapshot: Arc<Snapshot>, flows: FlowTable, stats: Arc<WorkerStats>, lease: Arc<LeaseClock>) -> Self {
        Self::of_worker(snapshot, flows, stats, Permit::new(lease, Arc::default()), Some(Speaker::default()), None)
    }

    /// One of several, and what the one that spoke for the node before it knew.
    pub(super) fn of_worker(
        snapshot: Arc<Snapshot>,
        flows: FlowTable,
        stats: Arc<WorkerStats>,
        permit: Permit,
        speaker: Option<Speaker>,
        handoff: Option<Handoff>,
    ) -> Self {
        let workers = handoff.as_ref().map_or(1, Handoff::workers);
        Self {
            snapshot,
            permit,
            flows,
            fragments: Fragments::default(),
            speaker,
            errors: Limiter::new(REPLIES_PER_S / workers),
            refusals: Limiter::new(REPLIES_PER_S / workers),
            echoes: Limiter::new(ECHOES_PER_S),
            outbox: Vec::new(),
            taps: Taps::default(),
            accelerator: None,
            stats,
            index: handoff.as_ref().map_or(0, Handoff::index),
            routers: handoff.as_ref().map(Handoff::routers).unwrap_or_default(),
            handoff,
            complain_at_ns: 0,
            has_lost_questions: false,
            now_ns: 0,
        }
    }

    /// The moment of all that follows.
    pub fn set_time(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// Works with a new table from the next frame on.
    pub fn adopt(&mut self, snapshot: Arc<Snapshot>) {
        self.flows.set_timeouts(snapshot.timeouts);
        if let Some(speaker) = &mut self.speaker {
            speaker.adopt(&snapshot, &self.permit, self.now_ns);
            speaker.adopt_backends(&snapshot, self.now_ns);
        }
        self.snapshot = snapshot;
    }

    /// Owns other VIPs from the next frame on.
    pub fn own(&mut self, owned: Arc<Owned>) {
        self.permit.adopt(owned);
        if let Some(speaker) = &mut self.speaker {
            speaker.adopt(&self.snapshot, &self.permit, self.now_ns);
        }
    }

    /// The first look at a frame. Engines peek at several frames, and look ahead with all of them, before they have the
    /// first one judged: what has to come from memory comes meanwhile.
    #[inline]
    pub fn peek(&self, frame: &[u8], peek: &mut Peek) {
        // Into its place: a copy of what was written just now, piece by piece, costs as much as the parsing.
        *peek = Peek::NOTHING;
        if let Some(flow) = packet::flow(frame) {
            let hash = self.snapshot.hash_key.tuple(&flow.tuple);
            self.flows.prefetch(hash);
            let vip = self.snapshot.vip_at(flow.tuple.destination);
            peek.found = vip.inspect(|at| prefetch(&self.snapshot.vips[*at as usize])).map(|vip| (vip, hash));
            peek.flow = Some(flow);
        }
    }

    /// The lookahead: where the frame belongs.
    #[inline]
    pub fn look_ahead(&self, peek: &mut Peek) {
        if let (Some(flow), Some((vip, hash))) = (&peek.flow, peek.found) {
            let place = Place::at(&self.snapshot, vip, &flow.tuple, hash);
            if let Ok(place) = &place {
                peek.guess = place.prefetch(&self.snapshot, &self.flows);
            }
            peek.place = Some(place);
        }
    }

    /// The last look before the judgement: what the lookahead has had fetched says where more is.
    #[inline]
    pub fn look_closer(&self, peek: &Peek) {
        peek.guess.inspect(|backend| self.snapshot.prefetch_runtime(*backend));
    }

    /// The whole way of a frame that was peeked at. Rewritten in place if it goes anywhere.
    pub fn judge(&mut self, port: usize, meta: FrameMeta, frame: &mut [u8], peek: &Peek) -> Verdict {
        self.stats.received.add(1);
        let verdict = self.consider_and_tap(port, meta, frame, peek, Came::FromWire);
        self.count(verdict, &meta.vnet);
        if let Verdict::Deliver { .. } = verdict {
            self.send_beside(verdict, port, OwnedFrame::new(&meta.vnet, frame));
        }
        verdict
    }

    /// Sends a judged frame that is not in the engine's hands, if it goes anywhere.
    fn send_beside(&mut self, verdict: Verdict, came_by: usize, mut frame: OwnedFrame) {
        let bytes = frame.frame().len() as u32;
        let outgoing = match verdict {
            Verdict::Forward { port, trailer, backend } => {
                frame.cut(trailer.into());
                Outgoing::on(To::Port(port.into()), frame, Sent::Forwarded { backend, bytes })
            }
            Verdict::Deliver { backend } => Outgoing::on(To::Local, frame, Sent::Forwarded { backend, bytes }),
            Verdict::Answer => Outgoing::on(To::Port(came_by), OwnedFrame::whole(frame.frame()), Sent::Answered),
            Verdict::Apart | Verdict::Hold | Verdict::HandOff | Verdict::Drop(_) => return,
        };
        self.outbox.push(outgoing);
    }

    fn count(&self, verdict: Verdict, vnet: &VnetHeader) {
        let stats = &self.stats;
        if let (Verdict::Forward { port, .. }, true) = (verdict, vnet.is_gso())
            && !self.snapshot.ports[usize::from(port)].segments
        {
            stats.segmented.add(1);
        }
        match verdict {
            Verdict::Forward { .. } | Verdict::Apart | Verdict::Deliver { .. } => stats.forwarded.add(1),
            Verdict::Answer => stats.answered.add(1),
            Verdict::Hold => {}
            Verdict::HandOff => stats.handed_off.add(1),
            Verdict::Drop(reason) => stats.dropped(reason).add(1),
        }
    }

    /// Counts a frame that never was whole.
    pub fn count_unseen(&mut self, verdict: Verdict) {
        self.stats.received.add(1);
        self.count(verdict, &VnetHeader::default());
    }

    /// The outgoing queue did not take a frame that was counted as sent.
    pub fn send_failed(&mut self, sent: Sent) {
        let stats = &self.stats;
        match sent {
            Sent::Forwarded { backend, bytes } => {
                stats.forwarded.take_back();
                // Unless they have gone meanwhile, with their counters.
                if let Some((vip, backend)) = self.snapshot.served_by(BackendRef::from_raw(backend)) {
                    vip.traffic.of(self.index).take_back(bytes);
                    backend.runtime.traffic.of(self.index).take_back(bytes);
                }
            }
            Sent::Answered => stats.answered.take_back(),
            // Announcements and questions are repeated anyway; but nobody is silent who was not asked.
            Sent::Originated => {
                self.has_lost_questions = true;
                return stats.originated.take_back();
            }
            Sent::Fragment => return,
        }
        stats.dropped(NOT_TAKEN).add(1);
    }

    #[inline(always)]
    fn consider(&mut self, port: usize, meta: FrameMeta, frame: &mut [u8], peek: &Peek, came: Came) -> Verdict {
        let judge = Judge {
            snapshot: &self.snapshot,
            handoff: self.handoff.as_ref(),
            permit: &self.permit,
            speaker: self.speaker.as_ref(),
            now_ns: self.now_ns,
        };
        let mut memory = Remembering { flows: &mut self.flows, fragments: &mut self.fragments, decided: None };
        let intent = judge.classify(&Arrival { port, meta, frame, peek, came }, &mut memory);
        let decided = memory.decided;
        if let (Some(accelerator), Some(flow)) = (&self.accelerator, &peek.flow)
            && flow.is_flagged()
        {
            // What the flow is from now on its next packet tells.
            accelerator.forget_flow(flow);
        }
        let verdict = match intent {
            Intent::Forward { vip, backend, why, egress } => {
                if let (Some(Why::Maglev { .. }), Some(flow)) = (why, &peek.flow) {
                    note_router(&self.snapshot, &self.routers, port, frame, flow, self.now_ns);
                }
                self.count_flow(why, vip, backend);
                if let (Some(accelerator), Some(Why::Known)) = (&self.accelerator, why)
                    && let (Some(flow), Egress::Port(out, _)) = (&peek.flow, egress)
                    && meta.vnet.partial_checksum().is_none()
                {
                    accelerator.enter_flow(&self.snapshot, flow, (port, out), backend, self.now_ns);
                }
                dispatch(&self.snapshot, self.index, frame, (vip, backend), egress)
            }
            Intent::Reformed { vip, backend, why, egress, form } => {
                self.count_flow(why, vip, backend);
                let exit = Exit { snapshot: &self.snapshot, worker: self.index, stats: &self.stats };
                exit.forward_as(frame, &meta.vnet, (vip, backend), (egress, form), &mut self.outbox)
            }
            Intent::Other(rare) => self.act(rare, port, meta, frame),
        };
        if let Some((id, course)) = decided {
            // The first goes first.
            for waiting in self.fragments.decided(id, course) {
                self.let_go(waiting, id.destination, course);
            }
        }
        verdict
    }

    /// The same; whoever captures, if anybody does, gets a copy.
    #[inline(always)]
    fn consider_and_tap(&mut self, port: usize, meta: FrameMeta, frame: &mut [u8], peek: &Peek, came: Came) -> Verdict {
        match self.taps.is_empty() {
            true => self.consider(port, meta, frame, peek, came),
            false => self.consider_tapped(port, meta, frame, peek, came),
        }
    }

    #[cold]
    fn consider_tapped(&mut self, port: usize, meta: FrameMeta, frame: &mut [u8], peek: &Peek, came: Came) -> Verdict {
        let before = Before::of(frame, peek.flow.is_some());
        let is_from_wire = matches!(came, Came::FromWire);
        let verdict = self.consider(port, meta, frame, peek, came);
        // What other workers have handed over is sent beside the engine.
        self.taps.judged((&self.snapshot, port, self.now_ns), &before, frame, verdict, is_from_wire);
        verdict
    }

    /// The worker is at work: the accelerator may go on, unless somebody captures what it would not show.
    pub(super) fn keep_accelerator(&self) {
        if let (Some(accelerator), true) = (&self.accelerator, self.speaker.is_some()) {
            match self.taps.is_empty() {
                true => accelerator.go_on(self.now_ns),
                false => accelerator.pause(),
            }
        }
    }

    /// Counts what the accelerator has forwarded, as if it had come here.
    pub(super) fn count_accelerated(&self) {
        let (Some(accelerator), true) = (&self.accelerator, self.speaker.is_some()) else { return };
        let forwarded = accelerator.harvest(&self.snapshot, |backend, counts| {
            backend.runtime.traffic.of(self.index).count_all(counts);
            if let Some((vip, _)) = self.snapshot.served_by(backend.reference) {
                vip.traffic.of(self.index).count_all(counts);
            }
        });
        self.stats.received.add(forwarded);
        self.stats.forwarded.add(forwarded);
    }

    /// A backend was chosen for a flow.
    #[inline]
    fn count_flow(&self, why: Option<Why>, vip: &Vip, backend: &Backend) {
        if let Some(Why::Maglev { .. }) = why {
            vip.traffic.of(self.index).new_flows.add(1);
            backend.runtime.traffic.of(self.index).new_flows.add(1);
        }
    }

    /// Carries out what is not simply forwarded.
    fn act(&mut self, rare: Rare, port: usize, meta: FrameMeta, frame: &mut [u8]) -> Verdict {
        match rare {
            Rare::Deliver => deliver(frame, 0),
            Rare::HandOff(owner) => self.hand_off(owner, port, meta, frame),
            Rare::Hold(id) => self.hold(id, Waiting { port, frame: OwnedFrame::new(&meta.vnet, frame) }),
            Rare::React(reaction) => self.react(reaction, port, &meta.vnet, frame),
            Rare::Refuse(packet, refusal) => {
                let is_told = self.refuse(port, frame, &packet);
                Verdict::Drop(refusal.reason(is_told))
            }
            Rare::TooBig { packet, mtu } => {
                self.say_too_big(port, frame, &packet, mtu);
                Verdict::Drop(DropReason::TooBig)
            }
            Rare::Drop(reason) => Verdict::Drop(reason),
        }
    }

    fn hand_off(&self, owner: usize, port: usize, meta: FrameMeta, frame: &[u8]) -> Verdict {
        let handed = Handed { port, frame: OwnedFrame::new(&meta.vnet, frame) };
        match self.handoff.as_ref().is_some_and(|handoff| handoff.hand(owner, handed)) {
            true => Verdict::HandOff,
            false => Verdict::Drop(DropReason::HandoverFull),
        }
    }

    /// Judges a frame that another worker has handed off.
    pub(super) fn take_over(&mut self, handed: Handed) {
        let Handed { port, mut frame } = handed;
        self.stats.taken_over.add(1);
        // Frames with a tag are not handed off.
        let meta = FrameMeta { vlan_tagged: false, vnet: frame.vnet() };
        let mut peek = Peek::NOTHING;
        self.peek(frame.frame(), &mut peek);
        let verdict = self.consider_and_tap(port, meta, frame.frame_mut(), &peek, Came::FromWorker);
        self.count(verdict, &meta.vnet);
        self.send_beside(verdict, port, frame);
    }

    /// A fragment waits for the first one of its datagram.
    fn hold(&mut self, id: DatagramId, waiting: Waiting) -> Verdict {
        let given_up = self.fragments.hold(id, waiting, self.now_ns);
        self.stats.dropped(DropReason::FragmentNoRoom).add(given_up as u64);
        self.count_held();
        Verdict::Hold
    }

    /// A fragment has waited for the first one, and this is what became of it.
    fn let_go(&mut self, waiting: Waiting, vip: Address, course: Result<Course, DropReason>) {
        let Waiting { port, mut frame } = waiting;
        let meta = FrameMeta { vlan_tagged: false, vnet: frame.vnet() };
        let judge = Judge {
            snapshot: &self.snapshot,
            handoff: self.handoff.as_ref(),
            permit: &self.permit,
            speaker: None,
            now_ns: self.now_ns,
        };
        let source = packet::source(frame.frame()).unwrap_or_default();
        let intent = match course {
            Ok(course) => judge.follow(source, Seen { frame: frame.frame(), meta }, vip, course, None, None),
            Err(reason) => reason.into(),
        };
        let verdict = match intent {
            Intent::Forward { vip, backend, egress, .. } => {
                dispatch(&self.snapshot, self.index, frame.frame_mut(), (vip, backend), egress)
            }
            Intent::Reformed { vip, backend, egress, form, .. } => {
                let exit = Exit { snapshot: &self.snapshot, worker: self.index, stats: &self.stats };
                exit.forward_as(frame.frame_mut(), &meta.vnet, (vip, backend), (egress, form), &mut self.outbox)
            }
            Intent::Other(rare) => self.act(rare, port, meta, frame.frame_mut()),
        };
        self.count(verdict, &meta.vnet);
        self.send_beside(verdict, port, frame);
        self.count_held();
    }

    fn count_held(&self) {
        self.stats.held.set(self.fragments.waiting() as u64);
    }

    /// Learns from a frame that asks this node itself, and answers it where that was decided.
    fn react(&mut self, reaction: Reaction, port: usize, vnet: &VnetHeader, frame: &mut [u8]) -> Verdict {
        self.hear(port, frame);
        let own = self.snapshot.ports[port].mac;
        match reaction {
            Reaction::Answer(answer) => {
                if matches!(answer, Answer::Echo(_)) && !self.echoes.admits(self.now_ns) {
                    return Verdict::Drop(DropReason::EchoLimited);
                }
                // The answer is sent as it stands.
                if let Some((start, offset)) = vnet.partial_checksum() {
                    checksum::complete(frame, start, offset);
                }
                answer.write(frame, own);
                Verdict::Answer
            }
            Reaction::Drop { reason, aside, conflict } => {
                // The right to it was looked at just now.
                let answer = aside.and_then(|answer: Answer| answer.apart(own));
                self.outbox.extend(answer.map(|frame| Outgoing::own(port, &frame)));
                if let Some(Contest { vip, mac, is_claim, is_question }) = conflict {
                    if is_claim && let Some(speaker) = &mut self.speaker {
                        speaker.announcer.conflict(vip, self.now_ns);
                        self.permit.contested(vip);
                    }
                    self.stats.conflict(vip, mac, is_question);
                }
                Verdict::Drop(reason)
            }
        }
    }

    fn hear(&mut self, port: usize, frame: &[u8]) {
        let (Some(speaker), Some(source)) = (&mut self.speaker, packet::source(frame)) else { return };
        let to_us = packet::destination(frame) == Some(self.snapshot.ports[port].mac);
        let (snapshot, routers, now_ns) = (&*self.snapshot, &*self.routers, self.now_ns);
        let ear = Ear { snapshot, routers, port, source, to_us, now_ns };
        match packet::parse(frame) {
            Packet::Arp(arp) => {
                let heard = speaker.hear_arp(ear, &arp);
                self.note_claim(heard, arp.sender.into());
            }
            Packet::Neighbor(message) => {
                let heard = speaker.hear_neighbor(ear, &message);
                self.note_claim(heard, message.of().into());
            }
            _ => {}
        }
    }

    /// Counts what was said of a backend's MAC address, and logs it; what is not believed only now and then, because
    /// whoever floods it must not fill the log.
    fn note_claim(&mut self, heard: Heard, backend: IpAddr) {
        match heard {
            Heard::Taken => {}
            Heard::Changed(change) => self.note_change(change),
            Heard::Refused { claimed } => {
                self.stats.backend_mac_refused.add(1);
                if self.now_ns >= self.complain_at_ns {
                    self.complain_at_ns = self.now_ns + COMPLAIN_EVERY_NS;
                    tracing::warn!(%backend, %claimed, "a claim to a backend's address is not believed");
                }
            }
        }
    }

    fn note_change(&self, Change { address, from, to }: Change) {
        self.stats.backend_mac_changed.add(1);
        tracing::warn!(backend = %address, %from, %to, "a backend has another MAC address: the former one is silent");
    }

    /// Nobody takes the packet: its sender is told so, unless it is one of too many.
    fn refuse(&mut self, port: usize, frame: &[u8], packet: &FlowPacket) -> bool {
        let reply = Reply { to: frame, packet, mac: self.snapshot.ports[port].mac };
        let refusal = self.refusals.admits(self.now_ns).then(|| reply.refusal()).flatten();
        self.outbox.extend(refusal.as_ref().map(|frame| Outgoing::own(port, frame)));
        refusal.is_some()
    }

    /// Whoever has asked for it is told (RFC 1191 4, RFC 4443 3.2).
    fn say_too_big(&mut self, port: usize, frame: &[u8], packet: &FlowPacket, mtu: u32) {
        if may_be_fragmented(frame) || !self.errors.admits(self.now_ns) {
            return;
        }
        let ports = &self.snapshot.ports;
        let near = ports[port].address_like(packet.tuple.source.into());
        let own = near.or_else(|| ports.iter().find_map(|port| port.address_like(packet.tuple.source.into())));
        // A node without an address of the family speaks for the VIP, as the backends do.
        let own = own.unwrap_or(packet.tuple.destination.into());
        let reply = Reply { to: frame, packet, mac: ports[port].mac };
        if let Some(frame) = reply.too_big(own, mtu) {
            self.outbox.push(Outgoing::own(port, &frame));
        }
    }

    /// What is due without a frame: announcements, questions for neighbours, and the end of what has waited too long.
    pub(super) fn tick(&mut self) {
        let given_up = self.fragments.expire(self.now_ns);
        if given_up > 0 {
            self.stats.dropped(DropReason::FragmentTimeout).add(given_up as u64);
            self.count_held();
        }
        self.permit.look_again();
        if mem::take(&mut self.has_lost_questions) {
            self.excuse_silence();
        }
        let Some(speaker) = &mut self.speaker else { return };
        for saying in speaker.due(&self.snapshot, &self.permit, self.now_ns) {
            match saying {
                Saying::Question { port, frame } => self.outbox.push(Outgoing::own(port, &frame)),
                Saying::Claim { port, frame } => self.outbox.push(Outgoing::claim(port, &frame)),
                Saying::Withheld => self.stats.announcements_withheld.add(1),
                Saying::Changed(change) => self.note_change(change),
                Saying::Silent => self.stats.backend_silent.add(1),
            }
        }
    }

    /// When [`Self::tick`] has something to do again.
    pub(super) fn next_due_ns(&self) -> Option<u64> {
        let spoken = self
            .speaker
            .as_ref()
            .and_then(|speaker| speaker.next_due_ns(&self.snapshot, &self.permit, self.now_ns, LEASE_RETRY_NS));
        [spoken, self.fragments.next_due_ns()].into_iter().flatten().min()
    }

    /// Frames were lost here: who was not heard may have answered.
    pub(super) fn excuse_silence(&mut self) {
        if let Some(speaker) = &mut self.speaker {
            speaker.excuse_silence(&self.snapshot, self.now_ns);
        }
    }

    /// Asks the segments whether somebody else has a VIP that this node owns. How many it has asked for.
    pub(super) fn probe_vips(&mut self) -> usize {
        // What this node may not answer for is another one's; and no more at a time than the send queue takes.
        let owned: Vec<_> = self.permit.grants().map(|grant| grant.vip).collect();
        let owned: Vec<_> = owned.into_iter().filter(|vip| self.permit.to_answer(*vip)).take(PROBES).collect();
        for vip in &owned {
            let questions = Speaker::probe(&self.snapshot, *vip);
            self.outbox.extend(questions.map(|(port, frame)| Outgoing::own(port, &frame)));
        }
        owned.len()
    }

    /// Brings the counters up to date that are not counted frame by frame.
    pub(super) fn count_flows(&self) {
        let Inserted { remembered, displaced, not_remembered } = self.flows.inserted();
        self.stats.flows_remembered.set(remembered);
        self.stats.flows_displaced.set(displaced);
        self.stats.flows_not_remembered.set(not_remembered);
    }

    /// The worker has ended: what it still holds, and what nobody has taken of what was handed to it, is dropped.
    pub(super) fn give_up(mut self, rest: impl Iterator<Item = Handed>) -> Self {
        let stats = &self.stats;
        for _ in rest {
            stats.taken_over.add(1);
            stats.dropped(DropReason::HandoverFull).add(1);
        }
        let held = self.fragments.waiting() as u64;
        stats.dropped(DropReason::FragmentTimeout).add(held);
        self.fragments = Fragments::default();
        self.count_held();
        self
    }

    /// What others go on with.
    pub(crate) fn retire(self) -> (Option<Speaker>, FlowTable) {
        (self.speaker, self.flows)
    }
}

/// Rewrites a frame for its backend and counts it.
#[inline]
fn dispatch(
    snapshot: &Snapshot,
    worker: usize,
    frame: &mut [u8],
    (vip, backend): (&Vip, &Backend),
    egress: Egress,
) -> Verdict {
    vip.traffic.of(worker).count(frame.len());
    backend.runtime.traffic.of(worker).count(frame.len());
    match egress {
        Egress::Port(port, mac) => {
            rewrite::to_backend(frame, mac, snapshot.ports[port].mac);
            Verdict::Forward { port: port as u16, trailer: 0, backend: backend.reference.get() }
        }
        Egress::Local => deliver(frame, backend.reference.get()),
    }
}

/// By what frames leave for backends in another form than they came.
struct Exit<'a> {
    snapshot: &'a Snapshot,
    worker: usize,
    stats: &'a WorkerStats,
}

impl Exit<'_> {
    #[cold]
    fn forward_as(
        &self,
        frame: &mut [u8],
        vnet: &VnetHeader,
        to: (&Vip, &Backend),
        (egress, form): (Egress, Form),
        outbox: &mut Vec<Outgoing>,
    ) -> Verdict {
        let parts = match form {
            Form::WithoutTrailer(_) => Vec::new(),
            Form::Fragments(mtu) => match fragments(frame, vnet, mtu) {
                Some(parts) => parts,
                None => return Verdict::Drop(DropReason::TooBig),
            },
        };
        let whole = dispatch(self.snapshot, self.worker, frame, to, egress);
        let Verdict::Forward { port, backend, .. } = whole else { return whole };
        if let Form::WithoutTrailer(trailer) = form {
            return Verdict::Forward { port, trailer, backend };
        }
        self.stats.fragmented.add(1);
        let mut sent = Sent::Forwarded { backend, bytes: frame.len() as u32 };
        for mut part in parts {
            part[..ADDRESSES_LEN].copy_from_slice(&frame[..ADDRESSES_LEN]);
            outbox.push(Outgoing::on(To::Port(port.into()), OwnedFrame::whole(&part), sent));
            // They were counted with the first.
            sent = Sent::Fragment;
        }
        Verdict::Apart
    }
}

/// Notes who has forwarded a packet that opens a flow, if it comes from beyond the segment.
fn note_router(snapshot: &Snapshot, routers: &Routers, port: usize, frame: &[u8], flow: &FlowPacket, now_ns: u64) {
    if let Some(mac) = packet::source(frame)
        && snapshot.ports[port].address_towards(flow.tuple.source.into()).is_none()
    {
        routers.note(port, mac, now_ns);
    }
}

/// Rewrites a frame for local delivery.
fn deliver(frame: &mut [u8], backend: u32) -> Verdict {
    // The loopback interface's MAC address.
    rewrite::to_backend(frame, Mac::ZERO, Mac::ZERO);
    Verdict::Deliver { backend }
}

impl FrameJudge for Pipeline {
    type Peek = Peek;
    const NOTHING: Peek = Peek::NOTHING;

    #[inline]
    fn peek(&self, frame: &[u8], peek: &mut Peek) {
        self.peek(frame, peek);
    }

    #[inline]
    fn look_ahead(&self, peek: &mut Peek) {
        self.look_ahead(peek);
    }

    #[inline]
    fn look_closer(&self, peek: &Peek) {
        self.look_closer(peek);
    }

    fn judge(&mut self, port: usize, meta: FrameMeta, frame: &mut [u8], peek: &Peek) -> Verdict {
        self.judge(port, meta, frame, peek)
    }

    fn count_unseen(&mut self, verdict: Verdict) {
        self.count_unseen(verdict);
    }

    fn send_failed(&mut self, sent: Sent) {
        self.send_failed(sent);
    }
}
