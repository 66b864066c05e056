//! Descriptors that a service manager keeps while there is no process (sd_listen_fds(3), FDSTORE=1 in sd_notify(3)).

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
};

/// What this process was given by its service manager, by name. Once: they are somebody's from then on.
///
/// # Errors
/// The environment variables that tell of them are not what they should be.
pub fn by_service_manager() -> io::Result<Vec<(String, OwnedFd)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let all = sd_notify::listen_fds_with_names()?;
    // SAFETY: the manager opened them for this process, whose id it has named, and the library has found them open; nobody else
    // here knows their numbers, and this is done once.
    Ok(all.map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) })).collect())
}
