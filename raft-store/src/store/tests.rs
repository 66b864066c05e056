//! The store against openraft's own suite, and against damage.

use std::{
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use openraft::{
    RaftLogReader as _, RaftSnapshotBuilder as _, StorageError,
    entry::RaftEntry as _,
    storage::{IOFlushed, RaftLogStorage as _, RaftStateMachine as _},
    testing::log::{StoreBuilder, Suite},
    type_config::TypeConfigExt as _,
};
use prost::Message as _;
use tempfile::TempDir;

use super::{
    StoreError,
    disk::{Disk, Files},
    failure::Failure,
    inspect::inspect,
    journal, keys,
    log_store::LogStore,
    open::Store,
    reconcile,
    state_machine::StateMachine,
    trees::Trees,
    watermark::{SLOT_DISTANCE, Watermark, WatermarkFile},
};
use crate::{
    codec::record,
    feed,
    raft::{Entry, LogId, SnapshotMeta, TypeConfig, Vote},
    table::{
        BackendSettings, Body, Command, Mutation, PortRange, Protocol, ServiceSettings, Table, Unmatched, VipSettings,
        encode_table,
    },
};

fn open(dir: &Path) -> Result<Store, StoreError> {
    Store::open(dir, feed::channel().0)
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).unwrap();
        Ok((dir, store.log, store.machine))
    }
}

#[test]
fn openraft_suite() {
    TypeConfig::run(async { Suite::test_all(Builder).await }).unwrap();
}

/// A store that has acknowledged a vote and entries 0 to 40, closed again.
fn written() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    TypeConfig::run(async {
        let mut log = open(dir.path()).unwrap().log;
        log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
        for index in 0..=40 {
            append(&mut log, 1, index).await;
        }
        log.save_committed(Some(LogId::new_term_index(1, 39))).await.unwrap();
    });
    wait_until_closed(dir.path());
    dir
}

async fn append(log: &mut LogStore, term: u64, index: u64) {
    let (done, wait) = TypeConfig::oneshot();
    let entry = Entry::new_blank(LogId::new_term_index(term, index));
    log.append([entry], IOFlushed::signal(done)).await.unwrap();
    wait.await.unwrap().unwrap();
}

/// sled and the writer thread let go of their files on threads of their own.
fn wait_until_closed(dir: &Path) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while matches!(open(dir), Err(StoreError::Locked { .. } | StoreError::Io { .. })) {
        assert!(std::time::Instant::now() < deadline, "the store stays locked");
        std::thread::yield_now();
    }
    wait_until_released(dir);
}

/// The same without another start.
fn wait_until_released(dir: &Path) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while super::lock::lock(dir).is_err() {
        assert!(std::time::Instant::now() < deadline, "the store stays locked");
        std::thread::yield_now();
    }
    super::lock::wait_for_sled(&sled_file(dir)).unwrap();
}

fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    copy_all(from, to.path());
    // As if it had been in use, so that what is done to it counts.
    if sled_file(to.path()).exists() {
        reconcile::trust(&to.path().join(keys::SLED_DIR)).unwrap();
    }
    to
}

pub(super) fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_all(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

fn sled_file(dir: &Path) -> PathBuf {
    dir.join(keys::SLED_DIR).join(keys::SLED_FILE)
}

/// The segments of the journal, in their order.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> =
        fs::read_dir(dir.join(keys::JOURNAL_DIR)).unwrap().map(|file| file.unwrap().path()).collect();
    found.retain(|path| path.file_name().unwrap().len() == 20);
    found.sort();
    found
}

fn assert_damaged(dir: &Path, what: &str) {
    match open(dir).err() {
        Some(StoreError::Damaged { .. }) => {}
        other => panic!("{what}: {other:?}"),
    }
}

/// Everything that [`written`] has acknowledged.
fn assert_all_there(dir: &Path, what: &str) {
    let store = open(dir).unwrap_or_else(|error| panic!("{what}: {error}"));
    TypeConfig::run(async {
        let mut log = store.log.clone();
        assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(LogId::new_term_index(1, 40)), "{what}");
        assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new_committed(1, 1)), "{what}");
        let entries = log.try_get_log_entries(0..=40).await.unwrap();
        assert!(entries.iter().map(|entry| entry.log_id.index()).eq(0..=40), "{what}");
    });
    drop(store);
    wait_until_closed(dir);
}

#[test]
fn an_undamaged_store_opens_with_everything() {
    let dir = written();
    let copy = copy(dir.path());
    assert_all_there(copy.path(), "as it was");
    let store = open(copy.path()).unwrap();
    let committed = TypeConfig::run(async { store.log.clone().read_committed().await }).unwrap();
    assert_eq!(committed, Some(LogId::new_term_index(1, 39)));
}

