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

/// In words that say what to look at.
fn plain(cause: &dyn Error) -> String {
    let said = cause.to_string();
    if said.contains("InvalidContentType") {
        "it does not speak TLS (tls.insecure there, and not here?)".to_owned()
    } else if said.contains("deadline has elapsed") {
        "no answer in time".to_owned()
    } else {
        said
    }
}

/// Why a call has no answer: what the connection died of, or what the other side has said.
pub fn of_status(status: &tonic::Status) -> String {
    match status.source() {
        Some(source) => plain(innermost(source)),
        None => status.message().to_owned(),
    }
}
