//! What is wrong with an answer, or that there is none.

/// What is wrong, and whether the backend said so itself; otherwise it said nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) reason: String,
    pub(super) is_said: bool,
}

pub(super) fn said(reason: impl Into<String>) -> Failure {
    Failure { reason: reason.into(), is_said: true }
}
