//! The backends' MAC addresses, resolved by ARP and neighbour discovery of our own and kept fresh on every node, owner or
//! not: a node that takes a VIP over must know where to send from the first packet on. Pure: the time
//! and the heard addresses come in, the probes that are due come out.
//!
//! Neither protocol says who may speak for an address, so one forged frame must not move a backend's traffic. Another MAC
//! address for a backend that has one is a claim: the station that had it last is asked, alone, and the claim holds once
//! that one has left all its questions unanswered. Everything is asked for again so often that a change which nobody
//! announces is found as soon as one that is.
//!
//! Whoever leaves as many questions unanswered is silent, whether it had a MAC address or never one: the control plane gives
//! it no new flows. It is asked on. And with the first one that falls silent all others are asked at once: whether one is away
//! or all are is known soon.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    forward::{
        runtime::{BackendRuntime, Liveness},
        snapshot::Snapshot,
    },
    packet::Mac,
};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
/// A known address is asked for again after this.
const REFRESH_NS: u64 = SECOND;
/// Of many backends each less often: so many questions a second are enough.
const PER_BACKEND_NS: u64 = MS;
/// Questions to the station that had the address last. From the next one on, everybody is asked: the backend may have
/// another MAC address now.
const UNICAST_PROBES: u32 = 3;
/// Between them.
const UNICAST_RETRY_NS: u64 = 200 * MS;
/// Between the first questions to everybody, by which it is found whether anybody is there.
const FIRST_RETRY_NS: u64 = 500 * MS;
/// Between two questions to everybody.
const RETRY_NS: u64 = SECOND;
/// After so many, the address is forgotten.
const MAX_PROBES: u32 = 9;
/// For so long silence is excused by what was lost here.
const EXCUSED_NS: u64 = 5 * SECOND;
/// Whoever has just answered for its address is not doubted again for so long.
const TRUST_NS: u64 = SECOND;
/// Probes sent at once at most.
const BURST: usize = 64;
/// Between two bursts.
const BURST_INTERVAL_NS: u64 = 5 * MS;

type Key = (usize, IpAddr);

/// All resolved backends.
#[derive(Debug, Default)]
pub struct Neighbors {
    entries: HashMap<Key, Entry>,
    /// The MAC addresses of backends, by interface.
    holders: HashMap<(usize, Mac), Holder>,
    due: BTreeSet<(u64, Key)>,
    /// How many of them are silent.
    silent: usize,
    /// Before that, nobody is asked out of turn again.
    hurry_again_ns: u64,
    not_before_ns: u64,
}

/// A MAC address that backends have.
#[derive(Debug, Default)]
struct Holder {
    /// How many addresses of backends have it.
    addresses: usize,
    /// What they had before: a machine with several addresses takes all of them to its new MAC address.
    formerly: Option<Mac>,
}

#[derive(Debug)]
struct Entry {
    /// Of each backend with this address: a machine may serve several services.
    runtimes: Vec<Arc<BackendRuntime>>,
    mac: Option<Mac>,
    liveness: Liveness,
    /// Who claims it, while the one that has it is asked.
    claimed_by: Option<Mac>,
    due_ns: u64,
    /// Questions since it was heard.
    unanswered: u32,
    /// When it answered a question that a claim had caused.
    defended_ns: Option<u64>,
    /// Since when its silence is excused.
    excused_ns: Option<u64>,
}

/// What one of our questions, or a frame of its own accord, says about an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The interface.
    pub port: usize,
    /// The address.
    pub address: IpAddr,
    /// Who has it.
    pub mac: Mac,
    /// Whether it takes the place of what is known (RFC 4861 7.2.5, the Override flag; ARP always does).
    pub overrides: bool,
}

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It is about no backend's address, or says what is known, or is the first to say anything, or is looked into.
    Taken,
    /// It is not believed; or it is the answer by which an earlier one is not.
    Refused {
        /// The MAC address that was claimed without right.
        claimed: Mac,
    },
    /// The backend had another MAC address, and that one answers no more.
    Changed(Change),
}

/// A backend has another MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The backend.
    pub address: IpAddr,
    /// What it had.
    pub from: Mac,
    /// What it has.
    pub to: Mac,
}

