//! Captures: copies of what came, what went out and what was dropped, with what became of it, for whoever asks. `tcpdump` on the
//! machine sees what comes and not what the workers send. Bounded: who reads slowly, or asks for more than a worker copies
//! in a second, gets less, and is told how much less.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;

use super::{
    limit::Limiter,
    outbox::{Outgoing, To},
};
use crate::{
    forward::{runtime::BackendRef, snapshot::Snapshot},
    packet::ADDRESSES_LEN,
    verdict::{DropReason, Sent, Verdict},
};

/// Captures at a time.
const MOST: usize = 4;
/// Frames that wait for whoever reads a capture.
const WAITING: usize = 4096;
/// Frames that a worker copies a second, of all captures together. What is forwarded is copied as it came and as it went.
const COPIES_PER_S: u64 = 5_000;
/// Between two looks whether there are some.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Frames that are given at a time.
const AT_ONCE: usize = 256;

/// What a capture takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TapFilter {
    /// Only what is sent to, from or asks for this address.
    pub vip: Option<IpAddr>,
    /// Only what is dropped.
    pub only_drops: bool,
    /// So many bytes of each frame at most; 0 for all.
    pub snap_len: usize,
}

/// A frame of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tapped {
    /// When it was judged, or sent.
    pub at: SystemTime,
    /// The interface; `None` for local delivery.
    pub interface: Option<Arc<str>>,
    /// The node sends it.
    pub is_outgoing: bool,
    /// How long it is.
    pub len: usize,
    /// It, or its beginning.
    pub bytes: Vec<u8>,
    /// Why it goes no further.
    pub dropped: Option<DropReason>,
    /// What becomes of it, in words.
    pub comment: String,
}

/// The captures that are under way.
#[derive(Default)]
pub(crate) struct TapList(ArcSwap<Vec<Arc<Tap>>>);

/// A capture, as workers see it.
pub(crate) struct Tap {
    filter: TapFilter,
    frames: SyncSender<Tapped>,
    missed: AtomicU64,
}

impl Tap {
    fn wants(&self, frame: &[u8], is_dropped: bool) -> bool {
        let TapFilter { vip, only_drops, .. } = self.filter;
        (is_dropped || !only_drops) && vip.is_none_or(|vip| concerns(frame, vip))
    }

    fn give(&self, tapped: Tapped) {
        if self.frames.try_send(tapped).is_err() {
            self.miss();
        }
    }

    fn miss(&self) {
        self.missed.fetch_add(1, Ordering::Relaxed);
    }
}

/// A capture, as whoever reads it sees it. It ends with this.
pub struct Capture {
    tap: Arc<Tap>,
    frames: Receiver<Tapped>,
    list: Arc<TapList>,
}

impl Capture {
    /// Begins one; `None` if there are as many as there may be.
    pub(crate) fn begin(list: &Arc<TapList>, filter: TapFilter) -> Option<Self> {
        let (sender, frames) = sync_channel(WAITING);
        let tap = Arc::new(Tap { filter, frames: sender, missed: AtomicU64::new(0) });
        let mut is_taken = false;
        list.0.rcu(|taps| {
            is_taken = taps.len() < MOST;
            let mut taps = Vec::clone(taps);
            taps.extend(is_taken.then(|| tap.clone()));
            taps
        });
        is_taken.then(|| Self { tap, frames, list: list.clone() })
    }

