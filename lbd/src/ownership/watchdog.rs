//! Watches another node's process by an idle TCP connection to its cluster listener. When the process dies,
//! its kernel says so at once: the connection ends, and new ones are refused. A machine that is gone says
//! nothing; for that there are the heartbeats.

use std::{io, time::Duration};

use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::connection::Security;

/// Between two attempts at a node that cannot be reached.
const AGAIN: Duration = Duration::from_millis(500);
const CONNECT: Duration = Duration::from_millis(1000);
/// A dying process closes its descriptors one by one: for a moment its listener may still be there.
const PROBES: u32 = 15;
const PROBE_EVERY: Duration = Duration::from_millis(1);

/// Calls `gone` whenever the process behind `address` has ended. Runs until it is aborted.
pub(super) async fn watch(security: Security, address: String, gone: impl Fn()) {
    loop {
        if let Ok(Ok(mut stream)) = timeout(CONNECT, security.dial(&address)).await {
            // Nothing that comes is of interest but its end.
            let mut buffer = [0; 512];
            while stream.read(&mut buffer).await.is_ok_and(|len| len > 0) {}
            if is_refused(&address).await {
                gone();
            }
        }
        sleep(AGAIN).await;
    }
}

async fn is_refused(address: &str) -> bool {
    for _ in 0..PROBES {
        match timeout(PROBE_EVERY, TcpStream::connect(address)).await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => return true,
            _ => sleep(PROBE_EVERY).await,
        }
    }
    false
}
