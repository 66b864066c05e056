//! The one hash of a packet. Keyed, so that nobody outside can choose ports that collide, and equal on
//! every node, so that a flow keeps its backend when its VIP moves.

use std::{hash::Hasher as _, net::IpAddr};

use siphasher::sip::SipHasher13;

use crate::packet::{Address, Tuple};

/// The key, from the replicated table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashKey(pub u128);

/// Everything that is derived from a tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TupleHash {
    /// Of the tuple without the source port.
    base: u64,
    source_port: u16,
}

/// 2^64 divided by the golden ratio: multiples of it are spread evenly.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl HashKey {
    fn hasher(self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0 as u64, (self.0 >> 64) as u64)
    }

    /// Hashes words as the bytes that they are in network order. In one go, and each stored at once, so that it can be
    /// loaded at once: half the cost of feeding the bytes piece by piece.
    #[inline]
    fn words<const N: usize>(self, words: [u64; N]) -> u64 {
        self.hasher().hash(words.map(u64::to_be_bytes).as_flattened())
    }

    /// Hashes a tuple.
    #[inline]
    pub fn tuple(self, tuple: &Tuple) -> TupleHash {
        let service = u64::from(tuple.destination_port) << 48 | u64::from(tuple.protocol.number()) << 40;
        let base = if tuple.source.is_ipv4() && tuple.destination.is_ipv4() {
            let addresses = u64::from(tuple.source.last_word()) << 32 | u64::from(tuple.destination.last_word());
            self.words([addresses, service])
        } else {
            let ([a, b], [c, d]) = (tuple.source.halves(), tuple.destination.halves());
            self.words([a, b, c, d, service])
        };
        TupleHash { base, source_port: tuple.source_port }
    }

    /// Hashes a client for affinity by source.
    pub fn source(self, source: Address) -> u64 {
        let mut hasher = self.hasher();
        match source.is_ipv4() {
            true => hasher.write_u32(source.last_word()),
            false => {
                let [high, low] = source.halves();
                hasher.write(&high.to_be_bytes());
                hasher.write(&low.to_be_bytes());
            }
        }
        hasher.finish()
    }

    /// Hashes one of several values of a backend's address, for its permutation.
    pub fn backend(self, address: IpAddr, which: u8) -> u64 {
        let mut hasher = self.hasher();
        match address {
            IpAddr::V4(a) => hasher.write(&a.octets()),
            IpAddr::V6(a) => hasher.write(&a.octets()),
        }
        hasher.write_u8(which);
        hasher.finish()
    }
}

impl TupleHash {
    /// Where the flow stands in a table of `size` entries. The source port is not hashed but permuted: the
    /// flows of one client meet no entry twice before they have met all of them, so that over its 2^16 ports
    /// every backend gets its share exactly, and not only as exactly as chance has it (by chance a backend
    /// of 10 % is off by more than 2 % of its share in one case of eleven). The permutation is another one
    /// for each client, and as irregular as a hash: a regular step through the table would resonate with the
    /// steps by which Maglev filled it, and neighbouring ports would meet the same backend.
    pub fn spread(self, size: u32) -> u32 {
        let size = u64::from(size);
        let position = (u64::from(permute(self.source_port, self.base)) * size) >> 16;
        let start = ((self.base >> 32) * size) >> 32;
        ((start + position) % size) as u32
    }

    /// For the flow table: well mixed over all bits.
    pub fn mixed(self) -> u64 {
        // The finaliser of MurmurHash3; `base` is the secret.
        let mut x = self.base ^ u64::from(self.source_port).wrapping_mul(GOLDEN);
        x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        x ^ (x >> 33)
    }
}

/// A permutation of the 16-bit numbers, chosen by a key: a Feistel network of four rounds on two bytes.
fn permute(value: u16, key: u64) -> u16 {
    let [mut left, mut right] = value.to_be_bytes();
    for round in 0..4 {
        let mixed = u32::from(right).wrapping_add((key >> (8 * round)) as u32).wrapping_mul(0x9e37_79b1);
        (left, right) = (right, left ^ (mixed >> 24) as u8);
    }
    u16::from_be_bytes([left, right])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Protocol;

    #[test]
    fn a_permutation_meets_every_number_once() {
        for key in [0, 1, 0xdead_beef, u64::MAX] {
            let mut met = vec![false; 1 << 16];
            for value in 0..=u16::MAX {
                met[usize::from(permute(value, key))] = true;
            }
            assert!(met.iter().all(|met| *met), "key {key:#x}");
        }
    }

    #[test]
    fn every_build_hashes_the_same_bytes() {
        let hash = |source, destination| {
            let tuple = Tuple { source, destination, source_port: 0, destination_port: 80, protocol: Protocol::Tcp };
            HashKey(5).tuple(&tuple).base
        };
        let of = |bytes: &[u8]| HashKey(5).hasher().hash(bytes);
        let v4 = hash([192, 0, 2, 1].into(), [198, 51, 100, 1].into());
        assert_eq!(v4, of(&[192, 0, 2, 1, 198, 51, 100, 1, 0, 80, 6, 0, 0, 0, 0, 0]));
        let v6 = [[1; 16], [2; 16]].concat();
        assert_eq!(hash([1; 16].into(), [2; 16].into()), of(&[&v6[..], &[0, 80, 6, 0, 0, 0, 0, 0]].concat()));
    }

    #[test]
    fn neighbouring_ports_stand_apart_irregularly() {
        let tuple = |source_port| Tuple {
            source: [192, 0, 2, 1].into(),
            destination: [198, 51, 100, 1].into(),
            source_port,
            destination_port: 80,
            protocol: Protocol::Tcp,
        };
        let entry = |port| HashKey(5).tuple(&tuple(port)).spread(65537);
        let steps: std::collections::HashSet<u32> =
            (1000..1100).map(|port| (entry(port + 1) + 65537 - entry(port)) % 65537).collect();
        assert!(steps.len() > 90, "{} different steps of 100", steps.len());
    }

    /// Where flows stand, in every version alike: see the Maglev table's.
    #[test]
    fn every_version_spreads_flows_alike() {
        let key = HashKey(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
        let spread = |source: Address, source_port, protocol| {
            let tuple =
                Tuple { source, destination: [198, 51, 100, 1].into(), source_port, destination_port: 443, protocol };
            key.tuple(&tuple).spread(65_537)
        };
        let v4 = [0, 1, 2, 40_000, 65_535].map(|port| spread([192, 0, 2, 1].into(), port, Protocol::Tcp));
        assert_eq!(v4, [55972, 55350, 14321, 4145, 41638]);
        let v6 = [0, 1, 65_535].map(|port| spread([0x20; 16].into(), port, Protocol::Udp));
        assert_eq!(v6, [48486, 45454, 15348]);
        assert_eq!(
            [key.source([192, 0, 2, 1].into()), key.source([0x20; 16].into())],
            [11572543480822114921, 9809148104303767973]
        );
        assert_eq!([0, 1, 256, 65_535].map(|value| permute(value, 0x0123_4567)), [14974, 18539, 32799, 34643]);
    }
}
