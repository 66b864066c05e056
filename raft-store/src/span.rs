//! A request's way, for those who look for it: from a call to the log, and from there to each node's dataplane.

use tracing::Span;

use crate::table::RequestId;

/// What is logged in it says of which request it is; `RUST_LOG=request=debug` shows it, on every node.
pub fn request_span(request: &RequestId) -> Span {
    tracing::debug_span!(target: "request", "request", id = request.as_str())
}
