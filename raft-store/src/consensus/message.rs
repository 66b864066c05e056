//! What nodes say to each other. Every message carries the cluster's identity, its sender and its
//! addressee, so that a machine that was reinstalled or readdressed is not taken for another.

use prost::{Message, Oneof};

use super::wire::{AppendRecord, AppendReplyRecord, BallotRecord, SnapshotMetaRecord, TransferRecord, VoteRecord};

/// One request.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PeerRequest {
    /// Nil towards a node that belongs to no cluster yet.
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) cluster: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub(crate) from: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) to: u64,
    #[prost(oneof = "Request", tags = "4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15")]
    pub(crate) request: Option<Request>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum Request {
    #[prost(message, tag = "4")]
    Append(AppendRecord),
    #[prost(message, tag = "5")]
    Vote(BallotRecord),
    #[prost(message, tag = "6")]
    PreVote(BallotRecord),
    #[prost(message, tag = "7")]
    Transfer(TransferRecord),
    #[prost(message, tag = "8")]
    Snapshot(SnapshotRecord),
    /// A command for the leader.
    #[prost(bytes, tag = "9")]
    Propose(Vec<u8>),
    /// How far must a table be to be read now?
    #[prost(bool, tag = "10")]
    ReadIndex(bool),
    /// Who are you?
    #[prost(bool, tag = "11")]
    Describe(bool),
    /// You are this node of this cluster now.
    #[prost(message, tag = "12")]
    Join(JoinRecord),
    #[prost(message, tag = "13")]
    AddNode(AddNodeRecord),
    #[prost(message, tag = "14")]
    RemoveNode(RemoveNodeRecord),
    /// You are not part of the cluster any more.
    #[prost(bool, tag = "15")]
    Removed(bool),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SnapshotRecord {
    #[prost(message, optional, tag = "1")]
    pub(crate) vote: Option<VoteRecord>,
    #[prost(message, optional, tag = "2")]
    pub(crate) meta: Option<SnapshotMetaRecord>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct JoinRecord {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) cluster: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub(crate) node: u64,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) store: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AddNodeRecord {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) address: String,
    #[prost(bool, tag = "3")]
    pub(crate) witness: bool,
    #[prost(uint64, tag = "4")]
    pub(crate) timeout_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RemoveNodeRecord {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(bool, tag = "2")]
    pub(crate) force: bool,
    #[prost(uint64, tag = "3")]
    pub(crate) timeout_ms: u64,
}

/// One answer.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PeerReply {
    #[prost(oneof = "Answer", tags = "1, 2, 3, 4, 5, 6, 7, 9, 10")]
    pub(crate) answer: Option<Answer>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum Answer {
    #[prost(message, tag = "1")]
    Append(AppendReplyRecord),
    #[prost(message, tag = "2")]
    Ballot(BallotRecord),
    #[prost(message, tag = "3")]
    Snapshot(VoteRecord),
    /// The reply to a command.
    #[prost(bytes, tag = "4")]
    Proposed(Vec<u8>),
    #[prost(uint64, tag = "5")]
    ReadIndex(u64),
    #[prost(message, tag = "6")]
    Description(DescriptionRecord),
    #[prost(bool, tag = "7")]
    Done(bool),
    /// Ask the leader; 0 if unknown.
    #[prost(uint64, tag = "9")]
    NotLeader(u64),
    #[prost(message, tag = "10")]
    Refused(RefusedRecord),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DescriptionRecord {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(bool, tag = "2")]
    pub(crate) witness: bool,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) store: Vec<u8>,
    /// Empty while it belongs to no cluster.
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) cluster: Vec<u8>,
    #[prost(uint64, tag = "5")]
    pub(crate) node: u64,
    #[prost(uint32, tag = "6")]
    pub(crate) feature_level: u32,
    #[prost(string, tag = "7")]
    pub(crate) cluster_name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RefusedRecord {
    #[prost(enumeration = "RefusedKind", tag = "1")]
    pub(crate) kind: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum RefusedKind {
    Internal = 0,
    /// It belongs to no cluster yet, or no longer.
    NotAMember = 1,
    /// It belongs to another cluster, or is another node.
    NotAddressee = 2,
    /// What was asked for is not possible as things are.
    Precondition = 3,
    /// The answer would have come too late.
    TimedOut = 4,
    /// The sender was removed from the cluster.
    Removed = 5,
}

impl Answer {
    pub(crate) fn refused(kind: RefusedKind, message: impl ToString) -> Self {
        Self::Refused(RefusedRecord { kind: kind.into(), message: message.to_string() })
    }
}
