//! Request ids: the same id twice applies once.

use super::{rejection::Rejection, reply::Effect, types::Revision};
use crate::codec::{DecodeError, Field};

/// Chosen by a caller: the same id twice applies once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(String);

impl RequestId {
    /// `None` for an empty text, which asks for no such protection; an error past 64 bytes.
    pub fn parse(text: &str) -> Result<Option<Self>, Rejection> {
        match text.len() {
            0 => Ok(None),
            1..=64 => Ok(Some(Self(text.to_owned()))),
            len => Err(Rejection::invalid("request_id", format!("it has {len} bytes; at most 64 are taken"))),
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where an empty text stands for none.
impl Field<String> for Option<RequestId> {
    fn put(&self) -> String {
        self.as_ref().map(|id| id.0.clone()).unwrap_or_default()
    }

    fn read(text: String) -> Result<Self, DecodeError> {
        Ok((!text.is_empty()).then_some(RequestId(text)))
    }
}

/// What a request with an id was and what it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answered {
    /// The entry that brought it.
    pub(super) index: u64,
    /// Of the command without its stamp and its principal, so that another command under the same id is refused.
    pub(super) fingerprint: u64,
    pub(super) effect: Effect,
    pub(super) revision: Revision,
}
