//! Reading a journal: what its records amount to, and whether what ends it is the tail that a power cut leaves or damage.
//!
//! A record that is not sound ends the journal. That is a tail, and nothing that was acknowledged, unless the watermark names
//! the record or one behind it, or a sound record anywhere behind it says that it was durable.
//!
//! One case cannot be told: damage to the last group of records, where a power cut has also taken the watermark that named
//! it, because the watermark is not synced with each group.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    frame::{Frame, HEADER, durable_behind},
    record::{FORMAT, Record, State, Unreadable},
    segment,
};
use crate::{
    codec::feature_level,
    raft::LogId,
    store::{error::StoreError, watermark::Watermark},
};

/// What another node has said of a store, and it has noted.
pub(crate) const OLDER_COPY: &str =
    "it is an older copy of this node's own store, as other nodes know: was a backup put back?";

/// A segment, from its first record on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// The sequence of its first record.
    pub(crate) first: u64,
    pub(crate) path: PathBuf,
    /// Of the file, in bytes.
    pub(crate) len: u64,
    /// The highest index of an entry in it.
    pub(crate) highest: Option<u64>,
}

/// Where an entry's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) id: LogId,
    /// A checksum of the bytes.
    pub(crate) crc: u32,
    segment: usize,
    offset: u64,
    len: u32,
}

/// What a journal holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Replayed {
    pub(crate) state: State,
    /// The last entry before those that are in the journal.
    pub(crate) floor: Option<LogId>,
    /// The entries of the log that are in the journal, by their index.
    pub(crate) entries: BTreeMap<u64, Place>,
    /// The last sound record.
    pub(crate) sequence: u64,
    pub(crate) segments: Vec<Segment>,
    /// Where the last segment's next record comes.
    pub(crate) end: u64,
    /// Segments that were begun and hold nothing.
    pub(crate) empty: Vec<PathBuf>,
}

impl Place {
    /// Whether these are the entry's bytes.
    pub(crate) fn is(&self, bytes: &[u8]) -> bool {
        bytes.len() == self.len as usize && crc32fast::hash(bytes) == self.crc
    }
}

impl Replayed {
    /// Reads entries, best in their order.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader { segments: &self.segments, open: None }
    }
}

/// Reads entries' bytes.
pub(crate) struct Reader<'a> {
    segments: &'a [Segment],
    /// The segment that was read last.
    open: Option<(usize, Vec<u8>)>,
}

impl Reader<'_> {
    pub(crate) fn read(&mut self, place: &Place) -> Result<Vec<u8>, StoreError> {
        let path = &self.segments[place.segment].path;
        let bytes = match self.open.take() {
            Some((segment, bytes)) if segment == place.segment => bytes,
            _ => segment::read(path)?,
        };
        let entry = bytes.get(place.offset as usize..).and_then(|rest| rest.get(..place.len as usize));
        let entry = entry.filter(|bytes| place.is(bytes)).map(<[u8]>::to_vec);
        self.open = Some((place.segment, bytes));
        entry.ok_or_else(|| StoreError::damaged(path, format!("entry {} changed while it was read", place.id.index())))
    }
}

/// Reads the journal in `dir`, which must hold what the watermark says.
pub(crate) fn replay(dir: &Path, watermark: &Watermark) -> Result<Replayed, StoreError> {
    let found = segment::list(dir)?;
    let mut reading = Reading {
        watermark,
        state: None,
        floor: None,
        entries: BTreeMap::new(),
        next: 0,
        segments: Vec::new(),
        end: 0,
    };
    let mut found = found.into_iter();
    let mut empty = Vec::new();
    for (first, path) in &mut found {
        let bytes = segment::read(&path)?;
        if reading.state.is_none() {
            reading.next = first;
        }
        if first != reading.next {
            return Err(reading.damaged(&path, "the segment before it is missing, or is not whole"));
        }
        let end = reading.segment(first, &path, &bytes)?;
        let Some(end) = end else {
            // Begun and not written: the one before is gone on with.
            reading.is_tail(&path, &bytes)?;
            empty.push(path);
            break;
        };
        reading.end = end as u64;
        reading.is_tail(&path, &bytes[end..])?;
    }
    for (_, path) in found {
        let bytes = segment::read(&path)?;
        reading.is_tail(&path, &bytes)?;
        empty.push(path);
    }
    reading.finish(dir, empty)
}

struct Reading<'a> {
    watermark: &'a Watermark,
    state: Option<State>,
    floor: Option<LogId>,
    entries: BTreeMap<u64, Place>,
    /// The sequence that comes next.
    next: u64,
    segments: Vec<Segment>,
    end: u64,
}

