//! The one thread that makes things durable. Callers put their records into sled (readable at once)
//! and hand over what to complete; the thread takes all that has gathered, syncs once, moves the
//! watermark, and completes them. A failed sync is final: nothing is known about what the kernel has
//! still to write, so nothing is acknowledged ever after.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use openraft::storage::IOFlushed;
use tokio::sync::oneshot;

use super::{
    error::{StoreError, refused_by_sled},
    watermark::{Disk, Watermark},
};
use crate::raft::{LogId, TypeConfig, Vote};

/// What becomes true once the records are durable.
pub(crate) enum Note {
    Appended(Option<LogId>),
    Voted(Vote),
    /// The log ends here now; told before the entries behind it go.
    Truncated(Option<LogId>),
    /// At the start: what the store holds.
    Found {
        vote: Option<Vote>,
        last: Option<LogId>,
    },
    Nothing,
}

enum Completion {
    Raft(IOFlushed<TypeConfig>),
    Waiter(oneshot::Sender<io::Result<()>>),
    /// While the store is opened, outside of any runtime.
    Opener(mpsc::Sender<io::Result<()>>),
}

struct Job {
    note: Note,
    completion: Completion,
}

/// The handle to the writer thread; the thread ends with the last handle.
#[derive(Clone)]
pub(crate) struct Writer {
    jobs: mpsc::Sender<Job>,
    failure: Failure,
    /// The watch ends with the last of these.
    _watched: mpsc::Sender<()>,
}

/// Why nothing is durable any more.
type Failure = Arc<Mutex<Option<StoreFailure>>>;

/// Why a store cannot be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreFailure {
    pub(crate) reason: String,
    /// That mends itself when somebody makes room.
    pub(crate) disk_full: bool,
}

/// Between two looks whether sled has failed.
const LOOK: Duration = Duration::from_millis(500);
/// Flushes of the watch that wait for a slow disk, at most.
const MAX_WAITING: usize = 32;

impl Writer {
    pub(crate) fn start(db: sled::Db, disk: Box<dyn Disk>, watermark: Watermark) -> io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let failure = Failure::default();
        let (watched, end) = mpsc::channel();
        let (watched_db, watched_failure) = (db.clone(), failure.clone());
        thread::Builder::new().name("store-watch".into()).spawn(move || watch(&watched_db, &watched_failure, &end))?;
        let state = State { db, disk, watermark, failure: failure.clone() };
        thread::Builder::new().name("store-writer".into()).spawn(move || state.run(&inbox))?;
        Ok(Self { jobs, failure, _watched: watched })
    }

    /// Completes openraft's callback when everything written so far is durable.
    pub(crate) fn complete(&self, note: Note, callback: IOFlushed<TypeConfig>) -> io::Result<()> {
        self.send(Job { note, completion: Completion::Raft(callback) })
    }

    /// Returns when everything written so far is durable.
    pub(crate) async fn barrier(&self, note: Note) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.send(Job { note, completion: Completion::Waiter(done) })?;
        wait.await.map_err(|_| gone())?
    }

    /// Makes what was found at the start durable, and has the watermark ask for it.
    pub(crate) fn recover(&self, vote: Option<Vote>, last: Option<LogId>) -> io::Result<()> {
        let (done, wait) = mpsc::channel();
        self.send(Job { note: Note::Found { vote, last }, completion: Completion::Opener(done) })?;
        wait.recv().map_err(|_| gone())?
    }

    /// Why nothing is durable any more, if so.
    pub(crate) fn failure(&self) -> Option<StoreFailure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What sled answered. An error is final, and known as such before whoever asked is told: it ends the node, and why it
    /// ended must not depend on who was told first.
    pub(crate) fn checked<T>(&self, answer: sled::Result<T>) -> io::Result<T> {
        answer.map_err(of_sled).inspect_err(|error| fail(&self.failure, error))
    }

    /// The same of a question to the store at `path`; what it says of damage ends the node by itself.
    pub(crate) fn read<T>(&self, path: &Path, answer: sled::Result<T>) -> Result<T, StoreError> {
        answer.map_err(|error| {
            let error = refused_by_sled(path, error);
            if let StoreError::Io { source, .. } = &error {
                fail(&self.failure, source);
            }
            error
        })
    }

    fn send(&self, job: Job) -> io::Result<()> {
        self.jobs.send(job).map_err(|_| gone())
    }
}

