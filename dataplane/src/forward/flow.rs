//! The flow table: which backend a known flow has. Open addressing in groups of eight slots, 32 bytes
//! a flow, bounded, and everything in constant time: a flow can only stand in the group that its hash
//! names, an expired slot is free, and a full group gives up a half-open flow or remembers nothing.
//!
//! A flow that is not remembered is not lost: Maglev alone carries it, as long as the set of backends
//! stays. Only one direction is seen, so the state of a TCP connection is a guess from what the client
//! sends.

use std::net::IpAddr;

use super::{
    hash::TupleHash,
    runtime::{BackendRef, VipId},
    spec::Timeouts,
};
use crate::{
    io::sys::memory::{Fill, HugeSlice, Zeroed, prefetch},
    packet::{Address, FlowPacket, Protocol, Tuple},
};

/// Slots of a group: 256 bytes, four cache lines, of which a hit usually touches one.
const GROUP: usize = 8;

/// A moment, in units of 2^26 ns (about 67 ms) of CLOCK_BOOTTIME, modulo 2^29 (a year).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick(u32);

const TICK_SHIFT: u32 = 26;
const TICK_MASK: u32 = (1 << 29) - 1;

impl Tick {
    /// The tick of a moment in nanoseconds.
    pub fn from_ns(ns: u64) -> Self {
        Self((ns >> TICK_SHIFT) as u32 & TICK_MASK)
    }

    /// Ticks that have passed since `earlier`.
    fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0) & TICK_MASK
    }

    /// As a number, for whoever counts time alike.
    pub(crate) fn number(self) -> u32 {
        self.0
    }

    /// How many pass in so many seconds.
    pub(crate) const fn from_secs(secs: u64) -> u32 {
        ((secs * 1_000_000_000) >> TICK_SHIFT) as u32
    }
}

/// A half-open TCP connection: one SYN, nothing else yet.
const HALF_OPEN_S: u32 = 60;
/// A connection that was broken off: what is still on its way.
const RESET_S: u32 = 10;
/// An established connection that was silent for so long gives way to a new flow where there is no other room.
const SILENT_S: u64 = 300;
const SILENT: u32 = Tick::from_secs(SILENT_S);
/// A SYN on an entry that has been silent for so long opens a new connection on the same ports.
const PORT_REUSE_S: u64 = 3;

/// The state of a flow, guessed from what the client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum FlowState {
    /// TCP: one segment, nothing else yet.
    HalfOpen = 0,
    /// TCP: more than one segment.
    Open = 1,
    /// TCP: a FIN was seen. The other side may have much to send yet.
    Closing = 2,
    /// TCP: a RST was seen.
    Reset = 3,
    /// UDP, which nobody opens or closes.
    Udp = 4,
}

const STATES: usize = 5;

use FlowState as State;

/// What tells flows apart: the tuple, with the VIP's number in place of its address, so that it takes 24 bytes
/// and a bit for either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowKey {
    source: Address,
    /// Source port, destination port.
    ports: u32,
    vip: u32,
    is_udp: bool,
}

impl FlowKey {
    /// Of a tuple whose destination is that VIP.
    #[inline]
    pub fn new(tuple: &Tuple, vip: VipId) -> Self {
        Self {
            source: tuple.source,
            ports: u32::from(tuple.source_port) << 16 | u32::from(tuple.destination_port),
            vip: vip.0,
            is_udp: tuple.protocol == Protocol::Udp,
        }
    }
}

/// One flow. All zero is a free slot, because a [`BackendRef`] is never zero.
#[derive(Clone, Copy)]
#[repr(C)]
struct Slot {
    source: Address,
    ports: u32,
    vip: u32,
    backend: u32,
    /// The tick of its last packet, then two bits of state and one for the protocol.
    stamp: u32,
}

const _: () = assert!(size_of::<Slot>() == 32);
const _: () = assert!(GROUP * size_of::<Slot>() == 256);

// Checked by `a_free_slot_is_all_zero`.
impl Zeroed for Slot {
    const ZERO: Self = Self { source: Address::ZERO, ports: 0, vip: 0, backend: 0, stamp: 0 };
}

