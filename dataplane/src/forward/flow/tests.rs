//! What the table remembers, for how long, and who gives way.

use super::*;
use crate::forward::hash::HashKey;

const KEY: HashKey = HashKey(7);

fn packet(source_port: u16, protocol: Protocol) -> FlowPacket {
    let tuple = Tuple {
        source: [192, 0, 2, 1].into(),
        destination: [198, 51, 100, 1].into(),
        source_port,
        destination_port: 80,
        protocol,
    };
    FlowPacket { tuple, opens: false, ends: false, resets: false, transport_at: 34, headers_len: 54 }
}

fn at(secs: u64) -> Tick {
    // A whole tick later, so that "older than" is not a matter of rounding.
    Tick::from_ns(secs * 1_000_000_000 + (1 << TICK_SHIFT))
}

fn backend(number: u32) -> BackendRef {
    BackendRef::from_raw(number)
}

fn key(packet: &FlowPacket) -> FlowKey {
    FlowKey::new(&packet.tuple, VipId(3))
}

struct Table(FlowTable);

impl Table {
    fn new(capacity: usize) -> Self {
        Self(FlowTable::new(capacity, Timeouts::default()).unwrap())
    }
    fn put(&mut self, packet: &FlowPacket, to: u32, secs: u64) {
        self.0.insert(KEY.tuple(&packet.tuple), &key(packet), packet, backend(to), at(secs));
    }
    fn touch(&mut self, packet: &FlowPacket, secs: u64) -> Known {
        self.0.touch(KEY.tuple(&packet.tuple), &key(packet), packet, at(secs))
    }
    fn peek(&self, packet: &FlowPacket, secs: u64) -> Known {
        self.0.peek(KEY.tuple(&packet.tuple), &key(packet), packet.opens, at(secs))
    }
    fn state(&self, packet: &FlowPacket) -> Option<FlowState> {
        let (port, protocol) = (packet.tuple.source_port, packet.tuple.protocol);
        let all = self.0.slots.iter().filter(|slot| !slot.is_free());
        let is_it = |slot: &&Slot| slot.ports >> 16 == u32::from(port) && slot.is_udp() == (protocol == Protocol::Udp);
        all.filter(is_it).map(Slot::state).next()
    }
}

#[test]
fn a_free_slot_is_all_zero() {
    assert!(Slot::ZERO.is_free());
}

#[test]
fn a_flow_keeps_its_backend_and_protocols_are_apart() {
    let mut table = Table::new(64);
    let (tcp, udp) = (packet(1, Protocol::Tcp), packet(1, Protocol::Udp));
    assert_eq!(table.touch(&tcp, 0), Known::No);
    table.put(&tcp, 5, 0);
    assert_eq!(table.touch(&tcp, 1), Known::Flow(backend(5)));
    assert_eq!(table.touch(&udp, 1), Known::No);
}

#[test]
fn flows_are_forgotten_after_their_protocols_time() {
    let mut table = Table::new(64);
    let (tcp, udp) = (packet(1, Protocol::Tcp), packet(2, Protocol::Udp));
    table.put(&tcp, 5, 0);
    table.put(&udp, 6, 0);
    assert_eq!(table.touch(&udp, 30), Known::Flow(backend(6)));
    assert_eq!(table.touch(&udp, 61), Known::No);
    assert_eq!(table.touch(&tcp, 1), Known::Flow(backend(5)));
    assert_eq!(table.touch(&tcp, 7199), Known::Flow(backend(5)));
    let fin = FlowPacket { ends: true, ..tcp };
    assert_eq!(table.touch(&fin, 7200), Known::Flow(backend(5)));
    assert_eq!(table.touch(&tcp, 7319), Known::Flow(backend(5)), "half-closed: it acknowledges what it is sent");
    assert_eq!(table.touch(&tcp, 7438), Known::Flow(backend(5)), "each packet counts");
    assert_eq!(table.touch(&tcp, 7559), Known::No);
}

