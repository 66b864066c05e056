//! Request ids: the same id twice applies once.

use uuid::Uuid;

use super::{rejection::Rejection, reply::Effect, types::Revision};
use crate::codec::{DecodeError, Field, WRONG};

/// How the ids begin that nodes make for callers who name none.
const OWN: &str = "lbd-";

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

    /// One for a caller who has named none. It is good for a repetition within two minutes.
    pub fn own(unique: Uuid) -> Self {
        Self(format!("{OWN}{unique}"))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How it is kept. `now_ms`: the clock of whoever proposes it.
    pub(super) fn kept(&self, now_ms: u64) -> Kept {
        if self.0.starts_with(OWN) {
            return Kept::Briefly;
        }
        // One from far ahead would make all the others look old when it is forgotten.
        match self.made_ms() {
            Some(made_ms) if made_ms <= now_ms.saturating_add(AHEAD_MS) => Kept::ByTime,
            _ => Kept::ByCount,
        }
    }

    /// When it was made, by its maker's clock, where it says so (RFC 9562 5.7).
    pub(super) fn made_ms(&self) -> Option<u64> {
        let uuid = Uuid::try_parse(&self.0).ok().filter(|uuid| uuid.get_version_num() == 7)?;
        Some((uuid.as_u128() >> 80) as u64)
    }
}

/// A caller's clock may be ahead by so much.
const AHEAD_MS: u64 = 5 * 60 * 1000;

/// For how long an id is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum Kept {
    /// Until many others have come.
    #[default]
    ByCount,
    /// For an hour, and whoever comes later is told that it is too late.
    ByTime,
    /// For two minutes.
    Briefly,
}

impl Kept {
    /// For how long, at least while there is room.
    pub(super) fn window_ms(self) -> u64 {
        match self {
            Self::ByCount => u64::MAX,
            Self::ByTime => 60 * 60 * 1000,
            Self::Briefly => 2 * 60 * 1000,
        }
    }
}

impl Field<u32> for Kept {
    fn put(&self) -> u32 {
        *self as u32
    }

    fn read(number: u32) -> Result<Self, DecodeError> {
        match number {
            0 => Ok(Self::ByCount),
            1 => Ok(Self::ByTime),
            2 => Ok(Self::Briefly),
            _ => Err(DecodeError::too_new(0)),
        }
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

impl Field<String> for RequestId {
    fn put(&self) -> String {
        self.0.clone()
    }

    fn read(text: String) -> Result<Self, DecodeError> {
        if text.is_empty() { Err(WRONG) } else { Ok(Self(text)) }
    }
}

/// What a request with an id was and what it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answered {
    /// The entry that brought it.
    pub(super) index: u64,
    /// Of what was asked for, so that another request under the same id is refused.
    pub(super) fingerprint: u64,
    pub(super) effect: Effect,
    pub(super) revision: Revision,
    /// The table's clock then.
    pub(super) clock_ms: u64,
    pub(super) kept: Kept,
}