    /// Waits for frames, for a while. Nothing if none has come.
    pub fn next(&self, patience: Duration) -> Vec<Tapped> {
        let until = Instant::now() + patience;
        loop {
            let frames: Vec<Tapped> = self.frames.try_iter().take(AT_ONCE).collect();
            if !frames.is_empty() || Instant::now() >= until {
                return frames;
            }
            // Looked for and not waited for: waking somebody costs a worker more than the copy.
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Frames that it should have and does not, since the start.
    pub fn missed(&self) -> u64 {
        self.tap.missed.load(Ordering::Relaxed)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.list.0.rcu(|taps| taps.iter().filter(|tap| !Arc::ptr_eq(tap, &self.tap)).cloned().collect::<Vec<_>>());
    }
}

/// The captures for which a worker copies.
pub(super) struct Taps {
    all: Arc<Vec<Arc<Tap>>>,
    copies: Limiter,
}

impl Default for Taps {
    fn default() -> Self {
        Self { all: Arc::default(), copies: Limiter::new(COPIES_PER_S) }
    }
}

/// A frame before it is judged, as far as judging may change it.
pub(super) enum Before {
    /// It may only get other MAC addresses.
    Addresses([u8; ADDRESSES_LEN]),
    /// It may be turned into an answer.
    Whole(Vec<u8>),
}

impl Before {
    /// `is_flow`: such a frame is never answered in place.
    pub(super) fn of(frame: &[u8], is_flow: bool) -> Self {
        match frame.first_chunk() {
            Some(addresses) if is_flow => Self::Addresses(*addresses),
            _ => Self::Whole(frame.to_vec()),
        }
    }

    fn restored(&self, frame: &[u8]) -> Vec<u8> {
        match self {
            Self::Addresses(addresses) => [addresses, frame.get(ADDRESSES_LEN..).unwrap_or_default()].concat(),
            Self::Whole(frame) => frame.clone(),
        }
    }
}

impl Taps {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Works for these from now on.
    #[inline]
    pub(super) fn adopt(&mut self, list: &TapList) {
        let taps = list.0.load();
        if !Arc::ptr_eq(&taps, &self.all) {
            self.all = taps.clone();
        }
    }

    /// A frame was judged. `frame`: as it is now. `is_sent`: whether the engine sends it as it is.
    pub(super) fn judged(
        &mut self,
        (snapshot, port, now_ns): (&Snapshot, usize, u64),
        before: &Before,
        frame: &[u8],
        verdict: Verdict,
        is_sent: bool,
    ) {
        // It is told of by the worker that it goes to.
        if verdict == Verdict::HandOff {
            return;
        }
        let dropped = match verdict {
            Verdict::Drop(reason) => Some(reason),
            _ => None,
        };
        // From the IP header up, where the addresses are, nothing changes, unless it was turned into an answer.
        let about = match before {
            Before::Addresses(_) => frame,
            Before::Whole(frame) => frame,
        };
        if !self.admit(now_ns, about, dropped.is_some()) {
            return;
        }
        let told = Told {
            interface: Some(snapshot.ports[port].name.as_str().into()),
            is_outgoing: false,
            dropped,
            comment: words(snapshot, verdict),
        };
        self.copy(&before.restored(frame), &told);
        let out = match verdict {
            Verdict::Forward { port, trailer, .. } if is_sent => {
                Some((usize::from(port), &frame[..frame.len().saturating_sub(trailer.into())]))
            }
            Verdict::Answer if is_sent => Some((port, frame)),
            _ => None,
        };
        if let Some((out, frame)) = out {
            let interface = Some(snapshot.ports[out].name.as_str().into());
            self.copy(frame, &Told { interface, is_outgoing: true, dropped: None, ..told });
        }
    }

    /// A frame is sent beside those of the engine.
    pub(super) fn sent(&mut self, snapshot: &Snapshot, now_ns: u64, outgoing: &Outgoing) {
        if !self.admit(now_ns, outgoing.frame.frame(), false) {
            return;
        }
        let interface = match outgoing.to {
            To::Port(port) => Some(snapshot.ports[port].name.as_str().into()),
            To::Local => None,
        };
        let comment = match outgoing.sent {
            Sent::Forwarded { backend, .. } if outgoing.to == To::Local => {
                words(snapshot, Verdict::Deliver { backend })
            }
            Sent::Forwarded { backend, .. } => words(snapshot, Verdict::Forward { port: 0, trailer: 0, backend }),
            Sent::Answered => "answered".to_owned(),
            Sent::Originated => "made by this node".to_owned(),
            Sent::Fragment => "one more fragment of the packet before".to_owned(),
        };
        let told = Told { interface, is_outgoing: true, dropped: None, comment };
        self.copy(outgoing.frame.frame(), &told);
    }

    /// Whether somebody wants it, and it may be copied: before anything is done for it.
    fn admit(&mut self, now_ns: u64, frame: &[u8], is_dropped: bool) -> bool {
        if !self.all.iter().any(|tap| tap.wants(frame, is_dropped)) {
            return false;
        }
        let admitted = self.copies.admits(now_ns);
        if !admitted {
            self.all.iter().filter(|tap| tap.wants(frame, is_dropped)).for_each(|tap| tap.miss());
        }
        admitted
    }

    fn copy(&self, frame: &[u8], told: &Told) {
        for tap in self.all.iter().filter(|tap| tap.wants(frame, told.dropped.is_some())) {
            let snap_len = tap.filter.snap_len;
            let kept = if snap_len == 0 { frame.len() } else { frame.len().min(snap_len) };
            let (at, len, bytes) = (SystemTime::now(), frame.len(), frame[..kept].to_vec());
            let Told { interface, is_outgoing, dropped, comment } = told.clone();
            tap.give(Tapped { at, interface, is_outgoing, len, bytes, dropped, comment });
        }
    }
}

/// What is told of a frame.
#[derive(Clone)]
struct Told {
    interface: Option<Arc<str>>,
    is_outgoing: bool,
    dropped: Option<DropReason>,
    comment: String,
}

fn words(snapshot: &Snapshot, verdict: Verdict) -> String {
    let to = |backend: u32| {
        let known = snapshot.backend(BackendRef::from_raw(backend));
        known.map_or_else(String::new, |backend| {
            let service = &snapshot.services[backend.service as usize].name;
            format!(" to {} of {service}", backend.address)
        })
    };
    match verdict {
        Verdict::Forward { backend, .. } => format!("forwarded{}", to(backend)),
        Verdict::Deliver { backend } => format!("delivered{}", to(backend)),
        Verdict::Apart => "forwarded in another form".to_owned(),
        Verdict::Answer => "answered".to_owned(),
        Verdict::Hold => "waits for the first fragment of its datagram".to_owned(),
        Verdict::HandOff => "handed to another worker".to_owned(),
        Verdict::Drop(reason) => format!("dropped: {}", reason.label()),
    }
}

/// Where the addresses stand in a frame behind its Ethernet header: IPv4 (RFC 791 3.1), IPv6 (RFC 8200 3), with the target of
/// neighbour discovery (RFC 4861 4.3), ARP (RFC 826).
fn concerns(frame: &[u8], address: IpAddr) -> bool {
    let is_at = |offset: usize, address: &[u8]| frame.get(offset..offset + address.len()) == Some(address);
    match (frame.get(ADDRESSES_LEN..ADDRESSES_LEN + 2), address) {
        (Some([0x08, 0x00]), IpAddr::V4(v4)) => [26, 30].iter().any(|at| is_at(*at, &v4.octets())),
        (Some([0x08, 0x06]), IpAddr::V4(v4)) => [28, 38].iter().any(|at| is_at(*at, &v4.octets())),
        (Some([0x86, 0xdd]), IpAddr::V6(v6)) => {
            const ICMPV6: u8 = 58;
            [22, 38].iter().any(|at| is_at(*at, &v6.octets()))
                || (frame.get(20) == Some(&ICMPV6) && is_at(62, &v6.octets()))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_concerns_the_addresses_in_it() {
        let vip = IpAddr::from([192, 0, 2, 1]);
        let mut arp = [0u8; 60];
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        arp[38..42].copy_from_slice(&[192, 0, 2, 1]);
        assert!(concerns(&arp, vip) && !concerns(&arp, IpAddr::from([192, 0, 2, 2])));
        let vip6: std::net::Ipv6Addr = "2001:db8::1".parse().unwrap();
        let mut solicitation = [0u8; 86];
        solicitation[12..14].copy_from_slice(&[0x86, 0xdd]);
        solicitation[20] = 58;
        solicitation[62..78].copy_from_slice(&vip6.octets());
        assert!(concerns(&solicitation, vip6.into()) && !concerns(&solicitation, vip));
        for len in 0..60 {
            // Whatever is cut off.
            let _ = concerns(&arp[..len], vip);
        }
    }
}
