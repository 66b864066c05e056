//! What is read: the log, single records and the snapshot, in sled. Each value proves by itself that it is what was written
//! and stands where it was written, because sled 0.34 opens a damaged file without a word. All of it can be made anew from the
//! journal and the snapshot files, so nothing here waits for a disk: sled writes it in the background.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use prost::Message;

use super::{
    StoreError, envelope,
    error::refused_by_sled,
    failure::{Failure, of_sled},
    keys,
    lock::wait_for_sled,
};
use crate::{
    codec::{DecodeError, record},
    raft::{LogId, Snapshot, Vote},
};

/// sled's page cache. The table lives in memory, so the store is read at start and by lagging peers.
const CACHE_BYTES: u64 = 16 << 20;
/// Entries written or removed in one batch, so that it never holds sled up for long.
const BATCH: usize = 256;

/// Between two looks whether sled has failed.
const LOOK: Duration = Duration::from_millis(500);
/// Flushes of the watch that wait for a slow disk, at most.
const MAX_WAITING: usize = 32;

/// sled, open.
#[derive(Clone)]
pub(crate) struct Trees {
    path: PathBuf,
    db: sled::Db,
    log: sled::Tree,
    meta: sled::Tree,
    snapshots: sled::Tree,
    failure: Failure,
    /// The watch ends with the last of these.
    _watched: mpsc::Sender<()>,
}

impl Trees {
    /// Opens or creates it in that directory.
    pub(crate) fn open(path: PathBuf, failure: Failure) -> Result<Self, StoreError> {
        let file = path.join(keys::SLED_FILE);
        if file.exists() {
            wait_for_sled(&file)?;
        }
        let db = sled::Config::new()
            .path(&path)
            .mode(sled::Mode::LowSpace)
            .cache_capacity(CACHE_BYTES)
            // sled frees space only in its flusher thread; durability does not depend on it.
            .flush_every_ms(Some(500))
            .open()
            .map_err(|error| refused_by_sled(&path, error))?;
        let tree = |name: &str| db.open_tree(name).map_err(|error| refused_by_sled(&path, error));
        let (log, meta, snapshots) = (tree(keys::LOG_TREE)?, tree(keys::META_TREE)?, tree(keys::SNAPSHOT_TREE)?);
        let (watched, end) = mpsc::channel();
        let (watched_db, failing) = (db.clone(), failure.clone());
        thread::Builder::new()
            .name("store-watch".into())
            .spawn(move || watch(&watched_db, &failing, &end))
            .map_err(|error| StoreError::io("start the watch of", &path, error))?;
        Ok(Self { path, db, log, meta, snapshots, failure, _watched: watched })
    }

    pub(crate) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Why sled cannot be written, if so.
    pub(crate) fn failure(&self) -> &Failure {
        &self.failure
    }

    /// Has builds that know no journal refuse the store as too new: to them this is the last entry of the log.
    pub(crate) fn refuse_older_builds(&self) -> io::Result<()> {
        let command = record::Command { needs_level: keys::JOURNAL_LEVEL, ..record::Command::default() };
        let payload = Some(record::entry::Payload::Command(command.encode_to_vec()));
        let id = Some(record::LogId { term: u64::MAX, index: u64::MAX });
        self.insert_entries([(u64::MAX, record::Entry { id, payload }.encode_to_vec())])
    }

    /// Whether a build that knows the journal has had it.
    pub(crate) fn refuses_older_builds(&self) -> Result<bool, StoreError> {
        self.failure.read(&self.path, self.log.contains_key(keys::entry(u64::MAX, 0)))
    }

