//! The listener: HTTP for those who may read.

use std::{io, net::TcpListener, pin::pin, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::{Request, State},
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
    routing::get,
};
use futures::StreamExt as _;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use lb_proto::tls::{Identity, Role};
use prometheus_client::{encoding::text, registry::Registry};
use tokio::{runtime::Handle, sync::watch, task::JoinSet, time::timeout};

use super::{
    Collect,
    plain::{PLAIN, plain},
};
use crate::connection::{Peer, Room, Security, Who, incoming};

/// Whoever scrapes keeps a connection or two.
const CONNECTIONS: usize = 64;
/// A connection is closed after so long: whoever goes on makes another one.
const CONNECTION_LIFE: Duration = Duration::from_secs(600);
/// As OpenMetrics says it (its specification, "Overall Structure").
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

struct Served {
    collect: Collect,
    registry: Registry,
}

/// Serves until `stop` is true.
pub(crate) fn serve(
    listener: TcpListener,
    security: Security,
    collect: Collect,
    stop: watch::Receiver<bool>,
    (tasks, runtime): (&mut JoinSet<()>, &Handle),
) -> io::Result<()> {
    let _entered = runtime.enter();
    let mut registry = Registry::with_prefix("lbd");
    registry.register_collector(Box::new(collect.clone()));
    let room = Room::for_connections(CONNECTIONS, collect.refusals.clone());
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .layer(from_fn(only_readers))
        .with_state(Arc::new(Served { collect, registry }));
    let connections = incoming(listener, security, room, None)?;
    let accept = async move {
        let (mut connections, mut stop) = (pin!(connections), stop);
        loop {
            let admitted = tokio::select! {
                admitted = connections.next() => admitted,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            let Some(admitted) = admitted else { return };
            let Ok(admitted) = admitted else { continue };
            let peer = tonic::transport::server::Connected::connect_info(&admitted);
            let service = TowerToHyperService::new(router.clone().layer(Extension(peer)));
            tokio::spawn(async move {
                let builder = Builder::new(TokioExecutor::new());
                let served = builder.serve_connection(TokioIo::new(admitted), service);
                // What breaks is the other end's business.
                let _ = timeout(CONNECTION_LIFE, served).await;
            });
        }
    };
    tasks.spawn_on(accept, runtime);
    Ok(())
}

/// Certificates of nodes say nothing of what their holders may read.
async fn only_readers(Extension(peer): Extension<Peer>, request: Request, next: Next) -> Response {
    match peer.who() {
        Who::Certified(Identity { role: Role::Node, .. }) | Who::Revoked(_) => {
            (StatusCode::FORBIDDEN, format!("{} may not read this: the role viewer is needed\n", peer.who()))
                .into_response()
        }
        _ => next.run(request).await,
    }
}

async fn metrics(State(served): State<Arc<Served>>, headers: HeaderMap) -> Response {
    // The workers are asked piece by piece, and a large table takes a moment.
    let encoded = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        text::encode(&mut text, &served.registry).map(|()| text)
    });
    match encoded.await {
        Ok(Ok(text)) if asks_for_openmetrics(&headers) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Ok(Ok(text)) => ([(CONTENT_TYPE, PLAIN)], plain(&text)).into_response(),
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn asks_for_openmetrics(headers: &HeaderMap) -> bool {
    let asked = headers.get_all(ACCEPT).iter();
    asked
        .filter_map(|accepted| accepted.to_str().ok())
        .any(|accepted| accepted.contains("application/openmetrics-text"))
}

async fn ready(State(served): State<Arc<Served>>) -> Response {
    match served.collect.not_ready() {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}