impl Reading<'_> {
    /// Reads one segment up to its first record that is not sound; nothing, if that is the very first.
    fn segment(&mut self, first: u64, path: &Path, bytes: &[u8]) -> Result<Option<usize>, StoreError> {
        let (mut at, mut highest) = (0, None);
        while let Some(frame) = Frame::read(self.watermark.store, &bytes[at..]) {
            let record = match Record::decode(self.watermark.store, frame.kind, frame.body) {
                Ok(record) => record,
                Err(Unreadable::TooNew) => return Err(too_new(path)),
                Err(Unreadable::Wrong(what)) => {
                    return Err(self.damaged(path, &format!("record {}: {what}", frame.sequence)));
                }
            };
            if frame.sequence != self.next || !self.is_of_this_start(&frame, &record) {
                break;
            }
            if at == 0 && !matches!(record, Record::Base(_)) {
                return Err(self.damaged(path, "it does not begin with what came before it"));
            }
            self.take(path, &record)?;
            if let Record::Entry(id, body) = &record {
                highest = highest.max(Some(id.index()));
                let (segment, offset) = (self.segments.len(), (at + HEADER) as u64);
                let (len, crc) = (body.len() as u32, crc32fast::hash(body));
                self.entries.insert(id.index(), Place { id: *id, crc, segment, offset, len });
            }
            at += frame.len();
            self.next += 1;
            self.compare(path)?;
            // The padding of the last frame may be cut off.
            at = at.min(bytes.len());
        }
        if at == 0 {
            return Ok(None);
        }
        self.segments.push(Segment { first, path: path.to_owned(), len: bytes.len() as u64, highest });
        Ok(Some(at))
    }

    /// What an earlier start has left behind the journal's end is sound and no part of it.
    fn is_of_this_start(&self, frame: &Frame<'_>, record: &Record) -> bool {
        let starts = match (record, &self.state) {
            (Record::Base(state), None) => state.starts,
            (_, None) => return true,
            (Record::Started, Some(state)) => state.starts + 1,
            (_, Some(state)) => state.starts,
        };
        frame.start == starts
    }

    fn take(&mut self, path: &Path, record: &Record) -> Result<(), StoreError> {
        let next = self.next;
        let wrong = |what: &str| StoreError::damaged(path, format!("record {next} of the journal {what}"));
        let Some(state) = &mut self.state else {
            let Record::Base(base) = record else { return Err(wrong("does not say what came before it")) };
            self.floor = base.last;
            self.state = Some(base.clone());
            return Ok(());
        };
        match record {
            Record::Base(base) if base != state => return Err(wrong("contradicts those before it")),
            Record::Entry(id, _) if id.index() != state.next_index() => {
                return Err(wrong(&format!("is entry {} where {} comes next", id.index(), state.next_index())));
            }
            Record::Entry(id, _) if state.last.is_some_and(|last| *id <= last) => {
                return Err(wrong("has a lower term than the one before it"));
            }
            Record::Truncated(last) => {
                self.entries.retain(|index, _| last.is_some_and(|last| *index <= last.index()));
                self.floor = self.floor.min(*last);
            }
            // Behind the end of the log: a snapshot took its place. What is purged otherwise may still be asked for, where the
            // newest snapshot is not sound.
            Record::Purged(id) if state.last.is_none_or(|last| last < *id) => {
                self.entries.clear();
                self.floor = Some(*id);
            }
            _ => {}
        }
        state.apply(record);
        Ok(())
    }

    /// At the record that the watermark was written after, both must say the same.
    fn compare(&self, path: &Path) -> Result<(), StoreError> {
        let Some(state) = &self.state else { return Ok(()) };
        if self.next - 1 != self.watermark.sequence {
            return Ok(());
        }
        if state.vote != self.watermark.vote {
            return Err(self.damaged(path, "the last vote is not the one that the witness has seen"));
        }
        if state.last != self.watermark.last {
            return Err(self.damaged(path, "the log does not end where the witness has seen it end"));
        }
        Ok(())
    }

    /// Whether what begins with the next record, which is not sound, is nothing that was acknowledged.
    fn is_tail(&self, path: &Path, rest: &[u8]) -> Result<(), StoreError> {
        match durable_behind(self.watermark.store, rest, self.next) {
            Some(durable) if durable >= self.next => Err(self.damaged(
                path,
                &format!("record {} is not readable, and one behind it says that it was durable", self.next),
            )),
            _ => Ok(()),
        }
    }

    fn damaged(&self, path: &Path, what: &str) -> StoreError {
        StoreError::damaged(path, what)
    }

    fn finish(self, dir: &Path, empty: Vec<PathBuf>) -> Result<Replayed, StoreError> {
        let Some(state) = self.state else {
            return Err(StoreError::damaged(dir, "the journal has no sound segment"));
        };
        let sequence = self.next - 1;
        if self.watermark.sequence > sequence {
            return Err(StoreError::damaged(
                dir,
                format!(
                    "acknowledged records are gone: the journal had record {}, and now ends at {sequence}",
                    self.watermark.sequence
                ),
            ));
        }
        let begins = self.segments.first().map_or(0, |segment| segment.first);
        if self.watermark.sequence + 1 < begins {
            return Err(StoreError::damaged(
                dir,
                format!(
                    "the witness has seen record {}, and the journal begins at {begins}: they are of different times",
                    self.watermark.sequence
                ),
            ));
        }
        // The very first entry, the membership that a cluster starts with, comes before the first vote.
        if state.last.is_some_and(|last| last.index() > 0) && state.vote.is_none() {
            return Err(StoreError::damaged(dir, "there is a log, but no vote"));
        }
        if state.older_copy {
            return Err(StoreError::damaged(dir, OLDER_COPY));
        }
        Ok(Replayed {
            state,
            floor: self.floor,
            entries: self.entries,
            sequence,
            segments: self.segments,
            end: self.end,
            empty,
        })
    }
}

fn too_new(path: &Path) -> StoreError {
    StoreError::TooNew { path: path.to_owned(), needed: feature_level() + FORMAT, known: feature_level() }
}
