//! The page: three files that are part of the program, and a stream of what they show.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{
        HeaderName, StatusCode,
        header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS},
    },
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
    routing::get,
};
use futures::{StreamExt as _, future};
use tokio_stream::wrappers::WatchStream;

use super::live::Live;

/// A page whose connection has ended makes another one after so long.
const AGAIN: Duration = Duration::from_millis(500);

const PAGE: &str = include_str!("assets/index.html");
const STYLE: &str = include_str!("assets/page.css");
const SCRIPT: &str = include_str!("assets/page.js");
const PICTURE: &str = include_str!("assets/picture.js");

/// Nothing from elsewhere, nothing inline, and no other page's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page, and what it follows.
pub(super) fn routes(live: Live) -> Router {
    Router::new()
        .route("/", get(async || asset("text/html", PAGE)))
        .route("/page.css", get(async || asset("text/css", STYLE)))
        .route("/page.js", get(async || asset("text/javascript", SCRIPT)))
        .route("/picture.js", get(async || asset("text/javascript", PICTURE)))
        .route("/favicon.ico", get(async || asset("image/svg+xml", include_str!("assets/icon.svg"))))
        .route("/live", get(follow))
        .with_state(live)
}

fn asset(kind: &str, text: &'static str) -> Response {
    let headers: [(HeaderName, &str); 5] = [
        (CONTENT_TYPE, &format!("{kind}; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // It is small, and goes with the version that runs.
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

/// What is shown, as it changes (server-sent events, HTML "Server-sent events"). Whoever reads slowly is told the newest.
async fn follow(State(live): State<Live>) -> Response {
    let Some((follower, place)) = live.follow() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "there are as many pages open as this node serves\n").into_response();
    };
    let shown = WatchStream::new(follower).filter_map(|shown: Option<Arc<str>>| future::ready(shown));
    let events = shown.map(move |text| {
        // It is given back with the stream.
        let _ = &place;
        Ok::<_, Infallible>(Event::default().data(text).retry(AGAIN))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names, reasons and what frames say are shown as text: none of it can become a part of the page.
    #[test]
    fn nothing_that_is_told_becomes_markup() {
        for script in [SCRIPT, PICTURE] {
            for way in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", ".style="]
            {
                assert!(!script.contains(way), "{way}");
            }
        }
        let inline = ["<style", " style=", " onclick", " onload", "<script>", "http://", "https://"];
        let found: Vec<&&str> = inline.iter().filter(|word| PAGE.contains(**word)).collect();
        assert!(found.is_empty(), "{found:?}");
        assert!(POLICY.starts_with("default-src 'none'; ") && !POLICY.contains("unsafe"));
    }
}
