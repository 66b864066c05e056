//! Opening: the lock, the watermark, the journal, the newest snapshot, and sled brought to what these say.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use prometheus_client::metrics::histogram::Histogram;
use uuid::Uuid;

use super::{
    convert,
    disk::{Disk, Files},
    error::StoreError,
    failure::StoreFailure,
    identity::Identity,
    inspect,
    journal::{self, Journal, Record, Replayed, State},
    keys,
    lock::lock,
    log_store::LogStore,
    reconcile::{Wanted, reconcile},
    snapshots::Snapshots,
    state_machine::StateMachine,
    watermark::{self, Watermark, WatermarkFile},
    writer::{Sink, Writer},
};
use crate::{feed::Publisher, latency::latency_histogram, raft::Snapshot};

/// An open store. It is closed when the last of its parts is dropped.
pub(crate) struct Store {
    pub(crate) log: LogStore,
    pub(crate) machine: StateMachine,
    pub(crate) identity: Option<Identity>,
    pub(crate) uuid: Uuid,
    /// How often it was opened, this time included.
    pub(crate) starts: u32,
    dir: PathBuf,
    writer: Writer,
}

impl Store {
    /// Opens or creates the store in `dir`.
    pub(crate) fn open(dir: &Path, publisher: Publisher) -> Result<Self, StoreError> {
        Self::open_on(dir, publisher, Arc::new(Files))
    }

    /// The same on a disk that tests may put in between.
    pub(crate) fn open_on(dir: &Path, publisher: Publisher, disk: Arc<dyn Disk>) -> Result<Self, StoreError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| StoreError::io("create", dir, error))?;
        // One that a recovery has made is not where it belongs.
        let lock = Arc::new(lock(dir)?);
        // One that cannot be looked at counts too: root has begun it, and this is not root.
        if dir.join(keys::RECOVERY_DIR).join(keys::RECOVERY_PLAN).try_exists().unwrap_or(true) {
            return Err(StoreError::Unfinished { path: dir.to_owned() });
        }
        inspect::remove_copy(dir);
        let (watermark_file, watermark) = begin(dir, &disk)?;
        let journal_dir = dir.join(keys::JOURNAL_DIR);
        let replayed = journal::replay(&journal_dir, &watermark)?;
        let store = watermark.store;
        let snapshots = Snapshots::open(dir.join(keys::SNAPSHOTS_DIR), store, disk.clone())?;
        let snapshot = newest(&snapshots, &replayed)?;
        let wanted = Wanted { journal: &replayed, snapshot: snapshot.as_ref() };
        let (trees, sizes) = reconcile(dir, &wanted)?;
        let at_journal = |error| StoreError::io("write", &journal_dir, error);
        let journal = Journal::open(&journal_dir, store, disk.clone(), &replayed).map_err(at_journal)?;
        let (identity, starts) = (journal.state().0.identity.clone(), journal.state().0.starts);
        let (failure, syncs) = (trees.failure().clone(), latency_histogram());
        let mut sink = Sink { store, disk: disk.clone(), journal, watermark: watermark_file, failure, syncs };
        sink.mark()
            .and_then(|()| sink.watermark.sync(&*disk))
            .map_err(|error| StoreError::io("write", &dir.join(keys::WITNESS_FILE), error))?;
        let writer =
            Writer::start(sink, lock.clone()).map_err(|error| StoreError::io("start the writer of", dir, error))?;
        let log = LogStore::new(trees.clone(), sizes, writer.clone(), lock);
        let machine = StateMachine::open((trees, snapshots), writer.clone(), publisher, snapshot.as_ref())?;
        Ok(Self { log, machine, identity, uuid: store, starts, dir: dir.to_owned(), writer })
    }

    /// Makes the node's place in a cluster durable.
    pub(crate) async fn adopt(&self, identity: &Identity) -> io::Result<()> {
        self.writer.write(vec![Record::Identity(identity.clone())]).await
    }

    /// Another node knows that this is an older copy: it is never used again.
    pub(crate) async fn disown(&self) -> StoreError {
        let error = StoreError::damaged(&self.dir, journal::OLDER_COPY);
        if let Err(error) = self.writer.write(vec![Record::OlderCopy]).await {
            tracing::error!(%error, "that the store is an older copy could not be noted");
        }
        self.writer.failure().note(&io::Error::other(error.to_string()));
        error
    }

    /// How long it has taken to make records durable.
    pub(crate) fn syncs(&self) -> &Histogram {
        self.writer.syncs()
    }

    /// How many bytes it takes on the disk, by part.
    pub(crate) fn sizes(&self) -> [(&'static str, u64); 3] {
        [keys::JOURNAL_DIR, keys::SLED_DIR, keys::SNAPSHOTS_DIR].map(|part| (part, bytes_below(&self.dir.join(part))))
    }

    /// Why nothing is durable any more, if so.
    pub(crate) fn failure_probe(&self) -> impl Fn() -> Option<StoreFailure> + Send + Sync + use<> {
        let failure = self.writer.failure().clone();
        move || failure.get()
    }
}

