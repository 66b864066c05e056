//! The one place where errors become gRPC statuses. Details are a `google.rpc.ErrorInfo` with one of the API's reasons, which
//! have their codes, and whose metadata names the field or the rule.

use std::{collections::HashMap, time::Duration};

use lb_proto::{ERROR_DOMAIN, REQUEST_ID_METADATA, Reason};
use lb_raft_store::{
    MembershipError, ProposeError,
    table::{Rejection, RejectionKind, RequestId},
};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The table refused it.
pub(super) fn rejected(rejection: &Rejection) -> Status {
    let reason = match rejection.kind {
        RejectionKind::InvalidArgument => Reason::InvalidArgument,
        RejectionKind::NotFound => Reason::NotFound,
        RejectionKind::AlreadyExists => Reason::AlreadyExists,
        RejectionKind::FailedPrecondition => Reason::FailedPrecondition,
        RejectionKind::ResourceExhausted => Reason::ResourceExhausted,
    };
    with_info(reason, &rejection.message, &rejection.subject)
}

/// It is one of several mutations that is wrong: the field is named as one of its.
pub(super) fn of_mutation(at: usize, error: Status) -> Status {
    let details = error.get_error_details();
    let subject = details.error_info().and_then(|info| info.metadata.get("subject")).cloned().unwrap_or_default();
    let reason = details.error_info().and_then(|info| Reason::of(&info.reason)).unwrap_or(Reason::InvalidArgument);
    let field = format!("mutations[{at}].{subject}");
    let message = format!("mutations[{at}]: {}", error.message());
    with_info(reason, &message, &field)
}

/// A bound is reached.
pub(super) fn exhausted(what: &str, message: impl std::fmt::Display) -> Status {
    rejected(&Rejection::exhausted(what, message.to_string()))
}

/// The node has as much to do as it takes.
pub(super) fn busy(message: &str) -> Status {
    with_info(Reason::Busy, message, "")
}

/// The node ends: another one goes on.
pub(super) fn stopping() -> Status {
    with_info(Reason::Stopping, "this node stops: go on by another one", "")
}

/// A caller of a stream reads too slowly: from where it can go on.
pub(super) fn too_slow(resume_from: u64) -> Status {
    const REASON: Reason = Reason::TooSlow;
    let message = format!("what changes is read too slowly: watch again from revision {resume_from}");
    let metadata = HashMap::from([("resume_from".to_owned(), resume_from.to_string())]);
    let details = ErrorDetails::with_error_info(REASON.label(), ERROR_DOMAIN, metadata);
    Status::with_error_details(REASON.code(), message, details)
}

/// A field's value can never be right.
pub(super) fn invalid(field: &str, problem: impl std::fmt::Display) -> Status {
    rejected(&Rejection::invalid(field, problem))
}

/// The caller is known, and may not do that.
pub(super) fn forbidden(message: &str) -> Status {
    with_info(Reason::PermissionDenied, message, "")
}

/// The caller is nobody.
pub(super) fn unauthenticated(message: &str) -> Status {
    with_info(Reason::Unauthenticated, message, "")
}

/// No majority agreed.
pub(super) fn not_proposed(error: &ProposeError, request: Option<&RequestId>) -> Status {
    let reason = match error {
        ProposeError::NotAMember => Reason::WaitingToBeAdded,
        ProposeError::NoLeader => Reason::NoLeader,
        ProposeError::TimedOut => Reason::TimedOut,
        ProposeError::TooNew { .. } => Reason::FeatureLevel,
        ProposeError::Refused(_) => Reason::FailedPrecondition,
        ProposeError::NoSpace { .. } => Reason::NoSpace,
        ProposeError::Broken(_) => Reason::StoreBroken,
    };
    let mut status = with_info(reason, &error.to_string(), "");
    if let Some(value) = request.and_then(|request| request.as_str().parse().ok()) {
        status.metadata_mut().insert(REQUEST_ID_METADATA, value);
    }
    status
}

/// A node was not added or removed.
pub(super) fn membership(error: &MembershipError) -> Status {
    let reason = match error {
        MembershipError::NotAMember => Reason::WaitingToBeAdded,
        MembershipError::NoLeader => Reason::NoLeader,
        MembershipError::Refused(_) => Reason::FailedPrecondition,
        MembershipError::TimedOut(_) => Reason::TimedOut,
    };
    with_info(reason, &error.to_string(), "")
}

