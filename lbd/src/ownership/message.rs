//! What heartbeats say, and their signed form on the wire.

use std::hash::Hasher as _;

use lb_raft_store::table::{LeaseId, NodeId};
use prost::{Message as _, Oneof};
use siphasher::sip128::{Hasher128 as _, SipHasher24};
use uuid::Uuid;

use super::pairs::{PairKey, Pairs};

/// A node speaks of itself to one other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ping {
    /// Of the process that sends.
    pub(super) nonce: u64,
    /// The lease that it holds.
    pub(super) lease: Option<LeaseId>,
    /// Counted up.
    pub(super) seq: u64,
    /// The last entry that it has applied.
    pub(super) applied: u64,
    /// The newest acknowledgement that it has from the addressee.
    pub(super) echo: Option<Echo>,
    /// The leader that it would not support any more, if so.
    pub(super) deserted: Option<NodeId>,
    /// The leases from which it has withdrawn.
    pub(super) withdrawn: Vec<(NodeId, LeaseId)>,
}

/// Which process of the addressee acknowledged, and when, by its clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Echo {
    pub(super) nonce: u64,
    pub(super) at_ns: u64,
}

/// The answer to a ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    /// Of the process that answers.
    pub(super) nonce: u64,
    /// Of the process that asked.
    pub(super) of: u64,
    pub(super) lease: Option<LeaseId>,
    pub(super) seq: u64,
    /// By the clock of the one who answers.
    pub(super) at_ns: u64,
    pub(super) verdict: Verdict,
}

/// What an acknowledgement says of the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No evidence against it for so long from the receipt on.
    Yes { promise_ns: u64 },
    /// The ping shows no recent acknowledgement: ping again at once.
    Stale,
    /// Support is withdrawn, and stays so until it is taken back through the log.
    Withdrawn,
    /// Not now: the lease is not the one in the table, or one of the two tables is behind.
    Unknown,
}

/// One datagram's contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    Ping(Ping),
    Ack(Ack),
    /// The process of that nonce is dead: its parent waited for it.
    Obituary {
        nonce: u64,
    },
}

/// Who says it to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) cluster: Uuid,
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    pub(super) message: Message,
}

const TAG_LEN: usize = 16;

impl Envelope {
    /// The datagram, signed by SipHash-2-4-128 (Aumasson, Bernstein 2012: a keyed pseudo-random function
    /// for short messages).
    pub(super) fn seal(&self, key_index: u64, key: u128) -> Vec<u8> {
        signed(key, self.encoded(key_index))
    }

    /// Likewise, by a key of the two nodes alone, whose number comes first.
    pub(super) fn seal_for_pair(&self, by: PairKey) -> Vec<u8> {
        let mut datagram = by.id.to_be_bytes().to_vec();
        datagram.extend(self.encoded(0));
        signed(by.key, datagram)
    }

    fn encoded(&self, key_index: u64) -> Vec<u8> {
        let body = match &self.message {
            Message::Ping(ping) => Body::Ping(ping.into()),
            Message::Ack(ack) => Body::Ack(ack.into()),
            Message::Obituary { nonce } => Body::Obituary(*nonce),
        };
        let record = DatagramRecord {
            cluster: self.cluster.as_bytes().to_vec(),
            key_index,
            from: self.from,
            to: self.to,
            body: Some(body),
        };
        record.encode_to_vec()
    }

    /// Whether it is for a node of a cluster: keys may be the same where a machine's image was copied.
    pub(super) fn is_for(&self, cluster: Uuid, node: NodeId) -> bool {
        self.cluster == cluster && self.to == node
    }

    /// Reads a datagram whose signature is right under one of the keys.
    pub(super) fn open(datagram: &[u8], keys: &[(u64, u128)]) -> Option<Self> {
        let (signed, signature) = datagram.split_at_checked(datagram.len().checked_sub(TAG_LEN)?)?;
        // Nothing is decoded before.
        let (key_index, _) = keys.iter().find(|(_, key)| is_signed(*key, signed, signature))?;
        let record = DatagramRecord::decode(signed).ok().filter(|record| record.key_index == *key_index)?;
        Self::read(record)
    }