impl Slot {
    fn new(key: &FlowKey, backend: BackendRef, state: State, now: Tick) -> Self {
        let FlowKey { source, ports, vip, is_udp } = *key;
        Self { source, ports, vip, backend: backend.get(), stamp: stamp(now, state, is_udp) }
    }

    fn is_free(&self) -> bool {
        self.backend == 0
    }

    fn is(&self, key: &FlowKey) -> bool {
        // What differs most often first.
        self.ports == key.ports
            && self.source == key.source
            && self.vip == key.vip
            && self.is_udp() == key.is_udp
            && !self.is_free()
    }

    fn is_udp(&self) -> bool {
        self.stamp & 1 != 0
    }

    fn last_seen(&self) -> Tick {
        Tick(self.stamp >> 3)
    }

    fn state(&self) -> State {
        match self.state_number() {
            0 => State::HalfOpen,
            1 => State::Open,
            2 => State::Closing,
            3 => State::Reset,
            _ => State::Udp,
        }
    }

    /// That of its state: the two bits, or 4 for UDP.
    fn state_number(&self) -> usize {
        (self.stamp >> 1 & 3 | (self.stamp & 1) << 2) as usize
    }
}

fn stamp(now: Tick, state: State, is_udp: bool) -> u32 {
    now.0 << 3 | (state as u32 & 3) << 1 | u32::from(is_udp)
}

/// A flow as it stands in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowEntry {
    /// The client.
    pub source: IpAddr,
    /// The client's port.
    pub source_port: u16,
    /// The VIP's number.
    pub vip: VipId,
    /// The service's port.
    pub destination_port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// As far as one direction shows.
    pub state: FlowState,
    /// Its backend.
    pub backend: BackendRef,
    /// Since its last packet.
    pub idle_ms: u64,
}

impl FlowEntry {
    /// The flow, given its VIP's address.
    pub fn tuple(&self, destination: IpAddr) -> Tuple {
        let Self { source_port, destination_port, protocol, .. } = *self;
        let (source, destination) = (self.source.into(), destination.into());
        Tuple { source, destination, source_port, destination_port, protocol }
    }
}

/// What a table lookup knows of a packet's flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It has this backend.
    Flow(BackendRef),
    /// It had this one, and the packet opens a new connection on the same ports.
    Reused(BackendRef),
    /// It knows nothing of this flow.
    No,
}

/// The flows of one worker.
pub struct FlowTable {
    slots: HugeSlice<Slot>,
    timeouts: [u32; STATES],
    port_reuse: u32,
    remembered: u64,
    displaced: u64,
    not_remembered: u64,
}

/// Flows that were put into a table, or not, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inserted {
    /// They found a place.
    pub remembered: u64,
    /// Of these, those that took the place of another flow.
    pub displaced: u64,
    /// They found none.
    pub not_remembered: u64,
}

impl FlowTable {
    /// For at most `capacity` flows, rounded up to a power of two.
    pub fn new(capacity: usize, timeouts: Timeouts) -> std::io::Result<Self> {
        let slots = HugeSlice::new(capacity.next_power_of_two().max(GROUP))?;
        let mut table =
            Self { slots, timeouts: [0; STATES], port_reuse: 0, remembered: 0, displaced: 0, not_remembered: 0 };
        table.set_timeouts(timeouts);
        Ok(table)
    }

    /// Provides its memory piece by piece, beside whoever uses the table.
    pub fn fill(&self) -> Fill {
        self.slots.fill()
    }

    /// From now on flows are remembered for so long.
    pub fn set_timeouts(&mut self, timeouts: Timeouts) {
        let Timeouts { tcp_s, fin_s, udp_s, unseen_s } = timeouts;
        let ticks = |secs: u32, unseen_s: u32| Tick::from_secs(u64::from(secs) + u64::from(unseen_s));
        let seen = |secs| ticks(secs, 0);
        let others = |secs| ticks(secs, unseen_s);
        self.timeouts = [seen(HALF_OPEN_S), others(tcp_s), others(fin_s), seen(RESET_S), others(udp_s)];
        self.port_reuse = Tick::from_secs(PORT_REUSE_S + u64::from(unseen_s));
    }

    /// Has the processor fetch the slot in which a flow stands most likely: the table is larger than its caches, and
    /// without it more than half of the cost of a packet is waiting for this.
    #[inline]
    pub fn prefetch(&self, hash: TupleHash) {
        prefetch(self.likely(hash));
    }