/// It cannot be done as things are.
pub(super) fn precondition(subject: &str, message: &str) -> Status {
    rejected(&Rejection::precondition(subject, message.to_owned()))
}

/// What was asked for did not come about in time.
pub(super) fn timed_out(message: &str) -> Status {
    with_info(Reason::TimedOut, message, "")
}

/// What is named is not there.
pub(super) fn not_found(message: &str) -> Status {
    with_info(Reason::NotFound, message, "")
}

/// A status goes into headers, which have little room: a message that quotes all of a long text would not arrive at all.
const LONGEST_MESSAGE: usize = 1200;
const LONGEST_DETAIL: usize = 150;
/// Whoever could not be served may ask again then.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// `subject`: the field or the rule, if there is one.
fn with_info(reason: Reason, message: &str, subject: &str) -> Status {
    let code = reason.code();
    let subject = cut(subject, LONGEST_DETAIL);
    let metadata = HashMap::from([("subject".to_owned(), subject.clone())]);
    let message = cut(message, LONGEST_MESSAGE);
    let metadata = if subject.is_empty() { HashMap::new() } else { metadata };
    let mut details = ErrorDetails::with_error_info(reason.label(), ERROR_DOMAIN, metadata);
    if code == Code::InvalidArgument {
        details.add_bad_request_violation(subject, cut(&message, LONGEST_DETAIL));
    }
    if matches!(code, Code::Unavailable | Code::ResourceExhausted) {
        details.set_retry_info(Some(RETRY_AFTER));
    }
    Status::with_error_details(code, message, details)
}

fn cut(text: &str, longest: usize) -> String {
    let end = text.floor_char_boundary(longest);
    if end == text.len() { text.to_owned() } else { format!("{}... (cut: {} bytes)", &text[..end], text.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(status: &Status) -> String {
        status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
    }

    #[test]
    fn every_error_has_its_code_and_its_reason() {
        let of = |kind| rejected(&Rejection { kind, subject: "weight".into(), message: "why".into(), mutation: None });
        for (kind, code, word) in [
            (RejectionKind::InvalidArgument, Code::InvalidArgument, "INVALID_ARGUMENT"),
            (RejectionKind::NotFound, Code::NotFound, "NOT_FOUND"),
            (RejectionKind::AlreadyExists, Code::AlreadyExists, "ALREADY_EXISTS"),
            (RejectionKind::FailedPrecondition, Code::FailedPrecondition, "FAILED_PRECONDITION"),
            (RejectionKind::ResourceExhausted, Code::ResourceExhausted, "RESOURCE_EXHAUSTED"),
        ] {
            let status = of(kind);
            assert_eq!((status.code(), reason(&status).as_str(), status.message()), (code, word, "why"));
            let details = status.get_error_details();
            assert_eq!(details.error_info().unwrap().metadata["subject"], "weight");
        }
        let request = RequestId::parse("r-1").unwrap();
        for (error, code, word) in [
            (ProposeError::NotAMember, Code::FailedPrecondition, "WAITING_TO_BE_ADDED"),
            (ProposeError::NoLeader, Code::Unavailable, "NO_LEADER"),
            (ProposeError::TimedOut, Code::DeadlineExceeded, "TIMED_OUT"),
            (ProposeError::Refused("no".into()), Code::FailedPrecondition, "FAILED_PRECONDITION"),
            (ProposeError::NoSpace { on: String::new() }, Code::ResourceExhausted, "NO_SPACE"),
            (ProposeError::Broken("disk".into()), Code::Unavailable, "STORE_BROKEN"),
        ] {
            let status = not_proposed(&error, request.as_ref());
            assert_eq!((status.code(), reason(&status).as_str()), (code, word), "{error:?}");
            // With it a retry is safe, also of what may have happened.
            let id = status.metadata().get(REQUEST_ID_METADATA).and_then(|id| id.to_str().ok());
            assert_eq!(id, Some("r-1"), "{error:?}");
            assert!(not_proposed(&error, None).metadata().get(REQUEST_ID_METADATA).is_none());
        }
    }

    #[test]
    fn what_quotes_a_long_text_still_fits_into_headers() {
        for len in [1, 1500, 1501, 8000, 100_000] {
            let text = "ü".repeat(len);
            let status = rejected(&Rejection {
                kind: RejectionKind::InvalidArgument,
                subject: text.clone(),
                message: text,
                mutation: None,
            });
            assert!(status.message().len() < 1600 && status.details().len() < 2000, "{len}");
        }
    }
}