    /// Reads a datagram that is signed by a key of this node and the one that sends it. One that names no such key costs
    /// next to nothing.
    pub(super) fn open_of_pair(datagram: &[u8], pairs: &Pairs) -> Option<Self> {
        let (signed, signature) = datagram.split_at_checked(datagram.len().checked_sub(TAG_LEN)?)?;
        let (id, record) = signed.split_first_chunk()?;
        let (peer, by) = pairs.by_id(u64::from_be_bytes(*id))?;
        let record = is_signed(by.key, signed, signature).then(|| DatagramRecord::decode(record).ok()).flatten()?;
        (record.from == peer).then(|| Self::read(record)).flatten()
    }

    fn read(record: DatagramRecord) -> Option<Self> {
        let message = match record.body? {
            Body::Ping(ping) => Message::Ping(ping.into()),
            Body::Ack(ack) => Message::Ack(ack.try_into().ok()?),
            Body::Obituary(nonce) => Message::Obituary { nonce },
        };
        Some(Self { cluster: Uuid::from_slice(&record.cluster).ok()?, from: record.from, to: record.to, message })
    }
}

fn signed(key: u128, mut datagram: Vec<u8>) -> Vec<u8> {
    let tag = tag(key, &datagram);
    datagram.extend_from_slice(&tag);
    datagram
}

