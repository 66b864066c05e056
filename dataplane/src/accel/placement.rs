//! New flows that the program places itself, because more come than workers shall look at. It does what a worker does whose
//! flow table has no room: the Maglev table says the backend, and nobody remembers the flow.
//!
//! That is right only as long as no worker knows a flow that is elsewhere. So the program places none of a service for a while
//! after each change of its table, and as long as workers see flows of it that are elsewhere ([`Services::put_off`]).

use std::{
    collections::{HashMap, HashSet},
    mem,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use range_alloc::RangeAllocator;

use super::{
    layout::{GROUP_BAD, MAGLEV_WORDS, SLOTS, mixed, raw_address},
    services::{Placing, PortKey, Services},
};
use crate::{
    forward::{
        flow::until_forgotten_ns,
        hash::HashKey,
        maglev::Maglev,
        snapshot::{Service, Snapshot},
    },
    io::sys::bpf::Words,
    packet::{Address, Protocol},
};

/// In the order of their numbers.
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
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
    /// For so long flows are known without a packet, by protocol.
    remembered_ns: [u64; 2],
    /// By name.
    services: HashMap<String, Placed>,
    numbers: u32,
    space: RangeAllocator<u32>,
    /// Whose they are that the program knows.
    ports: HashMap<PortKey, String>,
    known_bad: HashSet<Address>,
    knows_all_bad: bool,
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

/// A Maglev table with the backends for its entries, and where it stands.
#[derive(Debug)]
struct Table {
    maglev: Arc<Maglev>,
    members: Box<[u32]>,
    words: Range<u32>,
}

impl Table {
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
            remembered_ns: [0; 2],
            services: HashMap::new(),
            numbers: 0,
            space: RangeAllocator::new(0..MAGLEV_WORDS as u32),
            ports: HashMap::new(),
            known_bad: HashSet::new(),
            knows_all_bad: true,
            without_room: 0,
        }
    }

    /// A newer table was there before.
    pub(super) fn is_beyond(&self, snapshot: &Snapshot) -> bool {
        snapshot.generation < self.generation
    }

    /// Has the program place nothing any more by what is not so in a table. The numbers of its services, by their indexes.
    pub(super) fn withdraw(&mut self, program: &Services, snapshot: &Snapshot) -> Vec<u32> {
        self.generation = snapshot.generation;
        let is_same_key = self.flow_key.replace(snapshot.hash_key) == Some(snapshot.hash_key);
        // What has been waited for is not enough for flows that are remembered for longer now.
        let remembered_ns = PROTOCOLS.map(|protocol| until_forgotten_ns(snapshot.timeouts, protocol));
        let before_ns = mem::replace(&mut self.remembered_ns, remembered_ns);
        let holds = is_same_key && before_ns.iter().zip(&remembered_ns).all(|(before, now)| before >= now);
        let wanted: HashMap<&str, &Service> =
            snapshot.services.iter().map(|service| (service.name.as_str(), service)).collect();
        let ports = ports(snapshot);
        let Self { services, space, .. } = self;
        let stays = |name: &str, placed: &Placed| {
            let table = placed.table.as_ref().zip(wanted.get(name));
            holds && table.is_some_and(|(table, service)| table.is_of(service))
        };
        self.ports.retain(|key, name| {
            let is_same = ports.get(key).is_some_and(|service| service.name == *name);
            let stays = is_same && services.get(name).is_some_and(|placed| stays(name, placed));
            if !stays {
                program.close(key);
            }
            stays
        });
        for (name, placed) in services.iter_mut() {
            if !stays(name, placed)
                && let Some(table) = placed.table.take()
            {
                space.free_range(table.words);
            }
        }
        services.retain(|name, _| wanted.contains_key(name.as_str()));
        let mut number = |service: &Service| {
            let placed = services.entry(service.name.clone()).or_insert_with(|| {
                self.numbers += 1;
                Placed { number: self.numbers, is_new: true, table: None }
            });
            placed.number
        };
        snapshot.services.iter().map(&mut number).collect()
    }

    /// Has the program place new flows by a table, when what it says of backends is written. Whether it may: it knows all
    /// sources of which nothing is forwarded.
    pub(super) fn enter(&mut self, program: &Services, snapshot: &Snapshot, now_ns: u64) -> bool {
        let knows_all = self.enter_bad_sources(snapshot);
        if mem::replace(&mut self.knows_all_bad, knows_all) && !knows_all {
            tracing::warn!(
                "the accelerator places no new flows: there are more VIPs than its table of bad sources takes"
            );
        }
        for service in &snapshot.services {
            if self.services.get(&service.name).is_some_and(|placed| placed.table.is_none()) {
                let table = self.lay(service);
                if let Some(placed) = self.services.get_mut(&service.name) {
                    placed.table = table;
                }
            }
        }
        let mut without_room = 0;
        for (key, service) in ports(snapshot) {
            let Some(Placed { number, is_new, table: Some(table) }) = self.services.get(&service.name) else {
                without_room += usize::from(table_of(service).is_some());
                continue;
            };
            let settled_ns = now_ns + self.remembered_ns[key.protocol() as usize];
            let placing = Placing {
                number: *number,
                table: table.words.start,
                size: table.maglev.size(),
                settled_ns: if *is_new { 0 } else { settled_ns },
            };
            if self.ports.contains_key(&key) {
                continue;
            }
            match program.open(&key, placing) {
                true => drop(self.ports.insert(key, service.name.clone())),
                false => without_room += 1,
            }
        }
        if without_room > mem::replace(&mut self.without_room, without_room) {
            tracing::warn!("the accelerator has no room for {without_room} ports, and places no new flows of them");
        }
        for service in snapshot.services.iter().filter(|service| service.maglev.is_some()) {
            self.services.get_mut(&service.name).into_iter().for_each(|placed| placed.is_new = false);
        }
        knows_all
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

    fn enter_bad_sources(&mut self, snapshot: &Snapshot) -> bool {
        let wanted: HashSet<Address> = snapshot.bad_sources().collect();
        let groups = self.bad_sources.len() / GROUP_BAD;
        let place_of = |address: &Address| {
            let [high, low] = raw_address(*address);
            let hash = mixed(mixed(self.hash_key, high), low);
            let group = (hash >> 8) as usize & (groups - 1);
            (&self.bad_sources[group * GROUP_BAD..(group + 1) * GROUP_BAD], hash | 1)
        };
        self.known_bad.retain(|address| {
            let stays = wanted.contains(address);
            if !stays {
                let (group, hash) = place_of(address);
                replace(group, hash, 0);
            }
            stays
        });
        for address in &wanted {
            let (group, hash) = place_of(address);
            if !self.known_bad.contains(address) && replace(group, 0, hash) {
                self.known_bad.insert(*address);
            }
        }
        self.known_bad.len() == wanted.len()
    }

    /// The Maglev tables say another backend than they should, as by a fault.
    #[cfg(test)]
    pub(super) fn confuse(&self) {
        for four in self.maglev.iter() {
            four.fetch_xor(0x0001_0001_0001_0001, Ordering::Relaxed);
        }
    }
}

/// Whether there was such a word.
fn replace(words: &[AtomicU64], from: u64, to: u64) -> bool {
    let place = words.iter().find(|word| word.load(Ordering::Relaxed) == from);
    place.is_some_and(|place| {
        place.store(to, Ordering::Release);
        true
    })
}

/// The ports that one service of a table has for itself.
fn ports(snapshot: &Snapshot) -> HashMap<PortKey, &Service> {
    let all = snapshot.vips.iter().flat_map(|vip| {
        let address = Address::from(vip.address);
        vip.single_ports().map(move |(protocol, port, service)| (PortKey::new(address, protocol, port), service))
    });
    all.filter_map(|(key, service)| Some((key, snapshot.services.get(service as usize)?))).collect()
}