#[test]
fn what_is_in_a_store_is_shown_without_a_change() {
    let dir = written();
    let contents = || {
        let mut all = Vec::new();
        let mut left = vec![dir.path().to_owned()];
        while let Some(path) = left.pop() {
            match path.is_dir() {
                true => left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path())),
                false if path.ends_with(keys::LOCK_FILE) => {}
                false => all.push((fs::read(&path).unwrap(), path)),
            }
        }
        all.sort();
        all
    };
    let before = contents();
    let report = inspect(dir.path()).unwrap();
    assert!(contents() == before, "looking at it has changed it");
    assert_eq!((report.last, report.vote, report.damage.len()), (Some((1, 40)), Some((1, 1, true)), 0));
    assert_eq!((report.sled.differs, &report.sled.torn), (0, &None));
    let journal = report.journal.unwrap();
    assert_eq!((journal.entries, journal.segments.len()), (41, 1));
    assert_eq!(journal.last_record, journal.witnessed);

    let torn = copy(dir.path());
    fs::write(sled_file(torn.path()), b"torn").unwrap();
    let report = inspect(torn.path()).unwrap();
    assert!(report.damage.is_empty() && (report.sled.torn.is_some() || report.sled.differs >= 41), "{report:?}");
    let copied = copy(dir.path());
    fs::copy(sled_file(dir.path()), copied.path().join("db")).unwrap();
    fs::rename(copied.path().join("db"), sled_file(copied.path())).unwrap();
    assert!(inspect(copied.path()).unwrap().sled.torn.unwrap().contains("is a copy"));
    let damaged = copy(dir.path());
    fs::remove_file(&segments(damaged.path())[0]).unwrap();
    let report = inspect(damaged.path()).unwrap();
    assert!(report.damage[0].contains("no sound segment"), "{report:?}");
    assert!(matches!(inspect(tempfile::tempdir().unwrap().path()), Err(StoreError::Io { .. })));
    let _held = open(dir.path()).unwrap();
    assert!(matches!(inspect(dir.path()), Err(StoreError::Locked { .. })));
    // One without a journal too.
    let fixture = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/store-level-3"));
    let report = inspect(copy(fixture).path()).unwrap();
    assert_eq!((report.last, report.journal, report.node.unwrap().id), (Some((1, 271)), None, 1));
}

#[test]
fn each_start_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    for start in 1..4 {
        assert_eq!(open(dir.path()).unwrap().starts, start);
        wait_until_released(dir.path());
    }
}

#[test]
fn a_missing_part_is_refused_but_for_sled() {
    let dir = written();
    let without = |name: &str| {
        let copy = copy(dir.path());
        let path = copy.path().join(name);
        match path.is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
        copy
    };
    assert_damaged(without(keys::WITNESS_FILE).path(), "no watermark");
    assert_damaged(without(keys::JOURNAL_DIR).path(), "no journal");
    let emptied = without(keys::JOURNAL_DIR);
    fs::create_dir(emptied.path().join(keys::JOURNAL_DIR)).unwrap();
    assert_damaged(emptied.path(), "an empty journal");
    let emptied = without(keys::JOURNAL_DIR);
    fs::remove_dir_all(emptied.path().join(keys::SLED_DIR)).unwrap();
    assert_damaged(emptied.path(), "a watermark alone");
    assert_all_there(without(keys::SLED_DIR).path(), "no sled");
    assert_all_there(without("sled/db").path(), "no file of sled's");
}

#[test]
fn the_parts_of_another_store_are_refused() {
    // Both hold the same vote and the same entries: only the store's identity tells them apart.
    let (dir, other) = (written(), written());
    let foreign = copy(dir.path());
    fs::copy(other.path().join(keys::WITNESS_FILE), foreign.path().join(keys::WITNESS_FILE)).unwrap();
    assert_damaged(foreign.path(), "foreign watermark");
    let foreign = copy(dir.path());
    fs::copy(&segments(other.path())[0], &segments(foreign.path())[0]).unwrap();
    assert_damaged(foreign.path(), "foreign journal");
    let foreign = copy(dir.path());
    fs::copy(sled_file(other.path()), sled_file(foreign.path())).unwrap();
    assert_all_there(foreign.path(), "foreign sled: all that counts is in the journal");
}