/// What is to be done now.
#[derive(Debug, Default)]
pub struct Due {
    /// The questions to send.
    pub probes: Vec<Probe>,
    /// The claims that hold from now on.
    pub changes: Vec<Change>,
    /// How many backends are silent from now on.
    pub silent: usize,
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
            if let (true, Some(port)) = (asked_for, backend.port()) {
                wanted.entry((port, backend.address)).or_default().push(backend.runtime.clone());
            }
        }
        let (due, holders, silent) = (&mut self.due, &mut self.holders, &mut self.silent);
        self.entries.retain(|key, entry| {
            let stays = wanted.contains_key(key);
            if !stays {
                due.remove(&(entry.due_ns, *key));
                entry.turn(Liveness::NotAsked, silent);
                entry.set_mac(key.0, None, holders);
            }
            stays
        });
        for (key, runtimes) in wanted {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.runtimes = runtimes;
                // It was judged by another table. What is true is said again.
                entry.claimed_by = None;
                entry.publish();
            } else {
                self.due.insert((now_ns, key));
                let entry = Entry {
                    runtimes,
                    mac: None,
                    liveness: Liveness::Asked,
                    claimed_by: None,
                    due_ns: now_ns,
                    unanswered: 0,
                    defended_ns: None,
                    excused_ns: None,
                };
                // What was known of it on another interface is not true here.
                entry.publish();
                self.entries.insert(key, entry);
            }
        }
    }

    /// The MAC address of a backend that is asked for here, as far as it is known.
    pub fn known(&self, port: usize, address: IpAddr) -> Option<Option<Mac>> {
        self.entries.get(&(port, address)).map(|entry| entry.mac)
    }

    /// An ARP packet or a message of neighbour discovery says who has an address.
    pub fn heard(&mut self, claim: &Claim, now_ns: u64) -> Heard {
        let key = (claim.port, claim.address);
        let refresh_ns = self.refresh_ns();
        let holder = self.holders.get(&(claim.port, claim.mac)).map(|holder| holder.formerly);
        let Some(entry) = self.entries.get_mut(&key) else { return Heard::Taken };
        if !claim.mac.is_host() {
            return Heard::Refused { claimed: claim.mac };
        }
        let (heard, next_ns) = match entry.mac {
            Some(known) if known == claim.mac => {
                entry.unanswered = 0;
                entry.excused_ns = None;
                let refuted = entry.claimed_by.take();
                entry.defended_ns = refuted.map(|_| now_ns).or(entry.defended_ns);
                entry.turn(Liveness::Answers, &mut self.silent);
                let heard = refuted.map_or(Heard::Taken, |claimed| Heard::Refused { claimed });
                (heard, now_ns + refresh_ns)
            }
            None => {
                entry.turn(Liveness::Answers, &mut self.silent);
                entry.set_mac(key.0, Some(claim.mac), &mut self.holders);
                entry.unanswered = 0;
                (Heard::Taken, now_ns + refresh_ns)
            }
            Some(from) if claim.overrides && entry.is_silent(now_ns) => {
                entry.turn(Liveness::Answers, &mut self.silent);
                entry.set_mac(key.0, Some(claim.mac), &mut self.holders);
                (entry.unanswered, entry.claimed_by) = (0, None);
                let change = Change { address: claim.address, from, to: claim.mac };
                (Heard::Changed(change), now_ns + refresh_ns)
            }
            // One machine may have several backends' addresses; but none takes another one's over while that is there.
            Some(known) if holder.is_some_and(|formerly| formerly != Some(known)) => {
                return Heard::Refused { claimed: claim.mac };
            }
            Some(_) if entry.defended_ns.is_some_and(|at| now_ns < at + TRUST_NS) => {
                return Heard::Refused { claimed: claim.mac };
            }
            Some(_) => {
                let is_asked = entry.unanswered > 0;
                entry.claimed_by = if claim.overrides { Some(claim.mac) } else { entry.claimed_by };
                (Heard::Taken, if is_asked { entry.due_ns } else { now_ns })
            }
        };
        self.due.remove(&(entry.due_ns, key));
        entry.due_ns = next_ns;
        self.due.insert((entry.due_ns, key));
        heard
    }

    /// Answers may have been lost on this node: no question so far counts as unanswered.
    ///
    /// Not for ever: what goes on being lost would keep everybody where he was.
    pub fn excuse_silence(&mut self, now_ns: u64) {
        for entry in self.entries.values_mut().filter(|entry| entry.mac.is_some() && entry.unanswered > 0) {
            let since = *entry.excused_ns.get_or_insert(now_ns);
            if now_ns < since + EXCUSED_NS {
                // One of them stays, so that the next question comes as soon as after that.
                entry.unanswered = 1;
            }
        }
    }

    /// The questions to send now, and what holds from now on.
    pub fn due(&mut self, now_ns: u64) -> Due {
        if now_ns < self.not_before_ns {
            return Due::default();
        }
        let retry_ns = RETRY_NS.max(self.silent as u64 * PER_BACKEND_NS);
        let keys: Vec<Key> =
            self.due.iter().take_while(|(at, _)| *at <= now_ns).take(BURST).map(|(_, key)| *key).collect();
        if !keys.is_empty() {
            self.not_before_ns = now_ns + BURST_INTERVAL_NS;
        }
        let mut due = Due { probes: Vec::with_capacity(keys.len()), ..Due::default() };
        for key in keys {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            self.due.remove(&(entry.due_ns, key));
            if let (Some(from), true) = (entry.mac, entry.is_silent(now_ns))
                && let Some(to) = entry.claimed_by.take()
            {
                entry.set_mac(key.0, Some(to), &mut self.holders);
                // It has not answered for itself yet.
                entry.unanswered = 0;
                due.changes.push(Change { address: key.1, from, to });
            }
            if entry.is_silent(now_ns) && entry.liveness != Liveness::Silent {
                entry.turn(Liveness::Silent, &mut self.silent);
                due.silent += 1;
            }
            if entry.unanswered >= MAX_PROBES && entry.mac.is_some() {
                entry.set_mac(key.0, None, &mut self.holders);
            }
            let last_known = entry.mac.filter(|_| !entry.is_silent(now_ns));
            entry.unanswered = entry.unanswered.saturating_add(1);
            let retry_ns = match (last_known, entry.liveness) {
                (Some(_), _) => UNICAST_RETRY_NS,
                (None, Liveness::Silent) => retry_ns,
                (None, _) => FIRST_RETRY_NS,
            };
            entry.due_ns = now_ns + retry_ns;
            self.due.insert((entry.due_ns, key));
            due.probes.push(Probe { port: key.0, target: key.1, last_known });
        }
        if due.silent > 0 && now_ns >= self.hurry_again_ns {
            self.hurry(now_ns);
        }
        due
    }

    /// Asks everybody who is not being asked.
    fn hurry(&mut self, now_ns: u64) {
        self.hurry_again_ns = now_ns + self.refresh_ns();
        for (key, entry) in self.entries.iter_mut().filter(|(_, entry)| entry.unanswered == 0) {
            self.due.remove(&(entry.due_ns, *key));
            entry.due_ns = entry.due_ns.min(now_ns);
            self.due.insert((entry.due_ns, *key));
        }
    }

    /// When to call [`Self::due`] again.
    pub fn next_due_ns(&self) -> Option<u64> {
        self.due.first().map(|(at, _)| (*at).max(self.not_before_ns))
    }

    fn refresh_ns(&self) -> u64 {
        REFRESH_NS.max(self.entries.len() as u64 * PER_BACKEND_NS)
    }
}

