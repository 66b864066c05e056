//! What is to become of a frame: the one decision tree. Pure: the table, the grants, what is remembered of flows and
//! fragments, and the frame come in; an [`Intent`] comes out. The worker acts on it ([`super::pipeline`]), `explain` prints
//! it ([`super::explain`]), so neither can say what the other does not do.

use super::handoff::{Came, Handoff};
use crate::{
    forward::{
        decide::{Decision, Flows, Place, Unchanged, Why, decide},
        egress::{Egress, NotSent, egress},
        flow::{FlowTable, Tick},
        fragment::{Course, Fragments, Step},
        hash::TupleHash,
        runtime::BackendRef,
        snapshot::{Backend, Snapshot, Vip},
        spec::BackendState,
    },
    packet::{
        self, Address, DatagramId, ETHERNET_HEADER_LEN, FlowPacket, Fragment, FrameMeta, IcmpError, Mac, Packet,
        fragments::{len_without_trailer, may_be_fragmented},
        icmp::Reply,
    },
    speaker::{
        Speaker,
        answers::{Reaction, Voice},
        permit::Permit,
    },
    verdict::DropReason,
};

/// What a peek at a frame has found. Good for as long as the worker keeps its snapshot.
#[derive(Debug, Clone, Copy)]
pub struct Peek {
    /// `None` if it is none of a flow: all others are rare, and only taken apart when they are judged.
    pub(super) flow: Option<FlowPacket>,
    /// Of a flow to a VIP: where that stands, and the hash of the tuple.
    pub(super) found: Option<(u32, TupleHash)>,
    /// What the lookahead has found.
    pub(super) place: Option<Result<Place, DropReason>>,
    /// The backend that the flow had, most likely.
    pub(super) guess: Option<BackendRef>,
}

impl Peek {
    /// Before the first peek.
    pub const NOTHING: Self = Self { flow: None, found: None, place: None, guess: None };
}

/// A frame to be judged.
pub(super) struct Arrival<'a> {
    pub(super) port: usize,
    pub(super) meta: FrameMeta,
    pub(super) frame: &'a [u8],
    pub(super) peek: &'a Peek,
    pub(super) came: Came,
}

/// A frame, and what the kernel says beside it.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) frame: &'a [u8],
    pub(super) meta: FrameMeta,
}

impl Seen<'_> {
    /// How a frame that is too large for a link is sent on all the same, if it is: what stands behind its packet is no part
    /// of it, and IPv4 without DF is for routers to take apart (RFC 791 3.2).
    #[cold]
    fn form_for(&self, mtu: u32) -> Option<Form> {
        let Self { frame, meta } = *self;
        // Its segments are not there yet.
        if meta.vnet.is_gso() {
            return None;
        }
        let len = len_without_trailer(frame)?;
        if len <= ETHERNET_HEADER_LEN + mtu as usize {
            return u16::try_from(frame.len() - len).ok().map(Form::WithoutTrailer);
        }
        may_be_fragmented(frame).then_some(Form::Fragments(mtu))
    }
}

/// By what frames are judged.
#[derive(Clone, Copy)]
pub(super) struct Judge<'a> {
    pub(super) snapshot: &'a Snapshot,
    /// `None` in a worker that is alone.
    pub(super) handoff: Option<&'a Handoff>,
    pub(super) permit: &'a Permit,
    /// `None` in a worker that does not speak for the node.
    pub(super) speaker: Option<&'a Speaker>,
    pub(super) now_ns: u64,
}

/// What a worker remembers of the frames before. Judging changes it; explaining leaves it as it is.
pub(super) trait Memory {
    fn flows(&mut self) -> &mut impl Flows;
    /// The flows, to be looked at only.
    fn known_flows(&self) -> &FlowTable;
    /// A fragment has come.
    fn arrive(&mut self, fragment: &Fragment, now_ns: u64) -> Step;
    /// Where the datagram goes whose first fragment this is.
    fn decided(&mut self, id: DatagramId, course: Result<Course, DropReason>);
}

/// The memory of a worker that judges.
pub(super) struct Remembering<'a> {
    pub(super) flows: &'a mut FlowTable,
    pub(super) fragments: &'a mut Fragments,
    /// What has become of the first fragment of a datagram, if the frame was one: those that wait for it follow.
    pub(super) decided: Option<(DatagramId, Result<Course, DropReason>)>,
}

