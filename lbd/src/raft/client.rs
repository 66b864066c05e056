//! Calls to the other nodes. One connection for each peer and lane, made when first used and kept.

use std::{
    collections::HashMap,
    error::Error,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use lb_proto::{
    cause,
    v1::{CallRequest, raft_service_client::RaftServiceClient},
};
use lb_raft_store::{Lane, Transport, TransportError};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::MAX_MESSAGE_LEN;
use crate::connection::Security;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// A connection whose peer vanished without a word is given up after this and made anew.
const KEEPALIVE: Duration = Duration::from_millis(500);

/// Where, whose node it must be, and the lane: `None` is that of what has nothing to do with the log.
type Key = (String, Option<String>, Option<Lane>);

/// The connections.
pub(crate) struct Channels {
    security: Security,
    all: Mutex<HashMap<Key, Channel>>,
}

impl Channels {
    pub(crate) fn new(security: Security) -> Self {
        Self { security, all: Mutex::default() }
    }

    /// To a node; to the one of that name, if it is known.
    pub(crate) fn get(
        &self,
        address: &str,
        name: Option<&str>,
        lane: Option<Lane>,
    ) -> Result<Channel, tonic::transport::Error> {
        let key = (address.to_owned(), name.map(ToOwned::to_owned), lane);
        let mut channels = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(&key) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let (security, (at, name, _)) = (self.security.clone(), key.clone());
        let connector = service_fn(move |_: Uri| {
            let (security, at, name) = (security.clone(), at.clone(), name.clone());
            async move { security.dial(&at, name.as_deref()).await.map(TokioIo::new) }
        });
        let channel = endpoint.connect_with_connector_lazy(connector);
        channels.insert(key, channel.clone());
        Ok(channel)
    }
}

pub(crate) struct TonicTransport(pub(crate) Arc<Channels>);

impl Transport for TonicTransport {
    fn call(
        &self,
        address: &str,
        name: Option<&str>,
        lane: Lane,
        message: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, TransportError>> {
        let channel = self.0.get(address, name, Some(lane)).map_err(|error| unreachable(address, error));
        let address = address.to_owned();
        Box::pin(async move {
            let mut client = RaftServiceClient::new(channel?)
                .max_decoding_message_size(MAX_MESSAGE_LEN)
                .max_encoding_message_size(MAX_MESSAGE_LEN);
            match tokio::time::timeout(timeout, client.call(CallRequest { message })).await {
                Ok(Ok(response)) => Ok(response.into_inner().message),
                Ok(Err(status)) if is_refusal(&status) => Err(unreachable(&address, "the connection was refused")),
                Ok(Err(status)) => Err(TransportError::NoAnswer { address, reason: cause::of_status(&status) }),
                Err(_) => Err(TransportError::NoAnswer { address, reason: format!("none within {timeout:?}") }),
            }
        })
    }
}

fn unreachable(address: &str, reason: impl ToString) -> TransportError {
    TransportError::Unreachable { address: address.to_owned(), reason: reason.to_string() }
}

/// Only a refused connection proves that the message was not delivered.
fn is_refusal(status: &tonic::Status) -> bool {
    let mut source: Option<&(dyn Error + 'static)> = status.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::ConnectionRefused;
        }
        source = error.source();
    }
    false
}