#[test]
fn parts_of_different_times_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let write = |first: u64| {
        TypeConfig::run(async {
            let mut log = open(dir.path()).unwrap().log;
            log.save_vote(&Vote::new_committed(first, 1)).await.unwrap();
            for index in first..first + 10 {
                append(&mut log, 1, index).await;
            }
            log.save_vote(&Vote::new_committed(first + 1, 1)).await.unwrap();
        });
        wait_until_released(dir.path());
    };
    write(0);
    let before = copy(dir.path());
    write(10);
    let mixed = copy(dir.path());
    fs::copy(&segments(before.path())[0], &segments(mixed.path())[0]).unwrap();
    assert_damaged(mixed.path(), "an older journal");
    // The watermark may lag; what it says must have been so.
    let mixed = copy(dir.path());
    fs::copy(before.path().join(keys::WITNESS_FILE), mixed.path().join(keys::WITNESS_FILE)).unwrap();
    assert_eq!(last_index(mixed.path()), Some(19));
    let mut witness = WatermarkFile::open(&mixed.path().join(keys::WITNESS_FILE)).unwrap();
    let lied = Watermark { vote: Some(Vote::new_committed(9, 1)), sequence: witness.1.sequence, ..witness.1.clone() };
    for _ in 0..2 {
        witness.0.write(&Files, &lied).unwrap();
    }
    assert_damaged(mixed.path(), "a vote that the journal does not have");
}

fn last_index(dir: &Path) -> Option<u64> {
    let mut log = open(dir).unwrap().log;
    let last = TypeConfig::run(async { log.get_log_state().await.unwrap() }).last_log_id;
    drop(log);
    wait_until_released(dir);
    last.map(|last| last.index())
}

#[test]
fn two_flipped_watermark_records_are_refused() {
    let dir = written();
    let file = fs::File::options().read(true).write(true).open(dir.path().join(keys::WITNESS_FILE)).unwrap();
    for at in [5, SLOT_DISTANCE + 5] {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    }
    assert_damaged(dir.path(), "flipped watermark");
}

/// Behind this there is nothing.
fn used_len(image: &[u8]) -> usize {
    image.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

#[test]
fn a_truncated_journal_is_refused_and_a_truncated_sled_is_made_anew() {
    let dir = written();
    let journal = segments(dir.path()).remove(0);
    let name = journal.strip_prefix(dir.path()).unwrap();
    let used = used_len(&fs::read(&journal).unwrap());
    for eighth in 0..8 {
        let cut = copy(dir.path());
        let len = (used * eighth / 8) as u64;
        fs::File::options().write(true).open(cut.path().join(name)).unwrap().set_len(len).unwrap();
        assert_damaged(cut.path(), &format!("cut to {len} of {used} bytes"));
        let cut = copy(dir.path());
        let len = fs::metadata(sled_file(dir.path())).unwrap().len() * eighth as u64 / 8;
        fs::File::options().write(true).open(sled_file(cut.path())).unwrap().set_len(len).unwrap();
        assert_all_there(cut.path(), &format!("sled cut to {len} bytes"));
    }
}

#[test]
fn a_flipped_byte_of_the_journal_is_refused() {
    let dir = written();
    let journal = segments(dir.path()).remove(0);
    let name = journal.strip_prefix(dir.path()).unwrap();
    let image = fs::read(&journal).unwrap();
    let journal_dir = dir.path().join(keys::JOURNAL_DIR);
    let (_, watermark) = WatermarkFile::open(&dir.path().join(keys::WITNESS_FILE)).unwrap();
    let sound = journal::replay(&journal_dir, &watermark).unwrap();
    // Padding belongs to no record.
    let unread = |at: usize| {
        let flipped: Vec<u8> = image.iter().enumerate().map(|(i, byte)| byte ^ u8::from(i == at)).collect();
        fs::write(&journal, flipped).unwrap();
        let replayed = journal::replay(&journal_dir, &watermark);
        fs::write(&journal, &image).unwrap();
        match replayed {
            Err(StoreError::Damaged { .. }) => false,
            Ok(replayed) => replayed == sound,
            Err(other) => panic!("byte {at}: {other}"),
        }
    };
    let used = used_len(&image);
    let harmless = (0..used).filter(|at| unread(*at)).count();
    assert!(harmless < used / 5, "{harmless} of {used} bytes count for nothing");
    let flipped = copy(dir.path());
    let mut bytes = image.clone();
    bytes[used / 2] ^= 0x40;
    fs::write(flipped.path().join(name), bytes).unwrap();
    assert_damaged(flipped.path(), "a flipped byte in the middle");
}

#[test]
fn whatever_is_flipped_in_sled_everything_is_there() {
    let dir = written();
    let image = fs::read(sled_file(dir.path())).unwrap();
    let used = used_len(&image);
    for step in 0..60 {
        let at = used * step / 60;
        let flipped = copy(dir.path());
        let file = fs::File::options().write(true).open(sled_file(flipped.path())).unwrap();
        file.write_all_at(&[image[at] ^ 0x40], at as u64).unwrap();
        drop(file);
        assert_all_there(flipped.path(), &format!("byte {at} of sled's file flipped"));
    }
}

#[test]
fn whatever_sled_lacks_or_has_too_much_is_mended() {
    type Damage = fn(&sled::Tree, &sled::Tree);
    let cases: [(&str, Damage); 9] = [
        ("hole", |log, _| drop(log.remove(keys::entry(20, 0)))),
        ("tail", |log, _| drop(log.remove(keys::entry(40, 0)))),
        ("head", |log, _| drop(log.remove(keys::entry(0, 0)))),
        ("all", |log, meta| log.clear().and_then(|()| meta.clear()).unwrap()),
        ("vote", |_, meta| drop(meta.remove(keys::VOTE))),
        ("key", |log, _| {
            let record = log.get(keys::entry(20, 0)).unwrap().unwrap();
            log.insert(keys::entry(21, 0), record).unwrap();
        }),
        ("short key", |log, _| drop(log.insert(b"abc", b"def"))),
        ("never acknowledged", |log, _| {
            let key = keys::entry(41, 0);
            let entry = Entry::new_blank(LogId::new_term_index(1, 41));
            let record = record::Entry::from(&entry).encode_to_vec();
            log.insert(key, super::envelope::seal(&key, &[&[0, 1], &record[..]].concat())).unwrap();
        }),
        ("committed", |_, meta| {
            let id = record::LogId::from(LogId::new_term_index(1, 99));
            let key = keys::COMMITTED;
            meta.insert(key, super::envelope::seal_message(key.as_bytes(), &id)).unwrap();
        }),
    ];
    let dir = written();
    for (what, damage) in cases {
        let damaged = copy(dir.path());
        let db =
            sled::Config::new().path(damaged.path().join(keys::SLED_DIR)).mode(sled::Mode::LowSpace).open().unwrap();
        damage(&db.open_tree(keys::LOG_TREE).unwrap(), &db.open_tree(keys::META_TREE).unwrap());
        db.flush().unwrap();
        drop(db);
        assert_all_there(damaged.path(), what);
        let store = open(damaged.path()).unwrap();
        let committed = TypeConfig::run(async { store.log.clone().read_committed().await }).unwrap();
        assert!(committed <= Some(LogId::new_term_index(1, 40)), "{what}: {committed:?}");
    }
}

#[test]
fn a_second_process_is_told_who_holds_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let _held = open(dir.path()).unwrap();
    match open(dir.path()).err() {
        Some(StoreError::Locked { holder, .. }) => assert_eq!(holder, Some(std::process::id().cast_signed())),
        other => panic!("{other:?}"),
    }
}