impl Memory for Remembering<'_> {
    #[inline]
    fn flows(&mut self) -> &mut impl Flows {
        self.flows
    }

    fn known_flows(&self) -> &FlowTable {
        self.flows
    }

    fn arrive(&mut self, fragment: &Fragment, now_ns: u64) -> Step {
        self.fragments.arrive(fragment, now_ns)
    }

    fn decided(&mut self, id: DatagramId, course: Result<Course, DropReason>) {
        self.decided = Some((id, course));
    }
}

/// The memory of a worker that explains.
pub(super) struct Reading<'a> {
    pub(super) flows: Unchanged<'a>,
    pub(super) fragments: &'a Fragments,
}

impl Memory for Reading<'_> {
    fn flows(&mut self) -> &mut impl Flows {
        &mut self.flows
    }

    fn known_flows(&self) -> &FlowTable {
        self.flows.0
    }

    fn arrive(&mut self, fragment: &Fragment, now_ns: u64) -> Step {
        self.fragments.foresee(fragment, now_ns)
    }

    fn decided(&mut self, _: DatagramId, _: Result<Course, DropReason>) {}
}

/// What is to become of a frame.
#[derive(Debug, Clone, Copy)]
pub(super) enum Intent<'a> {
    /// It goes to a backend. `why`: unless the frame names no flow of its own.
    Forward { vip: &'a Vip, backend: &'a Backend, why: Option<Why>, egress: Egress },
    /// The same, in another form than it came: rare, and apart, so that it costs all others nothing.
    Reformed { vip: &'a Vip, backend: &'a Backend, why: Option<Why>, egress: Egress, form: Form },
    /// All the others, which need nothing of the table any more.
    Other(Rare),
}

/// In which form a frame is sent on that does not fit as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Without so many bytes behind the packet, which are too much for the interface.
    WithoutTrailer(u16),
    /// In fragments, for a link with this MTU.
    Fragments(u32),
}

/// What is to become of a frame that is not simply forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rare {
    /// Another node has balanced it for this one.
    Deliver,
    /// It belongs to the worker that owns its flow.
    HandOff(usize),
    /// It waits for the first fragment of its datagram.
    Hold(DatagramId),
    /// It asks this node itself.
    React(Reaction),
    /// Its sender is told that nobody takes it, if it is not one of too many.
    Refuse(FlowPacket, Refusal),
    /// It does not fit where it has to go, and its sender is told so, if it asked for that and is not one of too many.
    TooBig {
        packet: FlowPacket,
        mtu: u32,
    },
    Drop(DropReason),
}

/// Why nobody takes a packet of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No service takes the port.
    NoService,
    /// The flow's backend is down.
    BackendDown,
}

impl Refusal {
    /// As what it is counted.
    pub(super) fn reason(self, is_told: bool) -> DropReason {
        match (self, is_told) {
            (Self::NoService, true) => DropReason::Rejected,
            (Self::NoService, false) => DropReason::NoService,
            (Self::BackendDown, true) => DropReason::FlowReset,
            (Self::BackendDown, false) => DropReason::BackendDown,
        }
    }
}

impl From<DropReason> for Intent<'_> {
    fn from(reason: DropReason) -> Self {
        Self::Other(Rare::Drop(reason))
    }
}

