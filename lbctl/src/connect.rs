//! To the first endpoint that can be reached.

use std::{path::PathBuf, str::FromStr, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::exit::Failure;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Where a node's API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Unix(PathBuf),
    Http(String),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        if text.starts_with("https://") {
            return Err("https is not supported yet: use unix:PATH or http://HOST:PORT".into());
        }
        match text.strip_prefix("http://") {
            Some(rest) if rest.contains(':') => Ok(Self::Http(text.to_owned())),
            _ => Err(format!("{text:?} is neither unix:PATH nor http://HOST:PORT")),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http(url) => f.write_str(url),
        }
    }
}

/// Tries one after the other.
pub(crate) async fn connect(targets: &[Target]) -> Result<Channel, Failure> {
    let mut failures = Vec::new();
    for target in targets {
        match connect_one(target).await {
            Ok(channel) => return Ok(channel),
            Err(reason) => failures.push(format!("{target}: {reason}")),
        }
    }
    Err(Failure::Unreachable(format!(
        "cannot reach {}. Is lbd running? Name a node with --endpoint or LBCTL_ENDPOINT",
        failures.join("; ")
    )))
}

async fn connect_one(target: &Target) -> Result<Channel, String> {
    let connected = match target {
        Target::Http(url) => {
            let endpoint = Endpoint::from_shared(url.clone()).map_err(|error| error.to_string())?;
            endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect().await
        }
        Target::Unix(path) => {
            let path = path.clone();
            // The URI is never used: the connector goes to the path.
            let connector = service_fn(move |_: Uri| {
                let path = path.clone();
                async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
            });
            Endpoint::from_static("http://localhost").connect_with_connector(connector).await
        }
    };
    connected.map_err(|error| innermost(&error))
}

/// The cause that a person can do something about.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