/// A disk that fails, as if the process were killed, from its n-th operation on.
struct Ending(Mutex<usize>);

impl Ending {
    fn step(&self) -> io::Result<()> {
        let mut left = self.0.lock().unwrap();
        *left = left.checked_sub(1).ok_or_else(|| io::Error::other("the end"))?;
        Ok(())
    }
}

impl Disk for Ending {
    fn write(&self, path: &Path, file: &fs::File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.step().and_then(|()| Files.write(path, file, bytes, offset))
    }

    fn sync(&self, path: &Path, file: &fs::File) -> io::Result<()> {
        self.step().and_then(|()| Files.sync(path, file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step().and_then(|()| Files.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step().and_then(|()| Files.remove(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.step().and_then(|()| Files.sync_dir(path))
    }
}

/// Opens it with a disk that ends after ever more operations, each time on a fresh copy, and then with one that does not.
fn after_each_cut(from: &Path, check: impl Fn(&Store, usize)) {
    let mut cuts = 0;
    for steps in 0.. {
        let dir = copy(from);
        let is_whole = match Store::open_on(dir.path(), feed::channel().0, Arc::new(Ending(Mutex::new(steps)))) {
            Err(StoreError::Io { .. }) => false,
            Err(other) => panic!("{steps}: {other}"),
            Ok(_) => true,
        };
        cuts += 1;
        wait_until_closed(dir.path());
        let store = open(dir.path()).unwrap_or_else(|error| panic!("after {steps} operations: {error}"));
        check(&store, steps);
        if is_whole {
            break;
        }
    }
    assert!(cuts > 10, "{cuts}");
}

#[test]
fn a_conversion_or_a_beginning_that_was_cut_short_goes_on() {
    let fixture = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/store-level-3"));
    after_each_cut(fixture, |store, steps| {
        let mut log = store.log.clone();
        let state = TypeConfig::run(async { log.get_log_state().await.unwrap() });
        assert_eq!(state.last_log_id, Some(LogId::new_term_index(1, 271)), "after {steps} operations");
        assert_eq!(store.identity.as_ref().unwrap().name, "lb1");
        assert!(store.machine.applied_index() > Some(100));
    });
    after_each_cut(tempfile::tempdir().unwrap().path(), |store, _| assert_eq!(store.identity, None));
}

#[test]
fn a_store_without_its_journal_is_not_taken_for_an_old_one() {
    let dir = written();
    fs::remove_dir_all(dir.path().join(keys::JOURNAL_DIR)).unwrap();
    let error = open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("the journal is missing"), "{error}");
}

#[test]
fn a_damaged_store_of_an_earlier_version_is_refused() {
    let fixture = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/store-level-3"));
    let damaged = |damage: &dyn Fn(&sled::Tree, &sled::Tree)| {
        let dir = copy(fixture);
        let db = sled::Config::new().path(dir.path().join(keys::SLED_DIR)).mode(sled::Mode::LowSpace).open().unwrap();
        damage(&db.open_tree(keys::LOG_TREE).unwrap(), &db.open_tree(keys::META_TREE).unwrap());
        db.flush().unwrap();
        drop(db);
        assert_damaged(dir.path(), "an old store");
        assert!(!dir.path().join(keys::JOURNAL_DIR).exists());
    };
    damaged(&|log, _| drop(log.remove(keys::entry(270, 0))));
    damaged(&|log, _| drop(log.remove(keys::entry(271, 0))));
    damaged(&|_, meta| drop(meta.remove(keys::VOTE)));
}

/// A disk that notes what it is asked for, and fails the syncs of journal segments from one on.
#[derive(Default)]
struct Noting {
    notes: Mutex<Vec<(&'static str, String)>>,
    fails_from: Option<usize>,
}

impl Noting {
    fn note(&self, what: &'static str, path: &Path) -> usize {
        let name = path.file_name().unwrap().to_str().unwrap();
        let name = if name.len() == 20 { "segment" } else { name };
        let mut notes = self.notes.lock().unwrap();
        notes.push((what, name.to_owned()));
        notes.iter().filter(|(what, name)| *what == "sync" && name == "segment").count()
    }
}

impl Disk for Noting {
    fn write(&self, path: &Path, file: &fs::File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.note("write", path);
        Files.write(path, file, bytes, offset)
    }

    fn sync(&self, path: &Path, file: &fs::File) -> io::Result<()> {
        let syncs = self.note("sync", path);
        match self.fails_from {
            Some(first) if syncs >= first => Err(io::Error::from_raw_os_error(28)),
            _ => Files.sync(path, file),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note("rename", from);
        Files.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.note("sync_dir", path);
        Files.sync_dir(path)
    }
}

#[test]
fn a_snapshot_file_is_synced_before_it_has_its_name_and_its_name_before_the_journal_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Noting::default());
    TypeConfig::run(async {
        let mut store = Store::open_on(dir.path(), feed::channel().0, disk.clone()).unwrap();
        store.log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
        append(&mut store.log, 1, 0).await;
        disk.notes.lock().unwrap().clear();
        store.machine.pretend_applied(LogId::new_term_index(1, 0));
        store.machine.build_snapshot().await.unwrap();
        let note = |what, name: &str| (what, name.to_owned());
        let notes = std::mem::take(&mut *disk.notes.lock().unwrap());
        let wanted =
            [note("write", "new"), note("sync", "new"), note("rename", "new"), note("sync_dir", keys::SNAPSHOTS_DIR)];
        assert_eq!(notes, wanted);
    });
}

#[test]
fn a_snapshot_that_cannot_be_read_is_not_kept() {
    let dir = written();
    TypeConfig::run(async {
        let mut store = open(dir.path()).unwrap();
        let meta = SnapshotMeta { last_log_id: Some(LogId::new_term_index(1, 99)), ..SnapshotMeta::default() };
        store.machine.install_snapshot(&meta, b"garbage".to_vec()).await.unwrap_err();
    });
    wait_until_released(dir.path());
    assert_eq!(fs::read_dir(dir.path().join(keys::SNAPSHOTS_DIR)).unwrap().count(), 0);
    assert_all_there(dir.path(), "after garbage");
}

#[test]
fn where_the_newest_snapshot_is_damaged_the_one_before_it_and_the_journal_do() {
    let dir = tempfile::tempdir().unwrap();
    let last = LogId::new_term_index(1, 29);
    TypeConfig::run(async {
        let mut store = open(dir.path()).unwrap();
        store.log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
        for index in 0..30 {
            append_large(&mut store.log, index).await;
            if index % 10 == 9 {
                store.machine.pretend_applied(LogId::new_term_index(1, index));
                store.machine.build_snapshot().await.unwrap();
                store.log.purge(LogId::new_term_index(1, index - 2)).await.unwrap();
            }
        }
    });
    wait_until_released(dir.path());
    let mut files: Vec<_> =
        fs::read_dir(dir.path().join(keys::SNAPSHOTS_DIR)).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 2, "{files:?}");
    let flip = |file: &Path| {
        let mut bytes = fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(file, bytes).unwrap();
    };
    flip(&files[1]);
    let report = inspect(dir.path()).unwrap();
    assert!(report.damage.is_empty() && report.snapshots[1].problem.is_some(), "{report:?}");
    let store = open(dir.path()).unwrap();
    TypeConfig::run(async {
        let mut log = store.log.clone();
        let state = log.get_log_state().await.unwrap();
        assert_eq!((state.last_log_id, store.machine.applied_index()), (Some(last), Some(19)));
        // What was purged behind the newer snapshot is there again.
        assert!(log.try_get_log_entries(20..).await.unwrap().iter().map(|entry| entry.log_id.index()).eq(20..30));
    });
    drop(store);
    wait_until_released(dir.path());
    // It does not count as one of the two any more.
    let report = inspect(dir.path()).unwrap();
    assert_eq!(report.snapshots.len(), 1, "{report:?}");
}

#[test]
fn damage_is_told_from_a_tail_by_what_is_behind_it_where_the_watermark_lags() {
    let dir = written();
    let before = fs::read(dir.path().join(keys::WITNESS_FILE)).unwrap();
    TypeConfig::run(async {
        let mut log = open(dir.path()).unwrap().log;
        for index in 41..60 {
            append(&mut log, 1, index).await;
        }
    });
    wait_until_released(dir.path());
    fs::write(dir.path().join(keys::WITNESS_FILE), before).unwrap();
    let journal = segments(dir.path()).remove(0);
    let image = fs::read(&journal).unwrap();
    let flip = |at: usize| {
        let mut bytes = image.clone();
        bytes[at] ^= 1;
        fs::write(&journal, bytes).unwrap();
    };
    let used = used_len(&image);
    // In the middle of what the watermark has not seen.
    flip(used - 8 * 48);
    assert_damaged(dir.path(), "a record that was durable when a later one was written");
    // The last record: that could be what a power cut has left, which took the watermark along.
    flip(used - 4);
    assert_eq!(last_index(dir.path()), Some(58));
}

#[test]
fn a_store_that_is_an_older_copy_stays_one() {
    let dir = written();
    let store = open(dir.path()).unwrap();
    let refused = TypeConfig::run(async { store.disown().await }).to_string();
    assert!(refused.contains("an older copy") && refused.contains("lbctl node remove"), "{refused}");
    drop(store);
    wait_until_released(dir.path());
    for _ in 0..3 {
        assert_damaged(dir.path(), "an older copy");
    }
    assert!(inspect(dir.path()).unwrap().damage[0].contains("an older copy"));
}

/// Its disk fails to sync the journal's directory once, for the thread that takes segments back.
#[derive(Default)]
struct Hiccup(Mutex<Option<u32>>);

impl Disk for Hiccup {
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut left = self.0.lock().unwrap();
        if path.ends_with(keys::JOURNAL_DIR)
            && std::thread::current().name() == Some("store-depot")
            && let Some(syncs) = left.as_mut()
        {
            match syncs.checked_sub(1) {
                Some(fewer) => *syncs = fewer,
                None => {
                    *left = None;
                    return Err(io::Error::from_raw_os_error(24));
                }
            }
        }
        Files.sync_dir(path)
    }
}

#[test]
fn a_segment_that_was_not_taken_back_leaves_no_hole() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Hiccup::default());
    TypeConfig::run(async {
        let mut store = Store::open_on(dir.path(), feed::channel().0, disk.clone()).unwrap();
        store.log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
        for index in 0..24 {
            append_large(&mut store.log, index).await;
            if index % 6 == 5 {
                *disk.0.lock().unwrap() = (index == 11).then_some(1);
                store.machine.pretend_applied(LogId::new_term_index(1, index));
                store.machine.build_snapshot().await.unwrap();
            }
        }
    });
    wait_until_released(dir.path());
    assert_eq!(last_index(dir.path()), Some(23));
}