    /// A guess at a flow's backend by that slot. Where it is wrong, the other slots of its group are fetched.
    #[inline]
    pub fn guess(&self, hash: TupleHash, key: &FlowKey) -> Option<BackendRef> {
        let slot = self.likely(hash);
        if slot.is(key) {
            return Some(BackendRef::from_raw(slot.backend));
        }
        let start = self.group_start(hash);
        // Two slots stand in a cache line.
        self.slots[start..start + GROUP].iter().step_by(2).for_each(prefetch);
        None
    }

    fn likely(&self, hash: TupleHash) -> &Slot {
        &self.slots[self.group_start(hash) + preferred(hash)]
    }

    /// Looks a packet's flow up and, if it is known, notes that it lives.
    #[inline]
    pub fn touch(&mut self, hash: TupleHash, key: &FlowKey, packet: &FlowPacket, now: Tick) -> Known {
        let (timeouts, port_reuse) = (self.timeouts, self.port_reuse);
        let Some(slot) = self.group(hash).find(|slot| slot.is(key)) else { return Known::No };
        let known = known(slot, (&timeouts, port_reuse), packet.opens, now);
        if let Known::Flow(_) = known {
            let state = match packet.is_flagged() {
                false => after_data(slot.state()),
                true => after_flags(slot.state(), packet),
            };
            slot.stamp = stamp(now, state, key.is_udp);
        }
        known
    }

    /// Looks a flow up and leaves it as it is. `opens`: as if by a packet that opens a connection.
    pub fn peek(&self, hash: TupleHash, key: &FlowKey, opens: bool, now: Tick) -> Known {
        let start = self.group_start(hash);
        let slot = self.slots[start..start + GROUP].iter().find(|slot| slot.is(key));
        slot.map_or(Known::No, |slot| known(slot, (&self.timeouts, self.port_reuse), opens, now))
    }

    /// Remembers a flow's backend, if its group has room.
    pub fn insert(&mut self, hash: TupleHash, key: &FlowKey, packet: &FlowPacket, backend: BackendRef, now: Tick) {
        let state = match packet.tuple.protocol {
            Protocol::Udp => State::Udp,
            Protocol::Tcp if packet.resets => State::Reset,
            Protocol::Tcp if packet.ends => State::Closing,
            // Also a segment of a connection that is not known: a second one proves that it is real, and a
            // flood of forged ones does not fill the table for hours.
            Protocol::Tcp => State::HalfOpen,
        };
        let timeouts = self.timeouts;
        match choose_slot(self.group(hash), key, state, &timeouts, now) {
            Some(slot) => {
                let displaces = !slot.is_free() && !slot.is(key) && !is_expired(slot, &timeouts, now);
                *slot = Slot::new(key, backend, state, now);
                self.remembered += 1;
                self.displaced += u64::from(displaces);
            }
            None => self.not_remembered += 1,
        }
    }

    /// Puts in what stood in another table, where it was counted.
    pub(crate) fn restore(&mut self, hash: TupleHash, entry: &FlowEntry, now: Tick) {
        let key = FlowKey::new(&entry.tuple(entry.source), entry.vip);
        let idle = ((entry.idle_ms * 1_000_000) >> TICK_SHIFT) as u32;
        let seen = Tick(now.0.wrapping_sub(idle) & TICK_MASK);
        let timeouts = self.timeouts;
        if let Some(slot) = choose_slot(self.group(hash), &key, entry.state, &timeouts, now) {
            *slot = Slot::new(&key, entry.backend, entry.state, seen);
        }
    }

    /// How many slots there are, free or not.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The live flows in a range of slots.
    pub fn entries(&self, slots: std::ops::Range<usize>, now: Tick) -> impl Iterator<Item = FlowEntry> {
        let end = slots.end.min(self.slots.len());
        let live = move |slot: &&Slot| !slot.is_free() && !is_expired(slot, &self.timeouts, now);
        self.slots[slots.start.min(end)..end].iter().filter(live).map(move |slot| FlowEntry {
            source: slot.source.into(),
            source_port: (slot.ports >> 16) as u16,
            vip: VipId(slot.vip),
            destination_port: slot.ports as u16,
            protocol: if slot.is_udp() { Protocol::Udp } else { Protocol::Tcp },
            state: slot.state(),
            backend: BackendRef::from_raw(slot.backend),
            idle_ms: (u64::from(now.since(slot.last_seen())) << TICK_SHIFT) / 1_000_000,
        })
    }

