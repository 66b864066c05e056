//! What is in a store, and whether it is sound: read without changing it, while no process uses it. An operator chooses the
//! right one of several survivors by it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::{
    convert,
    error::StoreError,
    failure::Failure,
    identity::Identity,
    journal::{self, Replayed, State},
    keys,
    lock::lock,
    reconcile::{self, Wanted},
    snapshots,
    trees::Trees,
    watermark::WatermarkFile,
};
use crate::{
    raft::{LogId, Snapshot},
    table::NodeId,
};

/// Where sled's file is copied to, because sled writes to what it opens.
const COPY: &str = "checking";

/// What is in a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreReport {
    /// The store's own identity; nil where it cannot be read.
    pub store: Uuid,
    /// Its node, once that is part of a cluster.
    pub node: Option<NodeReport>,
    /// How often the node was started on it.
    pub starts: u32,
    /// The last vote: its term, for whom, and whether a majority gave theirs too.
    pub vote: Option<(u64, NodeId, bool)>,
    /// The term and the index of the last entry that was purged: the log begins behind it.
    pub purged: Option<(u64, u64)>,
    /// The term and the index of the last entry.
    pub last: Option<(u64, u64)>,
    /// Its journal; none in a store of a version that knew none, which is given one at its next start.
    pub journal: Option<JournalReport>,
    /// The snapshot files, the oldest first.
    pub snapshots: Vec<SnapshotReport>,
    /// What sled holds of it.
    pub sled: SledReport,
    /// What makes it unusable; empty where nothing does.
    pub damage: Vec<String>,
}

/// Whose store it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReport {
    /// The node's id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// The cluster's id.
    pub cluster: Uuid,
    /// The cluster's name.
    pub cluster_name: String,
}

/// A journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalReport {
    /// The number of the last record.
    pub last_record: u64,
    /// The number of the last record that the witness file has seen; what it lags behind by is not damage.
    pub witnessed: u64,
    /// Entries of the log that are in it.
    pub entries: usize,
    /// Its segments, the oldest first: the file's name and its size in bytes.
    pub segments: Vec<(String, u64)>,
}

/// A snapshot file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotReport {
    /// The file's name.
    pub file: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// The term and the index of the last entry that it holds.
    pub last: Option<(u64, u64)>,
    /// Why it cannot be used.
    pub problem: Option<String>,
}

/// What sled holds, which is made from the journal and the snapshot where it lacks anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SledReport {
    /// The file's size in bytes.
    pub bytes: u64,
    /// Entries that it lacks or has too many, as after a crash; they are mended at the next start.
    pub differs: usize,
    /// Why it is made anew at the next start, as after each boot.
    pub torn: Option<String>,
}

/// Looks at the store in `dir`, and checks all of it.
pub fn inspect(dir: &Path) -> Result<StoreReport, StoreError> {
    if !dir.join(keys::WITNESS_FILE).exists()
        && !dir.join(keys::JOURNAL_DIR).exists()
        && !dir.join(keys::SLED_DIR).exists()
    {
        return Err(StoreError::io("read a store in", dir, io::ErrorKind::NotFound.into()));
    }
    let lock_file = dir.join(keys::LOCK_FILE);
    let is_new = !lock_file.exists();
    let _lock = lock(dir)?;
    // Whoever looks may be root, and the service must be able to open it.
    if is_new {
        let _ = fs::remove_file(&lock_file);
    }
    let mut report = StoreReport::default();
    match look(dir, &mut report) {
        Err(error @ StoreError::Damaged { .. }) => report.damage.push(error.to_string()),
        Err(error) => return Err(error),
        Ok(()) => {}
    }
    Ok(report)
}