/// An entry that fills more than a segment.
#[test]
fn what_a_crash_leaves_of_a_purge_is_nothing_wrong_and_goes() {
    let dir = written();
    TypeConfig::run(async {
        let mut store = open(dir.path()).unwrap();
        store.machine.pretend_applied(LogId::new_term_index(1, 30));
        store.machine.build_snapshot().await.unwrap();
        store.log.purge(LogId::new_term_index(1, 20)).await.unwrap();
    });
    wait_until_closed(dir.path());
    // As if it had been killed before sled was told.
    let blank = |index| record::Entry::from(&Entry::new_blank(LogId::new_term_index(1, index))).encode_to_vec();
    let trees = Trees::open(dir.path().join(keys::SLED_DIR), Failure::default()).unwrap();
    trees.insert_entries((5..=20).map(|index| (index, blank(index)))).unwrap();
    trees.flush().unwrap();
    drop(trees);
    wait_until_released(dir.path());
    let report = inspect(dir.path()).unwrap();
    assert_eq!((report.sled.differs, &report.sled.torn), (0, &None), "{report:?}");
    TypeConfig::run(async {
        let mut log = open(dir.path()).unwrap().log;
        let entries = log.try_get_log_entries(..).await.unwrap();
        assert!(entries.iter().map(|entry| entry.log_id.index()).eq(21..=40), "{entries:?}");
    });
}

