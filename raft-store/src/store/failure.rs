//! Why nothing is durable any more: said once, and known before whoever asked is told, because it ends the node, and why it
//! ended must not depend on who was told first.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use super::error::{StoreError, refused_by_sled};

/// Why a store cannot be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreFailure {
    pub(crate) reason: String,
    /// That mends itself when somebody makes room.
    pub(crate) disk_full: bool,
}

/// Shared by all parts of a store; the first failure stays.
#[derive(Clone, Default)]
pub(crate) struct Failure(Arc<Mutex<Option<StoreFailure>>>);

impl Failure {
    /// The failure, if there was one.
    pub(crate) fn get(&self) -> Option<StoreFailure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nothing is durable any more, because of this.
    pub(crate) fn note(&self, error: &io::Error) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| {
            let disk_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            tracing::error!(%error, disk_full, "the store cannot be written; this node stops taking part");
            StoreFailure { reason: error.to_string(), disk_full }
        });
    }

    /// What sled answered; an error is final.
    pub(crate) fn checked<T>(&self, answer: sled::Result<T>) -> io::Result<T> {
        answer.map_err(of_sled).inspect_err(|error| self.note(error))
    }

    /// The same of a question to the store at `path`; what it says of damage ends the node by itself.
    pub(crate) fn read<T>(&self, path: &Path, answer: sled::Result<T>) -> Result<T, StoreError> {
        answer.map_err(|error| {
            let error = refused_by_sled(path, error);
            if let StoreError::Io { source, .. } = &error {
                self.note(source);
            }
            error
        })
    }
}

/// What the system said to sled stays what it is.
pub(super) fn of_sled(error: sled::Error) -> io::Error {
    match &error {
        sled::Error::Io(cause) => io::Error::new(cause.kind(), error.to_string()),
        _ => io::Error::other(error),
    }
}
