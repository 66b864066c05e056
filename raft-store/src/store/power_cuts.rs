//! Power cuts of one store, by images: whatever a power cut can make of the files at any of our syncs must open by itself, with
//! everything that had been acknowledged.
//!
//! `LB_POWER_CUTS=10000 cargo test --release -p lb-raft-store power_cut -- --nocapture` tries as many states, and all subsets
//! of up to 12 blocks of the journal at each sync.

use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    sync::{Arc, Mutex},
};

use openraft::{
    EntryPayload, RaftLogReader as _, RaftSnapshotBuilder as _,
    entry::RaftEntry as _,
    storage::{IOFlushed, RaftLogStorage as _},
    type_config::TypeConfigExt as _,
};

use super::{
    camera::{Camera, Moment, changed, cut, put, take_back},
    journal, keys,
    log_store::LogStore,
    open::Store,
    watermark::WatermarkFile,
};
use crate::{
    feed,
    raft::{Entry, LogId, TypeConfig, Vote},
    table::{BackendSettings, Body, Command, Mutation},
};

const STEPS: u64 = 72;
/// States that are opened in the suite, and how many of its blocks a moment may have for all subsets to be tried.
const TRIES: usize = 150;
const BITS: usize = 5;

fn tries() -> (usize, usize) {
    env::var("LB_POWER_CUTS").map_or((TRIES, BITS), |text| (text.parse().unwrap(), 12))
}

/// What had been acknowledged.
#[derive(Clone, Default)]
struct Acknowledged {
    vote: Option<Vote>,
    log: BTreeMap<u64, LogId>,
    purged: Option<u64>,
}

/// A command of some size, which does nothing.
fn command(backends: u32) -> Command {
    let backend = |number: u32| {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + number).into();
        Mutation::CreateBackend(BackendSettings::new("a-service-that-is-not-there".parse().unwrap(), address))
    };
    Body::Mutate((1..=backends).map(backend).collect()).into()
}

async fn append(log: &mut LogStore, entries: Vec<Entry>) {
    let (done, wait) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(done)).await.unwrap();
    wait.await.unwrap().unwrap();
}

/// Writes all kinds of records, and has the camera look at it.
fn write(dir: &Path) -> Vec<Moment<Acknowledged>> {
    let known = Arc::<Mutex<Acknowledged>>::default();
    drop(Store::open(dir, feed::channel().0).unwrap());
    let camera = loop {
        // Until the store has let go of it.
        if super::lock::lock(dir).is_ok() {
            break Arc::new(Camera::new(dir, known.clone(), true));
        }
    };
    TypeConfig::run(async {
        let mut store = Store::open_on(dir, feed::channel().0, camera.clone()).unwrap();
        let (mut log, mut term, mut next) = (store.log.clone(), 0, 0);
        let mut random = fastrand::Rng::with_seed(3);
        for step in 0..STEPS {
            if step % 7 == 0 {
                term += 1;
                let vote = Vote::new_committed(term, 1);
                log.save_vote(&vote).await.unwrap();
                known.lock().unwrap().vote = Some(vote);
            }
            if step % 11 == 10 {
                // Another leader's entries take the place of the last ones.
                let kept = { known.lock().unwrap().log.keys().rev().nth(2).copied().unwrap() };
                let last = known.lock().unwrap().log[&kept];
                known.lock().unwrap().log.split_off(&(kept + 1));
                log.truncate_after(Some(last)).await.unwrap();
                next = kept + 1;
                term += 1;
                let vote = Vote::new_committed(term, 1);
                log.save_vote(&vote).await.unwrap();
                known.lock().unwrap().vote = Some(vote);
            }
            let entries: Vec<_> = (next..next + random.u64(1..4))
                .map(|index| {
                    let id = LogId::new_term_index(term, index);
                    match random.u32(..4) {
                        0 => Entry::new_blank(id),
                        1 => Entry::new(id, EntryPayload::Normal(command(random.u32(50..400)))),
                        _ => Entry::new(id, EntryPayload::Normal(command(random.u32(1..20)))),
                    }
                })
                .collect();
            let ids: Vec<_> = entries.iter().map(|entry| entry.log_id).collect();
            append(&mut log, entries).await;
            next += ids.len() as u64;
            known.lock().unwrap().log.extend(ids.into_iter().map(|id| (id.index(), id)));
            if step % 9 == 8 {
                let held = known.lock().unwrap().log[&(next - 4)];
                store.machine.pretend_applied(held);
                store.machine.build_snapshot().await.unwrap();
                let purged = known.lock().unwrap().log[&(next - 8)];
                known.lock().unwrap().purged = Some(purged.index());
                log.purge(purged).await.unwrap();
            }
        }
    });
    camera.film()
}