async fn append_large(log: &mut LogStore, index: u64) {
    let entry = Entry::new(LogId::new_term_index(1, index), openraft::EntryPayload::Normal(command(700)));
    let (done, wait) = TypeConfig::oneshot();
    log.append([entry], IOFlushed::signal(done)).await.unwrap();
    wait.await.unwrap().unwrap();
}

#[test]
fn what_is_found_at_the_start_is_missed_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    TypeConfig::run(async { open(dir.path()).unwrap().log.save_vote(&Vote::new(1, 1)).await.unwrap() });
    wait_until_released(dir.path());
    let witness = dir.path().join(keys::WITNESS_FILE);
    let before = fs::read(&witness).unwrap();
    TypeConfig::run(async { open(dir.path()).unwrap().log.save_vote(&Vote::new(7, 1)).await.unwrap() });
    wait_until_released(dir.path());
    // The process was killed between the sync of the journal and the witness.
    fs::write(&witness, before).unwrap();
    drop(open(dir.path()).unwrap());
    wait_until_released(dir.path());
    assert_eq!(WatermarkFile::open(&witness).unwrap().1.vote, Some(Vote::new(7, 1)));
}

#[test]
fn the_journal_is_synced_before_the_watermark_moves_and_the_watermark_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Noting::default());
    TypeConfig::run(async {
        let mut log = Store::open_on(dir.path(), feed::channel().0, disk.clone()).unwrap().log;
        let notes = || std::mem::take(&mut *disk.notes.lock().unwrap());
        notes();
        log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
        let note = |what, name: &str| (what, name.to_owned());
        let group = [note("write", "segment"), note("sync", "segment"), note("write", keys::WITNESS_FILE)];
        assert_eq!(notes(), group);
        append(&mut log, 1, 0).await;
        assert_eq!(notes(), group);
        let (_, watermark) = WatermarkFile::open(&dir.path().join(keys::WITNESS_FILE)).unwrap();
        assert_eq!(watermark.vote, Some(Vote::new_committed(1, 1)));
        assert_eq!(watermark.last, Some(LogId::new_term_index(1, 0)));
        log.truncate_after(None).await.unwrap();
        assert_eq!(WatermarkFile::open(&dir.path().join(keys::WITNESS_FILE)).unwrap().1.last, None);
    });
}