    /// Writes entries of the log.
    pub(crate) fn insert_entries(&self, entries: impl IntoIterator<Item = (u64, Vec<u8>)>) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        for (written, (index, bytes)) in entries.into_iter().enumerate() {
            for (key, part) in parts(index, &bytes) {
                batch.insert(&key, part);
            }
            if written % BATCH == BATCH - 1 {
                self.failure.checked(self.log.apply_batch(std::mem::take(&mut batch)))?;
            }
        }
        self.failure.checked(self.log.apply_batch(batch))
    }

    /// Removes these entries.
    pub(crate) fn remove_entries(&self, indexes: &[u64]) -> io::Result<()> {
        let range = |index: &u64| self.log.range(keys::entry(*index, 0)..=keys::entry(*index, u16::MAX));
        indexes.iter().try_for_each(|index| self.remove(range(index)))
    }

    /// Removes the entries from one on.
    pub(crate) fn remove_entries_from(&self, index: u64) -> io::Result<()> {
        self.remove(self.log.range(keys::entry(index, 0)..keys::entry(u64::MAX, 0)))
    }

    /// Removes the entries before one, each by itself: a batch has sled to itself as long as it takes, and while thousands of
    /// entries went so, Raft had to wait for one batch after the other with each thing that it wrote.
    pub(crate) fn remove_entries_before(&self, index: u64) -> io::Result<()> {
        let mut parts: Vec<sled::IVec> = Vec::new();
        for key in self.log.range(..keys::entry(index, 0)).keys() {
            let key = self.failure.checked(key)?;
            let index_of = |key: &[u8]| keys::parse_entry(key).map(|(index, _)| index);
            if parts.first().is_some_and(|first| index_of(first) != index_of(&key)) {
                self.remove_parts(&parts)?;
                parts.clear();
            }
            parts.push(key);
        }
        self.remove_parts(&parts)
    }

    /// Those of one entry go together: half of it would look like damage.
    fn remove_parts(&self, parts: &[sled::IVec]) -> io::Result<()> {
        if let [part] = parts {
            return self.failure.checked(self.log.remove(part)).map(drop);
        }
        let mut batch = sled::Batch::default();
        parts.iter().for_each(|part| batch.remove(part));
        self.failure.checked(self.log.apply_batch(batch))
    }

    fn remove(&self, range: sled::Iter) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        for (removed, key) in range.keys().enumerate() {
            batch.remove(self.failure.checked(key)?);
            if removed % BATCH == BATCH - 1 {
                self.failure.checked(self.log.apply_batch(std::mem::take(&mut batch)))?;
            }
        }
        self.failure.checked(self.log.apply_batch(batch))
    }

    /// The entries from an index on, each with its bytes.
    pub(crate) fn entries(&self, from: u64) -> Entries<'_> {
        Entries { trees: self, parts: self.log.range(keys::entry(from, 0)..keys::entry(u64::MAX, 0)) }
    }

    /// The index of the last entry.
    pub(crate) fn last_index(&self) -> io::Result<Option<u64>> {
        let last = self.log.range(..keys::entry(u64::MAX, 0)).next_back().transpose();
        let Some((key, _)) = self.failure.checked(last)? else { return Ok(None) };
        let (index, _) = keys::parse_entry(&key).ok_or_else(|| io::Error::other("a log key has not 10 bytes"))?;
        Ok(Some(index))
    }

    fn record<M: Message + Default>(&self, key: &str) -> Result<Option<M>, StoreError> {
        let record = self.failure.read(&self.path, self.meta.get(key))?;
        record
            .map(|record| envelope::open_message(key.as_bytes(), &record))
            .transpose()
            .map_err(|error| StoreError::damaged(&self.path, format!("record {key}: {error}")))
    }

    pub(crate) fn log_id(&self, key: &str) -> Result<Option<LogId>, StoreError> {
        Ok(self.record::<record::LogId>(key)?.map(Into::into))
    }

    pub(crate) fn vote(&self) -> Result<Option<Vote>, StoreError> {
        Ok(self.record::<record::Vote>(keys::VOTE)?.map(Into::into))
    }

    /// Of a store without a journal, whose it is.
    pub(crate) fn identity(&self) -> Result<Option<record::Identity>, StoreError> {
        self.record(keys::IDENTITY)
    }

    fn put(&self, key: &str, record: &impl Message) -> io::Result<()> {
        self.failure.checked(self.meta.insert(key, envelope::seal_message(key.as_bytes(), record)))?;
        Ok(())
    }

    pub(crate) fn put_log_id(&self, key: &str, id: Option<LogId>) -> io::Result<()> {
        match id {
            Some(id) => self.put(key, &record::LogId::from(id)),
            None => self.failure.checked(self.meta.remove(key)).map(drop),
        }
    }

    pub(crate) fn put_vote(&self, vote: Option<Vote>) -> io::Result<()> {
        match vote {
            Some(vote) => self.put(keys::VOTE, &record::Vote::from(vote)),
            None => self.failure.checked(self.meta.remove(keys::VOTE)).map(drop),
        }
    }

    /// The last entry that the snapshot holds.
    pub(crate) fn snapshot_last(&self) -> Result<Option<LogId>, StoreError> {
        let stored = self.record::<record::StoredSnapshot>(keys::SNAPSHOT)?;
        Ok(stored.and_then(|record| record.meta).and_then(|meta| meta.last).map(Into::into))
    }

    /// The snapshot.
    pub(crate) fn snapshot(&self) -> Result<Option<Snapshot>, StoreError> {
        let damaged = |what: String| StoreError::damaged(&self.path, format!("the snapshot: {what}"));
        let Some(record) = self.record::<record::StoredSnapshot>(keys::SNAPSHOT)? else { return Ok(None) };
        let mut data = Vec::new();
        for position in 0..record.chunks {
            let key = keys::chunk(record.generation, position);
            let chunk = self
                .failure
                .read(&self.path, self.snapshots.get(key))?
                .ok_or_else(|| damaged(format!("chunk {position} is missing")))?;
            let body = envelope::open(&key, &chunk).map_err(|error| damaged(format!("chunk {position}: {error}")))?;
            data.extend_from_slice(body);
        }
        if data.len() as u64 != record.len {
            return Err(damaged(format!("it has {} bytes instead of {}", data.len(), record.len)));
        }
        let meta = record.meta.ok_or_else(|| damaged("it does not say what it holds".into()))?;
        let meta = meta.try_into().map_err(|error: DecodeError| damaged(error.to_string()))?;
        Ok(Some(Snapshot { meta, snapshot: data }))
    }

    /// Puts a snapshot in the place of the one before; the old chunks go when the record no longer names them.
    pub(crate) fn put_snapshot(&self, snapshot: &Snapshot) -> io::Result<()> {
        let stored = self.record::<record::StoredSnapshot>(keys::SNAPSHOT)?;
        let generation = stored.map_or(1, |record| record.generation + 1);
        let data = &snapshot.snapshot;
        let mut chunks = 0;
        for (position, chunk) in (0u32..).zip(data.chunks(keys::PART_LEN)) {
            let key = keys::chunk(generation, position);
            self.failure.checked(self.snapshots.insert(key, envelope::seal(&key, chunk)))?;
            chunks = position + 1;
        }
        let meta = Some((&snapshot.meta).into());
        self.put(keys::SNAPSHOT, &record::StoredSnapshot { meta, generation, chunks, len: data.len() as u64 })?;
        for key in self.snapshots.range(..keys::chunk(generation, 0)).keys() {
            self.failure.checked(self.snapshots.remove(self.failure.checked(key)?))?;
        }
        Ok(())
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        self.failure.checked(self.db.flush()).map(drop)
    }
}