fn check(store: &Store, known: &Acknowledged, what: &str) {
    TypeConfig::run(async {
        let mut log = store.log.clone();
        assert!(log.read_vote().await.unwrap() >= known.vote, "{what}: the vote {:?} is forgotten", known.vote);
        let state = log.get_log_state().await.unwrap();
        let first = state.last_purged_log_id.map_or(0, |id| id.index() + 1);
        let entries = log.try_get_log_entries(..).await.unwrap();
        let found: BTreeMap<_, _> = entries.iter().map(|entry| (entry.log_id.index(), entry.log_id)).collect();
        assert!(found.keys().copied().eq(first..first + found.len() as u64), "{what}: a hole in {found:?}");
        // What was purged is in the snapshot: so that the table has it.
        let applied = store.machine.clone().applied_index();
        assert!(applied >= state.last_purged_log_id.map(|id| id.index()), "{what}: {applied:?} and {state:?}");
        for (index, id) in &known.log {
            let is_purged = *index < first && known.purged.is_some_and(|purged| *index <= purged.max(first));
            assert!(is_purged || found.get(index) == Some(id), "{what}: entry {id} is gone, {state:?}");
        }
    });
}

#[test]
fn after_a_power_cut_everything_acknowledged_is_there_by_itself() {
    let (tries, _) = tries();
    let dir = tempfile::tempdir().unwrap();
    let moments = write(dir.path());
    assert!(moments.len() > 100, "only {} syncs", moments.len());
    for number in 0..tries {
        let mut random = fastrand::Rng::with_seed(number as u64);
        let at = number * moments.len() / tries;
        let copy = tempfile::tempdir().unwrap();
        put(copy.path(), &cut(&moments, at, &mut random));
        let Moment { syncing, known, .. } = &moments[at];
        let what = format!("state {number}, cut at sync {at}, of {}", syncing.display());
        let store = Store::open(copy.path(), feed::channel().0).unwrap_or_else(|error| panic!("{what}: {error}"));
        check(&store, known, &what);
        if number % 4 > 0 {
            continue;
        }
        // It is gone on with, and what comes then is there too.
        let mut known = known.clone();
        TypeConfig::run(async {
            let mut log = store.log.clone();
            let next = log.get_log_state().await.unwrap().last_log_id.map_or(0, |id| id.index() + 1);
            let term = 1 + known.vote.map_or(1, |vote| vote.leader_id.term);
            let vote = Vote::new_committed(term, 1);
            log.save_vote(&vote).await.unwrap();
            let ids: Vec<_> = (next..next + 3).map(|index| LogId::new_term_index(term, index)).collect();
            append(&mut log, ids.iter().copied().map(Entry::new_blank).collect()).await;
            known.vote = Some(vote);
            known.log.extend(ids.into_iter().map(|id| (id.index(), id)));
        });
        drop(store);
        let store = loop {
            match Store::open(copy.path(), feed::channel().0) {
                Err(super::StoreError::Locked { .. }) => std::thread::yield_now(),
                opened => break opened.unwrap_or_else(|error| panic!("{what}, again: {error}")),
            }
        };
        check(&store, &known, &format!("{what}, again"));
    }
}

#[test]
fn whatever_a_power_cut_leaves_of_a_group_of_records_is_a_tail() {
    let (_, bits) = tries();
    let dir = tempfile::tempdir().unwrap();
    let moments = write(dir.path());
    let copy = tempfile::tempdir().unwrap();
    let (mut states, mut moments_tried) = (0, 0);
    for (at, Moment { syncing, files, durable, known }) in moments.iter().enumerate() {
        let (Some(later), true) = (files.get(syncing), syncing.starts_with(keys::JOURNAL_DIR)) else { continue };
        if syncing.file_name().is_none_or(|name| name.len() != 20) {
            continue;
        }
        let synced = durable.since.get(&later.inode).map(|(_, synced)| synced.whole()).unwrap_or_default();
        let later = later.whole();
        let blocks = changed(&synced, &later);
        if blocks.len() > bits {
            continue;
        }
        moments_tried += 1;
        fs::remove_dir_all(copy.path().join(keys::JOURNAL_DIR)).ok();
        put(copy.path(), &files.iter().map(|(path, bytes)| (path.clone(), bytes.whole())).collect());
        let (_, watermark) = WatermarkFile::open(&copy.path().join(keys::WITNESS_FILE)).unwrap();
        for subset in 0..1u32 << blocks.len() {
            let mut image = later.clone();
            for (bit, block) in blocks.iter().enumerate() {
                if subset >> bit & 1 == 1 {
                    take_back(&mut image, &synced, *block);
                }
            }
            fs::write(copy.path().join(syncing), image).unwrap();
            let replayed = journal::replay(&copy.path().join(keys::JOURNAL_DIR), &watermark);
            let replayed = replayed.unwrap_or_else(|error| panic!("sync {at}, blocks {subset:b}: {error}"));
            assert!(replayed.state.vote >= known.vote, "sync {at}, blocks {subset:b}");
            for (index, id) in &known.log {
                let found = replayed.entries.get(index).map(|place| place.id);
                let before = replayed.floor.is_some_and(|floor| *index <= floor.index());
                assert!(before || found == Some(*id), "sync {at}, blocks {subset:b}: entry {id}");
            }
            states += 1;
        }
    }
    println!("{states} states of {moments_tried} syncs");
    assert!(moments_tried > 30, "{moments_tried}");
}

