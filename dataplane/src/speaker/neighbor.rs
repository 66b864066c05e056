//! The backends' MAC addresses, resolved by ARP and neighbour discovery of our own and kept fresh on every node, owner or
//! not: a node that takes a VIP over must know where to send from the first packet on. Pure: the time
//! and the heard addresses come in, the probes that are due come out.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    forward::{runtime::BackendRuntime, snapshot::Snapshot},
    packet::Mac,
};

const SECOND: u64 = 1_000_000_000;
/// A known address is asked for again after this; it is then never older than 30 s.
const REFRESH_NS: u64 = 15 * SECOND;
/// Between two questions that nobody answered.
const RETRY_NS: u64 = SECOND;
/// From the third on, everybody is asked: the backend may have another address now.
const UNICAST_PROBES: u32 = 2;
/// After so many, the address is forgotten.
const MAX_PROBES: u32 = 8;
/// Probes sent at once at most.
const BURST: usize = 64;
/// Between two bursts.
const BURST_INTERVAL_NS: u64 = 5_000_000;

type Key = (usize, IpAddr);

/// All resolved backends.
#[derive(Debug, Default)]
pub struct Neighbors {
    entries: HashMap<Key, Entry>,
    due: BTreeSet<(u64, Key)>,
    not_before_ns: u64,
}

#[derive(Debug)]
struct Entry {
    /// Of each backend with this address: a machine may serve several services.
    runtimes: Vec<Arc<BackendRuntime>>,
    mac: Option<Mac>,
    due_ns: u64,
    unanswered: u32,
}

/// A question to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// The interface.
    pub port: usize,
    /// Who is asked for.
    pub target: IpAddr,
    /// Who had it last; `None` asks everybody.
    pub last_known: Option<Mac>,
}

impl Neighbors {
    /// Takes over the backends of a new table; what is known stays known.
    pub fn set_backends(&mut self, snapshot: &Snapshot, now_ns: u64) {
        let mut wanted: HashMap<Key, Vec<Arc<BackendRuntime>>> = HashMap::new();
        for backend in snapshot.backends() {
            let asked_for = backend.given_mac.is_none() && !backend.is_self;
            if let (true, Some(port)) = (asked_for, backend.port) {
                wanted.entry((port, backend.address)).or_default().push(backend.runtime.clone());
            }
        }
        let due = &mut self.due;
        self.entries.retain(|key, entry| {
            let stays = wanted.contains_key(key);
            if !stays {
                due.remove(&(entry.due_ns, *key));
            }
            stays
        });
        for (key, runtimes) in wanted {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.runtimes = runtimes;
                entry.publish();
            } else {
                self.due.insert((now_ns, key));
                let entry = Entry { runtimes, mac: None, due_ns: now_ns, unanswered: 0 };
                // What was known of it on another interface is not true here.
                entry.publish();
                self.entries.insert(key, entry);
            }
        }
    }

    /// An ARP packet or a neighbour advertisement says who has an address.
    pub fn heard(&mut self, port: usize, address: IpAddr, mac: Mac, now_ns: u64) {
        let key = (port, address);
        let Some(entry) = self.entries.get_mut(&key).filter(|_| mac.is_host()) else { return };
        entry.mac = Some(mac);
        entry.unanswered = 0;
        entry.publish();
        self.due.remove(&(entry.due_ns, key));
        entry.due_ns = now_ns + REFRESH_NS;
        self.due.insert((entry.due_ns, key));
    }

    /// Answers may have been lost on this node: no question so far counts as unanswered.
    pub fn excuse_silence(&mut self) {
        for entry in self.entries.values_mut().filter(|entry| entry.mac.is_some()) {
            // One of them stays, so that the next question comes as soon as after that.
            entry.unanswered = entry.unanswered.min(1);
        }
    }

    /// The questions to send now.
    pub fn due(&mut self, now_ns: u64) -> Vec<Probe> {
        if now_ns < self.not_before_ns {
            return Vec::new();
        }
        let keys: Vec<Key> =
            self.due.iter().take_while(|(at, _)| *at <= now_ns).take(BURST).map(|(_, key)| *key).collect();
        if !keys.is_empty() {
            self.not_before_ns = now_ns + BURST_INTERVAL_NS;
        }
        let mut probes = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            self.due.remove(&(entry.due_ns, key));
            if entry.unanswered >= MAX_PROBES && entry.mac.take().is_some() {
                entry.publish();
            }
            let last_known = entry.mac.filter(|_| entry.unanswered < UNICAST_PROBES);
            entry.unanswered = entry.unanswered.saturating_add(1);
            entry.due_ns = now_ns + RETRY_NS;
            self.due.insert((entry.due_ns, key));
            probes.push(Probe { port: key.0, target: key.1, last_known });
        }
        probes
    }

    /// When to call [`Self::due`] again.
    pub fn next_due_ns(&self) -> Option<u64> {
        self.due.first().map(|(at, _)| (*at).max(self.not_before_ns))
    }
}

