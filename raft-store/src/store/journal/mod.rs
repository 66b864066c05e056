//! The journal: what makes a change durable. Records are appended to segments of preallocated space; one write and one sync
//! of a group of them is the acknowledgement. sled is written behind it, and holds nothing that could not be read here and in
//! the snapshots.
//!
//! [`replay()`] reads it at the start, [`Journal`] goes on with it.

mod frame;
mod record;
mod replay;
mod segment;

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use uuid::Uuid;

use self::{
    frame::{Frame, frame_len},
    segment::{Depot, SEGMENT_LEN},
};
pub(crate) use self::{
    record::{Record, State},
    replay::{OLDER_COPY, Place, Replayed, Segment, replay},
};
use super::disk::Disk;

/// With less room than this part of a segment, the next one is made ready.
const SPARE_AT: u64 = 2;

/// The journal's end, where records are appended.
pub(crate) struct Journal {
    dir: PathBuf,
    store: Uuid,
    disk: Arc<dyn Disk>,
    depot: Depot,
    state: State,
    /// The last record.
    sequence: u64,
    segments: VecDeque<Segment>,
    file: File,
    /// Where the next record comes.
    end: u64,
    /// What is written next.
    buffer: Vec<u8>,
}

impl Journal {
    /// Makes a journal that begins with `state`, durably and under its name at once, or not at all.
    pub(crate) fn create(
        dir: &Path,
        store: Uuid,
        disk: &dyn Disk,
        sequence: u64,
        (state, records): (State, &[Record]),
    ) -> io::Result<()> {
        let unfinished = unfinished(dir);
        // The directory itself stays: it says that a conversion was cut short.
        fs::create_dir_all(&unfinished)?;
        for file in fs::read_dir(&unfinished)? {
            disk.remove(&file?.path())?;
        }
        let mut bytes = Vec::new();
        let start = state.starts;
        let all =
            std::iter::once(&Record::Base(state)).chain(records).map(|record| record.encode(store)).collect::<Vec<_>>();
        for (sequence, (kind, body)) in (sequence..).zip(&all) {
            Frame { sequence, durable: 0, start, kind: *kind, body }.write(store, &mut bytes);
        }
        let path = segment::path(&unfinished, sequence);
        let file = segment::make(disk, &path, SEGMENT_LEN.max(bytes.len() as u64))?;
        disk.write(&path, &file, &bytes, 0)?;
        disk.sync(&path, &file)?;
        disk.sync_dir(&unfinished)?;
        disk.rename(&unfinished, dir)?;
        dir.parent().map_or(Ok(()), |parent| disk.sync_dir(parent))
    }

    /// Goes on with what was read. What a killed process wrote and did not sync is durable from then on, and this start is
    /// counted.
    pub(crate) fn open(dir: &Path, store: Uuid, disk: Arc<dyn Disk>, replayed: &Replayed) -> io::Result<Self> {
        let last = replayed.segments.last().ok_or(io::ErrorKind::InvalidData)?;
        let file = File::options().read(true).write(true).open(&last.path)?;
        // Written again, because a sync that has failed before leaves in the page cache as clean what is not on the disk. The
        // segments before it were synced before it was begun.
        let mut bytes = vec![0; replayed.end as usize];
        file.read_exact_at(&mut bytes, 0)?;
        disk.write(&last.path, &file, &bytes, 0)?;
        disk.sync(&last.path, &file)?;
        for path in &replayed.empty {
            disk.remove(path)?;
        }
        let depot = Depot::open(dir, disk.clone())?;
        disk.sync_dir(dir)?;
        let mut journal = Self {
            dir: dir.to_owned(),
            store,
            disk,
            depot,
            state: replayed.state.clone(),
            sequence: replayed.sequence,
            segments: replayed.segments.iter().cloned().collect(),
            file,
            end: replayed.end,
            buffer: Vec::new(),
        };
        journal.append(&[Record::Started])?;
        Ok(journal)
    }

    /// What the records amount to, and the sequence of the last one.
    pub(crate) fn state(&self) -> (&State, u64) {
        (&self.state, self.sequence)
    }

