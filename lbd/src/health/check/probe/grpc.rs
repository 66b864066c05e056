//! gRPC's own health check (grpc.health.v1).

use std::net::{IpAddr, SocketAddr};

use hyper_util::rt::TokioIo;
use lb_proto::cause;
use lb_raft_store::table::GrpcProbe;
use tonic::{
    Code,
    transport::{Endpoint, Uri},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    super::answer::{Failure, said},
    connection::Connection,
    tls,
};

/// An answer has hardly ten.
const ANSWER_BYTES: usize = 4 << 10;

pub(super) async fn ask(
    connection: Box<dyn Connection>,
    probe: &GrpcProbe,
    vip: IpAddr,
    port: u16,
) -> Result<(), Failure> {
    let connection = tls::secured(connection, probe.tls.as_ref(), vip, b"h2").await?;
    let name = probe.tls.as_ref().map(|tls| tls.server_name.clone()).filter(|name| !name.is_empty());
    let origin = format!("http://{}", name.unwrap_or_else(|| SocketAddr::new(vip, port).to_string()))
        .parse::<Uri>()
        .map_err(|error| said(error.to_string()))?;
    let mut connection = Some(TokioIo::new(connection));
    let connector = tower::service_fn(move |_: Uri| {
        let taken = connection.take().ok_or_else(|| std::io::Error::other("the connection was lost"));
        async move { taken }
    });
    let channel = Endpoint::from(origin).connect_with_connector(connector).await;
    let channel = channel.map_err(|error| said(format!("gRPC: {}", cause::innermost(&error))))?;
    let mut client = HealthClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
    let of = if probe.service.is_empty() { "the server".to_owned() } else { format!("service {}", probe.service) };
    match client.check(HealthCheckRequest { service: probe.service.clone() }).await {
        Ok(answer) => match answer.get_ref().status() {
            ServingStatus::Serving => Ok(()),
            other => Err(said(format!("{of} is {}", other.as_str_name()))),
        },
        Err(status) if status.code() == Code::NotFound => Err(said(format!("{of} is not known there"))),
        Err(status) => Err(said(format!("gRPC: {:?}: {}", status.code(), status.message()))),
    }
}
