//! Who may read.

use axum::{
    Extension,
    extract::Request,
    http::{StatusCode, header::HOST, uri::Authority},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use lb_proto::tls::{Identity, Role};

use crate::connection::{Peer, Who};

/// Certificates of nodes say nothing of what their holders may read.
pub(super) async fn only_readers(Extension(peer): Extension<Peer>, request: Request, next: Next) -> Response {
    match peer.who() {
        Who::Certified(Identity { role: Role::Node, .. }) | Who::Revoked(_) => {
            (StatusCode::FORBIDDEN, format!("{} may not read this: the role viewer is needed\n", peer.who()))
                .into_response()
        }
        _ => next.run(request).await,
    }
}

/// On loopback nobody shows who they are. A stranger's page whose name is made to point here (DNS rebinding) asks under its own
/// name, and is not answered.
pub(super) async fn only_by_own_names(request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(Authority::as_str));
    if host.is_none_or(is_own_name) {
        return next.run(request).await;
    }
    (StatusCode::MISDIRECTED_REQUEST, "this is read by the name localhost or by an IP address\n").into_response()
}

/// Names that nobody else can give, and those without a dot, which no public zone has.
fn is_own_name(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    name.starts_with('[') || name.parse::<std::net::IpAddr>().is_ok() || !name.contains('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_name_is_none_of_ours() {
        for own in ["127.0.0.1:9400", "[::1]:9400", "localhost:9400", "lb1", "10.1.2.3"] {
            assert!(is_own_name(own), "{own}");
        }
        for other in ["evil.example:9400", "127.0.0.1.nip.example", "a b", ""] {
            assert!(!is_own_name(other), "{other}");
        }
    }
}
