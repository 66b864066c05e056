//! The one hash of a packet. Keyed, so that nobody outside can choose ports that collide, and equal on
//! every node, so that a flow keeps its backend when its VIP moves.

use std::{hash::Hasher as _, net::Ipv4Addr};

use siphasher::sip::SipHasher13;

use crate::packet::{Protocol, Tuple};

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

    /// Hashes a tuple.
    pub fn tuple(self, tuple: &Tuple) -> TupleHash {
        let protocol = match tuple.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        };
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&tuple.source.octets());
        bytes[4..8].copy_from_slice(&tuple.destination.octets());
        bytes[8..10].copy_from_slice(&tuple.destination_port.to_be_bytes());
        bytes[10] = protocol;
        // In one go: half the cost of feeding it piece by piece.
        let base = self.hasher().hash(&bytes);
        TupleHash { base, source_port: tuple.source_port }
    }

    /// Hashes a client for affinity by source.
    pub fn source(self, source: Ipv4Addr) -> u64 {
        let mut hasher = self.hasher();
        hasher.write_u32(source.into());
        hasher.finish()
    }

    /// Hashes one of several values of a backend's address, for its permutation.
    pub fn backend(self, address: std::net::IpAddr, which: u8) -> u64 {
        let mut hasher = self.hasher();
        match address {
            std::net::IpAddr::V4(a) => hasher.write(&a.octets()),
            std::net::IpAddr::V6(a) => hasher.write(&a.octets()),
        }
        hasher.write_u8(which);
        hasher.finish()
    }
}

impl TupleHash {
    /// Where the flow stands in a table of `size` entries. Source ports step through the table by a
    /// golden section of it instead of being hashed: the flows of one client are then spread evenly,
    /// and not only as evenly as chance has it (over all 2^16 ports of a client, chance alone puts a
    /// backend of 10 % off by more than 2 % of its share in one case of eleven). Where the steps
    /// start stays secret.
    pub fn spread(self, size: u32) -> u32 {
        let size = u64::from(size);
        let step = (size * 618 / 1000).max(1);
        ((self.base % size + u64::from(self.source_port) * step) % size) as u32
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
