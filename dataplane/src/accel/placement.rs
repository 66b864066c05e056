//! New flows that the program places itself, because more come than workers shall look at. It does what a worker does whose
//! flow table has no room: the Maglev table says the backend, and nobody remembers the flow.
//!
//! That is right only for flows that no worker knows elsewhere. So after each change of a service's table the program places
//! none of it, until somebody has looked through the flow tables for those that have another backend than the table
//! says ([`super::elsewhere`]).

use std::{
    collections::HashMap,
    mem,
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use range_alloc::RangeAllocator;

use super::{
    layout::{BITS_BAD, MAGLEV_WORDS, SLOTS, mark, mixed, raw_address},
    services::{Placing, PortKey, Services},
};
use crate::{
    forward::{
        hash::HashKey,
        maglev::Maglev,
        snapshot::{Service, Snapshot},
        spec::Timeouts,
    },
    io::sys::bpf::Words,
    packet::Address,
};

/// So many entries stand in a word.
const IN_WORD: u32 = 4;

/// What the program's tables of services, of Maglev tables and of bad sources have in them.
#[derive(Debug)]
pub(super) struct Placement {
    maglev: Words,
    bad_sources: Words,
    hash_key: u64,
    /// Of the last snapshot.
    generation: u64,
    flow_key: Option<HashKey>,
    timeouts: Option<Timeouts>,
    /// By name.
    services: HashMap<String, Placed>,
    /// The last number that a service was given.
    last_number: u32,
    space: RangeAllocator<u32>,
    ports: HashMap<PortKey, Port>,
    /// Ports of which the program would know, had it room.
    without_room: usize,
}

#[derive(Debug)]
struct Placed {
    number: u32,
    /// It has never had a table: no flow of it can be elsewhere.
    is_new: bool,
    table: Option<Table>,
}

/// A port of a service that has a table.
#[derive(Debug)]
struct Port {
    service: String,
    state: PortState,
}

impl Port {
    /// Has new flows of it placed from now on. Whether there was room.
    fn open(&mut self, key: &PortKey, placed: &Placed, program: &Services) -> bool {
        let is_open = placed.table.as_ref().is_some_and(|Table { maglev, words, .. }| {
            program.open(key, Placing { number: placed.number, table: words.start, size: maglev.size() })
        });
        self.state = if is_open { PortState::Open } else { PortState::WithoutRoom };
        is_open
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PortState {
    /// Its new flows are placed when the workers' flows are known as they are by the table of that generation.
    Unsettled(u64),
    Open,
    WithoutRoom,
}

/// A Maglev table with the backends for its entries, and where it stands.
#[derive(Debug)]
struct Table {
    maglev: Arc<Maglev>,
    members: Box<[u32]>,
    words: Range<u32>,
}

impl Table {
    /// Whether a service's flows go by it.
    fn is_of(&self, service: &Service) -> bool {
        table_of(service).is_some_and(|maglev| Arc::ptr_eq(&self.maglev, maglev)) && self.members == service.members
    }
}

/// By what the new flows of a service are placed; `None` where that is the workers'.
fn table_of(service: &Service) -> Option<&Arc<Maglev>> {
    let fit = service.members.iter().all(|slot| (*slot as usize) < SLOTS);
    service.maglev.as_ref().filter(|_| fit && !service.by_source)
}

impl Placement {
    pub(super) fn new(maglev: Words, bad_sources: Words, hash_key: u64) -> Self {
        Self {
            maglev,
            bad_sources,
            hash_key,
            generation: 0,
            flow_key: None,
            timeouts: None,
            services: HashMap::new(),
            last_number: 0,
            space: RangeAllocator::new(0..MAGLEV_WORDS as u32),
            ports: HashMap::new(),
            without_room: 0,
        }
    }

    /// A newer table was there before.
    pub(super) fn is_beyond(&self, snapshot: &Snapshot) -> bool {
        snapshot.generation < self.generation
    }

    /// Has the program place nothing any more by what is not so in a table.
    pub(super) fn withdraw(&mut self, program: &Services, snapshot: &Snapshot) {
        if self.generation == snapshot.generation {
            return;
        }
        self.generation = snapshot.generation;
        let is_same_key = self.flow_key.replace(snapshot.hash_key) == Some(snapshot.hash_key);
        // Flows that were forgotten can be known again.
        let before = self.timeouts.replace(snapshot.timeouts);
        let is_as_short = before.is_some_and(|before| snapshot.timeouts.is_within(before));
        let wanted = ports(snapshot);
        let Self { services, ports, .. } = self;
        ports.retain(|key, port| {
            let service = wanted.get(key).filter(|service| service.name == port.service);
            let table = services.get(&port.service).and_then(|placed| placed.table.as_ref());
            let stays = service.zip(table).is_some_and(|(service, table)| table.is_of(service));
            let stays = stays && is_same_key && is_as_short;
            if !stays {
                program.close(key);
            }
            stays
        });
    }

    /// Gives services their numbers, and takes the room of tables that are not theirs any more.
    pub(super) fn number_all(&mut self, snapshot: &Snapshot) {
        let wanted: HashMap<&str, &Service> =
            snapshot.services.iter().map(|service| (service.name.as_str(), service)).collect();
        let Self { services, space, last_number, .. } = self;
        services.retain(|name, placed| {
            let service = wanted.get(name.as_str());
            let gone = placed.table.take_if(|table| !service.is_some_and(|service| table.is_of(service)));
            gone.into_iter().for_each(|table| space.free_range(table.words));
            service.is_some()
        });
        for service in &snapshot.services {
            services.entry(service.name.clone()).or_insert_with(|| {
                *last_number += 1;
                Placed { number: *last_number, is_new: true, table: None }
            });
        }
    }

    /// What the program calls a service of the last snapshot.
    pub(super) fn number(&self, service: &Service) -> u32 {
        self.services.get(&service.name).map_or(0, |placed| placed.number)
    }

    /// Writes by what new flows are placed, and of which sources none are, when what the table says of backends is written.
    pub(super) fn enter(&mut self, program: &Services, snapshot: &Snapshot) {
        self.enter_bad_sources(snapshot);
        for service in &snapshot.services {
            if self.services.get(&service.name).is_some_and(|placed| placed.table.is_none()) {
                let table = self.lay(service);
                if let Some(placed) = self.services.get_mut(&service.name) {
                    placed.table = table;
                }
            }
        }
        let unsettled = PortState::Unsettled(snapshot.generation);
        let mut without_room = 0;
        for (key, service) in ports(snapshot) {
            let Some(placed) = self.services.get(&service.name).filter(|placed| placed.table.is_some()) else {
                without_room += usize::from(table_of(service).is_some());
                continue;
            };
            let port = self.ports.entry(key);
            let port = port.or_insert_with(|| Port { service: service.name.clone(), state: unsettled });
            // What had no room was settled by the same table.
            if port.state == PortState::WithoutRoom || placed.is_new && port.state == unsettled {
                without_room += usize::from(!port.open(&key, placed, program));
            }
        }
        for service in snapshot.services.iter().filter(|service| service.maglev.is_some()) {
            self.services.get_mut(&service.name).into_iter().for_each(|placed| placed.is_new = false);
        }
        self.note_without_room(without_room);
    }

    /// Whether new flows of some port are not placed until [`Self::settle`].
    pub(super) fn is_unsettled(&self) -> bool {
        self.ports.values().any(|port| matches!(port.state, PortState::Unsettled(_)))
    }

    /// It is known which flows are elsewhere by the table of a generation: new ones can be placed.
    pub(super) fn settle(&mut self, program: &Services, generation: u64) {
        let mut without_room = self.without_room;
        for (key, port) in &mut self.ports {
            if let Some(placed) = self.services.get(&port.service)
                && matches!(port.state, PortState::Unsettled(since) if since <= generation)
            {
                without_room += usize::from(!port.open(key, placed, program));
            }
        }
        self.note_without_room(without_room);
    }

    fn note_without_room(&mut self, without_room: usize) {
        if without_room > mem::replace(&mut self.without_room, without_room) {
            tracing::warn!("the accelerator has no room for {without_room} ports, and places no new flows of them");
        }
    }

    /// Writes a Maglev table, if it is to be there and there is room.
    fn lay(&mut self, service: &Service) -> Option<Table> {
        let maglev = table_of(service)?.clone();
        let words = self.space.allocate_range(maglev.size().div_ceil(IN_WORD)).ok()?;
        let slot = |entry: u32| u64::from(service.members[maglev.lookup(entry)]);
        for (word, first) in words.clone().zip((0..maglev.size()).step_by(IN_WORD as usize)) {
            let entries = first..maglev.size().min(first + IN_WORD);
            let four = entries.rev().fold(0, |word, entry| word << 16 | slot(entry));
            self.maglev[word as usize].store(four, Ordering::Release);
        }
        Some(Table { maglev, members: service.members.clone(), words })
    }

    fn enter_bad_sources(&self, snapshot: &Snapshot) {
        let mut words = vec![0; self.bad_sources.len()];
        for address in snapshot.bad_sources() {
            let [high, low] = raw_address(address);
            let (at, bit) = mark(BITS_BAD, mixed(mixed(self.hash_key, high), low));
            words[at] |= bit;
        }
        for (word, wanted) in self.bad_sources.iter().zip(words) {
            if word.load(Ordering::Relaxed) != wanted {
                word.store(wanted, Ordering::Release);
            }
        }
    }

    /// The Maglev tables say another backend than they should, as by a fault.
    #[cfg(test)]
    pub(super) fn confuse(&self) {
        for four in self.maglev.iter() {
            four.fetch_xor(0x0001_0001_0001_0001, Ordering::Relaxed);
        }
    }
}

/// The ports that one service of a table has for itself.
fn ports(snapshot: &Snapshot) -> HashMap<PortKey, &Service> {
    let all = snapshot.vips.iter().flat_map(|vip| {
        let address = Address::from(vip.address);
        vip.single_ports().map(move |(protocol, port, service)| (PortKey::new(address, protocol, port), service))
    });
    all.filter_map(|(key, service)| Some((key, snapshot.services.get(service as usize)?))).collect()
}
