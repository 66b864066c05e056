//! When to announce which VIP. Pure: the time comes in, the VIPs that are due come out; the worker
//! checks the lease and sends.
//!
//! At activation and then after 50 ms, 0.5, 1.1, 2.2 and 5 s, because a Linux router ignores changes
//! of an entry within the second after the last one and a frame may be lost; then every minute. Paced,
//! so that a thousand VIPs do not overrun a switch's CPU in one burst.
//!
//! A VIP that nobody has owned before is probed for first (RFC 5227 2.1, RFC 4862 5.4, with shorter pauses): while another
//! station has the address, it is neither answered nor announced.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

const MS: u64 = 1_000_000;
/// After activation.
const SCHEDULE_NS: [u64; 6] = [0, 50 * MS, 500 * MS, 1100 * MS, 2200 * MS, 5000 * MS];
/// For ever after.
const REFRESH_NS: u64 = 60_000 * MS;
/// VIPs announced a millisecond at most: a thousand within 125 ms.
const PER_MS: usize = 8;
const PACE_NS: u64 = MS;
/// RFC 5227 2.4: an address is defended at most once in ten seconds.
const DEFEND_INTERVAL_NS: u64 = 10_000 * MS;

/// Questions before the first activation of a VIP, and how long each is waited for.
const PROBES: u8 = 3;
const PROBE_NS: u64 = 60 * MS;
/// Before an address that somebody has is probed for again.
const CONTESTED_NS: u64 = 1000 * MS;

/// The schedule of all owned VIPs.
#[derive(Debug, Default)]
pub struct Announcer {
    vips: HashMap<IpAddr, Entry>,
    /// First grants that are past their probes: another interface or MAC address does not start them over.
    activated: BTreeSet<(IpAddr, u64)>,
    due: BTreeSet<(u64, IpAddr)>,
    /// Nothing before this moment: the pace.
    not_before_ns: u64,
}

/// What an announcement says: a change of either is announced like an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The grant of the VIP.
    pub epoch: u64,
    /// Stands for the interfaces and MAC addresses that it is announced by.
    pub place: u64,
    /// Nobody has owned it before.
    pub first: bool,
}

/// What is due for a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Ask whether anybody has it.
    Probe(IpAddr),
    /// Announce it.
    Announce(IpAddr),
}

#[derive(Debug)]
struct Entry {
    claim: Claim,
    /// Probes that must stay unanswered before it is active.
    probes: u8,
    activated_ns: u64,
    sent: usize,
    due_ns: u64,
    defended_ns: Option<u64>,
}

impl Announcer {
    /// Takes over what is owned now: new grants are announced at once, lost ones no more.
    pub fn set_owned(&mut self, owned: impl IntoIterator<Item = (IpAddr, Claim)>, now_ns: u64) {
        let owned: HashMap<IpAddr, Claim> = owned.into_iter().collect();
        self.activated.retain(|(vip, epoch)| owned.get(vip).is_some_and(|claim| claim.epoch == *epoch));
        let due = &mut self.due;
        self.vips.retain(|vip, entry| {
            let stays = owned.get(vip) == Some(&entry.claim);
            if !stays {
                due.remove(&(entry.due_ns, *vip));
            }
            stays
        });
        for (vip, claim) in owned {
            if !self.vips.contains_key(&vip) {
                // One question more than must be waited for: the last look is at the answers.
                let probes = if claim.first && !self.activated.contains(&(vip, claim.epoch)) { PROBES + 1 } else { 0 };
                let entry = Entry { claim, probes, activated_ns: now_ns, sent: 0, due_ns: now_ns, defended_ns: None };
                self.due.insert((entry.due_ns, vip));
                self.vips.insert(vip, entry);
            }
        }
    }

    /// Whether an owned VIP may be answered: it has been found to be nobody else's.
    pub fn is_active(&self, vip: IpAddr) -> bool {
        self.vips.get(&vip).is_some_and(|entry| entry.probes == 0)
    }

    /// Another station claims an owned VIP: announce it again, but not in a war of words; wait, if it is not
    /// active yet.
    pub fn conflict(&mut self, vip: IpAddr, now_ns: u64) {
        let Some(entry) = self.vips.get_mut(&vip) else { return };
        if entry.probes > 0 {
            self.due.remove(&(entry.due_ns, vip));
            (entry.probes, entry.due_ns) = (PROBES + 1, now_ns + CONTESTED_NS);
            self.due.insert((entry.due_ns, vip));
            return;
        }
        if entry.defended_ns.is_some_and(|last| now_ns < last + DEFEND_INTERVAL_NS) {
            return;
        }
        entry.defended_ns = Some(now_ns);
        self.due.remove(&(entry.due_ns, vip));
        entry.due_ns = now_ns;
        self.due.insert((now_ns, vip));
    }

    /// What to send now. Each announcement is told to [`Self::announced`] once it was sent.
    pub fn due(&mut self, now_ns: u64) -> Vec<Due> {
        if now_ns < self.not_before_ns {
            return Vec::new();
        }
        let due: Vec<IpAddr> =
            self.due.iter().take_while(|(at, _)| *at <= now_ns).take(PER_MS).map(|(_, vip)| *vip).collect();
        if !due.is_empty() {
            self.not_before_ns = now_ns + PACE_NS;
        }
        due.into_iter().map(|vip| if self.probes(vip, now_ns) { Due::Probe(vip) } else { Due::Announce(vip) }).collect()
    }

