//! The paths that monitoring asks for.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::{IntoResponse as _, Response},
    routing::get,
};
use prometheus_client::{encoding::text, registry::Registry};

use super::{
    Collect,
    plain::{PLAIN, plain},
};

/// As OpenMetrics says it (its specification, "Overall Structure").
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

struct Served {
    collect: Collect,
    registry: Registry,
}

/// `/metrics`, `/healthz` and `/readyz`.
pub(crate) fn routes(collect: Collect) -> Router {
    let mut registry = Registry::with_prefix("lbd");
    registry.register_collector(Box::new(collect.clone()));
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(Arc::new(Served { collect, registry }))
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
