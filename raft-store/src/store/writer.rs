//! The one thread that makes things durable. Callers put their records into sled (readable at once) and hand over the same
//! for the journal, with what to complete; the thread takes all that has gathered, appends it to the journal in one write and
//! one sync, moves the watermark, and completes it. A failed sync is final: nothing is known about what the kernel has still
//! to write, so nothing is acknowledged ever after.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
    time::Instant,
};

use openraft::storage::IOFlushed;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{
    disk::Disk,
    failure::Failure,
    journal::{Journal, Record},
    slow::Watched,
    watermark::{Watermark, WatermarkFile},
};
use crate::raft::TypeConfig;

enum Completion {
    Raft(IOFlushed<TypeConfig>),
    Waiter(oneshot::Sender<io::Result<()>>),
}

enum Job {
    /// What becomes durable, and who is told.
    Write(Vec<Record>, Completion),
    /// Entries up to this one are in two snapshots.
    Retire(u64),
}

/// The handle to the writer thread; the thread ends with the last handle.
#[derive(Clone)]
pub(crate) struct Writer {
    jobs: mpsc::Sender<Job>,
    failure: Failure,
    syncs: Histogram,
}

/// What the writer writes to.
pub(crate) struct Sink {
    pub(crate) store: Uuid,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) journal: Journal,
    pub(crate) watermark: WatermarkFile,
    pub(crate) failure: Failure,
    /// How long it takes to make records durable.
    pub(crate) syncs: Histogram,
}

impl Writer {
    /// `lock`: of the store, which stays locked until the thread is done with its files.
    pub(crate) fn start(sink: Sink, lock: impl Send + 'static) -> io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let (failure, syncs) = (sink.failure.clone(), sink.syncs.clone());
        thread::Builder::new().name("store-writer".into()).spawn(move || {
            sink.run(&inbox);
            drop(lock);
        })?;
        Ok(Self { jobs, failure, syncs })
    }

    /// Why nothing is durable any more, if so.
    pub(crate) fn failure(&self) -> &Failure {
        &self.failure
    }

    /// How long it has taken to make records durable.
    pub(crate) fn syncs(&self) -> &Histogram {
        &self.syncs
    }

    /// Completes openraft's callback when the records, and everything handed over before, are durable.
    pub(crate) fn complete(&self, records: Vec<Record>, callback: IOFlushed<TypeConfig>) -> io::Result<()> {
        self.send(Job::Write(records, Completion::Raft(callback)))
    }

    /// Returns when the records, and everything handed over before, are durable.
    pub(crate) async fn write(&self, records: Vec<Record>) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.send(Job::Write(records, Completion::Waiter(done)))?;
        wait.await.map_err(|_| gone())?
    }

    /// Gives back the space of entries up to one that are in two snapshots.
    pub(crate) fn retire(&self, covered: u64) -> io::Result<()> {
        self.send(Job::Retire(covered))
    }

    fn send(&self, job: Job) -> io::Result<()> {
        self.jobs.send(job).map_err(|_| gone())
    }
}

fn gone() -> io::Error {
    io::Error::other("the store's writer thread has ended")
}

impl Sink {
    fn run(mut self, inbox: &mpsc::Receiver<Job>) {
        while let Ok(first) = inbox.recv() {
            let (mut records, mut waiting, mut retired) = (Vec::new(), Vec::new(), None);
            for job in std::iter::once(first).chain(inbox.try_iter()) {
                match job {
                    Job::Write(new, completion) => {
                        records.extend(new);
                        waiting.push(completion);
                    }
                    Job::Retire(covered) => retired = retired.max(Some(covered)),
                }
            }
            let (watched, begun) = (Watched::begin("making records durable"), Instant::now());
            let result = self.commit(&records);
            drop(watched);
            self.syncs.observe(begun.elapsed().as_secs_f64());
            if let Err(error) = &result {
                self.failure.note(error);
            }
            for completion in waiting {
                let result = result.as_ref().map(|&()| ()).map_err(|e| io::Error::new(e.kind(), e.to_string()));
                match completion {
                    Completion::Raft(callback) => callback.io_completed(result),
                    // A caller that no longer waits needs no answer.
                    Completion::Waiter(done) => drop(done.send(result)),
                }
            }
            // After a failure nobody knows which segment is the last sound one.
            if let Some(covered) = retired.filter(|_| result.is_ok()) {
                self.journal.retire(covered);
            }
        }
    }

    fn commit(&mut self, records: &[Record]) -> io::Result<()> {
        if let Some(failure) = self.failure.get() {
            return Err(io::Error::other(failure.reason));
        }
        if records.is_empty() {
            return Ok(());
        }
        let begun = self.journal.append(records)?;
        self.mark()?;
        // What it lags behind by is less than a segment then.
        if begun { self.watermark.sync(&*self.disk) } else { Ok(()) }
    }

    /// Moves the watermark to the journal's end.
    pub(crate) fn mark(&mut self) -> io::Result<()> {
        let (state, sequence) = self.journal.state();
        let (vote, last) = (state.vote, state.last);
        self.watermark.write(&*self.disk, &Watermark { sequence, vote, last, store: self.store })
    }
}
