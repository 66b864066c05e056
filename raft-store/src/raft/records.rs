//! openraft's values as records: in the log, in the store's other records, and between nodes.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{
    BasicNode, EntryPayload, Membership,
    entry::RaftEntry,
    raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse},
};

use super::{Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig, Vote};
use crate::{
    codec::{
        DecodeError, record,
        record::{AppendOutcome, entry::Payload},
    },
    table::{decode_command, encode_command},
};

impl From<LogId> for record::LogId {
    fn from(id: LogId) -> Self {
        Self { term: id.committed_leader_id().term, index: id.index() }
    }
}

impl From<record::LogId> for LogId {
    fn from(record: record::LogId) -> Self {
        Self::new_term_index(record.term, record.index)
    }
}

impl From<Vote> for record::Vote {
    fn from(vote: Vote) -> Self {
        let leader = vote.leader_id();
        Self { term: leader.term, node: leader.voted_for, committed: vote.is_committed() }
    }
}

impl From<record::Vote> for Vote {
    fn from(record: record::Vote) -> Self {
        if record.committed {
            Self::new_committed(record.term, record.node)
        } else {
            Self::new(record.term, record.node)
        }
    }
}

impl From<&Membership<u64, BasicNode>> for record::Membership {
    fn from(membership: &Membership<u64, BasicNode>) -> Self {
        let config = |voters: &BTreeSet<u64>| record::Voters { voters: voters.iter().copied().collect() };
        Self {
            configs: membership.get_joint_config().iter().map(config).collect(),
            nodes: membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect(),
        }
    }
}

impl TryFrom<record::Membership> for Membership<u64, BasicNode> {
    type Error = DecodeError;

    fn try_from(record: record::Membership) -> Result<Self, DecodeError> {
        let configs = record.configs.into_iter().map(|config| config.voters.into_iter().collect()).collect();
        let nodes: BTreeMap<u64, BasicNode> =
            record.nodes.into_iter().map(|(id, addr)| (id, BasicNode { addr })).collect();
        Self::new(configs, nodes).map_err(|_| DecodeError::Field("membership"))
    }
}

impl From<&Entry> for record::Entry {
    fn from(entry: &Entry) -> Self {
        let payload = match &entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Normal(command) => Some(Payload::Command(encode_command(command))),
            EntryPayload::Membership(membership) => Some(Payload::Membership(membership.into())),
        };
        Self { id: Some(entry.log_id.into()), payload }
    }
}

/// Not `TryFrom`: the entry's type is openraft's choice and may have one already.
pub(crate) fn entry(record: record::Entry) -> Result<Entry, DecodeError> {
    let id = record.id.ok_or(DecodeError::Field("entry.id"))?.into();
    let payload = match record.payload {
        None => EntryPayload::Blank,
        Some(Payload::Command(bytes)) => EntryPayload::Normal(decode_command(&bytes)?),
        Some(Payload::Membership(membership)) => EntryPayload::Membership(membership.try_into()?),
    };
    Ok(Entry::new(id, payload))
}

impl From<&SnapshotMeta> for record::SnapshotMeta {
    fn from(meta: &SnapshotMeta) -> Self {
        Self {
            last: meta.last_log_id.map(Into::into),
            membership_id: meta.last_membership.log_id().map(Into::into),
            membership: Some(meta.last_membership.membership().into()),
        }
    }
}

impl TryFrom<record::SnapshotMeta> for SnapshotMeta {
    type Error = DecodeError;

    fn try_from(record: record::SnapshotMeta) -> Result<Self, DecodeError> {
        let membership = record.membership.ok_or(DecodeError::Field("membership"))?.try_into()?;
        Ok(Self {
            last_log_id: record.last.map(Into::into),
            last_membership: StoredMembership::new(record.membership_id.map(Into::into), membership),
        })
    }
}

impl From<&AppendEntriesRequest<TypeConfig>> for record::Append {
    fn from(request: &AppendEntriesRequest<TypeConfig>) -> Self {
        Self {
            vote: Some(request.vote.into()),
            previous: request.prev_log_id.map(Into::into),
            entries: request.entries.iter().map(Into::into).collect(),
            commit: request.leader_commit.map(Into::into),
        }
    }
}