/// Finds out that sled has failed. When a write fails, sled (0.34.7, Log::exit_reservation) notes the error and
/// does not wake those who wait for that write: they would wait for ever, such as a task that inserts
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
                failure.note(&of_sled(error));
            }
            drop(here);
        });
        if let Err(error) = look {
            tracing::warn!(%error, "the store cannot be watched");
        }
    }
}

/// Puts entries together from their parts.
pub(crate) struct Entries<'a> {
    trees: &'a Trees,
    parts: sled::Iter,
}

/// One part of an entry.
struct Part {
    index: u64,
    number: u16,
    body: Vec<u8>,
}

impl Entries<'_> {
    fn part(&mut self) -> Option<Result<Part, StoreError>> {
        let path = &self.trees.path;
        let (key, record) = match self.trees.failure.read(path, self.parts.next()?) {
            Ok(item) => item,
            Err(error) => return Some(Err(error)),
        };
        let Some((index, number)) = keys::parse_entry(&key) else {
            return Some(Err(StoreError::damaged(path, "a log key has not 10 bytes")));
        };
        let body = envelope::open(&key, &record).map(|body| Part { index, number, body: body.to_vec() });
        Some(body.map_err(|error| StoreError::damaged(path, format!("log entry {index}, part {number}: {error}"))))
    }

    fn entry(&mut self, first: Part) -> Result<(u64, Vec<u8>), StoreError> {
        let Part { index, number, body } = first;
        let damaged = |what: String| StoreError::damaged(&self.trees.path, format!("log entry {index}: {what}"));
        // The first part begins with the number of parts.
        let (count, head) = match body.split_first_chunk::<2>() {
            Some((count, head)) if number == 0 => (u16::from_be_bytes(*count), head),
            _ => return Err(damaged("its first part is missing".into())),
        };
        let mut whole = head.to_vec();
        for expected in 1..count {
            match self.part().transpose()? {
                Some(part) if (part.index, part.number) == (index, expected) => whole.extend_from_slice(&part.body),
                _ => {
                    return Err(StoreError::damaged(
                        &self.trees.path,
                        format!("log entry {index}: part {expected} of {count} is missing"),
                    ));
                }
            }
        }
        Ok((index, whole))
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<(u64, Vec<u8>), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.part()? {
            Ok(first) => Some(self.entry(first)),
            Err(error) => Some(Err(error)),
        }
    }
}

/// An entry's parts with their keys.
fn parts(index: u64, entry: &[u8]) -> Vec<([u8; 10], Vec<u8>)> {
    let count = entry.len().div_ceil(keys::PART_LEN).max(1) as u16;
    let mut parts = Vec::with_capacity(count.into());
    let mut chunks = entry.chunks(keys::PART_LEN);
    for part in 0..count {
        let key = keys::entry(index, part);
        let chunk = chunks.next().unwrap_or_default();
        let body = if part == 0 { [&count.to_be_bytes()[..], chunk].concat() } else { chunk.to_vec() };
        parts.push((key, envelope::seal(&key, &body)));
    }
    parts
}
