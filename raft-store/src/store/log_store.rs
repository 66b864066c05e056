//! openraft's log and vote in sled.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use openraft::{
    OptionalSend, RaftLogReader,
    storage::{IOFlushed, LogState, RaftLogStorage},
};
use prost::Message;

use super::{
    StoreError, envelope, keys,
    lock::DirLock,
    watermark::Watermark,
    writer::{Note, Writer},
};
use crate::{
    codec::record,
    raft::{self, Entry, LogId, TypeConfig, Vote},
};

/// Entries removed in one batch while purging, so that a purge never holds sled up for long.
const PURGE_BATCH: usize = 256;
/// Entries that are sent to a peer in one message, so that it arrives in time; one at least.
const REPLICATED_BYTES: usize = 256 << 10;

/// The log and the vote.
#[derive(Clone)]
pub(crate) struct LogStore {
    path: PathBuf,
    log: sled::Tree,
    meta: sled::Tree,
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

    fn put(&mut self, index: u64, size: u64) {
        self.total += size;
        self.total -= self.of.insert(index, size).unwrap_or(0);
    }

    fn retain(&mut self, keeps: impl Fn(u64) -> bool) {
        self.of.retain(|index, _| keeps(*index));
        self.total = self.of.values().sum();
    }
}

impl LogStore {
    pub(crate) fn new(path: PathBuf, log: sled::Tree, meta: sled::Tree, writer: Writer, lock: Arc<DirLock>) -> Self {
        Self { path, log, meta, writer, sizes: Arc::default(), _lock: lock }
    }

    /// How many bytes its entries take.
    pub(crate) fn sizes(&self) -> Sizes {
        self.lock_sizes().clone()
    }

    fn lock_sizes(&self) -> MutexGuard<'_, Sizes> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the whole log and refuses it unless it holds at least what the watermark says, without a
    /// hole, and in order.
    pub(crate) fn verify(&self, watermark: &Watermark) -> Result<Found, StoreError> {
        let damaged = |what: String| Err(StoreError::damaged(&self.path, what));
        let purged = self.log_id(keys::PURGED)?;
        let committed = self.log_id(keys::COMMITTED)?;
        let vote = self.vote()?;
        let mut last = purged;
        for read in self.entries(0) {
            let (index, entry) = read?;
            if purged.is_some_and(|purged| index <= purged.index()) {
                continue; // A purge that was cut short; the marker comes first.
            }
            let id = entry.log_id;
            let expected = last.map_or(0, |last| last.index() + 1);
            if index != expected {
                return damaged(format!("the log has a hole: entry {expected} is missing before entry {index}"));
            }
            if id.index() != index {
                return damaged(format!("entry {} stands at index {index}", id.index()));
            }
            if last.is_some_and(|last| id <= last) {
                return damaged(format!("entry {index} has a lower term than the one before it"));
            }
            self.lock_sizes().put(index, record::Entry::from(&entry).encoded_len() as u64);
            last = Some(id);
        }
        let index = |id: Option<LogId>| id.map_or("none".to_owned(), |id| id.index().to_string());
        if watermark.last > last {
            return damaged(format!(
                "acknowledged entries are gone: the log ended at {}, and now ends at {}",
                index(watermark.last),
                index(last)
            ));
        }
        // partial_cmp: votes of one term for two nodes compare as neither, and then one of them is wrong.
        let vote_held = match (&watermark.vote, &vote) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(seen), Some(held)) => held >= seen,
        };
        if !vote_held {
            return damaged("the last vote is gone".into());
        }
        // The very first entry, the membership that a cluster starts with, comes before the first vote.
        if last.is_some_and(|last| last.index() > 0) && vote.is_none() {
            return damaged("there is a log, but no vote".into());
        }
        if committed > last {
            return damaged(format!("entry {} was committed, and the log ends at {}", index(committed), index(last)));
        }
        Ok(Found { last, vote })
    }

    fn record<M: Message + Default>(&self, key: &str) -> Result<Option<M>, StoreError> {
        let record = self.writer.read(&self.path, self.meta.get(key))?;
        record
            .map(|record| envelope::open_message(key.as_bytes(), &record))
            .transpose()
            .map_err(|error| StoreError::damaged(&self.path, format!("record {key}: {error}")))
    }

    fn log_id(&self, key: &str) -> Result<Option<LogId>, StoreError> {
        Ok(self.record::<record::LogId>(key)?.map(Into::into))
    }

    fn vote(&self) -> Result<Option<Vote>, StoreError> {
        Ok(self.record::<record::Vote>(keys::VOTE)?.map(Into::into))
    }

    fn put(&self, key: &str, record: &impl Message) -> io::Result<()> {
        self.writer.checked(self.meta.insert(key, envelope::seal_message(key.as_bytes(), record)))?;
        Ok(())
    }

    /// The entries from an index on.
    fn entries(&self, from: u64) -> Entries<'_> {
        Entries { store: self, parts: self.log.range(keys::entry(from, 0)..) }
    }

    /// Removes everything from an index on, from the end backwards and in one batch, so that no crash
    /// leaves a hole.
    fn remove_from(&self, index: u64) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        for key in self.log.range(keys::entry(index, 0)..).keys().rev() {
            batch.remove(self.writer.checked(key)?);
        }
        self.writer.checked(self.log.apply_batch(batch))
    }
}

