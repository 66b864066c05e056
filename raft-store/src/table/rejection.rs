//! Why the table refuses a command, in words that say what to try.

use crate::codec::{numbered, recorded};

/// Which kind of refusal a rejection is; it picks the caller's status code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectionKind {
    /// A value that can never be right.
    InvalidArgument,
    /// What is named is not there.
    NotFound,
    /// It is there already, with other settings.
    AlreadyExists,
    /// The table as it is does not allow it.
    FailedPrecondition,
    /// A bound is reached.
    ResourceExhausted,
}

/// Why the table refused a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    /// Which kind of refusal.
    pub kind: RejectionKind,
    /// The field or the rule, in the API's words.
    pub subject: String,
    /// For people: what is wrong and what to try.
    pub message: String,
    /// Which of a command's mutations is refused, from 0; `None` if it is the whole command.
    pub mutation: Option<u32>,
}

impl Rejection {
    fn new(kind: RejectionKind, subject: &str, message: String) -> Self {
        Self { kind, subject: subject.to_owned(), message, mutation: None }
    }

    /// A field's value can never be right.
    pub fn invalid(field: &str, problem: impl std::fmt::Display) -> Self {
        Self::new(RejectionKind::InvalidArgument, field, format!("{field}: {problem}"))
    }

    /// What is named is not there.
    pub fn not_found(what: &str, message: String) -> Self {
        Self::new(RejectionKind::NotFound, what, message)
    }

    /// It is there already, with other settings.
    pub fn exists(what: &str, message: String) -> Self {
        Self::new(RejectionKind::AlreadyExists, what, message)
    }

    /// The table as it is does not allow it.
    pub fn precondition(rule: &str, message: String) -> Self {
        Self::new(RejectionKind::FailedPrecondition, rule, message)
    }

    /// A bound is reached.
    pub fn exhausted(bound: &str, message: String) -> Self {
        Self::new(RejectionKind::ResourceExhausted, bound, message)
    }
}

numbered!(RejectionKind: InvalidArgument, NotFound, AlreadyExists, FailedPrecondition, ResourceExhausted);
recorded!(Rejection => Rejection { kind, subject, message, mutation });

/// It cannot go while others hang on it.
pub(super) fn has_dependants(whole: &str, part: &str, parts: &[impl ToString]) -> Rejection {
    const SHOWN: usize = 5;
    let mut names: Vec<String> = parts.iter().take(SHOWN).map(ToString::to_string).collect();
    if parts.len() > SHOWN {
        names.push(format!("{} more", parts.len() - SHOWN));
    }
    let plural = if parts.len() == 1 { "" } else { "s" };
    Rejection::precondition(
        "dependants",
        format!("{whole} has {part}{plural} {}: remove them first, or all together with --cascade", names.join(", ")),
    )
}