#[test]
fn a_failed_sync_is_final() {
    let dir = tempfile::tempdir().unwrap();
    // The journal is made, gone on with, and begun by one record more; then comes the first vote.
    let disk = Arc::new(Noting { fails_from: Some(5), ..Noting::default() });
    TypeConfig::run(async {
        let store = Store::open_on(dir.path(), feed::channel().0, disk).unwrap();
        let mut log = store.log.clone();
        log.save_vote(&Vote::new(1, 1)).await.unwrap_err();
        let again = log.save_vote(&Vote::new(2, 1)).await.unwrap_err();
        assert!(again.to_string().contains("No space left"), "{again}");
        let failure = store.failure_probe()().unwrap();
        assert!(failure.disk_full && failure.reason.contains("No space left"), "{failure:?}");
    });
    // Nothing that was not acknowledged is missed.
    wait_until_closed(dir.path());
}

#[test]
fn names_on_disk_are_frozen() {
    let names = [
        keys::LOCK_FILE,
        keys::WITNESS_FILE,
        keys::JOURNAL_DIR,
        keys::SNAPSHOTS_DIR,
        keys::SLED_DIR,
        keys::SLED_FILE,
        keys::LOG_TREE,
        keys::META_TREE,
        keys::SNAPSHOT_TREE,
        keys::IDENTITY,
        keys::VOTE,
        keys::COMMITTED,
        keys::PURGED,
        keys::SNAPSHOT,
    ];
    let frozen = "lock witness journal snapshots sled db log meta snapshot identity vote committed purged snapshot";
    assert_eq!(names.join(" "), frozen);
    assert_eq!(keys::entry(0x0102, 3), [0, 0, 0, 0, 0, 0, 1, 2, 0, 3]);
    assert_eq!(keys::parse_entry(&keys::entry(7, 9)), Some((7, 9)));
    assert_eq!(keys::chunk(3, 4), [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4]);
    // An entry as it stood in the first version: term 5, index 7, nothing in it.
    let record = record::Entry::from(&Entry::new_blank(LogId::new_term_index(5, 7)));
    assert_eq!(record.encode_to_vec(), [0x0a, 4, 8, 5, 0x10, 7]);
    assert_eq!(super::envelope::seal(b"", &[])[0], 1, "the envelope's version");
}

