//! Watches another node's process by an idle connection to its cluster listener. When the process dies, its kernel says so at
//! once: the connection ends, and new ones are refused. A machine that is gone says nothing; for that there are the
//! heartbeats, whose key the two ends have from this connection.

use std::{io, time::Duration};

use lb_raft_store::table::NodeId;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::{sleep, timeout},
};

use super::pairs::PairKey;
use crate::connection::{Security, Stream, Watched};

/// Between two attempts at a node that cannot be reached.
const AGAIN: Duration = Duration::from_millis(500);
const CONNECT: Duration = Duration::from_millis(1000);
/// A dying process closes its descriptors one by one: for a moment its listener may still be there.
const PROBES: u32 = 15;
const PROBE_EVERY: Duration = Duration::from_millis(1);
/// A key is used no longer: then the connection is made anew.
const KEY_LIFE: Duration = Duration::from_secs(24 * 3600);
/// What the end that is watched says when it has the key; the other one answers with its id.
const HAVE_KEY: u8 = 1;

/// Whom to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// Who watches it.
    pub(super) by: NodeId,
    pub(super) name: String,
    pub(super) address: String,
}

/// Calls `gone` whenever the process behind the address has ended, and `share` with each key that both ends have. Runs until it
/// is aborted.
pub(super) async fn watch(security: Security, target: Target, gone: impl Fn(), share: impl Fn(PairKey)) {
    loop {
        let is_over = match timeout(CONNECT, connect(&security, &target, &share)).await {
            Ok(Ok(mut stream)) => timeout(KEY_LIFE, until_its_end(&mut stream)).await.is_ok(),
            Ok(Err(error)) => {
                tracing::debug!(node = target.name, %error, "the node's process cannot be watched");
                false
            }
            Err(_) => false,
        };
        if is_over && is_refused(&target.address).await {
            gone();
        }
        sleep(AGAIN).await;
    }
}

async fn connect(security: &Security, target: &Target, share: &impl Fn(PairKey)) -> io::Result<Box<dyn Stream>> {
    let mut watch = security.watch(&target.address, &target.name).await?;
    if let Some(secret) = &watch.secret {
        // The other end has it first, so that it understands what this one signs.
        watch.stream.read_u8().await?;
        share(secret.into());
        watch.stream.write_u64(target.by).await?;
        watch.stream.flush().await?;
    }
    Ok(watch.stream)
}

/// Nothing that comes is of interest but its end.
async fn until_its_end(stream: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = [0; 512];
    while stream.read(&mut buffer).await.is_ok_and(|len| len > 0) {}
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

/// Lets other nodes watch this process. `share`: has a key of the node of that name, and of that id when it has answered that it has
/// the key, too; false if there is no such node: an earlier one of the name may come once more. Runs until it is aborted.
pub(super) async fn be_watched(
    mut watches: mpsc::UnboundedReceiver<Watched>,
    share: impl Fn(&str, PairKey, Option<NodeId>) -> bool + Clone + Send + Sync + 'static,
) {
    while let Some(mut watched) = watches.recv().await {
        let share = share.clone();
        tokio::spawn(async move {
            let key = PairKey::from(&watched.secret);
            let shaken = timeout(CONNECT, async {
                if !share(&watched.by, key, None) {
                    return Err(io::Error::other("it is no node of the table"));
                }
                watched.stream.write_u8(HAVE_KEY).await?;
                watched.stream.flush().await?;
                watched.stream.read_u64().await
            });
            match shaken.await {
                Ok(Ok(id)) if share(&watched.by, key, Some(id)) => tokio::select! {
                    () = until_its_end(&mut watched.stream) => {}
                    end = watched.ends => tracing::warn!(by = watched.by, "a node watches no more: its certificate {end}"),
                },
                Ok(Err(error)) => tracing::debug!(by = watched.by, %error, "this process is not watched"),
                _ => {}
            }
        });
    }
    std::future::pending().await
}
