//! The store against openraft's own suite, and against damage.

use std::{fs, os::unix::fs::FileExt, path::Path};

use openraft::{
    RaftLogReader as _, StorageError,
    entry::RaftEntry as _,
    storage::{IOFlushed, RaftLogStorage as _},
    testing::log::{StoreBuilder, Suite},
    type_config::TypeConfigExt as _,
};
use tempfile::TempDir;

use super::{StoreError, db::Store, keys, log_store::LogStore, state_machine::StateMachine, witness::SLOT_DISTANCE};
use crate::{
    consensus::types::{Entry, LogId, TypeConfig, Vote},
    watch,
};

fn open(dir: &Path) -> Result<Store, StoreError> {
    Store::open(dir, watch::channel().0)
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
        // The committed mark is never synced for its own sake; this barrier carries it along.
        log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
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
}

fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    fs::create_dir(to.path().join(keys::SLED_DIR)).unwrap();
    for name in [keys::WITNESS_FILE.to_owned(), format!("{}/db", keys::SLED_DIR), format!("{}/conf", keys::SLED_DIR)] {
        fs::copy(from.join(&name), to.path().join(&name)).unwrap();
    }
    to
}

fn sled_file(dir: &Path) -> std::path::PathBuf {
    dir.join(keys::SLED_DIR).join(keys::SLED_FILE)
}

fn assert_damaged(dir: &Path, what: &str) {
    match open(dir).err() {
        Some(StoreError::Damaged { .. }) => {}
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn an_undamaged_store_opens_with_everything() {
    let dir = written();
    let store = open(copy(dir.path()).path()).unwrap();
    TypeConfig::run(async {
        let mut log = store.log.clone();
        assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(LogId::new_term_index(1, 40)));
        assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new_committed(1, 1)));
        assert_eq!(log.read_committed().await.unwrap(), Some(LogId::new_term_index(1, 39)));
    });
}

#[test]
fn a_missing_witness_is_refused() {
    let dir = written();
    fs::remove_file(dir.path().join(keys::WITNESS_FILE)).unwrap();
    assert_damaged(dir.path(), "no witness");
}

#[test]
fn a_missing_sled_file_is_refused() {
    let dir = written();
    fs::remove_file(sled_file(dir.path())).unwrap();
    assert_damaged(dir.path(), "no sled file");
    fs::remove_dir_all(dir.path().join(keys::SLED_DIR)).unwrap();
    assert_damaged(dir.path(), "no sled directory");
}

#[test]
fn the_witness_of_another_store_is_refused() {
    let (dir, other) = (written(), written());
    // Both hold the same vote and the same entries: only the store's identity tells them apart, and
    // that exists once a node has joined.
    let identity = super::db::Identity {
        node: 1,
        cluster: uuid::Uuid::from_u128(1),
        cluster_name: "lb".into(),
        name: "lb1".into(),
        role: crate::table::Role::Lb,
    };
    TypeConfig::run(async { open(dir.path()).unwrap().adopt(&identity).await.unwrap() });
    wait_until_closed(dir.path());
    fs::copy(other.path().join(keys::WITNESS_FILE), dir.path().join(keys::WITNESS_FILE)).unwrap();
    assert_damaged(dir.path(), "foreign witness");
}

#[test]
fn two_flipped_witness_records_are_refused() {
    let dir = written();
    let file = fs::File::options().read(true).write(true).open(dir.path().join(keys::WITNESS_FILE)).unwrap();
    for at in [5, SLOT_DISTANCE + 5] {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    }
    assert_damaged(dir.path(), "flipped witness");
}

#[test]
fn a_truncated_file_never_loses_acknowledged_entries_silently() {
    let dir = written();
    let used = used_len(&fs::read(sled_file(dir.path())).unwrap());
    for eighth in 0..8 {
        let cut = copy(dir.path());
        let len = (used * eighth / 8) as u64;
        fs::File::options().write(true).open(sled_file(cut.path())).unwrap().set_len(len).unwrap();
        assert_damaged(cut.path(), &format!("cut to {len} of {used} bytes"));
    }
}

