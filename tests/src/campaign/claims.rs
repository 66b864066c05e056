//! Who answers for the VIPs: an observer that asks every few milliseconds, and the rule that tells two owners
//! at a time from one after the other.

use std::{
    collections::BTreeMap,
    io,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lb_dataplane::packet::{Mac, Packet, arp, parse};

use crate::{
    capture::{Capture, Injector},
    topology::{Host, Network},
};

/// Between two questions for each VIP.
const ASK_EVERY: Duration = Duration::from_millis(2);
/// A move and the move back are four entries of the log and two silences: never within this time.
const QUICKEST_RETURN: Duration = Duration::from_millis(10);
/// What a process that was stopped still had in hand may leave within this time.
const IN_HAND: Duration = Duration::from_millis(1);
/// Of the claims before and after, so much is told when the rule is broken.
const AROUND: Duration = Duration::from_millis(30);

/// An answer or an announcement.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// When it was seen.
    pub at: Instant,
    /// The owner's MAC address.
    pub mac: Mac,
}

/// Asks for VIPs on a segment and notes every claim, where it leaves its station: at the switch's end of each cable, and
/// by the kernel's time. What travels further may be overtaken.
pub struct Observer {
    claims: Arc<Mutex<BTreeMap<Ipv4Addr, Vec<Claim>>>>,
    stop: Arc<AtomicBool>,
    asker: Option<thread::JoinHandle<()>>,
    _captures: Vec<Capture>,
}

impl Observer {
    /// Asks from an interface of a host, as `address`. `stations` are on the segment with their `eth0`: what they claim
    /// is noted.
    pub fn start(
        net: &Network,
        stations: &[&Host],
        (host, interface, address): (&Host, &str, Ipv4Addr),
        vips: &[Ipv4Addr],
    ) -> io::Result<Self> {
        let claims: Arc<Mutex<BTreeMap<Ipv4Addr, Vec<Claim>>>> =
            Arc::new(Mutex::new(vips.iter().map(|vip| (*vip, Vec::new())).collect()));
        let capture = |station: &&Host| {
            let noted = claims.clone();
            // Nothing is kept but the claims: a campaign sees millions of frames.
            Capture::watch(net.switch(), &station.port("eth0").switch_port, move |frame, at, outgoing| {
                if !outgoing
                    && let Packet::Arp(arp) = parse(frame)
                    && let Some(of_vip) = noted.lock().expect("observers do not panic").get_mut(&arp.sender)
                {
                    of_vip.push(Claim { at, mac: arp.sender_mac });
                }
                false
            })
        };
        let captures = stations.iter().map(capture).collect::<io::Result<_>>()?;
        let own = host.port(interface).mac;
        let injector = Injector::new(&host.ns, interface)?;
        let questions: Vec<_> = vips.iter().map(|vip| arp::request(own, address, *vip, None)).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let asker = thread::Builder::new().name("claims".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for question in &questions {
                    drop(injector.send(question));
                }
                thread::sleep(ASK_EVERY);
            }
        })?;
        Ok(Self { claims, stop, asker: Some(asker), _captures: captures })
    }

    /// When a VIP was last claimed.
    pub fn last(&self, vip: Ipv4Addr) -> Option<Instant> {
        self.claims.lock().expect("observers do not panic").get(&vip)?.iter().map(|claim| claim.at).max()
    }

    /// The claims since the last call; the last one stays, so that nothing falls between two calls.
    pub fn take(&self) -> BTreeMap<Ipv4Addr, Vec<Claim>> {
        let mut claims = self.claims.lock().expect("observers do not panic");
        for of_vip in claims.values_mut() {
            of_vip.sort_unstable_by_key(|claim| claim.at);
        }
        let taken = claims.clone();
        for of_vip in claims.values_mut() {
            let young = of_vip.last().map(|last| last.at);
            of_vip.retain(|claim| young.is_some_and(|young| claim.at + 2 * QUICKEST_RETURN > young));
        }
        taken
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(asker) = self.asker.take() {
            drop(asker.join());
        }
    }
}

/// What the claims of one VIP show.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Two nodes claimed it at the same time.
    pub two_owners: Option<String>,
    /// Answers that a process still had in hand when it went on after SIGSTOP.
    pub in_hand: usize,
}

/// Whether one owner followed the other. `resumed`: which MAC address's process went on after SIGSTOP, when.
pub fn judge(claims: &[Claim], resumed: &[(Mac, Instant)]) -> Verdict {
    let mut verdict = Verdict::default();
    // Runs of claims by one node: who, from when, until when, how many.
    let mut stints: Vec<(Mac, Instant, Instant, usize)> = Vec::new();
    for claim in claims {
        match stints.last_mut() {
            Some((mac, _, until, count)) if *mac == claim.mac => (*until, *count) = (claim.at, *count + 1),
            _ => stints.push((claim.mac, claim.at, claim.at, 1)),
        }
    }
    for around in stints.windows(3) {
        let [(before, _, left, _), (mac, from, until, count), (after, back, ..)] = around else { continue };
        if before != after || *back - *left >= QUICKEST_RETURN {
            continue;
        }
        let in_hand = resumed.iter().any(|(of, at)| of == mac && *from >= *at && *until <= *at + IN_HAND);
        if in_hand {
            verdict.in_hand += count;
        } else {
            let near = claims.iter().filter(|claim| claim.at + AROUND > *left && claim.at < *back + AROUND);
            let near: Vec<String> = near.map(|claim| format!("{} {}", signed_us(claim.at, *from), claim.mac)).collect();
            verdict.two_owners = Some(format!(
                "{mac} claimed it {count} times while {before} did: {:?} after that one's last claim and {:?} before its \
                 next. All claims around, in microseconds from its first: {}",
                *from - *left,
                *back - *until,
                near.join(", ")
            ));
        }
    }
    verdict
}

/// From `zero` to `at`, which may be earlier.
fn signed_us(at: Instant, zero: Instant) -> i128 {
    let us = |span: Duration| span.as_micros().cast_signed();
    us(at.saturating_duration_since(zero)) - us(zero.saturating_duration_since(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn claims(start: Instant, of: &[(Mac, u64)]) -> Vec<Claim> {
        of.iter().map(|(mac, us)| Claim { at: start + Duration::from_micros(*us), mac: *mac }).collect()
    }

    #[test]
    fn one_owner_after_the_other_is_right_and_two_at_a_time_are_found() {
        let start = Instant::now();
        let moved_and_back = claims(start, &[(A, 0), (A, 2000), (B, 9000), (B, 11_000), (A, 17_000), (A, 19_000)]);
        assert_eq!(judge(&moved_and_back, &[]), Verdict::default());
        let both = claims(start, &[(A, 0), (B, 50), (A, 2000), (B, 2050), (A, 4000)]);
        assert!(judge(&both, &[]).two_owners.is_some());
        let one_late = claims(start, &[(A, 0), (B, 5000), (B, 7000), (A, 8000), (B, 9000)]);
        assert!(judge(&one_late, &[]).two_owners.is_some());
    }

    #[test]
    fn what_was_in_hand_at_sigcont_is_counted_and_no_more() {
        let start = Instant::now();
        let late = claims(start, &[(A, 0), (B, 50_000), (B, 52_000), (A, 52_800), (B, 54_000)]);
        let resumed = [(A, start + Duration::from_micros(52_000))];
        assert_eq!(judge(&late, &resumed), Verdict { two_owners: None, in_hand: 1 });
        let too_late = [(A, start + Duration::from_micros(51_000))];
        assert!(judge(&late, &too_late).two_owners.is_some());
    }
}