#[test]
fn the_files_stay_small_however_much_is_written() {
    const WRITTEN: u64 = 120_000;
    const LIVE: u64 = 2000;
    const BATCH: u64 = 200;
    let dir = tempfile::tempdir().unwrap();
    TypeConfig::run(async {
        let mut store = Store::open(dir.path(), feed::channel().0).unwrap();
        let mut log = store.log.clone();
        log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
        for first in (0..WRITTEN).step_by(BATCH as usize) {
            let (done, wait) = TypeConfig::oneshot();
            let entries = (first..first + BATCH).map(|index| Entry::new_blank(LogId::new_term_index(1, index)));
            log.append(entries, IOFlushed::signal(done)).await.unwrap();
            wait.await.unwrap().unwrap();
            if first > LIVE {
                if first % LIVE == 0 {
                    store.machine.pretend_applied(LogId::new_term_index(1, first));
                    store.machine.build_snapshot().await.unwrap();
                }
                let held = first - first % LIVE;
                log.purge(LogId::new_term_index(1, (first - LIVE).min(held))).await.unwrap();
            }
        }
    });
    while super::lock::lock(dir.path()).is_err() {}
    let len = |dir: &Path| -> u64 { fs::read_dir(dir).unwrap().flatten().map(|f| f.metadata().unwrap().len()).sum() };
    let [sled, journal] = [keys::SLED_DIR, keys::JOURNAL_DIR].map(|name| len(&dir.path().join(name)));
    assert!(sled < 6 << 20, "sled's files have {sled} bytes");
    assert!(journal < 1 << 20, "the journal has {journal} bytes");
}

/// Prints figures for docs/benchmarks.md: `cargo test --release -p lb-raft-store measure -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure_opening_100_000_entries() {
    let dir = tempfile::tempdir().unwrap();
    TypeConfig::run(async {
        let mut log = Store::open(dir.path(), feed::channel().0).unwrap().log;
        log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
        for first in (0..100_000u64).step_by(1000) {
            append(&mut log, (first..first + 1000).map(|i| Entry::new_blank(LogId::new_term_index(1, i))).collect())
                .await;
        }
    });
    let open = |what: &str| {
        while super::lock::lock(dir.path()).is_err() {}
        let begun = std::time::Instant::now();
        let store = Store::open(dir.path(), feed::channel().0).unwrap();
        println!("{what} in {:?}", begun.elapsed());
        drop(store);
    };
    (0..3).for_each(|_| open("opened"));
    for _ in 0..3 {
        while super::lock::lock(dir.path()).is_err() {}
        fs::remove_dir_all(dir.path().join(keys::SLED_DIR)).unwrap();
        open("opened, with sled made anew,");
    }
}

/// On the file system of `LB_STORE_DIR`, or of the working directory: that of `/tmp` is memory on some machines.
#[test]
#[ignore = "a measurement"]
fn measure_durable_appends() {
    const APPENDS: usize = 2000;
    let dir = tempfile::tempdir_in(env::var("LB_STORE_DIR").unwrap_or_else(|_| ".".into())).unwrap();
    let mut took: Vec<std::time::Duration> = TypeConfig::run(async {
        let mut log = Store::open(dir.path(), feed::channel().0).unwrap().log;
        log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
        let mut took = Vec::new();
        for index in 0..APPENDS as u64 {
            let begun = std::time::Instant::now();
            append(&mut log, vec![Entry::new(LogId::new_term_index(1, index), EntryPayload::Normal(command(2)))]).await;
            took.push(begun.elapsed());
        }
        took
    });
    took.sort();
    println!("durable append: p50 {:?}, p99 {:?}", took[APPENDS / 2], took[APPENDS * 99 / 100]);
}
