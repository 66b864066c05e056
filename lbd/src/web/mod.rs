//! HTTP for people and monitoring: the page, and what `metrics` has. It only reads.

mod guard;
mod live;
mod page;
mod state;

use std::{io, net::TcpListener, pin::pin, time::Duration};

use axum::{Extension, Router, middleware::from_fn};
use futures::{Stream, StreamExt as _};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    runtime::Handle,
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tonic::transport::server::Connected;

use self::live::Live;
use crate::{
    api::Context,
    connection::{Peer, Room, Security, incoming},
    metrics::{self, Collect},
};

/// Whoever scrapes keeps a connection or two, and a page that is open one.
const CONNECTIONS: usize = 64;
/// Whoever has connected says within so long what is wanted.
const HEADERS: Duration = Duration::from_secs(10);
/// By HTTP/2, at the same time on one connection.
const STREAMS: u32 = 4;
/// A connection is closed after so long: whoever goes on makes another one.
const CONNECTION_LIFE: Duration = Duration::from_secs(600);

/// Serves until `stop` is true.
pub(crate) fn serve(
    listener: TcpListener,
    security: Security,
    (context, collect): (Context, Collect),
    stop: watch::Receiver<bool>,
    (tasks, runtime): (&mut JoinSet<()>, &Handle),
) -> io::Result<()> {
    let _entered = runtime.enter();
    let room = Room::for_connections(CONNECTIONS, collect.refusals.clone());
    let live = Live::default();
    let pages = page::routes(live.clone());
    let mut router = metrics::routes(collect).merge(pages).layer(from_fn(guard::only_readers));
    if listener.local_addr()?.ip().is_loopback() {
        router = router.layer(from_fn(guard::only_by_own_names));
    }
    tasks.spawn_on(live.run(context), runtime);
    let connections = incoming(listener, security, room, None)?;
    tasks.spawn_on(accept(connections, router, stop), runtime);
    Ok(())
}

async fn accept<C>(connections: impl Stream<Item = io::Result<C>>, router: Router, mut stop: watch::Receiver<bool>)
where
    C: Connected<ConnectInfo = Peer> + AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connections = pin!(connections);
    loop {
        let admitted = tokio::select! {
            admitted = connections.next() => admitted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let Some(admitted) = admitted else { return };
        let Ok(admitted) = admitted else { continue };
        let service = TowerToHyperService::new(router.clone().layer(Extension(admitted.connect_info())));
        tokio::spawn(async move {
            let mut builder = Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
            builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS);
            let served = builder.serve_connection(TokioIo::new(admitted), service);
            // What breaks is the other end's business.
            let _ = timeout(CONNECTION_LIFE, served).await;
        });
    }
}
