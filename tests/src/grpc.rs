//! A plain gRPC client, as somebody else's program would be.

use std::{path::PathBuf, sync::Arc};

use hyper_util::rt::TokioIo;
use lb_proto::tls::Credentials;
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, pki_types::ServerName},
};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_reflection::pb::{v1, v1alpha};

/// Connects to a Unix socket.
pub async fn connect(socket: PathBuf) -> anyhow::Result<Channel> {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
    });
    Ok(Endpoint::from_static("http://localhost").connect_with_connector(connector).await?)
}

/// Connects to `HOST:PORT` by TLS, as whom the files are for. From the namespace of the thread that awaits it.
pub async fn connect_by_tls(address: String, credentials: Arc<Credentials>) -> anyhow::Result<Channel> {
    let connector = tower::service_fn(move |_: Uri| {
        let (address, credentials) = (address.clone(), credentials.clone());
        async move {
            let stream = tokio::net::TcpStream::connect(address).await?;
            Ok::<_, std::io::Error>(TokioIo::new(credentials.connect(stream).await?))
        }
    });
    Ok(Endpoint::from_static("http://node").connect_with_connector(connector).await?)
}

/// The same, whoever answers.
pub async fn connect_trusting(address: String, config: Arc<ClientConfig>) -> anyhow::Result<Channel> {
    let connector = tower::service_fn(move |_: Uri| {
        let (address, config) = (address.clone(), config.clone());
        async move {
            let stream = tokio::net::TcpStream::connect(address).await?;
            let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
            Ok::<_, std::io::Error>(TokioIo::new(TlsConnector::from(config).connect(name, stream).await?))
        }
    });
    Ok(Endpoint::from_static("http://node").connect_with_connector(connector).await?)
}

/// The services that reflection knows, by one of its versions.
macro_rules! reflected {
    ($(#[$doc:meta])* $name:ident, $version:ident) => {
        $(#[$doc])*
        pub async fn $name(channel: Channel) -> anyhow::Result<Vec<String>> {
            use $version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
            };
            let request = ServerReflectionRequest {
                message_request: Some(MessageRequest::ListServices(String::new())),
                ..ServerReflectionRequest::default()
            };
            let mut client = ServerReflectionClient::new(channel);
            let mut answers = client.server_reflection_info(futures::stream::iter([request])).await?.into_inner();
            match answers.message().await?.and_then(|answer| answer.message_response) {
                Some(MessageResponse::ListServicesResponse(list)) => {
                    Ok(list.service.into_iter().map(|service| service.name).collect())
                }
                other => anyhow::bail!("reflection answered {other:?}"),
            }
        }
    };
}

reflected! {
    /// The services that reflection knows.
    reflected_services, v1
}

reflected! {
    /// The same, by the version that many clients still ask for.
    reflected_services_alpha, v1alpha
}