/// sled extends its file in large steps; behind this there is nothing.
fn used_len(image: &[u8]) -> usize {
    image.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

#[test]
fn a_flipped_byte_is_refused_or_harmless() {
    let dir = written();
    let image = fs::read(sled_file(dir.path())).unwrap();
    let used = used_len(&image);
    let mut refused = 0;
    // Spread over the used part of the file; a flip in dead space may go unnoticed, but then
    // everything must still be there.
    for step in 0..60 {
        let at = used * step / 60;
        let flipped = copy(dir.path());
        let file = fs::File::options().write(true).open(sled_file(flipped.path())).unwrap();
        file.write_all_at(&[image[at] ^ 0x40], at as u64).unwrap();
        drop(file);
        // sled answers some damage with a panic of its own.
        let opened = std::panic::catch_unwind(|| open(flipped.path()));
        match opened {
            Ok(Ok(store)) => TypeConfig::run(async {
                let mut log = store.log.clone();
                let entries = log.try_get_log_entries(0..=40).await.unwrap();
                assert_eq!(entries.len(), 41, "byte {at} flipped");
                assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new_committed(1, 1)), "byte {at} flipped");
            }),
            Ok(Err(StoreError::Damaged { .. })) | Err(_) => refused += 1,
            Ok(Err(other)) => panic!("byte {at}: {other}"),
        }
    }
    assert!(refused > 10, "only {refused} of 60 flips were noticed");
}

#[test]
fn a_log_that_lost_entries_a_vote_or_its_order_is_refused() {
    type Damage = fn(&sled::Tree, &sled::Tree);
    let cases: [(&str, Damage); 8] = [
        ("hole", |log, _| drop(log.remove(keys::entry(20)))),
        ("tail", |log, _| drop(log.remove(keys::entry(40)))),
        ("head", |log, _| drop(log.remove(keys::entry(0)))),
        ("vote", |_, meta| drop(meta.remove(keys::VOTE))),
        ("key", |log, _| {
            let record = log.get(keys::entry(20)).unwrap().unwrap();
            log.insert(keys::entry(21), record).unwrap();
        }),
        ("short key", |log, _| drop(log.insert(b"abc", b"def"))),
        ("order", |log, _| {
            let key = keys::entry(41);
            let entry = Entry::new_blank(LogId::new_term_index(0, 41));
            let record = crate::consensus::wire::EntryRecord::from(&entry);
            log.insert(key, super::codec::seal_message(&key, &record)).unwrap();
        }),
        ("committed", |_, meta| {
            let id = crate::consensus::wire::LogIdRecord::from(LogId::new_term_index(1, 99));
            let key = keys::COMMITTED;
            meta.insert(key, super::codec::seal_message(key.as_bytes(), &id)).unwrap();
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
        assert_damaged(damaged.path(), what);
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

#[test]
fn a_failed_sync_is_final() {
    struct Failing(u32);
    impl super::witness::Disk for Failing {
        fn sync_log(&mut self) -> std::io::Result<()> {
            self.0 += 1;
            if self.0 == 2 { Err(std::io::Error::other("no space left on device")) } else { Ok(()) }
        }
        fn write_witness(&mut self, _: u64, _: &[u8; 512], _: bool) -> std::io::Result<()> {
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let db = sled::Config::new().path(dir.path()).open().unwrap();
    let witness = super::witness::Witness::fresh();
    let writer = super::writer::Writer::start(db, Box::new(Failing(0)), witness).unwrap();
    TypeConfig::run(async {
        writer.barrier(super::writer::Note::Nothing).await.unwrap();
        writer.barrier(super::writer::Note::Nothing).await.unwrap_err();
        let again = writer.barrier(super::writer::Note::Nothing).await.unwrap_err();
        assert!(again.to_string().contains("no space left"), "{again}");
    });
    assert!(writer.failure().unwrap().contains("no space left"));
}

#[test]
fn names_on_disk_are_frozen() {
    let names = [
        keys::LOCK_FILE,
        keys::WITNESS_FILE,
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
    assert_eq!(names.join(" "), "lock witness sled db log meta snapshot identity vote committed purged snapshot");
    assert_eq!(keys::entry(0x0102), [0, 0, 0, 0, 0, 0, 1, 2]);
    assert_eq!(keys::chunk(3, 4), [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4]);
    // An entry as it stood on disk in the first version: term 5, index 7, nothing in it.
    let record = crate::consensus::wire::EntryRecord::from(&Entry::new_blank(LogId::new_term_index(5, 7)));
    let sealed = super::codec::seal_message(&keys::entry(7), &record);
    assert_eq!(sealed[0], 1);
    assert_eq!(sealed[5..], [0x0a, 4, 8, 5, 0x10, 7]);
}
