//! Bringing sled to what the journal and the snapshot say. After a crash it lacks the last half second; after a power cut it
//! can be torn in any way, and then it is made anew. Nothing is taken from it that is not sound, and nothing from it decides
//! what the log is, but for entries before the journal's first one, which a snapshot holds too.

use std::{
    collections::BTreeMap,
    fs, io,
    panic::{self, AssertUnwindSafe},
    path::Path,
    time::Instant,
};

use super::{
    StoreError,
    failure::Failure,
    journal::{Place, Replayed},
    keys,
    log_store::{self, Sizes},
    trees::Trees,
};
use crate::raft::{LogId, Snapshot};

/// Entries that are written at once.
const AT_ONCE: usize = 256;

/// What sled must hold.
pub(super) struct Wanted<'a> {
    pub(super) journal: &'a Replayed,
    pub(super) snapshot: Option<&'a Snapshot>,
}

/// sled as it is wanted: what it lacks is written, and where it cannot be read it is made anew.
pub(super) fn reconcile(dir: &Path, failure: &Failure, wanted: &Wanted<'_>) -> Result<(Trees, Sizes), StoreError> {
    let path = dir.join(keys::SLED_DIR);
    let open = || -> Result<(Trees, Sizes), StoreError> {
        let trees = Trees::open(path.clone(), failure.clone())?;
        let sizes = bring(&trees, wanted)?;
        Ok((trees, sizes))
    };
    let begun = Instant::now();
    let torn = if path.join(keys::SLED_FILE).exists() {
        // sled answers some torn states with a panic.
        match panic::catch_unwind(AssertUnwindSafe(open)) {
            Ok(Err(StoreError::Damaged { what, .. })) => what,
            Ok(done) => return done,
            Err(_) => "sled gave up reading it".to_owned(),
        }
    } else {
        "it is not there".to_owned()
    };
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(StoreError::io("remove", &path, error));
        }
        _ => {}
    }
    let (trees, sizes) = open()?;
    trees.flush().map_err(|error| StoreError::io("write", &path, error))?;
    if wanted.journal.state.last.is_some() {
        let took_ms = begun.elapsed().as_millis() as u64;
        let entries = sizes.count();
        tracing::warn!(
            found = torn,
            entries,
            took_ms,
            "sled's file could not be read, as a power cut can leave it; it was made anew from the snapshot and the journal, \
             and nothing that was acknowledged is lost"
        );
    }
    Ok((trees, sizes))
}

/// Compares all that sled holds, and writes what differs. Damage of sled's is no damage of the store.
fn bring(trees: &Trees, wanted: &Wanted<'_>) -> Result<Sizes, StoreError> {
    let failed = |error| StoreError::io("write", trees.path(), error);
    let Replayed { state, floor, entries, .. } = wanted.journal;
    let held = wanted.snapshot.and_then(|snapshot| snapshot.meta.last_log_id);
    // Where the newest snapshot was not sound, what was purged behind the older one is there still.
    let mut purged = state.purged.min(held);
    let journal_from = floor.map_or(0, |floor| floor.index() + 1);
    let (mut sizes, mut missing, mut stale) = (Sizes::default(), entries.clone(), Vec::new());
    let mut before = Vec::new();
    for read in trees.entries(0) {
        let (index, bytes) = read?;
        if purged.is_some_and(|purged| index <= purged.index()) {
            stale.push(index);
        } else if index < journal_from {
            before.push((index, log_store::decode(trees.path(), index, &bytes)?.log_id, bytes.len()));
        } else if entries.get(&index).is_some_and(|place| place.is(&bytes)) {
            log_store::decode(trees.path(), index, &bytes)?;
            sizes.put(index, bytes.len() as u64);
            missing.remove(&index);
        } else {
            // Never acknowledged, or of an end of the log that was replaced.
            stale.push(index);
        }
    }
    if is_whole(purged, &before, *floor) {
        for (index, _, len) in before {
            sizes.put(index, len as u64);
        }
    } else {
        purged = purged.max(*floor);
        stale.extend(before.into_iter().map(|(index, ..)| index));
    }
    trees.remove_entries(&stale).map_err(failed)?;
    missing.retain(|index, _| purged.is_none_or(|purged| *index > purged.index()));
    restore(trees, wanted.journal, &missing, &mut sizes)?;
    trees.put_log_id(keys::PURGED, purged).map_err(failed)?;
    trees.put_vote(state.vote).map_err(failed)?;
    if trees.log_id(keys::COMMITTED)?.is_some_and(|id| !is_in(wanted.journal, id)) {
        trees.put_log_id(keys::COMMITTED, None).map_err(failed)?;
    }
    let snapshot = trees.snapshot()?;
    match wanted.snapshot {
        Some(wanted)
            if snapshot.as_ref().is_none_or(|found| found.snapshot != wanted.snapshot || found.meta != wanted.meta) =>
        {
            trees.put_snapshot(wanted).map_err(failed)?;
        }
        None if snapshot.is_some() => return Err(StoreError::damaged(trees.path(), "its snapshot is in no file")),
        _ => {}
    }
    trees.refuse_older_builds().map_err(failed)?;
    Ok(sizes)
}

/// Whether the entries between what is purged and the journal are all there, in order.
fn is_whole(purged: Option<LogId>, found: &[(u64, LogId, usize)], floor: Option<LogId>) -> bool {
    let mut last = purged;
    for (index, id, _) in found {
        if *index != last.map_or(0, |last| last.index() + 1) || last.is_some_and(|last| *id <= last) {
            return false;
        }
        last = Some(*id);
    }
    // More may be purged than the journal begins with.
    last == floor || purged >= floor
}

/// Whether the log has that entry, or had it.
fn is_in(journal: &Replayed, id: LogId) -> bool {
    match journal.entries.get(&id.index()) {
        Some(place) => place.id == id,
        None => Some(id) <= journal.floor,
    }
}

/// Writes entries from the journal.
fn restore(
    trees: &Trees,
    journal: &Replayed,
    missing: &BTreeMap<u64, Place>,
    sizes: &mut Sizes,
) -> Result<(), StoreError> {
    let mut reader = journal.reader();
    let mut places = missing.iter().peekable();
    while places.peek().is_some() {
        let mut read = Vec::with_capacity(AT_ONCE);
        for (index, place) in places.by_ref().take(AT_ONCE) {
            let bytes = reader.read(place)?;
            log_store::decode(trees.path(), *index, &bytes)?;
            sizes.put(*index, bytes.len() as u64);
            read.push((*index, bytes));
        }
        trees.insert_entries(read).map_err(|error| StoreError::io("write", trees.path(), error))?;
    }
    Ok(())
}
