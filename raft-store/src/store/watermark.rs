//! The watermark: a small file, called witness, that says up to which record the journal was durable, and what it amounted to.
//!
//! A journal alone does not tell a tail that was cut off by damage from one that was never written. The watermark has two
//! 512-byte slots that are written in turn, so a torn write leaves the other one. It is written after each sync of the journal
//! and not synced itself: after a power cut it may lag, and never leads.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::{
    disk::Disk,
    envelope,
    error::{StoreError, is_unreadable},
};
use crate::{
    codec::record,
    raft::{LogId, Vote},
};

pub(crate) const SLOT_LEN: usize = 512;
/// The slots lie in different pages.
pub(crate) const SLOT_DISTANCE: u64 = 4096;
const KEY: &[u8] = b"witness";

/// What the journal must at least hold.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Watermark {
    /// Of the last record of the journal; before there was a journal, of the watermark itself.
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

    /// Whether nothing was acknowledged yet.
    pub(crate) fn is_fresh(&self) -> bool {
        self.sequence == 0
    }

    /// A slot's contents.
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
}

/// The file, open to be written.
pub(crate) struct WatermarkFile {
    path: PathBuf,
    file: File,
    /// The slot that is written next: the one that does not hold the newest state.
    slot: u64,
}

impl WatermarkFile {
    /// Opens it, and reads the newer of its two slots; a file in which neither can be read is damaged.
    pub(crate) fn open(path: &Path) -> Result<(Self, Watermark), StoreError> {
        let file = File::options().read(true).write(true).open(path).map_err(|e| StoreError::io("open", path, e))?;
        let (newest, at) = read(path, &file)?;
        Ok((Self { path: path.to_owned(), file, slot: SLOT_DISTANCE - at }, newest))
    }

    /// Writes the next state.
    pub(crate) fn write(&mut self, disk: &dyn Disk, watermark: &Watermark) -> io::Result<()> {
        disk.write(&self.path, &self.file, &watermark.encode(), self.slot)?;
        self.slot = SLOT_DISTANCE - self.slot;
        Ok(())
    }

    /// Makes what was written durable.
    pub(crate) fn sync(&self, disk: &dyn Disk) -> io::Result<()> {
        disk.sync(&self.path, &self.file)
    }
}

/// The newest state, and the slot that it is in.
pub(crate) fn read(path: &Path, file: &File) -> Result<(Watermark, u64), StoreError> {
    let mut newest: Option<(Watermark, u64)> = None;
    for offset in [0, SLOT_DISTANCE] {
        let mut slot = [0; SLOT_LEN];
        match file.read_exact_at(&mut slot, offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof || is_unreadable(&error) => continue,
            read => read.map_err(|error| StoreError::io("read", path, error))?,
        }
        if let Some(watermark) = Watermark::decode(&slot)
            && newest.as_ref().is_none_or(|(newest, _)| watermark.sequence > newest.sequence)
        {
            newest = Some((watermark, offset));
        }
    }
    newest.ok_or_else(|| StoreError::damaged(path, "neither of the witness's two records can be read"))
}

/// Makes a new watermark durable, its directory entry included, before there is anything else. Whatever is cut short
/// leaves no file of that name.
pub(crate) fn create(dir: &Path, path: &Path, disk: &dyn Disk) -> Result<(), StoreError> {
    let at = |step: &'static str| move |error| StoreError::io(step, path, error);
    let unfinished = path.with_extension("new");
    let options = File::options().read(true).write(true).create(true).truncate(true).open(&unfinished);
    let file = options.map_err(at("create"))?;
    file.set_len(SLOT_DISTANCE + SLOT_LEN as u64).map_err(at("extend"))?;
    disk.write(&unfinished, &file, &Watermark::fresh().encode(), 0).map_err(at("write"))?;
    file.sync_all().map_err(at("sync"))?;
    disk.sync(&unfinished, &file).map_err(at("sync"))?;
    disk.rename(&unfinished, path).map_err(at("rename"))?;
    disk.sync_dir(dir).map_err(at("sync the directory of"))
}

#[cfg(test)]
mod tests {
    use super::{super::disk::Files, *};

    #[test]
    fn a_torn_slot_leaves_the_other_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("witness");
        create(dir.path(), &path, &Files).unwrap();
        let (mut file, first) = WatermarkFile::open(&path).unwrap();
        let second = Watermark { sequence: 1, vote: Some(Vote::new(3, 1)), ..first.clone() };
        file.write(&Files, &second).unwrap();
        let read = || WatermarkFile::open(&path).map(|(_, watermark)| watermark);
        assert_eq!(read().unwrap(), second);
        file.file.write_all_at(&[0xff; 64], SLOT_DISTANCE + 8).unwrap();
        assert_eq!(read().unwrap(), first);
        file.file.write_all_at(&[0xff; 64], 8).unwrap();
        assert!(matches!(read(), Err(StoreError::Damaged { .. })));
        file.file.set_len(3).unwrap();
        assert!(matches!(read(), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn the_newest_state_is_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("witness");
        create(dir.path(), &path, &Files).unwrap();
        for sequence in [5, 7, 9, 11] {
            let (mut file, before) = WatermarkFile::open(&path).unwrap();
            file.write(&Files, &Watermark { sequence, ..before.clone() }).unwrap();
            // The one before is there still, whatever its number is.
            let mut slot = [0; SLOT_LEN];
            file.file.read_exact_at(&mut slot, file.slot).unwrap();
            assert_eq!(Watermark::decode(&slot), Some(before));
        }
    }
}