impl Entry {
    fn publish(&self) {
        for runtime in &self.runtimes {
            runtime.set_mac(self.mac);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::forward::{
        compile::Compiler,
        spec::{BackendSpec, BackendState, PortSpec, ServiceSpec, TableSpec, VipSpec},
    };

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn spec(addresses: &[IpAddr]) -> TableSpec {
        let backend = |(address, id): (&IpAddr, u64)| BackendSpec {
            id,
            address: *address,
            mac: None,
            weight: 1,
            state: BackendState::Active,
        };
        TableSpec {
            ports: vec![PortSpec {
                name: "eth0".into(),
                ifindex: 2,
                mac: Mac([2, 0, 0, 0, 0, 9]),
                mtu: 1500,
                carrier: true,
                segments: true,
                addresses: vec![(Ipv4Addr::new(10, 0, 0, 254).into(), 24)],
            }],
            vips: vec![VipSpec {
                address: Ipv4Addr::new(192, 0, 2, 1).into(),
                answer_on: vec![],
                rejects: false,
                services: vec![ServiceSpec {
                    name: "s".into(),
                    ports: vec![],
                    by_source: false,
                    table_size: 4093,
                    backends: addresses.iter().zip(1..).map(backend).collect(),
                }],
            }],
            ..TableSpec::default()
        }
    }

    fn mac_of(snapshot: &Snapshot) -> Option<Mac> {
        snapshot.backends().next().unwrap().runtime.mac()
    }

    #[test]
    fn an_unknown_backend_is_asked_for_until_it_answers_and_then_kept_fresh() {
        let mut neighbors = Neighbors::default();
        let snapshot = Compiler::default().compile(&spec(&[A]));
        neighbors.set_backends(&snapshot, 0);
        let broadcast = Probe { port: 0, target: A, last_known: None };
        assert_eq!(neighbors.due(0), [broadcast]);
        assert_eq!(neighbors.due(RETRY_NS - 1), []);
        assert_eq!(neighbors.due(RETRY_NS), [broadcast]);
        neighbors.heard(0, A, MAC, RETRY_NS);
        assert_eq!(mac_of(&snapshot), Some(MAC));
        let refresh = neighbors.next_due_ns().unwrap();
        assert!(refresh <= RETRY_NS + 30 * SECOND);
        assert_eq!(neighbors.due(refresh), [Probe { last_known: Some(MAC), ..broadcast }]);
    }

    #[test]
    fn a_backend_that_falls_silent_is_forgotten_within_half_a_minute() {
        let mut neighbors = Neighbors::default();
        let snapshot = Compiler::default().compile(&spec(&[A]));
        neighbors.set_backends(&snapshot, 0);
        neighbors.heard(0, A, MAC, 0);
        let mut broadcasts = 0;
        while let Some(at) = neighbors.next_due_ns().filter(|at| *at <= 30 * SECOND) {
            broadcasts += neighbors.due(at).iter().filter(|probe| probe.last_known.is_none()).count();
        }
        assert!(broadcasts > 5);
        assert_eq!(mac_of(&snapshot), None);
    }

    #[test]
    fn a_new_address_is_learnt_and_a_group_address_is_not() {
        let mut neighbors = Neighbors::default();
        let mut compiler = Compiler::default();
        let snapshot = compiler.compile(&spec(&[A]));
        neighbors.set_backends(&snapshot, 0);
        neighbors.heard(0, A, Mac::BROADCAST, 1);
        assert_eq!(mac_of(&snapshot), None);
        neighbors.heard(0, A, MAC, 1);
        neighbors.heard(1, A, Mac([2, 0, 0, 0, 0, 2]), 1);
        neighbors.heard(0, Ipv4Addr::new(10, 0, 0, 7).into(), Mac([2, 0, 0, 0, 0, 3]), 1);
        assert_eq!(mac_of(&snapshot), Some(MAC), "another port or another host changes nothing");
        let snapshot = compiler.compile(&spec(&[A, Ipv4Addr::new(10, 0, 0, 2).into()]));
        neighbors.set_backends(&snapshot, 2);
        assert_eq!(mac_of(&snapshot), Some(MAC), "a new table forgets nothing");
    }

    #[test]
    fn many_backends_are_asked_for_in_bursts() {
        let addresses: Vec<IpAddr> = (0..200).map(|i| Ipv4Addr::new(10, 0, 0, i).into()).collect();
        let mut neighbors = Neighbors::default();
        neighbors.set_backends(&Compiler::default().compile(&spec(&addresses)), 0);
        let mut asked = 0;
        let mut bursts = 0;
        while asked < 200 {
            let at = neighbors.next_due_ns().unwrap();
            let probes = neighbors.due(at);
            assert!(probes.len() <= BURST);
            asked += probes.len();
            bursts += 1;
        }
        assert_eq!(bursts, 4);
    }
}
