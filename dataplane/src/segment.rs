//! Whether the other load balancers are heard on the segments: each is asked for its own address, by ARP or
//! neighbour discovery, five times a second. A node that hears none of them while they hear each other has lost its segment, though its
//! carrier may be there. Pure: the time and the answers come in, the questions that are due come out.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::packet::Mac;

/// Between two questions.
const EVERY_NS: u64 = 200_000_000;
/// An answer lets its sender count as heard for so long: four questions may be lost.
const HEARD_NS: u64 = 1_000_000_000;

/// Another load balancer's address on a segment of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSpec {
    /// The interface towards it.
    pub port: usize,
    /// Its own address there.
    pub address: IpAddr,
    /// Its hardware address there.
    pub mac: Mac,
}

/// A peer and when it was last heard, which stays with it from table to table.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) spec: PeerSpec,
    heard_ns: Arc<AtomicU64>,
}

impl Peer {
    /// `before`: the peers so far.
    pub(crate) fn new(spec: &PeerSpec, before: &[Self]) -> Self {
        let known = before.iter().find(|peer| peer.spec == *spec);
        Self { spec: spec.clone(), heard_ns: known.map(|peer| peer.heard_ns.clone()).unwrap_or_default() }
    }

    /// Whether it has answered lately.
    pub(crate) fn is_heard(&self, now_ns: u64) -> bool {
        let heard_ns = self.heard_ns.load(Ordering::Relaxed);
        heard_ns != 0 && now_ns < heard_ns + HEARD_NS
    }
}

/// When to ask.
#[derive(Debug, Default)]
pub(crate) struct Prober {
    due_ns: u64,
}

impl Prober {
    /// Whether all peers are to be asked now.
    pub(crate) fn is_due(&mut self, now_ns: u64) -> bool {
        let due = now_ns >= self.due_ns;
        if due {
            self.due_ns = now_ns + EVERY_NS;
        }
        due
    }

    /// When [`Self::is_due`] will be so.
    pub(crate) fn next_due_ns(&self) -> u64 {
        self.due_ns
    }
}

/// An address was answered for, to us alone: only that shows that both ways are whole.
pub(crate) fn heard(peers: &[Peer], port: usize, address: IpAddr, now_ns: u64) {
    if let Some(peer) = peers.iter().find(|peer| peer.spec.port == port && peer.spec.address == address) {
        peer.heard_ns.store(now_ns, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_on_its_segment_and_not_for_ever() {
        let mac = Mac([2, 0, 0, 0, 0, 2]);
        let address = IpAddr::from([10, 0, 0, 2]);
        let peers = [Peer::new(&PeerSpec { port: 0, address, mac }, &[])];
        assert!(!peers[0].is_heard(1));
        heard(&peers, 1, address, 5);
        heard(&peers, 0, IpAddr::from([10, 0, 0, 3]), 5);
        assert!(!peers[0].is_heard(6));
        heard(&peers, 0, address, 5);
        assert!(peers[0].is_heard(6) && !peers[0].is_heard(5 + HEARD_NS));
        let kept = Peer::new(&peers[0].spec, &peers);
        assert!(kept.is_heard(6), "a new table forgets nothing");
    }
}
