//! Proposals that a leader is writing: whoever proposes the same again joins the one that is on its way. A slow disk or a
//! slow majority must not have an entry for each attempt in the log.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use openraft::{
    Raft,
    errors::{ClientWriteError, RaftError},
};
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::watch;

use super::gate::{Gate, Pass};
use crate::{
    latency::latency_histogram,
    raft::TypeConfig,
    store::state_machine::StateMachine,
    table::{Command, Reply, encode_command},
};

/// What became of one attempt.
#[derive(Debug, Clone)]
pub(super) enum Attempt<T> {
    Done(T),
    /// Certainly nothing was done.
    NotSent,
    /// Something may have been done.
    Unknown,
}

type Waiting = watch::Receiver<Option<Attempt<Reply>>>;

/// By the command's bytes, its request id among them. Clones are handles to the same.
#[derive(Clone)]
pub(super) struct InFlight {
    all: Arc<Mutex<HashMap<Vec<u8>, Told>>>,
    gate: Gate,
    /// How long it takes to have a command agreed on and applied, once it may go into the log.
    commits: Histogram,
}

impl Default for InFlight {
    fn default() -> Self {
        Self { all: Arc::default(), gate: Gate::default(), commits: latency_histogram() }
    }
}

/// What becomes of a command is told by it, to all who wait.
type Told = Arc<watch::Sender<Option<Attempt<Reply>>>>;

impl InFlight {
    /// Has the leader write a command, unless it is doing so already; what becomes of it is seen here.
    pub(super) fn write(&self, raft: &Raft<TypeConfig, StateMachine>, command: &Command) -> Waiting {
        let bytes = encode_command(command);
        let mut all = self.lock();
        if let Some(told) = all.get(&bytes) {
            return told.subscribe();
        }
        let (told, waiting) = watch::channel(None);
        let told = Arc::new(told);
        all.insert(bytes.clone(), told.clone());
        let (in_flight, raft, command) = (self.clone(), raft.clone(), command.clone());
        // On a task of its own: a caller that gives up must not cut it short, once it goes into the log.
        tokio::spawn(async move {
            let Some(pass) = in_flight.pass(&bytes, &told, &command).await else { return };
            let begun = Instant::now();
            let outcome = write(&raft, command, pass).await;
            if let Attempt::Done(_) = outcome {
                in_flight.commits.observe(begun.elapsed().as_secs_f64());
            }
            in_flight.lock().remove(&bytes);
            told.send_replace(Some(outcome));
        });
        waiting
    }

    /// How long it has taken to have commands agreed on.
    pub(super) fn commits(&self) -> &Histogram {
        &self.commits
    }

    /// Whether commands that can wait do.
    pub(super) fn hold_back(&self, held_back: bool) {
        self.gate.hold_back(held_back);
    }

    /// Waits until a command may go into the log; `None` if nobody waits for it any more: then it is forgotten.
    async fn pass(&self, bytes: &[u8], told: &Told, command: &Command) -> Option<Pass> {
        loop {
            tokio::select! {
                pass = self.gate.pass(command) => return Some(pass),
                () = told.closed() => {
                    let mut all = self.lock();
                    // Somebody may have joined since.
                    if told.receiver_count() == 0 {
                        all.remove(bytes);
                        return None;
                    }
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Told>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write(raft: &Raft<TypeConfig, StateMachine>, command: Command, _pass: Pass) -> Attempt<Reply> {
    match raft.client_write(command).await {
        Ok(response) => Attempt::Done(response.data),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Attempt::NotSent,
        Err(error) => {
            tracing::debug!(%error, "a command was not written");
            Attempt::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Body, RequestId};

    #[tokio::test]
    async fn what_nobody_waits_for_is_forgotten_before_it_is_in_the_log() {
        let in_flight = InFlight::default();
        let command = Command { request: RequestId::parse("one").unwrap(), ..Body::Mutate(Vec::new()).into() };
        let mut passed = Vec::new();
        while let Ok(pass) =
            tokio::time::timeout(std::time::Duration::from_millis(20), in_flight.gate.pass(&command)).await
        {
            passed.push(pass);
        }
        let (told, waiting) = watch::channel(None);
        let told = Arc::new(told);
        in_flight.lock().insert(b"one".to_vec(), told.clone());
        drop(waiting);
        assert!(in_flight.pass(b"one", &told, &command).await.is_none());
        assert!(in_flight.lock().is_empty());
        // Whoever waits is served when there is room.
        let _waiting = told.subscribe();
        passed.pop();
        assert!(in_flight.pass(b"one", &told, &command).await.is_some());
    }
}