#[test]
fn a_connection_that_was_broken_off_is_soon_forgotten_and_no_forged_reset_ends_one() {
    let mut table = Table::new(64);
    let tcp = packet(1, Protocol::Tcp);
    let (reset, syn) = (FlowPacket { resets: true, ..tcp }, FlowPacket { opens: true, ..tcp });
    let both = FlowPacket { ends: true, ..reset };
    for last in [reset, both] {
        table.put(&tcp, 5, 0);
        assert_eq!(table.touch(&tcp, 1), Known::Flow(backend(5)));
        assert_eq!(table.touch(&last, 2), Known::Flow(backend(5)));
        assert_eq!(table.state(&tcp), Some(FlowState::Reset));
        assert_eq!(table.peek(&tcp, 11), Known::Flow(backend(5)), "what is still on its way");
        assert_eq!(table.touch(&tcp, 13), Known::No);
    }
    table.put(&tcp, 5, 20);
    table.touch(&reset, 21);
    assert_eq!(table.touch(&tcp, 22), Known::Flow(backend(5)));
    assert_eq!(table.touch(&tcp, 100), Known::Flow(backend(5)), "whoever goes on was not reset");
    assert_eq!(table.state(&tcp), Some(FlowState::Open));
    table.touch(&reset, 101);
    assert_eq!(table.touch(&syn, 102), Known::Flow(backend(5)));
    assert_eq!(table.state(&tcp), Some(FlowState::HalfOpen), "the same ports again");
    let udp = packet(2, Protocol::Udp);
    table.put(&udp, 6, 102);
    table.touch(&FlowPacket { resets: true, ends: true, ..udp }, 103);
    assert_eq!(table.state(&udp), Some(FlowState::Udp));
}

#[test]
fn a_syn_on_a_closing_flow_opens_it_again() {
    let mut table = Table::new(64);
    let tcp = packet(1, Protocol::Tcp);
    table.put(&FlowPacket { ends: true, ..tcp }, 5, 0);
    assert_eq!(table.state(&tcp), Some(FlowState::Closing));
    table.touch(&FlowPacket { opens: true, ..tcp }, 1);
    assert_eq!(table.state(&tcp), Some(FlowState::HalfOpen));
    table.touch(&tcp, 2);
    assert_eq!(table.state(&tcp), Some(FlowState::Open));
}

#[test]
fn one_group_keeps_the_flows_of_two_vips_apart() {
    // As many slots as one group has: all flows meet there.
    let mut table = Table::new(GROUP);
    let (flow, now) = (packet(1, Protocol::Tcp), at(0));
    let hash = KEY.tuple(&flow.tuple);
    let keys = [1, 2].map(|vip| FlowKey::new(&flow.tuple, VipId(vip)));
    for (key, number) in keys.iter().zip([5, 6]) {
        table.0.insert(hash, key, &flow, backend(number), now);
    }
    for (key, number) in keys.iter().zip([5, 6]) {
        assert_eq!(table.0.peek(hash, key, false, now), Known::Flow(backend(number)));
        assert_eq!(table.0.touch(hash, key, &flow, now), Known::Flow(backend(number)));
    }
}

#[test]
fn a_late_syn_opens_a_new_flow_and_a_repeated_one_does_not() {
    let mut table = Table::new(64);
    let syn = FlowPacket { opens: true, ..packet(1, Protocol::Tcp) };
    table.put(&syn, 5, 0);
    assert_eq!(table.touch(&syn, 1), Known::Flow(backend(5)));
    assert_eq!(table.touch(&syn, 3), Known::Flow(backend(5)));
    assert_eq!(table.touch(&syn, 7), Known::Reused(backend(5)));
}

#[test]
fn a_flood_of_syns_displaces_no_established_flow() {
    let mut table = Table::new(256);
    let established: Vec<FlowPacket> = (0..100).map(|port| packet(port, Protocol::Tcp)).collect();
    for flow in &established {
        table.put(flow, 5, 0);
    }
    let kept =
        |table: &mut Table| established.iter().filter(|flow| table.touch(flow, 2) == Known::Flow(backend(5))).count();
    let before = kept(&mut table);
    assert!(before > 90, "{before}");
    for port in 1000..60000 {
        let syn = FlowPacket { opens: true, ..packet(port, Protocol::Tcp) };
        table.put(&syn, 6, 2);
    }
    assert_eq!(kept(&mut table), before);
}

#[test]
fn a_forged_segment_is_soon_forgotten() {
    let mut table = Table::new(8);
    let segment = packet(1, Protocol::Tcp);
    table.put(&segment, 5, 0);
    assert_eq!(table.touch(&segment, 61), Known::No);
}

fn inserted(table: &Table) -> (u64, u64, u64) {
    let Inserted { remembered, displaced, not_remembered } = table.0.inserted();
    (remembered, displaced, not_remembered)
}

