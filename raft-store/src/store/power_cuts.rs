//! Power cuts, by images. A power cut leaves of each file all that was synced, and of what was written after that any part, in
//! blocks of 512 bytes; of new, renamed and removed files it leaves or undoes what no sync of their directory has made durable.
//! So the files are looked at before each of our syncs, and whatever a power cut can make of them at that moment must open by
//! itself, with everything that had been acknowledged.
//!
//! `LB_POWER_CUTS=10000 cargo test --release -p lb-raft-store power_cut -- --nocapture` tries as many states, and all subsets
//! of up to 12 blocks of the journal at each sync.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use openraft::{
    EntryPayload, RaftLogReader as _, RaftSnapshotBuilder as _,
    entry::RaftEntry as _,
    storage::{IOFlushed, RaftLogStorage as _},
    type_config::TypeConfigExt as _,
};

use super::{
    disk::{Disk, Files},
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

const BLOCK: usize = 512;
const STEPS: u64 = 72;
/// States that are opened in the suite, and how many of its blocks a moment may have for all subsets to be tried.
const TRIES: usize = 150;
const BITS: usize = 5;

fn tries() -> (usize, usize) {
    env::var("LB_POWER_CUTS").map_or((TRIES, BITS), |text| (text.parse().unwrap(), 12))
}

/// A file's bytes without the zeros at its end, its length, and its number, which stays when it is renamed.
#[derive(Clone, Default, PartialEq)]
struct Bytes {
    used: Arc<Vec<u8>>,
    len: usize,
    inode: u64,
}

impl Bytes {
    fn read(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let (mut bytes, inode) = (Vec::new(), file.metadata()?.ino());
        let len = file.read_to_end(&mut bytes)?;
        bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        Ok(Self { used: Arc::new(bytes), len, inode })
    }

    fn whole(&self) -> Vec<u8> {
        let mut bytes = self.used.to_vec();
        bytes.resize(self.len, 0);
        bytes
    }
}

/// What had been acknowledged.
#[derive(Clone, Default)]
struct Acknowledged {
    vote: Option<Vote>,
    log: BTreeMap<u64, LogId>,
    purged: Option<u64>,
}

/// What our syncs have made durable.
#[derive(Clone, Default)]
struct Durable {
    /// As of which moment a file is.
    since: BTreeMap<u64, usize>,
    /// The names that directories have.
    names: BTreeSet<PathBuf>,
    /// The renames that are not yet.
    renames: Vec<(PathBuf, PathBuf)>,
}

/// The files right before one of our syncs.
struct Moment {
    /// What is synced now.
    syncing: PathBuf,
    files: BTreeMap<PathBuf, Bytes>,
    durable: Durable,
    known: Acknowledged,
}

impl Moment {
    /// A file, whatever its name was then; empty if it was not there yet.
    fn file(&self, inode: u64) -> Bytes {
        self.files.values().find(|file| file.inode == inode).cloned().unwrap_or_default()
    }
}

#[derive(Default)]
struct Film {
    durable: Durable,
    moments: Vec<Moment>,
}

/// Looks at the files before each of our syncs.
struct Camera {
    dir: PathBuf,
    known: Arc<Mutex<Acknowledged>>,
    film: Mutex<Film>,
}

impl Camera {
    /// From now on; all that is there is durable.
    fn new(dir: &Path, known: Arc<Mutex<Acknowledged>>) -> Self {
        let files = files(dir);
        let since = files.values().map(|file| (file.inode, 0)).collect();
        let names = files.keys().cloned().collect();
        let durable = Durable { since, names, renames: Vec::new() };
        let first = Moment { syncing: PathBuf::new(), files, durable: durable.clone(), known: Acknowledged::default() };
        Self { dir: dir.to_owned(), known, film: Mutex::new(Film { durable, moments: vec![first] }) }
    }

    /// Takes a picture, lets the sync happen, and notes what it has made durable. One at a time.
    fn picture(
        &self,
        path: &Path,
        sync: impl FnOnce() -> io::Result<()>,
        note: impl FnOnce(&mut Durable, &Path, usize),
    ) -> io::Result<()> {
        let mut film = self.film.lock().unwrap();
        let syncing = path.strip_prefix(&self.dir).unwrap().to_owned();
        // What is acknowledged was so before the files were looked at.
        let known = self.known.lock().unwrap().clone();
        let durable = film.durable.clone();
        film.moments.push(Moment { syncing: syncing.clone(), files: files(&self.dir), durable, known });
        sync()?;
        let number = film.moments.len() - 1;
        note(&mut film.durable, &syncing, number);
        Ok(())
    }
}

impl Disk for Camera {
    fn sync(&self, path: &Path, file: &File) -> io::Result<()> {
        let inode = file.metadata()?.ino();
        self.picture(
            path,
            || Files.sync(path, file),
            |durable, _, number| {
                durable.since.insert(inode, number);
            },
        )
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut film = self.film.lock().unwrap();
        Files.rename(from, to)?;
        let [from, to] = [from, to].map(|path| path.strip_prefix(&self.dir).unwrap().to_owned());
        film.durable.renames.push((from, to));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut film = self.film.lock().unwrap();
        film.durable.since.remove(&fs::metadata(path)?.ino());
        Files.remove(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.picture(
            path,
            || Files.sync_dir(path),
            |durable, dir, _| {
                let present = files(&self.dir).into_keys().filter(|name| name.parent() == Some(dir));
                durable.names.retain(|name| name.parent() != Some(dir));
                durable.names.extend(present);
                durable.renames.retain(|(_, to)| to.parent() != Some(dir));
            },
        )
    }
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Bytes> {
    fn visit(dir: &Path, root: &Path, found: &mut BTreeMap<PathBuf, Bytes>) {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                visit(&path, root, found);
            } else if let Ok(bytes) = Bytes::read(&path) {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), bytes);
            }
        }
    }
    let mut found = BTreeMap::new();
    visit(dir, dir, &mut found);
    found.remove(Path::new(keys::LOCK_FILE));
    found
}

