//! Whether the other load balancers and the gateways are heard on the segments: each is asked for its own address, by ARP or
//! neighbour discovery, five times a second. A node that hears none of them while they hear each other has lost its segment, though its
//! carrier may be there. Pure: the time and the answers come in, the questions that are due come out.

use std::net::IpAddr;

use crate::forward::runtime::Peer;

/// Between two questions.
const EVERY_NS: u64 = 200_000_000;

/// When to ask.
#[derive(Debug, Default)]
pub(super) struct Prober {
    due_ns: u64,
}

impl Prober {
    /// Whether all peers are to be asked now.
    pub(super) fn is_due(&mut self, now_ns: u64) -> bool {
        let due = now_ns >= self.due_ns;
        if due {
            self.due_ns = now_ns + EVERY_NS;
        }
        due
    }

    /// When [`Self::is_due`] will be so.
    pub(super) fn next_due_ns(&self) -> u64 {
        self.due_ns
    }
}

/// An address was answered for, to us alone: only that shows that both ways are whole.
pub(super) fn heard(peers: &[Peer], port: usize, address: IpAddr, now_ns: u64) {
    if let Some(peer) = peers.iter().find(|peer| peer.spec.port == port && peer.spec.address == address) {
        peer.heard(now_ns);
    }
}

/// Answers may have been lost on this node: who was heard until now still is.
pub(super) fn excuse_silence(peers: &[Peer], now_ns: u64) {
    peers.iter().filter(|peer| peer.is_heard(now_ns)).for_each(|peer| peer.heard(now_ns));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        forward::{
            compile::Compiler,
            spec::{PeerSpec, TableSpec},
        },
        packet::Mac,
    };

    #[test]
    fn an_answer_counts_on_its_segment() {
        let address = IpAddr::from([10, 0, 0, 2]);
        let spec = PeerSpec { port: 0, address, mac: Some(Mac([2, 0, 0, 0, 0, 2])) };
        let peers = Compiler::default().compile(&TableSpec { peers: vec![spec], ..TableSpec::default() }).peers;
        heard(&peers, 1, address, 5);
        heard(&peers, 0, IpAddr::from([10, 0, 0, 3]), 5);
        assert!(!peers[0].is_heard(6));
        heard(&peers, 0, address, 5);
        assert!(peers[0].is_heard(6));
    }
}
