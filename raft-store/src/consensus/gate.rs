//! Callers' writes on their way into a leader's log: so many at a time, and none for a moment while another node is so far behind
//! that it is about to lose its lease. Whoever writes faster than the nodes can follow is slowed down to what they can.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};

use crate::table::Command;

/// Callers' writes in a leader's log that are not agreed on yet. They share their way to the disk, so more would not be quicker; and
/// they go on while others are held back, so that a node that falls behind has to follow all of them yet.
const UNDER_WAY: usize = 128;
/// A node that has not caught up after so long is helped no more by waiting.
const HOLD_BACK: Duration = Duration::from_millis(500);

/// Clones are handles to the same.
#[derive(Clone)]
pub(super) struct Gate {
    room: Arc<Semaphore>,
    held_back: Arc<watch::Sender<bool>>,
}

/// A command may go into the log; it takes its room until this is dropped.
pub(super) struct Pass {
    _room: Option<OwnedSemaphorePermit>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(UNDER_WAY)), held_back: Arc::default() }
    }
}

impl Gate {
    /// Waits until a command may go into the log.
    pub(super) async fn pass(&self, command: &Command) -> Pass {
        if !command.can_wait() {
            return Pass { _room: None };
        }
        // Nobody closes it.
        let permit = self.room.clone().acquire_owned().await.ok();
        let mut held_back = self.held_back.subscribe();
        drop(timeout(HOLD_BACK, held_back.wait_for(|held_back| !held_back)).await);
        Pass { _room: permit }
    }

    /// Whether commands that can wait do.
    pub(super) fn hold_back(&self, held_back: bool) {
        self.held_back.send_replace(held_back);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use futures::FutureExt as _;

    use super::*;
    use crate::table::{Body, RequestId};

    fn of_a_caller() -> Command {
        Command { request: RequestId::parse("one").unwrap(), ..Body::Mutate(Vec::new()).into() }
    }

    #[tokio::test]
    async fn callers_wait_and_leases_do_not() {
        let (gate, caller, lease) = (Gate::default(), of_a_caller(), Body::Rebalance.into());
        gate.hold_back(true);
        let passed = gate.pass(&lease).now_or_never().expect("it waits for nobody");
        assert!(passed._room.is_none());
        let mut waiting = Box::pin(gate.pass(&caller));
        assert!((&mut waiting).now_or_never().is_none());
        gate.hold_back(false);
        drop(waiting.now_or_never().expect("nothing holds it back"));
        gate.hold_back(true);
        let begun = Instant::now();
        let mut passed = vec![gate.pass(&caller).await];
        assert!(begun.elapsed() >= HOLD_BACK, "nobody is waited for without end, and before it is waited");
        gate.hold_back(false);
        for _ in 1..UNDER_WAY {
            passed.push(gate.pass(&caller).await);
        }
        // With a budget of its own: who asks tokio for much at once is made to wait for that alone.
        tokio::task::yield_now().await;
        assert!(gate.pass(&caller).now_or_never().is_none(), "there is no more room");
        passed.pop();
        drop(gate.pass(&caller).now_or_never().expect("there is room again"));
    }
}
