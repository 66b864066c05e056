//! openraft's values: its type parameters, and in [`records`] how they are stored and sent. Below the store and the
//! consensus, which both speak of them.
//!
//!  Standard Raft: one leader a term, log ids are (term, index).

pub(crate) mod records;

use std::fmt;

use openraft::{BasicNode, alias, impls::leader_id_std::LeaderId};

use crate::table::{Command, NodeId, Reply};

openraft::declare_raft_types!(
    /// This project's openraft.
    pub TypeConfig:
        D = Command,
        R = Reply,
        NodeId = NodeId,
        Node = BasicNode,
        LeaderId = LeaderId<u64, u64>,
);

pub(crate) type Entry = alias::EntryOf<TypeConfig>;
pub(crate) type LogId = alias::LogIdOf<TypeConfig>;
pub(crate) type Snapshot = alias::SnapshotOf<TypeConfig, Vec<u8>>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
pub(crate) type Vote = alias::VoteOf<TypeConfig>;

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
