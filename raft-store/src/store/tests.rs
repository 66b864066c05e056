//! The store against openraft's own suite, and against damage.

use std::{fs, os::unix::fs::FileExt, path::Path};

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
    StoreError, keys, log_store::LogStore, open::Store, state_machine::StateMachine, watermark::SLOT_DISTANCE,
};
use crate::{
    feed,
    raft::{Entry, LogId, SnapshotMeta, TypeConfig, Vote},
    table::{
        Affinity, BackendSettings, Body, Command, DEFAULT_TABLE_SIZE, Mutation, PortRange, Protocol, ServiceSettings,
        Table, Unmatched, VipSettings, encode_table,
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
fn a_missing_watermark_is_refused() {
    let dir = written();
    fs::remove_file(dir.path().join(keys::WITNESS_FILE)).unwrap();
    assert_damaged(dir.path(), "no watermark");
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
fn the_watermark_of_another_store_is_refused() {
    let (dir, other) = (written(), written());
    // Both hold the same vote and the same entries: only the store's identity tells them apart, and
    // that exists once a node has joined.
    let identity = super::identity::Identity {
        node: 1,
        cluster: uuid::Uuid::from_u128(1),
        cluster_name: "lb".into(),
        name: "lb1".into(),
        role: crate::table::Role::Lb,
        recovered_from: Vec::new(),
    };
    TypeConfig::run(async { open(dir.path()).unwrap().adopt(&identity).await.unwrap() });
    wait_until_closed(dir.path());
    fs::copy(other.path().join(keys::WITNESS_FILE), dir.path().join(keys::WITNESS_FILE)).unwrap();
    assert_damaged(dir.path(), "foreign watermark");
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
        ("hole", |log, _| drop(log.remove(keys::entry(20, 0)))),
        ("tail", |log, _| drop(log.remove(keys::entry(40, 0)))),
        ("head", |log, _| drop(log.remove(keys::entry(0, 0)))),
        ("vote", |_, meta| drop(meta.remove(keys::VOTE))),
        ("key", |log, _| {
            let record = log.get(keys::entry(20, 0)).unwrap().unwrap();
            log.insert(keys::entry(21, 0), record).unwrap();
        }),
        ("short key", |log, _| drop(log.insert(b"abc", b"def"))),
        ("order", |log, _| {
            let key = keys::entry(41, 0);
            let entry = Entry::new_blank(LogId::new_term_index(0, 41));
            let record = crate::codec::record::Entry::from(&entry).encode_to_vec();
            log.insert(key, super::envelope::seal(&key, &[&[0, 1], &record[..]].concat())).unwrap();
        }),
        ("committed", |_, meta| {
            let id = crate::codec::record::LogId::from(LogId::new_term_index(1, 99));
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
    impl super::watermark::Disk for Failing {
        fn sync_log(&mut self) -> std::io::Result<()> {
            self.0 += 1;
            if self.0 == 2 { Err(std::io::Error::other("no space left on device")) } else { Ok(()) }
        }
        fn write_watermark(&mut self, _: u64, _: &[u8; 512]) -> std::io::Result<()> {
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let db = sled::Config::new().path(dir.path()).open().unwrap();
    let watermark = super::watermark::Watermark::fresh();
    let writer = super::writer::Writer::start(db, Box::new(Failing(0)), watermark).unwrap();
    TypeConfig::run(async {
        writer.barrier(super::writer::Note::Nothing).await.unwrap();
        writer.barrier(super::writer::Note::Nothing).await.unwrap_err();
        let again = writer.barrier(super::writer::Note::Nothing).await.unwrap_err();
        assert!(again.to_string().contains("no space left"), "{again}");
    });
    assert!(writer.failure().unwrap().reason.contains("no space left"));
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
    assert_eq!(keys::entry(0x0102, 3), [0, 0, 0, 0, 0, 0, 1, 2, 0, 3]);
    assert_eq!(keys::parse_entry(&keys::entry(7, 9)), Some((7, 9)));
    assert_eq!(keys::chunk(3, 4), [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4]);
    // An entry as it stood in the first version: term 5, index 7, nothing in it.
    let record = crate::codec::record::Entry::from(&Entry::new_blank(LogId::new_term_index(5, 7)));
    assert_eq!(record.encode_to_vec(), [0x0a, 4, 8, 5, 0x10, 7]);
    assert_eq!(super::envelope::seal(b"", &[])[0], 1, "the envelope's version");
}

/// A command that makes an entry of several megabytes.
fn large_command() -> Command {
    let backend = |number: u32| {
        Mutation::CreateBackend(BackendSettings {
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            ..BackendSettings::new(
                "a-service-with-a-rather-long-name".parse().unwrap(),
                std::net::Ipv4Addr::from(0x0a00_0000 + number).into(),
            )
        })
    };
    let mutations = (1..60_000).map(backend).collect();
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
        let service = ServiceSettings {
            name: name("a-service-with-a-rather-long-name"),
            vip,
            ports: vec![PortRange { protocol: Protocol::Tcp, first: 80, last: 80 }],
            affinity: Affinity::Flow,
            table_size: DEFAULT_TABLE_SIZE,
        };
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
