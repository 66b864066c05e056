//! The listeners: bound before anything else starts, so that a taken address is told.

use std::{io, net::TcpListener, os::unix::net::UnixListener, time::Duration};

use lb_proto::{
    DESCRIPTORS, MAX_MESSAGE_LEN,
    v1::{
        cluster_service_server::ClusterServiceServer, node_service_server::NodeServiceServer,
        raft_service_server::RaftServiceServer, table_service_server::TableServiceServer,
    },
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tonic::{service::Routes, transport::Server};
use tonic_health::pb::health_server::{Health, HealthServer};

use super::{
    Context, bounds::Bounds, cluster::Cluster, methods::unruled, node::Node, roles::Roles, serving, table::Table,
};
use crate::{
    bind,
    config::ApiListener,
    connection::{Refusals, Room, Security, Watched, incoming, incoming_unix},
    exit::Failure,
    raft::RaftServer,
};

/// The key of the API's addresses.
const KEY: &str = "api.listen";

/// The API's sockets, bound and not served yet.
pub(crate) struct Listeners {
    tcp: Vec<TcpListener>,
    unix: Vec<UnixListener>,
}

impl Listeners {
    pub(crate) fn bind(listeners: &[ApiListener]) -> Result<Self, Failure> {
        let mut bound = Self { tcp: Vec::new(), unix: Vec::new() };
        for listener in listeners {
            match listener {
                ApiListener::Tcp(address) => bound.tcp.push(bind::tcp(KEY, *address)?),
                ApiListener::Unix(path) => bound.unix.push(bind::unix(KEY, path)?),
            }
        }
        Ok(bound)
    }

    /// Serves the API on all of them until `stop` is true, by the threads of a runtime of its own: whatever callers do, Raft and
    /// leases do not wait for it.
    pub(crate) fn serve(
        self,
        context: &Context,
        security: &Security,
        stop: &watch::Receiver<bool>,
        (tasks, runtime): (&mut JoinSet<()>, &Handle),
    ) -> io::Result<()> {
        let _entered = runtime.enter();
        let (reporter, health) = tonic_health::server::health_reporter();
        tasks.spawn_on(serving::report(reporter, context.consensus.clone(), stop.clone()), runtime);
        let unruled = [DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET].map(unruled).concat();
        if !unruled.is_empty() {
            return Err(io::Error::other(format!("nobody has said who may call {}", unruled.join(", "))));
        }
        let routes = routes(context, health).map_err(io::Error::other)?;
        let bounds = Bounds::new(context.refusals.clone());
        let room_for = |count| Room::for_connections(count, context.refusals.clone());
        let (room, local) = (room_for(CONNECTIONS), room_for(CONNECTIONS));
        let server = || {
            Server::builder()
                .http2_keepalive_interval(Some(KEEPALIVE))
                .http2_keepalive_timeout(Some(KEEPALIVE))
                .max_concurrent_streams(Some(STREAMS_OF_A_CONNECTION))
                .max_frame_size(Some(MAX_FRAME))
                .http2_max_header_list_size(Some(MAX_HEADERS))
                .layer(Roles { refusals: context.refusals.clone() })
                .layer(bounds.clone())
                .add_routes(routes.clone())
        };
        for listener in self.tcp {
            let incoming = incoming(listener, security.clone(), room.clone(), None)?;
            let serve = server().serve_with_incoming_shutdown(incoming, stopped(stop.clone()));
            tasks.spawn_on(async move { log_end("the API's TCP listener", serve.await) }, runtime);
        }
        for listener in self.unix {
            // Whoever fills the network's room does not lock the operators of this machine out.
            let incoming = incoming_unix(listener, local.clone())?;
            let serve = server().serve_with_incoming_shutdown(incoming, stopped(stop.clone()));
            tasks.spawn_on(async move { log_end("the API's Unix socket", serve.await) }, runtime);
        }
        Ok(())
    }
}

/// Connections by TCP, and as many by Unix sockets.
const CONNECTIONS: usize = 2000;
/// Of other nodes, on the cluster's listeners.
const CONNECTIONS_OF_NODES: usize = 256;
/// Calls of another node at a time: it forwards its callers' writes.
const STREAMS_OF_A_NODE: u32 = 1024;
/// What HTTP/2 has by default (RFC 9113 6.5.2); more would only be memory.
const MAX_FRAME: u32 = 16 << 10;
/// Of a call.
const MAX_HEADERS: u32 = 16 << 10;
/// Calls of one connection at a time; more of them wait.
const STREAMS_OF_A_CONNECTION: u32 = 128;
/// A connection over which nothing is heard is asked whether it is there, and has so long to answer.
const KEEPALIVE: Duration = Duration::from_secs(20);

fn routes<H: Health>(context: &Context, health: HealthServer<H>) -> Result<Routes, tonic_reflection::server::Error> {
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Many clients ask for the version before the first only.
    let (reflection, reflection_alpha) = (described().build_v1()?, described().build_v1alpha()?);
    let table = TableServiceServer::new(Table(context.clone())).max_decoding_message_size(MAX_MESSAGE_LEN);
    let cluster = ClusterServiceServer::new(Cluster(context.clone())).max_decoding_message_size(MAX_MESSAGE_LEN);
    let node = NodeServiceServer::new(Node(context.clone())).max_decoding_message_size(MAX_MESSAGE_LEN);
    let all = Routes::new(table).add_service(cluster).add_service(node).add_service(health);
    Ok(all.add_service(reflection).add_service(reflection_alpha))
}

/// Serves the other nodes on the cluster's listeners.
pub(crate) fn serve_nodes(
    listeners: Vec<TcpListener>,
    security: &Security,
    watches: &mpsc::UnboundedSender<Watched>,
    (service, refusals): (&RaftServiceServer<RaftServer>, &Refusals),
    stop: &watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
) -> io::Result<()> {
    let room = Room::for_connections(CONNECTIONS_OF_NODES, refusals.clone());
    for listener in listeners {
        let incoming = incoming(listener, security.clone(), room.clone(), Some(watches.clone()))?;
        let serve = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(Some(STREAMS_OF_A_NODE))
            .add_service(service.clone())
            .serve_with_incoming_shutdown(incoming, stopped(stop.clone()));
        tasks.spawn(async move { log_end("the cluster's listener", serve.await) });
    }
    Ok(())
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error means that the sender is gone: a stop as well.
    drop(stop.wait_for(|stop| *stop).await);
}

fn log_end(what: &str, outcome: Result<(), tonic::transport::Error>) {
    if let Err(error) = outcome {
        tracing::error!(%error, "{what} ended");
    }
}
