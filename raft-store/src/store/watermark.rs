//! The watermark: a small file beside sled that says what sled must at least hold.
//!
//! sled 0.34 silently drops everything behind the first bad record of its log, so "it opened" proves
//! nothing: a node whose vote or acknowledged entries vanished would vote twice. The watermark has two
//! 512-byte slots that are written in turn, so a torn write leaves the other one. It is written and
//! synced after each commit: what sled writes next may, half written at a power cut, take away what was
//! synced before (`power_cuts` shows it), and then only the watermark knows.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::{envelope, error::StoreError};
use crate::{
    codec::record,
    raft::{LogId, Vote},
};

pub(crate) const SLOT_LEN: usize = 512;
/// The slots lie in different pages.
pub(crate) const SLOT_DISTANCE: u64 = 4096;
const KEY: &[u8] = b"witness";

/// What sled must at least hold.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Watermark {
    pub(crate) sequence: u64,
    pub(crate) vote: Option<Vote>,
    pub(crate) last: Option<LogId>,
    pub(crate) store: Uuid,
}

impl Watermark {
    /// Of a store that has acknowledged nothing.
    pub(crate) fn fresh() -> Self {
        Self { sequence: 0, vote: None, last: None, store: Uuid::new_v4() }
    }

    /// The slot that this state of it is written to.
    pub(crate) fn slot(&self) -> u64 {
        (self.sequence % 2) * SLOT_DISTANCE
    }

    /// The slot's contents.
    pub(crate) fn encode(&self) -> [u8; SLOT_LEN] {
        let record = record::Watermark {
            sequence: self.sequence,
            vote: self.vote.map(Into::into),
            last: self.last.map(Into::into),
            store: self.store.as_bytes().to_vec(),
        };
        let sealed = envelope::seal_message(KEY, &record);
        let mut slot = [0; SLOT_LEN];
        // At most 3 varints a log id and 16 bytes of uuid: far below a slot.
        slot[..2].copy_from_slice(&(sealed.len() as u16).to_le_bytes());
        slot[2..2 + sealed.len()].copy_from_slice(&sealed);
        slot
    }

    fn decode(slot: &[u8; SLOT_LEN]) -> Option<Self> {
        let len = usize::from(u16::from_le_bytes([slot[0], slot[1]]));
        let record: record::Watermark = envelope::open_message(KEY, slot.get(2..2 + len)?).ok()?;
        Some(Self {
            sequence: record.sequence,
            vote: record.vote.map(Into::into),
            last: record.last.map(Into::into),
            store: Uuid::from_slice(&record.store).ok()?,
        })
    }

    /// The newer of the two slots; a file in which neither can be read is damaged.
    pub(crate) fn read(path: &Path, file: &File) -> Result<Self, StoreError> {
        let mut newest: Option<Self> = None;
        for offset in [0, SLOT_DISTANCE] {
            let mut slot = [0; SLOT_LEN];
            match file.read_exact_at(&mut slot, offset) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                read => read.map_err(|error| StoreError::io("read", path, error))?,
            }
            if let Some(watermark) = Self::decode(&slot)
                && newest.as_ref().is_none_or(|newest| watermark.sequence > newest.sequence)
            {
                newest = Some(watermark);
            }
        }
        newest.ok_or_else(|| StoreError::damaged(path, "neither of the witness's two records can be read"))
    }
}

/// Our own writes and syncs, so that tests can make each of them fail or tear.
pub(crate) trait Disk: Send + 'static {
    /// Makes everything that sled has written durable.
    fn sync_log(&mut self) -> io::Result<()>;
    /// Writes one slot of the watermark and makes it durable.
    fn write_watermark(&mut self, offset: u64, slot: &[u8; SLOT_LEN]) -> io::Result<()>;
}

/// The files themselves.
pub(crate) struct Files {
    pub(crate) log: File,
    pub(crate) watermark: File,
}

impl Disk for Files {
    fn sync_log(&mut self) -> io::Result<()> {
        self.log.sync_data()
    }

    fn write_watermark(&mut self, offset: u64, slot: &[u8; SLOT_LEN]) -> io::Result<()> {
        self.watermark.write_all_at(slot, offset)?;
        self.watermark.sync_data()
    }
}

/// Makes a new watermark durable, its directory entry included, before sled exists. Whatever is cut short
/// leaves no file of that name.
pub(crate) fn create(dir: &Path, path: &PathBuf) -> Result<(File, Watermark), StoreError> {
    let at = |step: &'static str| move |error| StoreError::io(step, path, error);
    let watermark = Watermark::fresh();
    let unfinished = path.with_extension("new");
    let options = File::options().read(true).write(true).create(true).truncate(true).open(&unfinished);
    let file = options.map_err(at("create"))?;
    file.set_len(SLOT_DISTANCE + SLOT_LEN as u64).map_err(at("extend"))?;
    file.write_all_at(&watermark.encode(), watermark.slot()).map_err(at("write"))?;
    file.sync_all().map_err(at("sync"))?;
    fs::rename(&unfinished, path).map_err(at("rename"))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at("sync the directory of"))?;
    Ok((file, watermark))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_slot_leaves_the_other_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("witness");
        let (file, first) = create(dir.path(), &path).unwrap();
        let second = Watermark { sequence: 1, vote: Some(Vote::new(3, 1)), ..first.clone() };
        file.write_all_at(&second.encode(), second.slot()).unwrap();
        assert_eq!(Watermark::read(&path, &file).unwrap(), second);
        file.write_all_at(&[0xff; 64], second.slot() + 8).unwrap();
        assert_eq!(Watermark::read(&path, &file).unwrap(), first);
        file.write_all_at(&[0xff; 64], 8).unwrap();
        assert!(matches!(Watermark::read(&path, &file), Err(StoreError::Damaged { .. })));
        file.set_len(3).unwrap();
        assert!(matches!(Watermark::read(&path, &file), Err(StoreError::Damaged { .. })));
    }
}
