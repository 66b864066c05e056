//! Why something failed, for people.

use std::error::Error;

/// What went wrong first: the end of an error's chain, behind "transport error" and its like.
pub fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}

/// Why a call has no answer: what the connection died of, or what the other side has said.
pub fn of_status(status: &tonic::Status) -> String {
    match status.source() {
        Some(source) => innermost(source).to_string(),
        None => status.message().to_owned(),
    }
}
