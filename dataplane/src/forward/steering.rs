//! Which of several workers a packet belongs to. The kernel computes the same with the program of [`crate::io`] and
//! gives each worker the frames of its flows; what it cannot tell by the first bytes, such as the flow of a fragment
//! or of a packet that an ICMP error quotes, the workers find out here and hand over.
//!
//! Pure. A multiplicative hash, because it has to be cheap in classic BPF; keyed, so that nobody outside can choose
//! addresses and ports that all meet one worker.

use crate::packet::{Address, Packet, Tuple};

/// At most so many workers.
pub const MAX_WORKERS: usize = 64;

/// The worker that speaks for the node: ARP, neighbour discovery, echo, announcements.
pub(crate) const SPEAKER: usize = 0;

/// How packets are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Steering {
    workers: u32,
    /// The first multiplier of the hash: odd, so that no bit of a word is lost.
    key: u32,
}

/// Words are folded into it one after the other.
#[derive(Clone, Copy)]
struct Hash(u32);

impl Hash {
    fn word(self, word: u32, key: u32) -> Self {
        let product = (self.0 ^ word).wrapping_mul(key);
        Self(product ^ (product >> Steering::SHIFT))
    }

    fn address(self, address: Address, words: std::ops::Range<usize>, key: u32) -> Self {
        if address.is_ipv4() {
            return self.word(address.last_word(), key);
        }
        let word = |at: usize| (address.halves()[at / 2] >> (32 - 32 * (at % 2))) as u32;
        words.fold(self, |hash, at| hash.word(word(at), key))
    }
}

impl Steering {
    /// Of the product's high half, which knows all bits of a word, into its low one.
    pub(crate) const SHIFT: u32 = 16;

    /// For at most [`MAX_WORKERS`].
    pub(crate) fn new(workers: usize, key: u32) -> Self {
        Self { workers: workers.clamp(1, MAX_WORKERS) as u32, key: key | 1 }
    }

    pub(crate) fn workers(self) -> u32 {
        self.workers
    }

    pub(crate) fn key(self) -> u32 {
        self.key
    }

    /// The worker that has a flow.
    pub(crate) fn flow(self, tuple: &Tuple) -> usize {
        let ports = u32::from(tuple.source_port) << 16 | u32::from(tuple.destination_port);
        self.spread(self.addresses_hash(tuple.source, tuple.destination).word(ports, self.key))
    }

    /// The worker that gets what does not show its ports.
    pub(crate) fn addresses(self, source: Address, destination: Address) -> usize {
        self.spread(self.addresses_hash(source, destination))
    }

    /// The worker that a packet belongs to; `None` if any will do. A fragment belongs to the one that follows its
    /// datagram.
    pub(crate) fn packet(self, packet: &Packet) -> Option<usize> {
        match packet {
            Packet::Flow(flow) => Some(self.flow(&flow.tuple)),
            Packet::Error(error) => Some(self.flow(&error.tuple)),
            Packet::Fragment(part) => Some(self.addresses(part.datagram.source, part.datagram.destination)),
            Packet::Arp(_) | Packet::Neighbor(_) | Packet::Echo(_) => Some(SPEAKER),
            Packet::Other(..) => None,
        }
    }

    fn addresses_hash(self, source: Address, destination: Address) -> Hash {
        // VIPs differ in their last word.
        Hash(0).address(source, 0..4, self.key).address(destination, 3..4, self.key)
    }

    fn spread(self, Hash(hash): Hash) -> usize {
        (((hash >> 16) * self.workers) >> 16) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Protocol;

    #[test]
    fn every_worker_gets_its_share() {
        for workers in [2, 3, 8] {
            let steering = Steering::new(workers, 0x9e37_79b9);
            let mut flows = vec![0; workers];
            for client in 0..40u8 {
                for source_port in 20_000..20_200 {
                    let tuple = Tuple {
                        source: [192, 0, 2, client].into(),
                        destination: [198, 51, 100, 1].into(),
                        source_port,
                        destination_port: 80,
                        protocol: Protocol::Tcp,
                    };
                    flows[steering.flow(&tuple)] += 1;
                }
            }
            let fair = 8000 / workers;
            assert!(flows.iter().all(|got| (fair * 9 / 10..=fair * 11 / 10).contains(got)), "{flows:?}");
        }
    }
}