    /// Appends a group of records and makes it durable: one write and one sync. Says whether a segment was begun. After an
    /// error nothing may be appended any more.
    pub(crate) fn append(&mut self, records: &[Record]) -> io::Result<bool> {
        let encoded: Vec<_> = records.iter().map(|record| record.encode(self.store)).collect();
        let len: u64 = encoded.iter().map(|(_, body)| frame_len(body.len()) as u64).sum();
        let durable = self.sequence;
        self.buffer.clear();
        let room = self.segments.back().map_or(0, |segment| segment.len).saturating_sub(self.end);
        let begins = len > room;
        if begins {
            let base = Record::Base(self.state.clone()).encode(self.store);
            self.begin_segment(len + frame_len(base.1.len()) as u64)?;
            self.frame(durable, &base);
        }
        for (record, encoded) in records.iter().zip(&encoded) {
            self.state.apply(record);
            self.frame(durable, encoded);
            if let (Record::Entry(id, _), Some(segment)) = (record, self.segments.back_mut()) {
                segment.highest = segment.highest.max(Some(id.index()));
            }
        }
        let path = self.segments.back().map_or(&self.dir, |segment| &segment.path);
        self.disk.write(path, &self.file, &self.buffer, self.end)?;
        self.disk.sync(path, &self.file)?;
        let before = self.end;
        self.end += self.buffer.len() as u64;
        let half = self.segments.back().map_or(0, |segment| segment.len) / SPARE_AT;
        if (before..self.end).contains(&half) {
            self.depot.order_spare();
        }
        Ok(begins)
    }

    /// Adds a record's frame to what is written next.
    fn frame(&mut self, durable: u64, (kind, body): &(u32, Vec<u8>)) {
        self.sequence += 1;
        // A start is the first record of its own.
        let frame = Frame { sequence: self.sequence, durable, start: self.state.starts, kind: *kind, body };
        frame.write(self.store, &mut self.buffer);
    }

    fn begin_segment(&mut self, len: u64) -> io::Result<()> {
        let first = self.sequence + 1;
        let (path, file) = self.depot.take(first, len)?;
        let len = file.metadata()?.len();
        self.segments.push_back(Segment { first, path, len, highest: None });
        (self.file, self.end) = (file, 0);
        Ok(())
    }

    /// Gives back the segments that hold no entry behind `covered`, which a snapshot holds, and another one before it.
    pub(crate) fn retire(&mut self, covered: u64) {
        let mut retired = Vec::new();
        while self.segments.len() > 1
            && let Some(oldest) = self.segments.front()
            && oldest.highest.is_none_or(|highest| highest <= covered)
        {
            retired.extend(self.segments.pop_front().map(|segment| segment.path));
        }
        self.depot.retire(retired);
    }
}

/// Where a journal is made.
pub(crate) fn unfinished(dir: &Path) -> PathBuf {
    dir.with_extension("new")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        raft::{LogId, Vote},
        store::{disk::Files, watermark::Watermark},
    };

    /// A group was written and never acknowledged: its first record is torn, those behind it are whole. What is written after
    /// the next start is shorter, and ends exactly where one of them begins, which has the number that comes next.
    #[test]
    fn what_an_earlier_start_has_left_behind_the_end_is_no_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let watermark = Watermark::fresh();
        let store = watermark.store;
        let entry = |index: u64, len: usize| Record::Entry(LogId::new_term_index(1, index), encoded(index, len));
        Journal::create(&path, store, &Files, 1, (State::default(), &[])).unwrap();
        let torn_at = {
            let replayed = replay(&path, &watermark).unwrap();
            let mut journal = Journal::open(&path, store, Arc::new(Files), &replayed).unwrap();
            journal.append(&[Record::Vote(Vote::new_committed(1, 1))]).unwrap();
            let end = journal.end;
            journal.append(&[entry(0, 16), entry(1, 16), entry(2, 16)]).unwrap();
            end
        };
        let segment = segment::path(&path, 1);
        let mut bytes = fs::read(&segment).unwrap();
        bytes[torn_at as usize + 40] ^= 1;
        fs::write(&segment, &bytes).unwrap();
        let replayed = replay(&path, &watermark).unwrap();
        assert_eq!((replayed.end, replayed.state.last), (torn_at, None));
        let mut journal = Journal::open(&path, store, Arc::new(Files), &replayed).unwrap();
        // A start takes 32 bytes; with this one it is two frames of 48.
        journal.append(&[entry(0, 32)]).unwrap();
        assert_eq!(journal.end, torn_at + 96, "it does not end where the old record begins");
        let replayed = replay(&path, &watermark).unwrap();
        assert_eq!(
            replayed.state.last,
            Some(LogId::new_term_index(1, 0)),
            "an entry came back that was never acknowledged"
        );
    }

    /// An entry's bytes, of that length.
    fn encoded(index: u64, len: usize) -> Vec<u8> {
        use prost::Message as _;
        let id = Some(crate::codec::record::LogId { term: 1, index });
        let command = |len: usize| Some(crate::codec::record::entry::Payload::Command(vec![7; len]));
        let entry = |len: usize| crate::codec::record::Entry { id, payload: command(len) }.encode_to_vec();
        (0..len).map(entry).find(|bytes| bytes.len() == len).unwrap()
    }
}
