//! Bringing sled to what the journal and the snapshot say. After a crash of the process it lacks the last half second. After a
//! power cut it can be torn in any way, and one that opens and can be read whole may still spoil itself when it is written to
//! (the test by images has shown it); the same holds for a copy that was taken while it was in use. So only a file that was
//! in use since the machine's last boot is gone on with, where a crash of the process alone loses nothing that was written;
//! any other is made anew. Nothing from it decides what the log is, but for entries before the journal's first one, which a
//! snapshot holds too.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    panic::{self, AssertUnwindSafe},
    path::Path,
    time::{Instant, UNIX_EPOCH},
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

/// Why sled's directory may be torn; nothing where it has been in use since the last boot.
pub(super) fn distrusted(path: &Path) -> Option<&'static str> {
    if !path.join(keys::SLED_FILE).exists() {
        return Some("it is not there");
    }
    let known = fs::read_to_string(path.join(keys::SLED_BOOT)).ok();
    match known.is_some() && known == this_boot(path) {
        true => None,
        false => Some("it was written before the last boot, or is a copy"),
    }
}

/// Notes that sled's file is sound in this boot. Not synced: a power cut ends the boot too.
pub(super) fn trust(path: &Path) -> io::Result<()> {
    // Where the system does not say which boot it is, sled is made anew at each start.
    this_boot(path).map_or(Ok(()), |boot| fs::write(path.join(keys::SLED_BOOT), boot))
}

/// This boot and this file: a copy has another number.
fn this_boot(path: &Path) -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let file = fs::metadata(path.join(keys::SLED_FILE)).ok()?;
    // A number is given again; where the file system keeps no birth time, that has to do.
    let born = file.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Some(format!("{} {} {} {}\n", boot.trim(), file.dev(), file.ino(), born.as_nanos()))
}

/// sled as it is wanted: what it lacks is written, and where it cannot be trusted it is made anew.
pub(super) fn reconcile(dir: &Path, wanted: &Wanted<'_>) -> Result<(Trees, Sizes), StoreError> {
    let path = dir.join(keys::SLED_DIR);
    let begun = Instant::now();
    let (found, is_torn) = match distrusted(&path) {
        Some(why) => (why.to_owned(), false),
        None => match attempt(&path, wanted) {
            Err(StoreError::Damaged { what, .. }) => (what, true),
            Err(error) if error.is_unreadable() => (error.to_string(), true),
            done => return done.map(|(trees, brought)| (trees, brought.sizes)),
        },
    };
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(StoreError::io("remove", &path, error));
        }
        _ => {}
    }
    let trees = Trees::open(path.clone(), Failure::default())?;
    let Brought { sizes, .. } = bring(&trees, wanted)?;
    trees.flush().and_then(|()| trust(&path)).map_err(|error| StoreError::io("write", &path, error))?;
    if wanted.journal.state.last.is_some() {
        let (took_ms, entries) = (begun.elapsed().as_millis() as u64, sizes.count());
        let how = "sled's file was made anew from the snapshot and the journal";
        if is_torn {
            tracing::warn!(
                found,
                entries,
                took_ms,
                "{how}: it could not be read; nothing that was acknowledged is lost"
            );
        } else {
            tracing::info!(found, entries, took_ms, "{how}");
        }
    }
    Ok((trees, sizes))
}

/// How many entries a copy of sled's directory lacks or has too many. It changes the copy.
pub(super) fn examine(copy: &Path, wanted: &Wanted<'_>) -> Result<usize, StoreError> {
    attempt(copy, wanted).map(|(_, brought)| brought.differs)
}

fn attempt(path: &Path, wanted: &Wanted<'_>) -> Result<(Trees, Brought), StoreError> {
    // sled answers some torn states with a panic.
    let attempt = panic::catch_unwind(AssertUnwindSafe(|| {
        let trees = Trees::open(path.to_owned(), Failure::default())?;
        let brought = bring(&trees, wanted)?;
        Ok((trees, brought))
    }));
    attempt.unwrap_or_else(|_| Err(StoreError::damaged(path, "sled gave up reading it")))
}

/// What was found, and is there now.
struct Brought {
    sizes: Sizes,
    /// Entries that were missing, or too many.
    differs: usize,
}

/// Compares all that sled holds, and writes what differs. Damage of sled's is no damage of the store.
fn bring(trees: &Trees, wanted: &Wanted<'_>) -> Result<Brought, StoreError> {
    let failed = |error| StoreError::io("write", trees.path(), error);
    let Replayed { state, floor, entries, .. } = wanted.journal;
    let held = wanted.snapshot.and_then(|snapshot| snapshot.meta.last_log_id);
    // Where the newest snapshot was not sound, what was purged behind the older one is there still.
    let mut purged = state.purged.min(held);
    let journal_from = floor.map_or(0, |floor| floor.index() + 1);
    // Both are in order.
    let (mut wanted_next, mut missing) = (entries.iter().peekable(), Vec::new());
    let (mut sizes, mut stale) = (Sizes::default(), Vec::new());
    let mut purged_still_there = Vec::new();
    let mut before = Vec::new();
    for read in trees.entries(0) {
        let (index, bytes) = read?;
        while let Some((wanted, place)) = wanted_next.next_if(|(wanted, _)| **wanted < index) {
            missing.push((*wanted, *place));
        }
        let place = wanted_next.next_if(|(wanted, _)| **wanted == index).map(|(_, place)| place);
        if purged.is_some_and(|purged| index <= purged.index()) {
            // Purging removes them in the background, which a crash cuts short: nothing is wrong with that.
            purged_still_there.push(index);
        } else if index < journal_from {
            before.push((index, log_store::decode(trees.path(), index, &bytes)?.log_id, bytes.len()));
        } else if place.is_some_and(|place| place.is(&bytes)) {
            log_store::decode(trees.path(), index, &bytes)?;
            sizes.put(index, bytes.len() as u64);
        } else {
            // Never acknowledged, or of an end of the log that was replaced.
            stale.push(index);
            missing.extend(place.map(|place| (index, *place)));
        }
    }
    missing.extend(wanted_next.map(|(index, place)| (*index, *place)));
    if is_whole(purged, &before, *floor) {
        for (index, _, len) in before {
            sizes.put(index, len as u64);
        }
    } else {
        purged = purged.max(*floor);
        stale.extend(before.into_iter().map(|(index, ..)| index));
    }
    trees.remove_entries(&purged_still_there).and_then(|()| trees.remove_entries(&stale)).map_err(failed)?;
    missing.retain(|(index, _)| purged.is_none_or(|purged| *index > purged.index()));
    let differs = missing.len() + stale.len();
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
    Ok(Brought { sizes, differs })
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
fn restore(trees: &Trees, journal: &Replayed, missing: &[(u64, Place)], sizes: &mut Sizes) -> Result<(), StoreError> {
    let mut reader = journal.reader();
    for places in missing.chunks(AT_ONCE) {
        let mut read = Vec::with_capacity(places.len());
        for (index, place) in places {
            let bytes = reader.read(place)?;
            log_store::decode(trees.path(), *index, &bytes)?;
            sizes.put(*index, bytes.len() as u64);
            read.push((*index, bytes));
        }
        trees.insert_entries(read).map_err(|error| StoreError::io("write", trees.path(), error))?;
    }
    Ok(())
}
