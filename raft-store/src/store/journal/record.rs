//! What the journal's records say, and what they amount to.

use prost::Message as _;
use uuid::Uuid;

use crate::{
    codec::record,
    raft::{LogId, Vote},
    store::identity::Identity,
};

/// The form of the journal. One that is higher is a newer build's.
pub(crate) const FORMAT: u32 = 1;

/// One fact. Whoever reads them in order knows what the node must not forget.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Record {
    /// What a segment begins with: what all records before it amount to.
    Base(State),
    /// An entry of the log, encoded.
    Entry(LogId, Vec<u8>),
    /// The last vote.
    Vote(Vote),
    /// The log ends here now.
    Truncated(Option<LogId>),
    /// The log begins behind this entry now.
    Purged(LogId),
    /// Whose store it is.
    Identity(Identity),
    /// The node was started once more.
    Started,
    /// Another node has said that this is an older copy of the node's store. Nothing takes that back.
    OlderCopy,
}

/// What the records up to one amount to, the log's entries apart.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct State {
    pub(crate) identity: Option<Identity>,
    pub(crate) vote: Option<Vote>,
    /// The last entry of the log; the last purged one if there is none.
    pub(crate) last: Option<LogId>,
    /// The last entry that was purged.
    pub(crate) purged: Option<LogId>,
    /// How often the node was started on this store.
    pub(crate) starts: u32,
    /// It is an older copy of the node's store.
    pub(crate) older_copy: bool,
}

impl State {
    /// What it is after one more record.
    pub(crate) fn apply(&mut self, record: &Record) {
        match record {
            Record::Base(state) => *self = state.clone(),
            Record::Entry(id, _) => self.last = Some(*id),
            Record::Vote(vote) => self.vote = Some(*vote),
            Record::Truncated(last) => self.last = *last,
            Record::Purged(id) => {
                self.purged = self.purged.max(Some(*id));
                self.last = self.last.max(Some(*id));
            }
            Record::Identity(identity) => self.identity = Some(identity.clone()),
            Record::Started => self.starts += 1,
            Record::OlderCopy => self.older_copy = true,
        }
    }

    /// The index of the entry that comes next.
    pub(crate) fn next_index(&self) -> u64 {
        self.last.map_or(0, |last| last.index() + 1)
    }
}

/// Why a sound frame does not hold a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unreadable {
    TooNew,
    Wrong(String),
}

impl Record {
    /// The kind and the body of its frame, in the store of that name.
    pub(super) fn encode(&self, store: Uuid) -> (u32, Vec<u8>) {
        match self {
            Self::Base(state) => (1, state.record(store).encode_to_vec()),
            Self::Entry(_, bytes) => (2, bytes.clone()),
            Self::Vote(vote) => (3, record::Vote::from(*vote).encode_to_vec()),
            Self::Truncated(last) => (4, record::LogEnd { last: last.map(Into::into) }.encode_to_vec()),
            Self::Purged(id) => (5, record::LogId::from(*id).encode_to_vec()),
            Self::Identity(identity) => (6, identity.record(store).encode_to_vec()),
            Self::Started => (7, Vec::new()),
            Self::OlderCopy => (8, Vec::new()),
        }
    }

    pub(super) fn decode(store: Uuid, kind: u32, body: &[u8]) -> Result<Self, Unreadable> {
        let wrong = |error: prost::DecodeError| Unreadable::Wrong(error.to_string());
        Ok(match kind {
            1 => Self::Base(State::read(store, record::JournalBase::decode(body).map_err(wrong)?)?),
            2 => {
                let id = record::EntryHead::decode(body).map_err(wrong)?.id;
                let id = id.ok_or_else(|| Unreadable::Wrong("an entry does not say which one it is".into()))?;
                Self::Entry(id.into(), body.to_vec())
            }
            3 => Self::Vote(record::Vote::decode(body).map_err(wrong)?.into()),
            4 => Self::Truncated(record::LogEnd::decode(body).map_err(wrong)?.last.map(Into::into)),
            5 => Self::Purged(record::LogId::decode(body).map_err(wrong)?.into()),
            6 => Self::Identity(identity(store, record::Identity::decode(body).map_err(wrong)?)?),
            7 => Self::Started,
            8 => Self::OlderCopy,
            _ => return Err(Unreadable::TooNew),
        })
    }
}

impl State {
    fn record(&self, store: Uuid) -> record::JournalBase {
        record::JournalBase {
            format: FORMAT,
            store: store.as_bytes().to_vec(),
            identity: self.identity.as_ref().map(|identity| identity.record(store)),
            vote: self.vote.map(Into::into),
            last: self.last.map(Into::into),
            purged: self.purged.map(Into::into),
            starts: self.starts.into(),
            older_copy: self.older_copy,
        }
    }

    fn read(store: Uuid, base: record::JournalBase) -> Result<Self, Unreadable> {
        if base.format > FORMAT {
            return Err(Unreadable::TooNew);
        }
        Ok(Self {
            identity: base.identity.map(|record| identity(store, record)).transpose()?,
            vote: base.vote.map(Into::into),
            last: base.last.map(Into::into),
            purged: base.purged.map(Into::into),
            starts: base.starts.try_into().map_err(|_| Unreadable::Wrong("the number of starts".into()))?,
            older_copy: base.older_copy,
        })
    }
}

fn identity(store: Uuid, record: record::Identity) -> Result<Identity, Unreadable> {
    Identity::read(record, store).map_err(Unreadable::Wrong)
}