impl Entry {
    /// Whoever had the address has left all questions to it alone unanswered, and had the time to answer the last one.
    fn is_silent(&self, now_ns: u64) -> bool {
        self.unanswered > UNICAST_PROBES || self.unanswered == UNICAST_PROBES && now_ns >= self.due_ns
    }

    /// `silent` counts the entries that are.
    fn turn(&mut self, liveness: Liveness, silent: &mut usize) {
        *silent -= usize::from(self.liveness == Liveness::Silent);
        *silent += usize::from(liveness == Liveness::Silent);
        self.liveness = liveness;
        self.publish();
    }

    fn set_mac(&mut self, port: usize, mac: Option<Mac>, holders: &mut HashMap<(usize, Mac), Holder>) {
        if let Some(before) = self.mac
            && let Some(holder) = holders.get_mut(&(port, before))
        {
            holder.addresses -= 1;
            if holder.addresses == 0 {
                holders.remove(&(port, before));
            }
        }
        if let Some(mac) = mac {
            let holder = holders.entry((port, mac)).or_default();
            holder.addresses += 1;
            holder.formerly = self.mac.or(holder.formerly);
        }
        self.mac = mac;
        self.publish();
    }

    fn publish(&self) {
        for runtime in &self.runtimes {
            runtime.resolve(self.mac, self.liveness);
        }
    }
}

#[cfg(test)]
mod tests;