    /// Flows that were put into the table, and flows that found no room, since the start.
    pub fn inserted(&self) -> Inserted {
        let Self { remembered, displaced, not_remembered, .. } = *self;
        Inserted { remembered, displaced, not_remembered }
    }

    /// The slots in which a flow can stand, the likeliest first.
    #[inline]
    fn group(&mut self, hash: TupleHash) -> impl Iterator<Item = &mut Slot> {
        let start = self.group_start(hash);
        let (low, high) = self.slots[start..start + GROUP].split_at_mut(preferred(hash));
        high.iter_mut().chain(low)
    }

    fn group_start(&self, hash: TupleHash) -> usize {
        hash.mixed() as usize & (self.slots.len() - 1) & !(GROUP - 1)
    }
}

/// The state after a packet that opens and ends nothing.
#[inline]
fn after_data(state: State) -> State {
    match state {
        // Whoever goes on after a reset has sent one that was not valid, or did not send it.
        State::HalfOpen | State::Reset => State::Open,
        state => state,
    }
}

/// The state after one that does.
fn after_flags(state: State, packet: &FlowPacket) -> State {
    match state {
        State::Udp => State::Udp,
        _ if packet.resets => State::Reset,
        // A SYN on a closing connection opens it again.
        State::HalfOpen | State::Closing | State::Reset if packet.opens => State::HalfOpen,
        _ if packet.ends => State::Closing,
        state => after_data(state),
    }
}

/// Where a flow is put: its own slot, else a free or expired one, else that of a flow that matters less, and of these the
/// one that has been silent for longest.
fn choose_slot<'a>(
    group: impl Iterator<Item = &'a mut Slot>,
    key: &FlowKey,
    state: State,
    timeouts: &[u32; STATES],
    now: Tick,
) -> Option<&'a mut Slot> {
    let (mut vacant, mut least): (_, Option<((u8, u32), &mut Slot)>) = (None, None);
    for slot in group {
        if slot.is(key) {
            return Some(slot);
        }
        if vacant.is_some() {
            continue;
        }
        if slot.is_free() || is_expired(slot, timeouts, now) {
            vacant = Some(slot);
        } else if let Some(rank) = gives_way(slot, state, now)
            && least.as_ref().is_none_or(|(least, _)| rank > *least)
        {
            least = Some((rank, slot));
        }
    }
    vacant.or(least.map(|(_, slot)| slot))
}

/// Whether a flow gives way to a new one, and how readily. A flood of SYNs displaces no UDP flow and no established
/// connection, one of datagrams no connection, but for those that have been silent for so long that forged ones, which
/// two packets make, do not fill the table for hours. A displaced flow goes where Maglev says, as most do anyway.
fn gives_way(slot: &Slot, to: State, now: Tick) -> Option<(u8, u32)> {
    let silent = now.since(slot.last_seen());
    let readiness = match slot.state() {
        State::Reset => 4,
        State::HalfOpen => 3,
        State::Closing => 2,
        State::Udp if to == State::Udp => 1,
        State::Open if silent > SILENT => 0,
        State::Udp | State::Open => return None,
    };
    Some((readiness, silent))
}

/// Each flow prefers its own slot of the group, so that a hit mostly touches one cache line.
fn preferred(hash: TupleHash) -> usize {
    hash.mixed() as usize & (GROUP - 1)
}

fn is_expired(slot: &Slot, timeouts: &[u32; STATES], now: Tick) -> bool {
    now.since(slot.last_seen()) > timeouts[slot.state_number()]
}

fn known(slot: &Slot, (timeouts, port_reuse): (&[u32; STATES], u32), opens: bool, now: Tick) -> Known {
    let backend = BackendRef::from_raw(slot.backend);
    match () {
        () if is_expired(slot, timeouts, now) => Known::No,
        () if opens && now.since(slot.last_seen()) > port_reuse => Known::Reused(backend),
        () => Known::Flow(backend),
    }
}

#[cfg(test)]
mod tests;