/// What a verified store holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) last: Option<LogId>,
    pub(crate) vote: Option<Vote>,
}

/// Puts entries together from their parts.
struct Entries<'a> {
    store: &'a LogStore,
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
        let path = &self.store.path;
        let (key, record) = match self.store.writer.read(path, self.parts.next()?) {
            Ok(item) => item,
            Err(error) => return Some(Err(error)),
        };
        let Some((index, number)) = keys::parse_entry(&key) else {
            return Some(Err(StoreError::damaged(path, "a log key has not 10 bytes")));
        };
        let body = envelope::open(&key, &record).map(|body| Part { index, number, body: body.to_vec() });
        Some(body.map_err(|error| StoreError::damaged(path, format!("log entry {index}, part {number}: {error}"))))
    }

    fn entry(&mut self, first: Part) -> Result<(u64, Entry), StoreError> {
        let Part { index, number, body } = first;
        let damaged = |what: String| StoreError::damaged(&self.store.path, format!("log entry {index}: {what}"));
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
                        &self.store.path,
                        format!("log entry {index}: part {expected} of {count} is missing"),
                    ));
                }
            }
        }
        let record = record::Entry::decode(&*whole).map_err(|error| damaged(error.to_string()))?;
        let unreadable = |error| StoreError::unreadable(&self.store.path, format!("log entry {index}"), error);
        Ok((index, raft::records::entry(record).map_err(unreadable)?))
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<(u64, Entry), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.part()? {
            Ok(first) => Some(self.entry(first)),
            Err(error) => Some(Err(error)),
        }
    }
}

/// An entry's parts with their keys.
fn parts(entry: &Entry) -> Vec<([u8; 10], Vec<u8>)> {
    let index = entry.log_id.index();
    let record = record::Entry::from(entry).encode_to_vec();
    let count = record.len().div_ceil(keys::PART_LEN).max(1) as u16;
    let mut parts = Vec::with_capacity(count.into());
    let mut chunks = record.chunks(keys::PART_LEN);
    for part in 0..count {
        let key = keys::entry(index, part);
        let chunk = chunks.next().unwrap_or_default();
        let body = if part == 0 { [&count.to_be_bytes()[..], chunk].concat() } else { chunk.to_vec() };
        parts.push((key, envelope::seal(&key, &body)));
    }
    parts
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
        for read in self.entries(first) {
            let (index, entry) = read?;
            if !range.contains(&index) {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for read in self.entries(start) {
            let (index, entry) = read?;
            if index >= end || bytes >= REPLICATED_BYTES {
                break;
            }
            bytes += record::Entry::from(&entry).encoded_len();
            entries.push(entry);
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.vote()?)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let purged = self.log_id(keys::PURGED)?;
        let last = match self.writer.checked(self.log.last())? {
            Some((key, _)) => {
                let (index, _) =
                    keys::parse_entry(&key).ok_or_else(|| io::Error::other("a log key has not 10 bytes"))?;
                self.entries(index).next().transpose()?.map(|(_, entry)| entry.log_id)
            }
            None => None,
        };
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.max(purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.put(keys::VOTE, &record::Vote::from(*vote))?;
        self.writer.barrier(Note::Voted(*vote)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        // Not synced: it only shortens recovery, and the next append carries it along.
        committed.map_or(Ok(()), |id| self.put(keys::COMMITTED, &record::LogId::from(id)))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.log_id(keys::COMMITTED)?)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = sled::Batch::default();
        let mut last = None;
        for entry in entries {
            let mut bytes = 0;
            for (key, record) in parts(&entry) {
                bytes += record.len() as u64;
                batch.insert(&key, record);
            }
            self.lock_sizes().put(entry.log_id.index(), bytes);
            last = Some(entry.log_id);
        }
        self.writer.checked(self.log.apply_batch(batch))?;
        self.writer.complete(Note::Appended(last), callback)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        // The watermark first: it must never ask for entries that are being removed.
        self.writer.barrier(Note::Truncated(last)).await?;
        let from = last.map_or(0, |last| last.index() + 1);
        self.remove_from(from)?;
        self.lock_sizes().retain(|index| index < from);
        self.writer.barrier(Note::Nothing).await
    }

    async fn purge(&mut self, last: LogId) -> Result<(), io::Error> {
        // The marker first: entries behind it may then vanish in any order.
        self.put(keys::PURGED, &record::LogId::from(last))?;
        self.writer.barrier(Note::Nothing).await?;
        let mut batch = sled::Batch::default();
        for (removed, key) in self.log.range(..keys::entry(last.index() + 1, 0)).keys().enumerate() {
            batch.remove(self.writer.checked(key)?);
            if removed % PURGE_BATCH == PURGE_BATCH - 1 {
                self.writer.checked(self.log.apply_batch(std::mem::take(&mut batch)))?;
            }
        }
        self.writer.checked(self.log.apply_batch(batch))?;
        self.lock_sizes().retain(|index| index > last.index());
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
