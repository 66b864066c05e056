//! What applying an entry answers.

use prost::Message as _;

use super::{
    rejection::Rejection,
    types::{LeaseId, NodeId, Revision},
};
use crate::codec::{self, DecodeError, Field, record, required};

/// What applying an entry answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The table's revision after the entry.
    pub revision: Revision,
    /// What it did, or why it did nothing.
    pub result: Result<Effect, Rejection>,
}

impl Default for Reply {
    fn default() -> Self {
        Self { revision: 0, result: Ok(Effect::Unchanged) }
    }
}

/// What an entry did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Effect {
    /// It was already so.
    #[default]
    Unchanged,
    /// The table changed.
    Changed,
    /// A node got this id.
    NodeAdded(NodeId),
    /// A lease got this id.
    LeaseOpened(LeaseId),
}

/// A reply as it goes back to the node that forwarded a command.
pub fn encode_reply(reply: &Reply) -> Vec<u8> {
    use record::reply::Result as ResultRecord;
    let result = match &reply.result {
        Ok(effect) => ResultRecord::Effect(effect.put()),
        Err(rejection) => ResultRecord::Rejection(rejection.put()),
    };
    record::Reply { revision: reply.revision, result: Some(result) }.encode_to_vec()
}

/// The inverse of [`encode_reply`].
pub fn decode_reply(bytes: &[u8]) -> Result<Reply, DecodeError> {
    use record::reply::Result as ResultRecord;
    let record: record::Reply = codec::decode(bytes)?;
    let result = match record.result.ok_or(DecodeError::too_new(0))? {
        ResultRecord::Effect(effect) => Ok(Field::read(effect)?),
        ResultRecord::Rejection(rejection) => Err(Field::read(rejection)?),
    };
    Ok(Reply { revision: record.revision, result })
}

impl Field<record::Effect> for Effect {
    fn put(&self) -> record::Effect {
        use record::EffectKind;
        let (kind, id) = match *self {
            Self::Unchanged => (EffectKind::Unchanged, 0),
            Self::Changed => (EffectKind::Changed, 0),
            Self::NodeAdded(node) => (EffectKind::NodeAdded, node),
            Self::LeaseOpened(lease) => (EffectKind::LeaseOpened, lease.0),
        };
        record::Effect { kind: kind.into(), id }
    }

    fn read(record: record::Effect) -> Result<Self, DecodeError> {
        use record::EffectKind;
        match EffectKind::try_from(record.kind) {
            Ok(EffectKind::Unchanged) => Ok(Self::Unchanged),
            Ok(EffectKind::Changed) => Ok(Self::Changed),
            Ok(EffectKind::NodeAdded) => Ok(Self::NodeAdded(record.id)),
            Ok(EffectKind::LeaseOpened) => Ok(Self::LeaseOpened(LeaseId(record.id))),
            Ok(EffectKind::Unspecified) => Err(DecodeError::Field("effect")),
            Err(_) => Err(DecodeError::too_new(0)),
        }
    }
}

required!(Effect => Effect);