impl TryFrom<record::Append> for AppendEntriesRequest<TypeConfig> {
    type Error = DecodeError;

    fn try_from(record: record::Append) -> Result<Self, DecodeError> {
        Ok(Self {
            vote: required_vote(record.vote)?,
            prev_log_id: record.previous.map(Into::into),
            entries: record.entries.into_iter().map(entry).collect::<Result<_, _>>()?,
            leader_commit: record.commit.map(Into::into),
        })
    }
}

impl From<&AppendEntriesResponse<TypeConfig>> for record::AppendReply {
    fn from(response: &AppendEntriesResponse<TypeConfig>) -> Self {
        let (kind, log_id, vote) = match response {
            AppendEntriesResponse::Success => (AppendOutcome::Success, None, None),
            AppendEntriesResponse::PartialSuccess(log_id) => (AppendOutcome::PartialSuccess, *log_id, None),
            AppendEntriesResponse::Conflict => (AppendOutcome::Conflict, None, None),
            AppendEntriesResponse::HigherVote(vote) => (AppendOutcome::HigherVote, None, Some(*vote)),
        };
        Self { kind: kind.into(), log_id: log_id.map(Into::into), vote: vote.map(Into::into) }
    }
}

impl TryFrom<record::AppendReply> for AppendEntriesResponse<TypeConfig> {
    type Error = DecodeError;

    fn try_from(record: record::AppendReply) -> Result<Self, DecodeError> {
        match AppendOutcome::try_from(record.kind) {
            Ok(AppendOutcome::Success) => Ok(Self::Success),
            Ok(AppendOutcome::PartialSuccess) => Ok(Self::PartialSuccess(record.log_id.map(Into::into))),
            Ok(AppendOutcome::Conflict) => Ok(Self::Conflict),
            Ok(AppendOutcome::HigherVote) => Ok(Self::HigherVote(required_vote(record.vote)?)),
            Ok(AppendOutcome::Unspecified) => Err(DecodeError::Field("append.kind")),
            Err(_) => Err(DecodeError::too_new(0)),
        }
    }
}

impl From<&VoteRequest<TypeConfig>> for record::Ballot {
    fn from(request: &VoteRequest<TypeConfig>) -> Self {
        Self {
            vote: Some(request.vote.into()),
            last: request.last_log_id.map(Into::into),
            transfer: request.leadership_transfer,
            granted: false,
        }
    }
}

impl TryFrom<record::Ballot> for VoteRequest<TypeConfig> {
    type Error = DecodeError;

    fn try_from(record: record::Ballot) -> Result<Self, DecodeError> {
        let mut request = Self::new(required_vote(record.vote)?, record.last.map(Into::into));
        request.leadership_transfer = record.transfer;
        Ok(request)
    }
}

impl From<&VoteResponse<TypeConfig>> for record::Ballot {
    fn from(response: &VoteResponse<TypeConfig>) -> Self {
        Self {
            vote: Some(response.vote.into()),
            last: response.last_log_id.map(Into::into),
            transfer: false,
            granted: response.vote_granted,
        }
    }
}

impl TryFrom<record::Ballot> for VoteResponse<TypeConfig> {
    type Error = DecodeError;

    fn try_from(record: record::Ballot) -> Result<Self, DecodeError> {
        Ok(Self::new(required_vote(record.vote)?, record.last.map(Into::into), record.granted))
    }
}

impl From<&TransferLeaderRequest<TypeConfig>> for record::Transfer {
    fn from(request: &TransferLeaderRequest<TypeConfig>) -> Self {
        Self {
            vote: Some((*request.from_leader()).into()),
            to: *request.to_node_id(),
            last: request.last_log_id().copied().map(Into::into),
        }
    }
}

impl TryFrom<record::Transfer> for TransferLeaderRequest<TypeConfig> {
    type Error = DecodeError;

    fn try_from(record: record::Transfer) -> Result<Self, DecodeError> {
        Ok(Self::new(required_vote(record.vote)?, record.to, record.last.map(Into::into)))
    }
}

pub(crate) fn required_vote(vote: Option<record::Vote>) -> Result<Vote, DecodeError> {
    vote.map(Into::into).ok_or(DecodeError::Field("vote"))
}
