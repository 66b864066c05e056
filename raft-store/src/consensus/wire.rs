//! openraft's values as protobuf: in the log, in the store's other records, and between nodes.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{
    BasicNode, EntryPayload, Membership,
    entry::RaftEntry,
    raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse},
};
use prost::{Message, Oneof};

use super::types::{Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig, Vote};
use crate::table::{DecodeError, decode_command, encode_command};

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct LogIdRecord {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    index: u64,
}

impl From<LogId> for LogIdRecord {
    fn from(id: LogId) -> Self {
        Self { term: id.committed_leader_id().term, index: id.index() }
    }
}

impl From<LogIdRecord> for LogId {
    fn from(record: LogIdRecord) -> Self {
        Self::new_term_index(record.term, record.index)
    }
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct VoteRecord {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(bool, tag = "3")]
    committed: bool,
}

impl From<Vote> for VoteRecord {
    fn from(vote: Vote) -> Self {
        let leader = vote.leader_id();
        Self { term: leader.term, node: leader.voted_for, committed: vote.is_committed() }
    }
}

impl From<VoteRecord> for Vote {
    fn from(record: VoteRecord) -> Self {
        if record.committed {
            Self::new_committed(record.term, record.node)
        } else {
            Self::new(record.term, record.node)
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct EntryRecord {
    #[prost(message, optional, tag = "1")]
    id: Option<LogIdRecord>,
    #[prost(oneof = "PayloadKind", tags = "2, 3")]
    payload: Option<PayloadKind>,
}

#[derive(Clone, PartialEq, Oneof)]
enum PayloadKind {
    #[prost(bytes, tag = "2")]
    Command(Vec<u8>),
    #[prost(message, tag = "3")]
    Membership(MembershipRecord),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct MembershipRecord {
    #[prost(message, repeated, tag = "1")]
    configs: Vec<ConfigRecord>,
    #[prost(btree_map = "uint64, string", tag = "2")]
    nodes: BTreeMap<u64, String>,
}

#[derive(Clone, PartialEq, Message)]
struct ConfigRecord {
    #[prost(uint64, repeated, tag = "1")]
    voters: Vec<u64>,
}

impl From<&Membership<u64, BasicNode>> for MembershipRecord {
    fn from(membership: &Membership<u64, BasicNode>) -> Self {
        let config = |voters: &BTreeSet<u64>| ConfigRecord { voters: voters.iter().copied().collect() };
        Self {
            configs: membership.get_joint_config().iter().map(config).collect(),
            nodes: membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect(),
        }
    }
}

impl TryFrom<MembershipRecord> for Membership<u64, BasicNode> {
    type Error = DecodeError;

    fn try_from(record: MembershipRecord) -> Result<Self, DecodeError> {
        let configs = record.configs.into_iter().map(|config| config.voters.into_iter().collect()).collect();
        let nodes: BTreeMap<u64, BasicNode> =
            record.nodes.into_iter().map(|(id, addr)| (id, BasicNode { addr })).collect();
        Self::new(configs, nodes).map_err(|_| DecodeError::Field("membership"))
    }
}

impl From<&Entry> for EntryRecord {
    fn from(entry: &Entry) -> Self {
        let payload = match &entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Normal(command) => Some(PayloadKind::Command(encode_command(command))),
            EntryPayload::Membership(membership) => Some(PayloadKind::Membership(membership.into())),
        };
        Self { id: Some(entry.log_id.into()), payload }
    }
}

impl EntryRecord {
    /// Not `TryFrom`: the entry's type is openraft's choice and may have one already.
    pub(crate) fn into_entry(self) -> Result<Entry, DecodeError> {
        let id = self.id.ok_or(DecodeError::Field("entry.id"))?.into();
        let payload = match self.payload {
            None => EntryPayload::Blank,
            Some(PayloadKind::Command(bytes)) => EntryPayload::Normal(decode_command(&bytes)?),
            Some(PayloadKind::Membership(membership)) => EntryPayload::Membership(membership.try_into()?),
        };
        Ok(Entry::new(id, payload))
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SnapshotMetaRecord {
    #[prost(message, optional, tag = "1")]
    last: Option<LogIdRecord>,
    #[prost(message, optional, tag = "2")]
    membership_id: Option<LogIdRecord>,
    #[prost(message, optional, tag = "3")]
    membership: Option<MembershipRecord>,
}

impl SnapshotMetaRecord {
    /// The last entry that the snapshot holds.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.last.map(Into::into)
    }
}

impl From<&SnapshotMeta> for SnapshotMetaRecord {
    fn from(meta: &SnapshotMeta) -> Self {
        Self {
            last: meta.last_log_id.map(Into::into),
            membership_id: meta.last_membership.log_id().map(Into::into),
            membership: Some(meta.last_membership.membership().into()),
        }
    }
}

impl TryFrom<SnapshotMetaRecord> for SnapshotMeta {
    type Error = DecodeError;

    fn try_from(record: SnapshotMetaRecord) -> Result<Self, DecodeError> {
        let membership = record.membership.ok_or(DecodeError::Field("membership"))?.try_into()?;
        Ok(Self {
            last_log_id: record.last.map(Into::into),
            last_membership: StoredMembership::new(record.membership_id.map(Into::into), membership),
        })
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AppendRecord {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteRecord>,
    #[prost(message, optional, tag = "2")]
    previous: Option<LogIdRecord>,
    #[prost(message, repeated, tag = "3")]
    entries: Vec<EntryRecord>,
    #[prost(message, optional, tag = "4")]
    commit: Option<LogIdRecord>,
}

impl From<&AppendEntriesRequest<TypeConfig>> for AppendRecord {
    fn from(request: &AppendEntriesRequest<TypeConfig>) -> Self {
        Self {
            vote: Some(request.vote.into()),
            previous: request.prev_log_id.map(Into::into),
            entries: request.entries.iter().map(Into::into).collect(),
            commit: request.leader_commit.map(Into::into),
        }
    }
}

impl TryFrom<AppendRecord> for AppendEntriesRequest<TypeConfig> {
    type Error = DecodeError;

    fn try_from(record: AppendRecord) -> Result<Self, DecodeError> {
        Ok(Self {
            vote: required_vote(record.vote)?,
            prev_log_id: record.previous.map(Into::into),
            entries: record.entries.into_iter().map(EntryRecord::into_entry).collect::<Result<_, _>>()?,
            leader_commit: record.commit.map(Into::into),
        })
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AppendReplyRecord {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(message, optional, tag = "2")]
    log_id: Option<LogIdRecord>,
    #[prost(message, optional, tag = "3")]
    vote: Option<VoteRecord>,
}

impl From<&AppendEntriesResponse<TypeConfig>> for AppendReplyRecord {
    fn from(response: &AppendEntriesResponse<TypeConfig>) -> Self {
        let (kind, log_id, vote) = match response {
            AppendEntriesResponse::Success => (1, None, None),
            AppendEntriesResponse::PartialSuccess(log_id) => (2, *log_id, None),
            AppendEntriesResponse::Conflict => (3, None, None),
            AppendEntriesResponse::HigherVote(vote) => (4, None, Some(*vote)),
        };
        Self { kind, log_id: log_id.map(Into::into), vote: vote.map(Into::into) }
    }
}

impl TryFrom<AppendReplyRecord> for AppendEntriesResponse<TypeConfig> {
    type Error = DecodeError;

    fn try_from(record: AppendReplyRecord) -> Result<Self, DecodeError> {
        match record.kind {
            1 => Ok(Self::Success),
            2 => Ok(Self::PartialSuccess(record.log_id.map(Into::into))),
            3 => Ok(Self::Conflict),
            4 => Ok(Self::HigherVote(required_vote(record.vote)?)),
            _ => Err(DecodeError::Field("append.kind")),
        }
    }
}

/// A request for a vote, or the answer to one.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct BallotRecord {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteRecord>,
    #[prost(message, optional, tag = "2")]
    last: Option<LogIdRecord>,
    #[prost(bool, tag = "3")]
    transfer: bool,
    #[prost(bool, tag = "4")]
    granted: bool,
}

impl From<&VoteRequest<TypeConfig>> for BallotRecord {
    fn from(request: &VoteRequest<TypeConfig>) -> Self {
        Self {
            vote: Some(request.vote.into()),
            last: request.last_log_id.map(Into::into),
            transfer: request.leadership_transfer,
            granted: false,
        }
    }
}

impl TryFrom<BallotRecord> for VoteRequest<TypeConfig> {
    type Error = DecodeError;

    fn try_from(record: BallotRecord) -> Result<Self, DecodeError> {
        let mut request = Self::new(required_vote(record.vote)?, record.last.map(Into::into));
        request.leadership_transfer = record.transfer;
        Ok(request)
    }
}

impl From<&VoteResponse<TypeConfig>> for BallotRecord {
    fn from(response: &VoteResponse<TypeConfig>) -> Self {
        Self {
            vote: Some(response.vote.into()),
            last: response.last_log_id.map(Into::into),
            transfer: false,
            granted: response.vote_granted,
        }
    }
}

impl TryFrom<BallotRecord> for VoteResponse<TypeConfig> {
    type Error = DecodeError;

    fn try_from(record: BallotRecord) -> Result<Self, DecodeError> {
        Ok(Self::new(required_vote(record.vote)?, record.last.map(Into::into), record.granted))
    }
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct TransferRecord {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteRecord>,
    #[prost(uint64, tag = "2")]
    to: u64,
    #[prost(message, optional, tag = "3")]
    last: Option<LogIdRecord>,
}

impl From<&TransferLeaderRequest<TypeConfig>> for TransferRecord {
    fn from(request: &TransferLeaderRequest<TypeConfig>) -> Self {
        Self {
            vote: Some((*request.from_leader()).into()),
            to: *request.to_node_id(),
            last: request.last_log_id().copied().map(Into::into),
        }
    }
}

impl TryFrom<TransferRecord> for TransferLeaderRequest<TypeConfig> {
    type Error = DecodeError;

    fn try_from(record: TransferRecord) -> Result<Self, DecodeError> {
        Ok(Self::new(required_vote(record.vote)?, record.to, record.last.map(Into::into)))
    }
}

pub(crate) fn required_vote(vote: Option<VoteRecord>) -> Result<Vote, DecodeError> {
    vote.map(Into::into).ok_or(DecodeError::Field("vote"))
}