/// A command that makes an entry of several megabytes.
fn large_command() -> Command {
    command(60_000)
}

fn command(backends: u32) -> Command {
    let backend = |number: u32| {
        Mutation::CreateBackend(BackendSettings {
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            ..BackendSettings::new(
                "a-service-with-a-rather-long-name".parse().unwrap(),
                std::net::Ipv4Addr::from(0x0a00_0000 + number).into(),
            )
        })
    };
    let mutations = (1..backends).map(backend).collect();
    Body::Mutate(mutations).into()
}

#[test]
fn nothing_goes_where_sled_does_not_sync() {
    let dir = tempfile::tempdir().unwrap();
    let large = Entry::new(LogId::new_term_index(1, 0), openraft::EntryPayload::Normal(large_command()));
    TypeConfig::run(async {
        let mut store = open(dir.path()).unwrap();
        store.log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
        let (done, wait) = TypeConfig::oneshot();
        store.log.append([large.clone()], IOFlushed::signal(done)).await.unwrap();
        wait.await.unwrap().unwrap();
        for index in 1..=40 {
            append(&mut store.log, 1, index).await;
        }
        // A table as large as that command makes it, as a snapshot.
        let mut table = Table::default();
        let name = |text: &str| text.parse().unwrap();
        let vip = "198.51.100.1".parse().unwrap();
        let settings = VipSettings { address: vip, prefer: None, segment: None, unmatched: Unmatched::Drop };
        let ports = vec![PortRange { protocol: Protocol::Tcp, first: 80, last: 80 }];
        let service = ServiceSettings::new(name("a-service-with-a-rather-long-name"), vip, ports);
        let first = vec![Mutation::CreateVip(settings), Mutation::CreateService(service)];
        table.apply(1, &Body::Mutate(first).into()).reply.result.unwrap();
        table.apply(2, &large_command()).reply.result.unwrap();
        let data = encode_table(&table);
        assert!(data.len() > 3 << 20, "{}", data.len());
        let meta = SnapshotMeta { last_log_id: Some(LogId::new_term_index(1, 30)), ..SnapshotMeta::default() };
        store.machine.install_snapshot(&meta, data.clone()).await.unwrap();
        // An older one, built meanwhile, does not take its place.
        let mut older = store.machine.clone();
        older.pretend_applied(LogId::new_term_index(1, 10));
        older.build_snapshot().await.unwrap();
        let stored = store.machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!((stored.meta.last_log_id, stored.snapshot), (meta.last_log_id, data));
    });
    let blobs = dir.path().join(keys::SLED_DIR).join("blobs");
    let count = fs::read_dir(&blobs).map_or(0, Iterator::count);
    assert_eq!(count, 0, "{count} files in {}", blobs.display());
    wait_until_closed(dir.path());
    TypeConfig::run(async {
        let mut log = open(dir.path()).unwrap().log;
        let read = log.try_get_log_entries(0..1).await.unwrap();
        assert_eq!(read[0].payload, large.payload);
        let limited = log.limited_get_log_entries(0, 41).await.unwrap();
        assert_eq!(limited.len(), 1, "one large entry fills a message");
        assert_eq!(log.limited_get_log_entries(1, 41).await.unwrap().len(), 40);
    });
}

#[test]
fn a_bootstrap_that_was_cut_short_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    TypeConfig::run(async {
        // The first membership is in the log, and the first vote is not yet cast.
        append(&mut open(dir.path()).unwrap().log, 0, 0).await;
    });
    wait_until_closed(dir.path());
    open(dir.path()).unwrap();
    // Or the watermark's file was not finished.
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("watermark.new"), b"unfinished").unwrap();
    open(dir.path()).unwrap();
}
