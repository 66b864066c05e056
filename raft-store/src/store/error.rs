//! Why a store cannot be opened or used, in words that say what to do.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::codec::DecodeError;

/// Why a store cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// What it holds is not what was acknowledged.
    #[error(
        "the store at {} is damaged: {what}. It is not safe to go on from it, because a node that has forgotten a vote \
         or an acknowledged change can break the cluster. To repair: on another node run 'lbctl node remove NAME \
         --force', empty this directory, start lbd again and run 'lbctl node add NAME ADDRESS'",
        path.display()
    )]
    Damaged {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A newer build has written it, and the cluster has agreed since on what only newer builds know.
    #[error(
        "the store at {} needs feature level {needed}, and this lbd knows {known}: install the version that was here, \
         or a newer one",
        path.display()
    )]
    TooNew {
        /// The file or directory.
        path: PathBuf,
        /// What it needs.
        needed: u32,
        /// What this build knows.
        known: u32,
    },
    /// `lbd recover` was cut short.
    #[error(
        "in {} a recovery was cut short: run 'lbd recover' with the same options again, which finishes it",
        path.display()
    )]
    Unfinished {
        /// The data directory.
        path: PathBuf,
    },
    /// Another process uses it.
    #[error(
        "the store at {} is locked by another lbd{}: one process uses a data_dir at a time",
        path.display(),
        holder.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Locked {
        /// The data directory.
        path: PathBuf,
        /// The process that holds it, if it said so.
        holder: Option<i32>,
    },
    /// A system call failed.
    #[error("cannot {step} {}: {source}{}", path.display(), hint(source))]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl StoreError {
    pub(crate) fn io(step: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { step, path: path.to_owned(), source }
    }

    /// Whether it mends itself when somebody makes room.
    pub fn is_disk_full(&self) -> bool {
        let full = |kind| matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        matches!(self, Self::Io { source, .. } if full(source.kind()))
    }

    /// The medium does not give back what was written.
    pub(crate) fn is_unreadable(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_unreadable(source))
    }

    /// What is stored there cannot be decoded.
    pub(crate) fn unreadable(path: &Path, what: impl std::fmt::Display, error: DecodeError) -> Self {
        match error {
            DecodeError::TooNew { needed, known } => Self::TooNew { path: path.to_owned(), needed, known },
            error => Self::damaged(path, format!("{what}: {error}")),
        }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), what: what.into() }
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        Self::other(error)
    }
}

/// EIO: a bad sector.
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => ": the directory must belong to the user that lbd runs as",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ": free some space and start lbd again",
        io::ErrorKind::ReadOnlyFilesystem => ": data_dir needs a file system that can be written to",
        _ => "",
    }
}

/// What sled says on opening or reading: a failed system call, or damage that it noticed itself.
pub(crate) fn refused_by_sled(path: &Path, error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(error) if error.kind() != io::ErrorKind::Other => StoreError::io("open", path, error),
        error => StoreError::damaged(path, error.to_string()),
    }
}