fn look(dir: &Path, report: &mut StoreReport) -> Result<(), StoreError> {
    let sled = dir.join(keys::SLED_DIR);
    report.sled.bytes = fs::metadata(sled.join(keys::SLED_FILE)).map_or(0, |file| file.len());
    let witness = dir.join(keys::WITNESS_FILE);
    if !witness.exists() {
        return Err(StoreError::damaged(&witness, "the witness file is missing beside the store's data"));
    }
    let (_, watermark) = WatermarkFile::open(&witness)?;
    report.store = watermark.store;
    let newest = look_at_snapshots(dir, report)?;
    if !dir.join(keys::JOURNAL_DIR).exists() {
        let copy = Copy::of(&sled, dir)?;
        let trees = Trees::open(copy.0.clone(), Failure::default())?;
        if trees.refuses_older_builds()? && !journal::unfinished(&dir.join(keys::JOURNAL_DIR)).exists() {
            return Err(StoreError::damaged(&dir.join(keys::JOURNAL_DIR), "the journal is missing"));
        }
        let (mut state, entries) = convert::verify(&trees, &watermark)?;
        entries.iter().for_each(|entry| state.apply(entry));
        report.put(&state);
        return Ok(());
    }
    let replayed = journal::replay(&dir.join(keys::JOURNAL_DIR), &watermark)?;
    report.put(&replayed.state);
    report.journal = Some(JournalReport {
        last_record: replayed.sequence,
        witnessed: watermark.sequence,
        entries: replayed.entries.len(),
        segments: replayed.segments.iter().map(|segment| (file_name(&segment.path), segment.len)).collect(),
    });
    if newest.as_ref().and_then(|snapshot| snapshot.meta.last_log_id) < replayed.floor {
        let what = "the entries between the newest snapshot that can be read and the journal are gone";
        return Err(StoreError::damaged(&dir.join(keys::SNAPSHOTS_DIR), what));
    }
    look_at_sled(dir, &replayed, newest.as_ref(), &mut report.sled)
}

fn look_at_snapshots(dir: &Path, report: &mut StoreReport) -> Result<Option<Snapshot>, StoreError> {
    let dir = dir.join(keys::SNAPSHOTS_DIR);
    let mut newest = None;
    for (_, path) in snapshots::list(&dir).unwrap_or_default() {
        let (last, problem) = match snapshots::read(&path, report.store) {
            Ok(snapshot) => (newest.insert(snapshot).meta.last_log_id, None),
            Err(StoreError::Damaged { what, .. }) => (None, Some(what)),
            Err(error) => return Err(error),
        };
        let bytes = fs::metadata(&path).map_or(0, |file| file.len());
        report.snapshots.push(SnapshotReport { file: file_name(&path), bytes, last: last.map(position), problem });
    }
    Ok(newest)
}

fn look_at_sled(
    dir: &Path,
    journal: &Replayed,
    snapshot: Option<&Snapshot>,
    report: &mut SledReport,
) -> Result<(), StoreError> {
    if let Some(why) = reconcile::distrusted(&dir.join(keys::SLED_DIR)) {
        report.torn = Some(why.to_owned());
        return Ok(());
    }
    let copy = Copy::of(&dir.join(keys::SLED_DIR), dir)?;
    match reconcile::examine(&copy.0, &Wanted { journal, snapshot }) {
        Ok(differs) => report.differs = differs,
        Err(StoreError::Damaged { what, .. }) => report.torn = Some(what),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// What a look that was cut short has left.
pub(super) fn remove_copy(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir.join(COPY))
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "a copy that 'lbd store' has left in data_dir/checking cannot be removed");
    }
}

/// A copy of sled's directory, which is removed again.
struct Copy(PathBuf);

impl Copy {
    fn of(sled: &Path, dir: &Path) -> Result<Self, StoreError> {
        let copy = Self(dir.join(COPY));
        let made = (|| -> io::Result<()> {
            if copy.0.exists() {
                fs::remove_dir_all(&copy.0)?;
            }
            fs::create_dir(&copy.0)?;
            for name in [keys::SLED_FILE, "conf"] {
                if sled.join(name).exists() {
                    fs::copy(sled.join(name), copy.0.join(name))?;
                }
            }
            Ok(())
        })();
        made.map_err(|error| StoreError::io("make a copy for checking in", dir, error))?;
        Ok(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // What is left of it is removed by the next look.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl StoreReport {
    fn put(&mut self, state: &State) {
        let State { identity, vote, last, purged, starts, .. } = state;
        self.node = identity.as_ref().map(|Identity { node, name, cluster, cluster_name, .. }| NodeReport {
            id: *node,
            name: name.clone(),
            cluster: *cluster,
            cluster_name: cluster_name.clone(),
        });
        self.vote = vote.map(|vote| (vote.leader_id.term, vote.leader_id.voted_for, vote.committed));
        self.last = last.map(position);
        self.purged = purged.map(position);
        self.starts = *starts;
    }
}

fn position(id: LogId) -> (u64, u64) {
    (id.committed_leader_id().term, id.index())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
