//! Why a dataplane does not start, or does not change as it should.

use std::io;

use crate::{
    forward::steering::MAX_WORKERS,
    guard::GuardError,
    io::{EngineError, EngineKind},
};

/// Why a dataplane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No engine runs.
    #[error("engine {kind}: {source}")]
    Engine {
        /// The one that was tried last.
        kind: EngineKind,
        /// Why it does not run.
        source: EngineError,
    },
    /// The guard cannot be put in place.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// A thread, an event descriptor or the flow table.
    #[error("{0}: {1}")]
    Resource(&'static str, io::Error),
    /// A worker cannot run on the processor that is named for it.
    #[error(
        "a worker cannot run on processor {0}: {1} (there are those in /sys/devices/system/cpu/online, as far as the process may use them: CPUAffinity= and AllowedCPUs= of its unit)"
    )]
    Processor(usize, io::Error),
    /// The accelerator is asked for, and cannot be had.
    #[error("the accelerator: {}", accelerator_problem(.0))]
    Accelerator(io::Error),
    /// None, or more than are supported.
    #[error("{0} workers: must be from 1 to {MAX_WORKERS}")]
    Workers(usize),
}

/// Why there is no accelerator, and what to do.
pub(crate) fn accelerator_problem(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "the kernel takes no program ({error}): it wants CAP_BPF and CAP_NET_ADMIN, and not those of a user namespace"
        ),
        _ => error.to_string(),
    }
}

impl StartError {
    /// Whether a right is missing.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Engine { source: EngineError::Socket(error), .. } => error.is_permission(),
            Self::Guard(error) => error.is_permission(),
            Self::Accelerator(error) => error.kind() == io::ErrorKind::PermissionDenied,
            _ => false,
        }
    }

    /// Whether an interface is gone or down.
    pub(crate) fn is_absent(&self) -> bool {
        match self {
            Self::Engine { source: EngineError::Socket(error), .. } => error.is_absent(),
            _ => false,
        }
    }
}