    /// Counts a probe, if one is due rather than an announcement.
    fn probes(&mut self, vip: IpAddr, now_ns: u64) -> bool {
        let Some(entry) = self.vips.get_mut(&vip).filter(|entry| entry.probes > 0) else { return false };
        entry.probes -= 1;
        if entry.probes == 0 {
            entry.activated_ns = now_ns;
            self.activated.insert((vip, entry.claim.epoch));
            return false;
        }
        self.due.remove(&(entry.due_ns, vip));
        entry.due_ns = now_ns + PROBE_NS;
        self.due.insert((entry.due_ns, vip));
        true
    }

    /// It was sent: when is it due next?
    pub fn announced(&mut self, vip: IpAddr, now_ns: u64) {
        let Some(entry) = self.vips.get_mut(&vip) else { return };
        self.due.remove(&(entry.due_ns, vip));
        entry.sent += 1;
        entry.due_ns = match SCHEDULE_NS.get(entry.sent) {
            Some(after) => (entry.activated_ns + after).max(now_ns),
            None => now_ns + REFRESH_NS,
        };
        self.due.insert((entry.due_ns, vip));
    }

    /// When to call [`Self::due`] again.
    pub fn next_due_ns(&self) -> Option<u64> {
        self.due.first().map(|(at, _)| (*at).max(self.not_before_ns))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn claim(epoch: u64) -> Claim {
        Claim { epoch, place: 1, first: false }
    }

    const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 2, 1));

    /// The moments, in ms, at which a VIP is announced.
    fn run(announcer: &mut Announcer, until_ms: u64) -> Vec<(u64, IpAddr)> {
        let mut sent = Vec::new();
        while let Some(at) = announcer.next_due_ns().filter(|at| *at <= until_ms * MS) {
            for due in announcer.due(at) {
                if let Due::Announce(vip) = due {
                    announcer.announced(vip, at);
                    sent.push((at / MS, vip));
                }
            }
        }
        sent
    }

    #[test]
    fn an_activation_is_announced_six_times_and_then_every_minute() {
        let mut announcer = Announcer::default();
        announcer.set_owned([(VIP, claim(1))], 0);
        let moments: Vec<u64> = run(&mut announcer, 130_000).into_iter().map(|(at, _)| at).collect();
        assert_eq!(moments, [0, 50, 500, 1100, 2200, 5000, 65_000, 125_000]);
    }

    #[test]
    fn a_new_grant_starts_over_and_a_lost_one_is_silent() {
        let mut announcer = Announcer::default();
        announcer.set_owned([(VIP, claim(1))], 0);
        run(&mut announcer, 3000);
        announcer.set_owned([(VIP, claim(1))], 3000 * MS);
        assert_eq!(run(&mut announcer, 4000), [], "the same grant goes on as before");
        announcer.set_owned([(VIP, claim(2))], 4000 * MS);
        assert_eq!(run(&mut announcer, 4060).len(), 2);
        announcer.set_owned([(VIP, Claim { place: 9, ..claim(2) })], 4080 * MS);
        assert_eq!(run(&mut announcer, 4090).len(), 1, "another MAC address");
        announcer.set_owned([], 4100 * MS);
        assert_eq!(announcer.next_due_ns(), None);
    }

    #[test]
    fn a_thousand_vips_are_announced_within_200_ms_and_not_at_once() {
        let mut announcer = Announcer::default();
        announcer.set_owned((0..1000u32).map(|i| (Ipv4Addr::from(0x0a00_0001 + i).into(), claim(1))), 0);
        let mut first: HashMap<IpAddr, u64> = HashMap::new();
        for (at, vip) in run(&mut announcer, 1000) {
            first.entry(vip).or_insert(at);
        }
        assert_eq!(first.len(), 1000);
        let last = *first.values().max().unwrap();
        assert!((100..=200).contains(&last), "{last} ms");
    }

    #[test]
    fn the_first_owner_of_a_vip_asks_first_and_waits_while_somebody_has_it() {
        let mut announcer = Announcer::default();
        let first = Claim { first: true, ..claim(1) };
        announcer.set_owned([(VIP, first)], 0);
        assert_eq!(announcer.due(0), [Due::Probe(VIP)]);
        assert!(!announcer.is_active(VIP));
        announcer.conflict(VIP, 10 * MS);
        let moments: Vec<u64> = run(&mut announcer, 1300).into_iter().map(|(at, _)| at).collect();
        assert_eq!(moments, [1190, 1240], "a second later three more questions, and nobody answers");
        assert!(announcer.is_active(VIP));
        announcer.set_owned([(VIP, Claim { place: 9, ..first })], 1400 * MS);
        assert!(announcer.is_active(VIP), "it has been asked for");
    }

    #[test]
    fn a_vip_is_defended_once_in_ten_seconds() {
        let mut announcer = Announcer::default();
        announcer.set_owned([(VIP, claim(1))], 0);
        run(&mut announcer, 6000);
        announcer.conflict(VIP, 7000 * MS);
        assert_eq!(run(&mut announcer, 7100).len(), 1);
        announcer.conflict(VIP, 8000 * MS);
        assert_eq!(run(&mut announcer, 8100).len(), 0);
        announcer.conflict(VIP, 17_001 * MS);
        assert_eq!(run(&mut announcer, 17_100).len(), 1);
    }
}
