//! Connections whose other end is gone without a word.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// A connection over which nothing comes is asked after so long, and then so often, whether it is there.
const IDLE: Duration = Duration::from_secs(10);
const EVERY: Duration = Duration::from_secs(5);
const TIMES: u32 = 3;

/// Ends a connection some 25 s after its other end has gone: it would keep its place for ever.
pub(super) fn keep_alive(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new().with_time(IDLE).with_interval(EVERY).with_retries(TIMES);
    let whole = IDLE + EVERY * TIMES;
    // Where the system refuses that, the connection is as good as others.
    if let Err(error) = socket.set_tcp_keepalive(&probes).and_then(|()| socket.set_tcp_user_timeout(Some(whole))) {
        tracing::debug!(%error, "a connection has no keepalive");
    }
}