impl<'a> Judge<'a> {
    /// The whole decision on a frame, top to bottom.
    #[inline]
    pub(super) fn classify(&self, arrival: &Arrival<'_>, memory: &mut impl Memory) -> Intent<'a> {
        let Arrival { port, meta, frame, peek, came } = *arrival;
        if meta.vlan_tagged {
            return DropReason::VlanTagged.into();
        }
        let (Some(destination), Some(source)) = (packet::destination(frame), packet::source(frame)) else {
            return DropReason::Malformed.into();
        };
        let own = self.snapshot.ports[port].mac;
        let for_us = destination == own;
        if source == own || !source.is_host() {
            return if for_us { DropReason::BadSource } else { DropReason::NotForUs }.into();
        }
        let packet = peek.flow.map_or_else(|| packet::parse(frame), Packet::Flow);
        // What a switch flooded is dropped here, whoever owns its flow.
        if (for_us || destination.is_group())
            && let Some(owner) = self.handoff.and_then(|handoff| handoff.owner_of(&packet, came))
        {
            return Intent::Other(Rare::HandOff(owner));
        }
        let voice = Voice { snapshot: self.snapshot, permit: self.permit, speaker: self.speaker, port };
        match &packet {
            Packet::Arp(arp) if for_us || destination == Mac::BROADCAST => react(voice.arp(frame.len(), arp)),
            Packet::Neighbor(message) if for_us || destination.is_group() => {
                react(voice.neighbor(frame.len(), source, message))
            }
            _ if !for_us => DropReason::NotForUs.into(),
            Packet::Flow(flow) => self.flow(source, Seen { frame, meta }, flow, peek.place, memory.flows()),
            Packet::Fragment(fragment) => self.fragment(source, Seen { frame, meta }, fragment, memory),
            Packet::Error(error) => self.icmp_error(source, Seen { frame, meta }, error, memory.known_flows()),
            Packet::Echo(echo) => react(voice.echo(echo)),
            Packet::Other(reason, destination) => {
                let for_vip = destination.is_none_or(|address| self.snapshot.vip(address).is_some());
                if for_vip { *reason } else { DropReason::NotVip }.into()
            }
            Packet::Arp(_) | Packet::Neighbor(_) => DropReason::NotForUs.into(),
        }
    }

    /// TCP and UDP: to the backend, by the interface on whose segment it is.
    #[inline]
    pub(super) fn flow(
        &self,
        source: Mac,
        seen: Seen<'_>,
        packet: &FlowPacket,
        place: Option<Result<Place, DropReason>>,
        flows: &mut impl Flows,
    ) -> Intent<'a> {
        let place = place.unwrap_or_else(|| Place::find(self.snapshot, &packet.tuple));
        if self.snapshot.is_peer(source) {
            return match place {
                Ok(place) => balanced_before(place.service(self.snapshot).is_served_here),
                Err(reason) => reason.into(),
            };
        }
        let now = Tick::from_ns(self.now_ns);
        let decision = place.and_then(|place| decide(self.snapshot, flows, packet, &place, now));
        match decision {
            Ok(Decision { vip, backend, why }) => self.forward(source, seen, (vip, backend), Some(why), Some(packet)),
            Err(DropReason::NoService) => self.refuse(seen.frame, packet, Refusal::NoService),
            Err(DropReason::BackendDown) => self.refuse(seen.frame, packet, Refusal::BackendDown),
            Err(reason) => reason.into(),
        }
    }

