//! Proposals that a leader is writing: whoever proposes the same again joins the one that is on its way. A slow disk or a
//! slow majority must not have an entry for each attempt in the log.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use openraft::{
    Raft,
    errors::{ClientWriteError, RaftError},
};
use tokio::sync::watch;

use super::gate::{Gate, Pass};
use crate::{
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
#[derive(Clone, Default)]
pub(super) struct InFlight(Arc<Mutex<HashMap<Vec<u8>, Waiting>>>);

impl InFlight {
    /// Has the leader write a command, unless it is doing so already; what becomes of it is seen here.
    pub(super) fn write(&self, raft: &Raft<TypeConfig, StateMachine>, gate: &Gate, command: &Command) -> Waiting {
        let bytes = encode_command(command);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = all.get(&bytes) {
            return waiting.clone();
        }
        let (done, waiting) = watch::channel(None);
        all.insert(bytes.clone(), waiting.clone());
        let (all, raft, gate, command) = (self.clone(), raft.clone(), gate.clone(), command.clone());
        // On a task of its own: a caller that gives up must not cut it short, once it goes into the log.
        tokio::spawn(async move {
            let pass = tokio::select! {
                pass = gate.pass(&command) => Some(pass),
                () = done.closed() => None,
            };
            let outcome = match pass {
                Some(pass) => write(&raft, command, pass).await,
                None => Attempt::NotSent,
            };
            all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&bytes);
            done.send_replace(Some(outcome));
        });
        waiting
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