/// Of the files below a directory, which may come and go meanwhile.
fn bytes_below(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = entries.filter_map(|entry| {
        let found = entry.metadata().ok()?;
        Some(if found.is_dir() { bytes_below(&entry.path()) } else { found.blocks() * 512 })
    });
    bytes.sum()
}

/// The watermark of what there is. What is not there yet is made, and what was made by a build that knew no journal is
/// given one.
fn begin(dir: &Path, disk: &Arc<dyn Disk>) -> Result<(WatermarkFile, Watermark), StoreError> {
    let [witness, journal, sled] = [keys::WITNESS_FILE, keys::JOURNAL_DIR, keys::SLED_DIR].map(|name| dir.join(name));
    let is_there = |path: &Path| path.try_exists().map_err(|error| StoreError::io("look at", path, error));
    let (has_journal, has_sled) = (is_there(&journal)?, is_there(&sled)?);
    if !is_there(&witness)? {
        if has_journal || has_sled {
            return Err(StoreError::damaged(&witness, "the witness file is missing beside the store's data"));
        }
        watermark::create(dir, &witness, &**disk)?;
    }
    let (file, watermark) = WatermarkFile::open(&witness)?;
    match (has_journal, has_sled) {
        (true, _) => {}
        (false, true) => convert::convert(dir, &watermark, disk)?,
        (false, false) if watermark.is_fresh() => {
            // Sequence 1: 0 is what nothing has.
            Journal::create(&journal, watermark.store, &**disk, 1, (State::default(), &[]))
                .map_err(|error| StoreError::io("create", &journal, error))?;
        }
        (false, false) => {
            return Err(StoreError::damaged(&journal, "the witness speaks of data, and the journal is missing"));
        }
    }
    Ok((file, watermark))
}

/// The newest snapshot from which the journal goes on.
fn newest(snapshots: &Snapshots, journal: &Replayed) -> Result<Option<Snapshot>, StoreError> {
    let (snapshot, unsound) = snapshots.newest()?;
    let held = snapshot.as_ref().and_then(|snapshot| snapshot.meta.last_log_id);
    if held < journal.floor {
        let what = "the entries between the newest snapshot that can be read and the journal are gone";
        return Err(unsound.into_iter().next().unwrap_or_else(|| StoreError::damaged(snapshots.dir(), what)));
    }
    for error in unsound {
        let StoreError::Damaged { path, what } = error else { continue };
        snapshots.put_aside(&path).map_err(|error| StoreError::io("put aside", &path, error))?;
        tracing::warn!(
            path = %path.display(),
            what,
            "a snapshot is damaged: its table is made anew from the one before it and the journal; look after this disk"
        );
    }
    Ok(snapshot)
}
