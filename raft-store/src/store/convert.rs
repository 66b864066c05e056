//! A store of a build that knew no journal: everything stood in sled, and the watermark said what sled had to hold. Its
//! journal is made once, and is there as a whole or not at all; cut short, it is made again.

use std::{fs, path::Path, sync::Arc};

use super::{
    StoreError,
    disk::Disk,
    failure::Failure,
    identity::Identity,
    journal::{self, Journal, Record, State},
    keys, log_store,
    snapshots::Snapshots,
    trees::Trees,
    watermark::Watermark,
};
use crate::raft::LogId;

/// Gives the store in `dir` a journal.
pub(super) fn convert(dir: &Path, watermark: &Watermark, disk: &Arc<dyn Disk>) -> Result<(), StoreError> {
    let (sled, journal) = (dir.join(keys::SLED_DIR), dir.join(keys::JOURNAL_DIR));
    let acknowledged = watermark.vote.is_some() || watermark.last.is_some();
    if acknowledged && !sled.join(keys::SLED_FILE).exists() {
        return Err(StoreError::damaged(&sled, "the witness speaks of data, and sled's file is missing"));
    }
    let trees = Trees::open(sled.clone(), Failure::default())?;
    let unfinished = journal::unfinished(&journal);
    if trees.refuses_older_builds()? && !unfinished.exists() {
        return Err(StoreError::damaged(&journal, "the journal is missing"));
    }
    let (state, entries) = verify(&trees, watermark)?;
    let snapshots = Snapshots::open(dir.join(keys::SNAPSHOTS_DIR), watermark.store, disk.clone())?;
    if let Some(snapshot) = trees.snapshot()? {
        snapshots.write(&snapshot).map_err(|error| StoreError::io("write", snapshots.dir(), error))?;
    }
    let at = |error| StoreError::io("create", &journal, error);
    // Says that what follows was cut short, until it is done.
    fs::create_dir_all(&unfinished).and_then(|()| disk.sync_dir(dir)).map_err(at)?;
    // From now on no older build goes on with it: what that wrote would not be in the journal.
    trees.refuse_older_builds().and_then(|()| trees.flush()).map_err(at)?;
    let file = sled.join(keys::SLED_FILE);
    fs::File::open(&file).and_then(|file| file.sync_data()).map_err(|error| StoreError::io("sync", &file, error))?;
    // Behind all that the watermark has counted.
    let first = watermark.sequence + 1;
    let count = entries.len();
    Journal::create(&journal, watermark.store, &**disk, first, (state, &entries)).map_err(at)?;
    tracing::info!(entries = count, "the store was given a journal; older builds refuse it from now on");
    Ok(())
}

/// Reads the whole log and refuses it unless it holds at least what the watermark says, without a
/// hole, and in order.
pub(super) fn verify(trees: &Trees, watermark: &Watermark) -> Result<(State, Vec<Record>), StoreError> {
    let damaged = |what: String| Err(StoreError::damaged(trees.path(), what));
    let purged = trees.log_id(keys::PURGED)?;
    let committed = trees.log_id(keys::COMMITTED)?;
    let vote = trees.vote()?;
    let identity = trees.identity()?.map(|record| Identity::read(record, watermark.store)).transpose();
    let identity =
        identity.map_err(|what| StoreError::damaged(trees.path(), format!("the identity record: {what}")))?;
    let mut entries = Vec::new();
    let mut last = purged;
    for read in trees.entries(0) {
        let (index, bytes) = read?;
        if purged.is_some_and(|purged| index <= purged.index()) {
            continue; // A purge that was cut short; the marker comes first.
        }
        let id = log_store::decode(trees.path(), index, &bytes)?.log_id;
        let expected = last.map_or(0, |last| last.index() + 1);
        if index != expected {
            return damaged(format!("the log has a hole: entry {expected} is missing before entry {index}"));
        }
        if last.is_some_and(|last| id <= last) {
            return damaged(format!("entry {index} has a lower term than the one before it"));
        }
        entries.push(Record::Entry(id, bytes));
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
    Ok((State { identity, vote, last: purged, purged, ..State::default() }, entries))
}