fn gone() -> io::Error {
    io::Error::other("the store's writer thread has ended")
}

fn fail(failure: &Failure, error: &io::Error) {
    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| {
        let disk_full = is_disk_full(error);
        tracing::error!(%error, disk_full, "the store cannot be written; this node stops taking part");
        StoreFailure { reason: error.to_string(), disk_full }
    });
}

fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What the system said to sled stays what it is.
fn of_sled(error: sled::Error) -> io::Error {
    match &error {
        sled::Error::Io(cause) => io::Error::new(cause.kind(), error.to_string()),
        _ => io::Error::other(error),
    }
}

/// Finds out that sled has failed. When a write fails, sled (0.34.7, Log::exit_reservation) notes the error and
/// does not wake those who wait for that write: they would wait for ever, be it the writer or a task that inserts
/// an entry. A flush that begins later meets the error, and wakes them all.
fn watch(db: &sled::Db, failure: &Failure, end: &mpsc::Receiver<()>) {
    let waiting = Arc::new(());
    while end.recv_timeout(LOOK) == Err(mpsc::RecvTimeoutError::Timeout) {
        if Arc::strong_count(&waiting) > MAX_WAITING {
            continue;
        }
        let (db, failure, here) = (db.clone(), failure.clone(), waiting.clone());
        // On a thread of its own: one that has begun before the error waits like all others.
        let look = thread::Builder::new().name("store-look".into()).spawn(move || {
            if let Err(error) = db.flush() {
                fail(&failure, &of_sled(error));
            }
            drop(here);
        });
        if let Err(error) = look {
            tracing::warn!(%error, "the store cannot be watched");
        }
    }
}

struct State {
    db: sled::Db,
    disk: Box<dyn Disk>,
    watermark: Watermark,
    failure: Failure,
}

impl State {
    fn run(mut self, inbox: &mpsc::Receiver<Job>) {
        while let Ok(first) = inbox.recv() {
            let mut group = vec![first];
            group.extend(inbox.try_iter());
            let result = self.commit(&group);
            if let Err(error) = &result {
                fail(&self.failure, error);
            }
            for job in group {
                let result = result.as_ref().map(|&()| ()).map_err(|e| io::Error::new(e.kind(), e.to_string()));
                match job.completion {
                    Completion::Raft(callback) => callback.io_completed(result),
                    // A caller that no longer waits needs no answer.
                    Completion::Waiter(done) => drop(done.send(result)),
                    Completion::Opener(done) => drop(done.send(result)),
                }
            }
        }
    }

    fn commit(&mut self, group: &[Job]) -> io::Result<()> {
        if let Some(failure) = &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(io::Error::other(failure.reason.clone()));
        }
        self.db.flush().map_err(of_sled)?;
        self.disk.sync_log()?;
        let before = self.watermark.clone();
        for job in group {
            match &job.note {
                Note::Appended(last) => self.watermark.last = self.watermark.last.max(*last),
                Note::Truncated(last) => self.watermark.last = *last,
                Note::Voted(vote) => self.watermark.vote = Some(*vote),
                Note::Found { vote, last } => {
                    self.watermark.vote = *vote;
                    self.watermark.last = self.watermark.last.max(*last);
                }
                Note::Nothing => {}
            }
        }
        if self.watermark == before {
            return Ok(());
        }
        self.watermark.sequence += 1;
        self.disk.write_watermark(self.watermark.slot(), &self.watermark.encode())
    }
}
