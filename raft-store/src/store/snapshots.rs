//! The snapshot files: from the newest one and the journal all else can be made anew. There are two, so that a journal from
//! the older one on is a second way to the same table. A file is written beside, synced, renamed, and its directory synced: it
//! is there as a whole or not at all.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use uuid::Uuid;

use super::{
    StoreError,
    disk::{Disk, numbered},
    envelope,
};
use crate::{
    codec::{DecodeError, record},
    raft::{LogId, Snapshot, SnapshotMeta},
    table::decode_table,
};

/// So many are kept.
const KEPT: usize = 2;
const KEY: &[u8] = b"snapshot file";
const UNFINISHED: &str = "new";
/// Where the last one is that was not sound, for whoever wants to know why.
const DAMAGED: &str = "damaged";

/// The files.
#[derive(Clone)]
pub(crate) struct Snapshots {
    dir: PathBuf,
    store: Uuid,
    disk: Arc<dyn Disk>,
}

impl Snapshots {
    pub(crate) fn open(dir: PathBuf, store: Uuid, disk: Arc<dyn Disk>) -> Result<Self, StoreError> {
        if !dir.exists() {
            fs::create_dir(&dir).map_err(|error| StoreError::io("create", &dir, error))?;
            let synced = dir.parent().map_or(Ok(()), |parent| disk.sync_dir(parent));
            synced.map_err(|error| StoreError::io("sync the directory of", &dir, error))?;
        }
        Ok(Self { dir, store, disk })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes one, and answers with the last entry that the one before it holds: what is in the log up to there is needed no
    /// more.
    pub(crate) fn write(&self, snapshot: &Snapshot) -> io::Result<Option<u64>> {
        let file = record::SnapshotFile {
            store: self.store.as_bytes().to_vec(),
            meta: Some((&snapshot.meta).into()),
            table: snapshot.snapshot.clone(),
        };
        let bytes = envelope::seal_message(KEY, &file);
        let unfinished = self.dir.join(UNFINISHED);
        let file = File::options().write(true).create(true).truncate(true).open(&unfinished)?;
        self.disk.write(&unfinished, &file, &bytes, 0)?;
        self.disk.sync(&unfinished, &file)?;
        self.disk.rename(&unfinished, &self.dir.join(name(snapshot.meta.last_log_id)))?;
        self.disk.sync_dir(&self.dir)?;
        let files = self.list()?;
        let (gone, kept) = files.split_at(files.len().saturating_sub(KEPT));
        for (_, path) in gone {
            self.disk.remove(path)?;
        }
        Ok(match kept {
            [(next, _), _] => next.checked_sub(1),
            _ => None,
        })
    }

    /// Takes a file that is not sound out of those that are kept.
    pub(crate) fn put_aside(&self, path: &Path) -> io::Result<()> {
        self.disk.rename(path, &self.dir.join(DAMAGED))?;
        self.disk.sync_dir(&self.dir)
    }

    /// The files, from the oldest to the newest, each with the index behind its last entry.
    pub(crate) fn list(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        list(&self.dir)
    }

    /// The newest one that is sound, and what is wrong with those that are newer.
    pub(crate) fn newest(&self) -> Result<(Option<Snapshot>, Vec<StoreError>), StoreError> {
        let mut unsound = Vec::new();
        let files = self.list().map_err(|error| StoreError::io("read", &self.dir, error))?;
        for (_, path) in files.into_iter().rev() {
            match read(&path, self.store) {
                Ok(snapshot) => return Ok((Some(snapshot), unsound)),
                Err(error @ StoreError::Damaged { .. }) => unsound.push(error),
                Err(error) if error.is_unreadable() => unsound.push(StoreError::damaged(&path, error.to_string())),
                Err(error) => return Err(error),
            }
        }
        Ok((None, unsound))
    }
}

/// The index behind the last entry, so that one of an empty log has a name too.
fn name(last: Option<LogId>) -> String {
    format!("{:020}", last.map_or(0, |last| last.index() + 1))
}

pub(super) fn list(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    numbered(dir)
}

/// Reads a file whole, its table included.
pub(crate) fn read(path: &Path, store: Uuid) -> Result<Snapshot, StoreError> {
    let damaged = |what: String| StoreError::damaged(path, what);
    let bytes = fs::read(path).map_err(|error| StoreError::io("read", path, error))?;
    let file: record::SnapshotFile = envelope::open_message(KEY, &bytes).map_err(|error| damaged(error.to_string()))?;
    if file.store != store.as_bytes() {
        return Err(damaged("the snapshot belongs to another store".into()));
    }
    let meta = file.meta.ok_or_else(|| damaged("the snapshot does not say what it holds".into()))?;
    let meta: SnapshotMeta = meta.try_into().map_err(|error: DecodeError| damaged(error.to_string()))?;
    if path.file_name().and_then(|found| found.to_str()) != Some(&name(meta.last_log_id)) {
        return Err(damaged("the snapshot has the name of another one".into()));
    }
    decode_table(&file.table).map_err(|error| StoreError::unreadable(path, "the snapshot", error))?;
    Ok(Snapshot { meta, snapshot: file.table })
}
