//! How the node ends: on a signal, or because it must not go on; and in which order it lets go.

use lb_dataplane::Dataplane;
use lb_raft_store::Consensus;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};

use crate::{control::Leave, exit::Failure};

/// How a node leaves that ends like this.
pub(super) fn leave(outcome: &Result<(), Failure>) -> Leave {
    match outcome {
        Ok(()) => Leave::HandingOver,
        // It has no say any more, and may still get frames.
        Err(Failure::Removed(_)) => Leave::Forwarding,
        // What is broken is not to be relied on: the parent's obituary is quicker than a release that may not succeed.
        Err(_) => Leave::AtOnce,
    }
}

/// Returns on a signal, or with the reason why this node must not go on.
pub(super) async fn wait_for_the_end(
    signals: &mut Signals,
    consensus: &Consensus,
    dataplane: Option<&Dataplane>,
    followers: &mut JoinSet<()>,
) -> Result<(), Failure> {
    let mut fatal = consensus.fatal();
    loop {
        tokio::select! {
            () = signals.next() => return Ok(()),
            // None of them ends by itself: without it this node would own VIPs and not follow the table.
            ended = followers.join_next() => {
                let reason = ended.and_then(Result::err).map_or_else(|| "it returned".to_owned(), |e| e.to_string());
                return Err(Failure::FollowerEnded(reason));
            }
            changed = fatal.wait_for(Option::is_some) => {
                let reason = changed.ok().and_then(|reason| reason.clone());
                return Err(Failure::Removed(reason.unwrap_or_default()));
            }
            () = tokio::time::sleep(std::time::Duration::from_millis(200)) => {
                let status = consensus.status();
                if let Some(reason) = status.fatal {
                    return Err(Failure::StoreBroke { reason, disk_full: status.disk_full });
                }
                if dataplane.is_some_and(|dataplane| !dataplane.is_running()) {
                    return Err(Failure::WorkerEnded);
                }
            }
        }
    }
}

/// What asks a process to end.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
