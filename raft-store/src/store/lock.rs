//! One process a store: the lock on its directory, and the wait for a store that is just being closed.

use std::{
    fs::File,
    io::{Read as _, Seek as _, Write as _},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::{error::StoreError, keys};

/// For a store that closes to let go of its files.
const CLOSING: Duration = Duration::from_secs(5);
/// For the process that had the store before to end: after SIGKILL its files stay open until its last thread is gone,
/// and whoever started it may start the next one sooner.
const ENDING: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// Held for as long as any part of the store is in use; the kernel drops it with the process.
pub(crate) struct DirLock {
    file: File,
}

impl Drop for DirLock {
    fn drop(&mut self) {
        give_back(&self.file);
    }
}

/// By name: a child that another thread has just forked holds the descriptor until it executes its program (flock(2)).
fn give_back(file: &File) {
    // Closing does it otherwise.
    let _ = flock(file, FlockOperation::Unlock);
}

/// sled's threads let go of its file some time after the last handle is dropped. Nobody but a store that
/// closes can hold it: the directory's lock is ours.
pub(super) fn wait_for_sled(path: &Path) -> Result<(), StoreError> {
    let failed = |error| StoreError::io("lock", path, error);
    let file = File::open(path).map_err(failed)?;
    acquire(&file, CLOSING).map_err(|error| failed(error.into()))?;
    // Given back right before sled takes it.
    give_back(&file);
    Ok(())
}

/// Tries again for so long while somebody else holds it.
fn acquire(file: &File, patience: Duration) -> rustix::io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(LOCK_PAUSE),
            decided => return decided,
        }
    }
}

/// Takes the directory for this process, also from one that is just ending.
pub(super) fn lock(dir: &Path) -> Result<DirLock, StoreError> {
    let path = dir.join(keys::LOCK_FILE);
    let at = |step: &'static str| {
        let path = path.clone();
        move |error| StoreError::io(step, &path, error)
    };
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(at("open"))?;
    match acquire(&file, ENDING) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // Only to name the holder: an unreadable note takes nothing away from the refusal.
            let _ = file.read_to_string(&mut holder);
            return Err(StoreError::Locked { path: dir.to_owned(), holder: holder.trim().parse().ok() });
        }
        Err(error) => return Err(at("lock")(error.into())),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| write!(file, "{}", std::process::id()))
        .map_err(at("write"))?;
    Ok(DirLock { file })
}