#[test]
fn a_full_table_refuses_and_counts() {
    let mut table = Table::new(8);
    for port in 0..8 {
        table.put(&packet(port, Protocol::Udp), 5, 0);
    }
    for port in 0..12 {
        table.put(&FlowPacket { opens: true, ..packet(port, Protocol::Tcp) }, 5, 0);
    }
    assert_eq!(inserted(&table), (8, 0, 12));
}

#[test]
fn of_datagrams_the_longest_silent_flow_gives_way_and_active_ones_stay() {
    let mut table = Table::new(8);
    let active: Vec<FlowPacket> = (0..4).map(|port| packet(port, Protocol::Udp)).collect();
    for flow in &active {
        table.put(flow, 5, 0);
    }
    // Ten new ones a second, for ten seconds.
    for second in 1..11 {
        for flow in &active {
            assert_eq!(table.touch(flow, second), Known::Flow(backend(5)));
        }
        for port in 0..4 {
            table.put(&packet(1000 + second as u16 * 4 + port, Protocol::Udp), 6, second);
        }
    }
    assert_eq!(inserted(&table), (44, 36, 0));
}

#[test]
fn established_connections_give_way_only_after_a_long_silence() {
    let mut table = Table::new(8);
    for port in 0..8 {
        table.put(&packet(port, Protocol::Tcp), 5, 0);
        table.touch(&packet(port, Protocol::Tcp), 0);
    }
    let new = [packet(9, Protocol::Udp), FlowPacket { opens: true, ..packet(9, Protocol::Tcp) }];
    for flow in &new {
        table.put(flow, 6, SILENT_S);
    }
    assert_eq!(inserted(&table), (8, 0, 2));
    table.touch(&packet(0, Protocol::Tcp), SILENT_S);
    for flow in &new {
        table.put(flow, 6, SILENT_S + 2);
    }
    assert_eq!(inserted(&table), (10, 2, 2));
    assert_eq!(table.touch(&packet(0, Protocol::Tcp), SILENT_S + 2), Known::Flow(backend(5)));
}

#[test]
fn as_many_flows_as_are_promised_find_room() {
    // Half of the slots, as in the default table.
    let mut table = Table::new(1 << 16);
    for flow in 0..1u32 << 15 {
        let mut packet = packet(flow as u16, Protocol::Tcp);
        packet.tuple.source = IpAddr::from(flow.to_be_bytes()).into();
        table.put(&packet, 5, 0);
        table.touch(&packet, 0);
    }
    let (_, _, refused) = inserted(&table);
    assert!(refused < (1 << 15) / 50, "{refused} found no room");
}

#[test]
fn the_clock_may_wrap() {
    let mut table = Table::new(8);
    let flow = packet(1, Protocol::Tcp);
    let hash = KEY.tuple(&flow.tuple);
    table.0.insert(hash, &key(&flow), &flow, backend(5), Tick(TICK_MASK));
    assert_eq!(table.0.touch(hash, &key(&flow), &flow, Tick(3)), Known::Flow(backend(5)));
}

#[test]
fn flows_are_listed_and_looked_at_without_being_touched() {
    let mut table = Table::new(64);
    let mut flow = packet(7, Protocol::Udp);
    flow.tuple.source = IpAddr::V6("2001:db8::9".parse().unwrap()).into();
    table.put(&flow, 5, 0);
    table.put(&packet(8, Protocol::Tcp), 6, 10);
    let listed = |table: &Table, secs| -> Vec<FlowEntry> { table.0.entries(0..table.0.slots(), at(secs)).collect() };
    let entries = listed(&table, 20);
    let entry = entries.iter().find(|entry| entry.source_port == 7).unwrap();
    assert_eq!((entry.source, entry.vip, entry.destination_port), (flow.tuple.source.into(), VipId(3), 80));
    assert_eq!((entry.state, entry.backend), (FlowState::Udp, backend(5)));
    assert!((19_900..20_100).contains(&entry.idle_ms), "{}", entry.idle_ms);
    let hash = KEY.tuple(&flow.tuple);
    assert_eq!(table.0.peek(hash, &key(&flow), false, at(20)), Known::Flow(backend(5)));
    assert_eq!(listed(&table, 40).len(), 1, "a look does not keep a flow alive");
}

#[test]
fn new_timeouts_hold_for_known_flows_too() {
    let mut table = Table::new(64);
    table.put(&packet(1, Protocol::Udp), 5, 0);
    table.0.set_timeouts(Timeouts { udp_s: 300, ..Timeouts::default() });
    assert_eq!(table.touch(&packet(1, Protocol::Udp), 200), Known::Flow(backend(5)));
}
