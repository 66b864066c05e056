//! openraft's log and vote: read from sled, made durable by the journal.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use openraft::{
    OptionalSend, RaftLogReader,
    storage::{IOFlushed, LogState, RaftLogStorage},
};
use prost::Message as _;

use super::{StoreError, journal::Record, keys, lock::DirLock, slow::Watched, trees::Trees, writer::Writer};
use crate::{
    codec::record,
    raft::{self, Entry, LogId, TypeConfig, Vote},
};

/// Entries that are sent to a peer in one message, so that it arrives in time; one at least.
const REPLICATED_BYTES: usize = 256 << 10;

/// The log and the vote.
#[derive(Clone)]
pub(crate) struct LogStore {
    trees: Trees,
    writer: Writer,
    sizes: Arc<Mutex<Sizes>>,
    _lock: Arc<DirLock>,
}

/// How many bytes the log's entries take.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sizes {
    of: BTreeMap<u64, u64>,
    total: u64,
}

impl Sizes {
    /// Of all entries.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// How many entries there are.
    pub(super) fn count(&self) -> usize {
        self.of.len()
    }

    /// The first of the last entries that take so many bytes together.
    pub(crate) fn first_of_last(&self, bytes: u64) -> u64 {
        let mut sum = 0;
        let fits = |(_, size): &(&u64, &u64)| {
            sum += **size;
            sum <= bytes
        };
        let newest = self.of.last_key_value().map_or(0, |(index, _)| *index);
        self.of.iter().rev().take_while(fits).last().map_or(newest, |(index, _)| *index)
    }

    pub(super) fn put(&mut self, index: u64, size: u64) {
        self.total += size;
        self.total -= self.of.insert(index, size).unwrap_or(0);
    }

    fn retain(&mut self, keeps: impl Fn(u64) -> bool) {
        self.of.retain(|index, _| keeps(*index));
        self.total = self.of.values().sum();
    }
}

impl LogStore {
    pub(crate) fn new(trees: Trees, sizes: Sizes, writer: Writer, lock: Arc<DirLock>) -> Self {
        Self { trees, writer, sizes: Arc::new(Mutex::new(sizes)), _lock: lock }
    }

    /// How many bytes its entries take.
    pub(crate) fn sizes(&self) -> Sizes {
        self.lock_sizes().clone()
    }

    fn lock_sizes(&self) -> MutexGuard<'_, Sizes> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decode(&self, (index, bytes): (u64, Vec<u8>)) -> Result<Entry, StoreError> {
        decode(self.trees.path(), index, &bytes)
    }
}

/// The entry that those bytes say.
pub(super) fn decode(path: &Path, index: u64, bytes: &[u8]) -> Result<Entry, StoreError> {
    let what = || format!("log entry {index}");
    let record = record::Entry::decode(bytes);
    let record = record.map_err(|error| StoreError::damaged(path, format!("{}: {error}", what())))?;
    let entry = raft::records::entry(record).map_err(|error| StoreError::unreadable(path, what(), error))?;
    if entry.log_id.index() != index {
        return Err(StoreError::damaged(path, format!("entry {} stands at index {index}", entry.log_id.index())));
    }
    Ok(entry)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, io::Error> {
        let first = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => *index + 1,
            Bound::Unbounded => 0,
        };
        let mut entries = Vec::new();
        for read in self.trees.entries(first) {
            let read = read?;
            if !range.contains(&read.0) {
                break;
            }
            entries.push(self.decode(read)?);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let _watched = Watched::begin("reading entries from sled");
        let mut entries = Vec::new();
        let mut bytes = 0;
        for read in self.trees.entries(start) {
            let read = read?;
            if read.0 >= end || bytes >= REPLICATED_BYTES {
                break;
            }
            bytes += read.1.len();
            entries.push(self.decode(read)?);
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.trees.vote()?)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let purged = self.trees.log_id(keys::PURGED)?;
        let last = match self.trees.last_index()? {
            Some(index) => self.trees.entries(index).next().transpose()?.map(|read| self.decode(read)).transpose()?,
            None => None,
        };
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.map(|entry| entry.log_id).max(purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.trees.put_vote(Some(*vote))?;
        self.writer.write(vec![Record::Vote(*vote)]).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let _watched = Watched::begin("noting what is committed");
        // In sled alone: it only shortens the start.
        committed.map_or(Ok(()), |id| self.trees.put_log_id(keys::COMMITTED, Some(id)))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.trees.log_id(keys::COMMITTED)?)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        let mut written = Vec::new();
        for entry in entries {
            let (id, bytes) = (entry.log_id, record::Entry::from(&entry).encode_to_vec());
            self.lock_sizes().put(id.index(), bytes.len() as u64);
            written.push((id.index(), bytes.clone()));
            records.push(Record::Entry(id, bytes));
        }
        let watched = Watched::begin("writing entries into sled");
        self.trees.insert_entries(written)?;
        drop(watched);
        self.writer.complete(records, callback)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |last| last.index() + 1);
        self.trees.remove_entries_from(from)?;
        self.lock_sizes().retain(|index| index < from);
        self.writer.write(vec![Record::Truncated(last)]).await
    }

    async fn purge(&mut self, last: LogId) -> Result<(), io::Error> {
        let _watched = Watched::begin("shortening the log");
        // Durable first: entries that the journal no longer has are nowhere else.
        self.writer.write(vec![Record::Purged(last)]).await?;
        self.trees.put_log_id(keys::PURGED, Some(last))?;
        self.lock_sizes().retain(|index| index > last.index());
        // Thousands at once take sled up to half a second, in which Raft would append nothing. Nobody reads them any more, and
        // what a crash leaves of them goes at the next start.
        let trees = self.trees.clone();
        drop(tokio::task::spawn_blocking(move || trees.remove_entries_before(last.index() + 1)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_the_log_are_counted_and_its_end_is_found_by_them() {
        let mut sizes = Sizes::default();
        assert_eq!((sizes.total(), sizes.first_of_last(10)), (0, 0));
        for index in 5..=9 {
            sizes.put(index, 100);
        }
        sizes.put(9, 300);
        assert_eq!(sizes.total(), 700, "one that is written again counts once");
        assert_eq!(sizes.first_of_last(1000), 5, "all of it");
        assert_eq!(sizes.first_of_last(500), 7);
        assert_eq!(sizes.first_of_last(499), 8);
        assert_eq!(sizes.first_of_last(10), 9, "the newest one stays, however large it is");
        sizes.retain(|index| index >= 8);
        assert_eq!((sizes.total(), sizes.first_of_last(1000)), (400, 8));
    }
}