/// All bytes are compared, however many differ.
fn is_signed(key: u128, bytes: &[u8], signature: &[u8]) -> bool {
    tag(key, bytes).iter().zip(signature).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

fn tag(key: u128, bytes: &[u8]) -> [u8; TAG_LEN] {
    let mut hasher = SipHasher24::new_with_key(&key.to_le_bytes());
    hasher.write(bytes);
    hasher.finish128().as_bytes()
}

#[derive(Clone, PartialEq, prost::Message)]
struct DatagramRecord {
    #[prost(bytes = "vec", tag = "1")]
    cluster: Vec<u8>,
    #[prost(uint64, tag = "2")]
    key_index: u64,
    #[prost(uint64, tag = "3")]
    from: u64,
    #[prost(uint64, tag = "4")]
    to: u64,
    #[prost(oneof = "Body", tags = "5, 6, 7")]
    body: Option<Body>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Body {
    #[prost(message, tag = "5")]
    Ping(PingRecord),
    #[prost(message, tag = "6")]
    Ack(AckRecord),
    #[prost(fixed64, tag = "7")]
    Obituary(u64),
}

/// A lease or an echo of 0 stands for none: the log's first entry opens no lease, and clocks are past 0.
#[derive(Clone, PartialEq, prost::Message)]
struct PingRecord {
    #[prost(fixed64, tag = "1")]
    nonce: u64,
    #[prost(uint64, tag = "2")]
    lease: u64,
    #[prost(uint64, tag = "3")]
    seq: u64,
    #[prost(uint64, tag = "4")]
    applied: u64,
    #[prost(fixed64, tag = "5")]
    echo_nonce: u64,
    #[prost(uint64, tag = "6")]
    echo_at_ns: u64,
    #[prost(uint64, tag = "7")]
    deserted: u64,
    #[prost(message, repeated, tag = "8")]
    withdrawn: Vec<WithdrawnRecord>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct WithdrawnRecord {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(uint64, tag = "2")]
    lease: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct AckRecord {
    #[prost(fixed64, tag = "1")]
    nonce: u64,
    #[prost(fixed64, tag = "2")]
    of: u64,
    #[prost(uint64, tag = "3")]
    lease: u64,
    #[prost(uint64, tag = "4")]
    seq: u64,
    #[prost(uint64, tag = "5")]
    at_ns: u64,
    /// 1 yes, 2 stale, 3 withdrawn, 4 unknown.
    #[prost(uint32, tag = "6")]
    verdict: u32,
    #[prost(uint64, tag = "7")]
    promise_ns: u64,
}

impl From<&Ping> for PingRecord {
    fn from(ping: &Ping) -> Self {
        Self {
            nonce: ping.nonce,
            lease: ping.lease.map_or(0, |lease| lease.0),
            seq: ping.seq,
            applied: ping.applied,
            echo_nonce: ping.echo.map_or(0, |echo| echo.nonce),
            echo_at_ns: ping.echo.map_or(0, |echo| echo.at_ns),
            deserted: ping.deserted.unwrap_or(0),
            withdrawn: ping
                .withdrawn
                .iter()
                .map(|(node, lease)| WithdrawnRecord { node: *node, lease: lease.0 })
                .collect(),
        }
    }
}

impl From<PingRecord> for Ping {
    fn from(record: PingRecord) -> Self {
        Self {
            nonce: record.nonce,
            lease: some_lease(record.lease),
            seq: record.seq,
            applied: record.applied,
            echo: (record.echo_at_ns != 0).then_some(Echo { nonce: record.echo_nonce, at_ns: record.echo_at_ns }),
            deserted: (record.deserted != 0).then_some(record.deserted),
            withdrawn: record.withdrawn.iter().map(|w| (w.node, LeaseId(w.lease))).collect(),
        }
    }
}

impl From<&Ack> for AckRecord {
    fn from(ack: &Ack) -> Self {
        let (verdict, promise_ns) = match ack.verdict {
            Verdict::Yes { promise_ns } => (1, promise_ns),
            Verdict::Stale => (2, 0),
            Verdict::Withdrawn => (3, 0),
            Verdict::Unknown => (4, 0),
        };
        let lease = ack.lease.map_or(0, |lease| lease.0);
        Self { nonce: ack.nonce, of: ack.of, lease, seq: ack.seq, at_ns: ack.at_ns, verdict, promise_ns }
    }
}

impl TryFrom<AckRecord> for Ack {
    type Error = ();

    fn try_from(record: AckRecord) -> Result<Self, ()> {
        let verdict = match record.verdict {
            1 => Verdict::Yes { promise_ns: record.promise_ns },
            2 => Verdict::Stale,
            3 => Verdict::Withdrawn,
            4 => Verdict::Unknown,
            _ => return Err(()),
        };
        let AckRecord { nonce, of, lease, seq, at_ns, .. } = record;
        Ok(Self { nonce, of, lease: some_lease(lease), seq, at_ns, verdict })
    }
}

fn some_lease(id: u64) -> Option<LeaseId> {
    (id != 0).then_some(LeaseId(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelopes() -> Vec<Envelope> {
        let ping = Ping {
            nonce: 7,
            lease: Some(LeaseId(9)),
            seq: 11,
            applied: 13,
            echo: Some(Echo { nonce: 15, at_ns: 17 }),
            deserted: Some(3),
            withdrawn: vec![(3, LeaseId(5)), (4, LeaseId(6))],
        };
        let ack = |verdict| Ack { nonce: 1, of: 7, lease: None, seq: 11, at_ns: 20, verdict };
        let verdicts = [Verdict::Yes { promise_ns: 150 }, Verdict::Stale, Verdict::Withdrawn, Verdict::Unknown];
        let mut messages = vec![Message::Ping(ping), Message::Obituary { nonce: u64::MAX }];
        messages.extend(verdicts.map(|verdict| Message::Ack(ack(verdict))));
        let envelope = |message| Envelope { cluster: Uuid::from_u128(5), from: 1, to: 2, message };
        messages.into_iter().map(envelope).collect()
    }

    #[test]
    fn what_is_sealed_is_read_again_and_one_flipped_bit_is_refused() {
        let keys = [(3, 33), (4, 44)];
        for envelope in envelopes() {
            let datagram = envelope.seal(4, 44);
            assert!(datagram.len() < 200, "{} bytes", datagram.len());
            assert_eq!(Envelope::open(&datagram, &keys), Some(envelope.clone()));
            assert_eq!(Envelope::open(&datagram, &keys[..1]), None, "an unknown key");
            assert_eq!(Envelope::open(&envelope.seal(4, 45), &keys), None, "another key");
            for bit in 0..datagram.len() * 8 {
                let mut flipped = datagram.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Envelope::open(&flipped, &keys), None, "bit {bit}");
            }
            for len in 0..datagram.len() {
                assert_eq!(Envelope::open(&datagram[..len], &keys), None);
            }
        }
    }

    #[test]
    fn what_a_pair_has_sealed_is_taken_from_the_one_that_shares_the_key_alone() {
        let by = PairKey { id: 3, key: 33 };
        let (mut pairs, mut of_another) = (Pairs::default(), Pairs::default());
        pairs.add(1, by, true);
        of_another.add(3, by, true);
        for envelope in envelopes() {
            let datagram = envelope.seal_for_pair(by);
            assert_eq!(Envelope::open_of_pair(&datagram, &pairs), Some(envelope.clone()));
            assert_eq!(Envelope::open_of_pair(&datagram, &of_another), None, "it says that it is somebody else");
            assert_eq!(Envelope::open_of_pair(&datagram, &Pairs::default()), None, "an unknown key");
            assert_eq!(Envelope::open_of_pair(&envelope.seal(0, 33), &pairs), None, "without the key's number");
            for bit in 0..datagram.len() * 8 {
                let mut flipped = datagram.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Envelope::open_of_pair(&flipped, &pairs), None, "bit {bit}");
            }
            for len in 0..datagram.len() {
                assert_eq!(Envelope::open_of_pair(&datagram[..len], &pairs), None);
            }
        }
    }

    #[test]
    fn a_datagram_is_for_one_node_of_one_cluster() {
        for envelope in envelopes() {
            assert!(envelope.is_for(Uuid::from_u128(5), 2));
            assert!(!envelope.is_for(Uuid::from_u128(5), 1), "its sender");
            assert!(!envelope.is_for(Uuid::from_u128(5), 3), "another node");
            assert!(!envelope.is_for(Uuid::from_u128(6), 2), "another cluster");
        }
    }

    /// Whoever has the key may send anything: it is read or refused, and what is read says the same when it is sent again.
    /// For longer: `cargo bolero test -p lbd ownership::message::tests::signed_datagrams_are_read_or_refused`.
    #[test]
    fn signed_datagrams_are_read_or_refused() {
        let keys = [(4, 44)];
        let sound: Vec<Vec<u8>> = envelopes()
            .iter()
            .map(|envelope| {
                let mut datagram = envelope.seal(4, 44);
                datagram.truncate(datagram.len() - TAG_LEN);
                datagram
            })
            .collect();
        let mut pairs = Pairs::default();
        pairs.add(1, PairKey { id: 0, key: 33 }, true);
        bolero::check!().for_each(|input: &[u8]| {
            assert_eq!(Envelope::open(input, &keys), None, "it was not signed");
            assert_eq!(Envelope::open_of_pair(&[&[0; 8], input].concat(), &pairs), None, "it was not signed");
            let Some((which, changes)) = input.split_first() else { return };
            let mut body = sound[usize::from(*which) % sound.len()].clone();
            for change in changes.chunks_exact(2) {
                let at = usize::from(change[0]) % body.len();
                body[at] = change[1];
            }
            let signature = tag(44, &body);
            let datagram = [&body[..], &signature].concat();
            if let Some(envelope) = Envelope::open(&datagram, &keys) {
                assert_eq!(Envelope::open(&envelope.seal(4, 44), &keys), Some(envelope));
            }
        });
    }
}