    /// To a backend that was decided on. `packet`: of a frame whose sender is told if it is too big.
    #[inline(always)]
    fn forward(
        &self,
        source: Mac,
        seen: Seen<'_>,
        (vip, backend): (&'a Vip, &'a Backend),
        why: Option<Why>,
        packet: Option<&FlowPacket>,
    ) -> Intent<'a> {
        // A GSO frame leaves as segments of this size.
        let wire_len = match (seen.meta.vnet.gso_size(), packet) {
            (Some(size), Some(packet)) => usize::from(packet.headers_len) + usize::from(size),
            _ => seen.frame.len(),
        };
        match egress(self.snapshot, source, wire_len, backend) {
            Ok(egress) => Intent::Forward { vip, backend, why, egress },
            Err(NotSent::TooBig { mtu, way }) => match (seen.form_for(mtu), packet) {
                (Some(form), _) => Intent::Reformed { vip, backend, why, egress: way, form },
                (None, Some(packet)) => Intent::Other(Rare::TooBig { packet: *packet, mtu }),
                (None, None) => DropReason::TooBig.into(),
            },
            Err(NotSent::For(reason)) => reason.into(),
        }
    }

    /// Nobody takes the packet: the VIP's owner says so, if it shall.
    fn refuse(&self, frame: &[u8], packet: &FlowPacket, refusal: Refusal) -> Intent<'a> {
        if self.snapshot.is_bad_source(packet.tuple.source) {
            return DropReason::BadSource.into();
        }
        let vip = self.snapshot.vip(packet.tuple.destination);
        let shall = |vip: &Vip| vip.rejects || refusal == Refusal::BackendDown;
        let is_refused = vip.is_some_and(|vip| shall(vip) && self.permit.to_refuse(vip.address));
        match is_refused && (Reply { to: frame, packet, mac: Mac::ZERO }).is_refusable() {
            true => Intent::Other(Rare::Refuse(*packet, refusal)),
            false => refusal.reason(false).into(),
        }
    }

    /// Every fragment of a datagram goes to the backend of its first, which alone names the flow.
    fn fragment(&self, source: Mac, seen: Seen<'_>, fragment: &Fragment, memory: &mut impl Memory) -> Intent<'a> {
        let id = fragment.datagram;
        let Some(vip) = self.snapshot.vip(id.destination) else { return DropReason::NotVip.into() };
        if self.snapshot.is_peer(source) {
            return balanced_before(vip.is_served_here);
        }
        if self.snapshot.is_bad_source(id.source) {
            return DropReason::BadSource.into();
        }
        match (memory.arrive(fragment, self.now_ns), &fragment.flow) {
            (Step::Follow(course), _) => self.follow(source, seen, id.destination, course, None, None),
            (Step::Decide, Some(packet)) => {
                let course = self.course(packet, memory.flows());
                memory.decided(id, course.map(|(course, _)| course));
                match course {
                    // Of all fragments only the first is complained of (RFC 1122 3.2.2); none is longer.
                    Ok((course, why)) => self.follow(source, seen, id.destination, course, why, Some(packet)),
                    Err(reason) => reason.into(),
                }
            }
            (Step::Wait | Step::Decide, _) => Intent::Other(Rare::Hold(id)),
            (Step::Drop(reason), _) => reason.into(),
        }
    }

    /// Where a datagram goes whose first fragment names its flow: to a backend, if the flow is this worker's.
    fn course(&self, packet: &FlowPacket, flows: &mut impl Flows) -> Result<(Course, Option<Why>), DropReason> {
        // Also a fragment that was handed off, to this worker as the one that follows its datagram.
        let owner = self.handoff.and_then(|handoff| handoff.owner_of(&Packet::Flow(*packet), Came::FromWire));
        if let Some(owner) = owner {
            return Ok((Course::Worker(owner), None));
        }
        let place = Place::find(self.snapshot, &packet.tuple)?;
        let decision = decide(self.snapshot, flows, packet, &place, Tick::from_ns(self.now_ns))?;
        Ok((Course::Backend(decision.backend.reference), Some(decision.why)))
    }

    /// A fragment whose datagram goes that way.
    pub(super) fn follow(
        &self,
        source: Mac,
        seen: Seen<'_>,
        vip: Address,
        course: Course,
        why: Option<Why>,
        packet: Option<&FlowPacket>,
    ) -> Intent<'a> {
        let backend = match course {
            Course::Worker(owner) => return Intent::Other(Rare::HandOff(owner)),
            Course::Backend(backend) => self.alive(backend),
        };
        match (self.snapshot.vip(vip), backend) {
            (None, _) => DropReason::NotVip.into(),
            (_, None) => DropReason::NoBackend.into(),
            (Some(vip), Some(backend)) => self.forward(source, seen, (vip, backend), why, packet),
        }
    }

    fn alive(&self, backend: BackendRef) -> Option<&'a Backend> {
        self.snapshot.backend(backend).filter(|backend| backend.state != BackendState::Down)
    }

    /// An error about a packet that a backend sent from the VIP is for that backend.
    fn icmp_error(&self, source: Mac, seen: Seen<'_>, error: &IcmpError, flows: &FlowTable) -> Intent<'a> {
        if self.snapshot.is_peer(source) {
            return match self.snapshot.vip(error.destination) {
                Some(vip) => balanced_before(vip.is_served_here),
                None => DropReason::NotVip.into(),
            };
        }
        if self.snapshot.is_bad_source(error.source) {
            return DropReason::BadSource.into();
        }
        let (packet, now) = (FlowPacket::of(error.tuple), Tick::from_ns(self.now_ns));
        let place = Place::find(self.snapshot, &packet.tuple);
        match place.and_then(|place| decide(self.snapshot, &mut Unchanged(flows), &packet, &place, now)) {
            Ok(Decision { vip, backend, why }) => self.forward(source, seen, (vip, backend), Some(why), None),
            Err(DropReason::NoService) => DropReason::IcmpUnrelated.into(),
            Err(reason) => reason.into(),
        }
    }
}

fn react<'a>(reaction: Reaction) -> Intent<'a> {
    Intent::Other(Rare::React(reaction))
}

/// Another load balancer has balanced a frame: it is for this node as a backend, or for nobody.
fn balanced_before<'a>(is_served_here: bool) -> Intent<'a> {
    Intent::Other(if is_served_here { Rare::Deliver } else { Rare::Drop(DropReason::BalancedTwice) })
}
