//! Who may call what, decided for all methods in one place and before anything else; and a line for each change that was refused.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::http::{Request, Response};
use lb_proto::tls::{Identity, Role};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::{
    methods::{Method, Work, method},
    status,
};
use crate::connection::{Peer, Refusal, Refusals, Who};

/// Lets calls through to those who may make them.
#[derive(Clone)]
pub(super) struct Roles {
    pub(super) refusals: Refusals,
}

impl<S> Layer<S> for Roles {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, refusals: self.refusals.clone() }
    }
}

/// A service behind the rules.
#[derive(Clone)]
pub(super) struct Guarded<S> {
    inner: S,
    refusals: Refusals,
}

/// What somebody may do; the operating system and the operator have decided that for those who show no certificate.
pub(super) fn role_of(who: &Who) -> Option<Role> {
    match who {
        Who::Local | Who::Anybody => Some(Role::Admin),
        Who::Certified(Identity { role, .. }) => Some(*role),
        Who::Revoked(_) => None,
    }
}

/// As what a caller stands in the log.
pub(super) fn name_of(peer: &Peer) -> String {
    match peer.who() {
        Who::Local | Who::Anybody => peer.to_string(),
        who => who.to_string(),
    }
}

fn check(who: &Who, method: &Method) -> Result<(), Status> {
    match role_of(who) {
        Some(role) if role >= method.role => Ok(()),
        Some(role) => Err(status::forbidden(&format!(
            "{} needs the role {}, and this certificate has {role}: it is for {who}",
            method.name, method.role
        ))),
        None => Err(status::unauthenticated(&format!("{who} is not taken any more: ask for another certificate"))),
    }
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let path = request.uri().path();
        let Some(method) = method(path) else {
            let refused = Status::unimplemented("there is no such method");
            return Box::pin(async move { Ok(refused.into_http()) });
        };
        let Some(peer) = request.extensions().get::<Peer>().cloned() else {
            let refused = Status::internal("a connection of nobody");
            return Box::pin(async move { Ok(refused.into_http()) });
        };
        if let Err(refused) = check(&peer.who(), method) {
            self.refusals.count(Refusal::Role);
            tell_refused(&peer, method, &refused);
            return Box::pin(async move { Ok(refused.into_http()) });
        }
        request.extensions_mut().insert(method.work);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if method.work == Work::Write
                && let Some(refused) = Status::from_header_map(answer.headers()).filter(|of| of.code() != Code::Ok)
            {
                tell_refused(&peer, method, &refused);
            }
            Ok(answer)
        })
    }
}

fn tell_refused(peer: &Peer, method: &Method, refused: &Status) {
    let (caller, method, code) = (name_of(peer), method.name, refused.code());
    tracing::warn!(target: "audit", caller, from = %peer, method, ?code, "refused: {:?}", refused.message());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_may_what_those_before_it_may() {
        let may = |who: &Who, path: &str| check(who, method(path).unwrap()).map_err(|status| status.code());
        let certified = |role| Who::Certified(Identity::new("lab", role, "x").unwrap());
        let paths = ["/grpc.health.v1.Health/Check", "/lb.v1.TableService/GetVip", "/lb.v1.TableService/CreateVip"];
        let paths = paths.into_iter().chain(["/lb.v1.ClusterService/AddNode"]);
        for (at, path) in paths.enumerate() {
            for (rank, role) in Role::ALL.into_iter().enumerate() {
                let wanted = if rank >= at { Ok(()) } else { Err(Code::PermissionDenied) };
                assert_eq!(may(&certified(role), path), wanted, "{role} {path}");
            }
            for who in [Who::Local, Who::Anybody] {
                assert_eq!(may(&who, path), Ok(()));
            }
            let revoked = Who::Revoked(Identity::new("lab", Role::Admin, "x").unwrap());
            assert_eq!(may(&revoked, path), Err(Code::Unauthenticated));
        }
    }
}