/// What a power cut at that moment can leave: one of many.
fn cut(moments: &[Moment], at: usize, random: &mut fastrand::Rng) -> BTreeMap<PathBuf, Vec<u8>> {
    let Moment { files, durable, .. } = &moments[at];
    let mut left = BTreeMap::new();
    for (path, later) in files {
        // The kernel writes a file back when it likes: what is under the later blocks is of any time since the last sync.
        let since = durable.since.get(&later.inode).copied().unwrap_or(0);
        let base = moments[random.usize(since..=at)].file(later.inode);
        left.insert(path.clone(), torn(&base.whole(), &later.whole(), random));
    }
    for (from, to) in durable.renames.iter().rev() {
        if random.bool()
            && let Some(bytes) = left.remove(to)
        {
            left.insert(from.clone(), bytes);
        }
    }
    let renamed = |path: &Path| durable.renames.iter().any(|(from, to)| from == path || to == path);
    left.retain(|path, _| durable.names.contains(path) || renamed(path) || random.bool());
    for name in &durable.names {
        // Removed, and not durably.
        if !files.contains_key(name) && !renamed(name) && random.bool() {
            let earlier = moments[..at].iter().rev().find_map(|moment| moment.files.get(name));
            left.extend(earlier.map(|bytes| (name.clone(), bytes.whole())));
        }
    }
    left
}

/// `later` with some of the blocks in which it differs from `synced` taken back.
fn torn(synced: &[u8], later: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    // How many blocks made it varies from cut to cut; so does whether the file had grown yet.
    let part = random.u64(..5);
    let mut image = later.to_vec();
    for at in changed(synced, later) {
        if random.u64(..4) < part {
            take_back(&mut image, synced, at);
        }
    }
    if part == 4 && synced.len() < later.len() {
        image.truncate(synced.len());
    }
    image
}

/// Where the blocks begin that differ.
fn changed(synced: &[u8], later: &[u8]) -> Vec<usize> {
    let of = |bytes: &[u8], at: usize| bytes.get(at..(at + BLOCK).min(bytes.len())).map(<[u8]>::to_vec);
    (0..later.len()).step_by(BLOCK).filter(|at| of(synced, *at) != of(later, *at)).collect()
}

fn take_back(image: &mut [u8], synced: &[u8], at: usize) {
    let end = (at + BLOCK).min(image.len());
    match synced.get(at..end) {
        Some(old) => image[at..end].copy_from_slice(old),
        None => image[at..end].fill(0),
    }
}

fn put(dir: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) {
    for name in [keys::JOURNAL_DIR, keys::SNAPSHOTS_DIR, keys::SLED_DIR] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    for (path, bytes) in files {
        fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
        fs::write(dir.join(path), bytes).unwrap();
    }
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
fn write(dir: &Path) -> Vec<Moment> {
    let known = Arc::<Mutex<Acknowledged>>::default();
    drop(Store::open(dir, feed::channel().0).unwrap());
    let camera = loop {
        // Until the store has let go of it.
        if super::lock::lock(dir).is_ok() {
            break Arc::new(Camera::new(dir, known.clone()));
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
    std::mem::take(&mut camera.film.lock().unwrap().moments)
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
        let at = 1 + number * (moments.len() - 1) / tries;
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
    for (at, Moment { syncing, files, durable, known }) in moments.iter().enumerate().skip(1) {
        let (Some(later), true) = (files.get(syncing), syncing.starts_with(keys::JOURNAL_DIR)) else { continue };
        if syncing.file_name().is_none_or(|name| name.len() != 20) {
            continue;
        }
        let synced = durable.since.get(&later.inode).map(|since| moments[*since].file(later.inode).whole());
        let synced = synced.unwrap_or_default();
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
        let mut log = Store::open(dir.path(), feed::channel().0).unwrap().log;
        log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
        for first in (0..WRITTEN).step_by(BATCH as usize) {
            let (done, wait) = TypeConfig::oneshot();
            let entries = (first..first + BATCH).map(|index| Entry::new_blank(LogId::new_term_index(1, index)));
            log.append(entries, IOFlushed::signal(done)).await.unwrap();
            wait.await.unwrap().unwrap();
            if first > LIVE {
                log.purge(LogId::new_term_index(1, first - LIVE)).await.unwrap();
            }
        }
    });
    let len = fs::metadata(dir.path().join(keys::SLED_DIR).join(keys::SLED_FILE)).unwrap().len();
    assert!(len < 6 << 20, "sled's file has {len} bytes");
}

/// Prints a figure for docs/benchmarks.md: `cargo test --release -p lb-raft-store recovery -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn recovery_of_100_000_entries() {
    let dir = tempfile::tempdir().unwrap();
    TypeConfig::run(async {
        let mut log = Store::open(dir.path(), feed::channel().0).unwrap().log;
        log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
        for first in (0..100_000u64).step_by(1000) {
            let (done, wait) = TypeConfig::oneshot();
            let entries = (first..first + 1000).map(|index| Entry::new_blank(LogId::new_term_index(1, index)));
            log.append(entries, IOFlushed::signal(done)).await.unwrap();
            wait.await.unwrap().unwrap();
        }
    });
    for _ in 0..3 {
        let begun = std::time::Instant::now();
        let store = loop {
            if let Ok(store) = Store::open(dir.path(), feed::channel().0) {
                break store;
            }
        };
        println!("opened in {:?}", begun.elapsed());
        drop(store);
    }
}
