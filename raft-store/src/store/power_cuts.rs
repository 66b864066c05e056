//! Power cuts, by images. A power cut leaves everything up to our last fdatasync, and of what was written after
//! it any part, in blocks of 512 bytes. So the files are copied around each fdatasync, and later states with some
//! of their unsynced blocks taken back must open with everything that had been acknowledged, or be refused.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use openraft::{
    RaftLogReader as _,
    entry::RaftEntry as _,
    storage::{IOFlushed, RaftLogStorage as _},
    type_config::TypeConfigExt as _,
};

use super::{
    StoreError, keys,
    open::Store,
    watermark::{Disk, Files, SLOT_LEN},
};
use crate::{
    feed,
    raft::{Entry, LogId, TypeConfig, Vote},
};

const BLOCK: usize = 512;
/// States tried for each commit.
const TRIES: u64 = 8;
const ENTRIES: u64 = 48;

/// The files at a commit.
#[derive(Clone, Default)]
struct Image {
    /// sled's file as the fdatasync found it, and as it left it.
    before: Vec<u8>,
    after: Vec<u8>,
    /// The watermark's file after the commit, when it is synced too.
    watermark: Vec<u8>,
}

/// Copies the files around each of our syncs.
struct Camera {
    files: Files,
    dir: PathBuf,
    images: Arc<Mutex<Vec<Image>>>,
}

impl Camera {
    fn sled(&self) -> io::Result<Vec<u8>> {
        fs::read(self.dir.join(keys::SLED_DIR).join(keys::SLED_FILE))
    }

    fn watermark(&self) -> io::Result<Vec<u8>> {
        fs::read(self.dir.join(keys::WITNESS_FILE))
    }
}

impl Disk for Camera {
    fn sync_log(&mut self) -> io::Result<()> {
        let before = self.sled()?;
        self.files.sync_log()?;
        let watermark = self.watermark()?;
        let mut images = self.images.lock().unwrap();
        images.push(Image { before, after: self.sled()?, watermark });
        Ok(())
    }

    fn write_watermark(&mut self, offset: u64, slot: &[u8; SLOT_LEN]) -> io::Result<()> {
        self.files.write_watermark(offset, slot)?;
        let watermark = self.watermark()?;
        if let Some(image) = self.images.lock().unwrap().last_mut() {
            image.watermark = watermark;
        }
        Ok(())
    }
}

/// What was acknowledged when so many commits were done.
struct Acknowledged {
    commits: usize,
    vote: Vote,
    last: u64,
}

/// Writes, and notes what is acknowledged when.
fn write(dir: &Path) -> (Vec<Image>, Vec<Acknowledged>) {
    let images = Arc::new(Mutex::new(Vec::new()));
    let mut acknowledged = Vec::new();
    let camera = |files| -> Box<dyn Disk> { Box::new(Camera { files, dir: dir.to_owned(), images: images.clone() }) };
    TypeConfig::run(async {
        let mut log = Store::open_on(dir, feed::channel().0, camera).unwrap().log;
        let mut term = 1;
        for index in 0..ENTRIES {
            if index % 12 == 0 {
                term += 1;
                log.save_vote(&Vote::new_committed(term, 1)).await.unwrap();
            }
            let (done, wait) = TypeConfig::oneshot();
            let entry = Entry::new_blank(LogId::new_term_index(term, index));
            log.append([entry], IOFlushed::signal(done)).await.unwrap();
            wait.await.unwrap().unwrap();
            if index % 16 == 15 {
                log.purge(LogId::new_term_index(term, index - 8)).await.unwrap();
            }
            let commits = images.lock().unwrap().len();
            acknowledged.push(Acknowledged { commits, vote: Vote::new_committed(term, 1), last: index });
        }
    });
    let images = images.lock().unwrap().clone();
    (images, acknowledged)
}

/// `later` with some of the blocks in which it differs from `synced` taken back.
fn cut(synced: &[u8], later: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    // How many blocks made it varies from cut to cut; so does whether the file had grown yet.
    let part = random.u64(..5);
    let mut image = later.to_vec();
    for at in (0..later.len()).step_by(BLOCK) {
        let end = (at + BLOCK).min(later.len());
        let old = synced.get(at..end);
        if old != Some(&later[at..end]) && random.u64(..4) < part {
            match old {
                Some(old) => image[at..end].copy_from_slice(old),
                None => image[at..end].fill(0),
            }
        }
    }
    if part == 4 {
        image.truncate(synced.len());
    }
    image
}

#[test]
fn after_a_power_cut_everything_acknowledged_is_there_or_the_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (images, acknowledged) = write(dir.path());
    let mut random = fastrand::Rng::with_seed(7);
    let (mut opened, mut refused) = (0, 0);
    let cuts = acknowledged.iter().zip(acknowledged.iter().skip(1));
    for (known, next) in cuts {
        // Between the commit that acknowledged it and the next ones.
        let (done, later) = (&images[known.commits - 1], &images[next.commits - 1]);
        for _ in 0..TRIES {
            let copy = tempfile::tempdir().unwrap();
            fs::create_dir(copy.path().join(keys::SLED_DIR)).unwrap();
            let conf = Path::new(keys::SLED_DIR).join("conf");
            fs::copy(dir.path().join(&conf), copy.path().join(&conf)).unwrap();
            let sled = cut(&done.after, &later.before, &mut random);
            fs::write(copy.path().join(keys::SLED_DIR).join(keys::SLED_FILE), sled).unwrap();
            // The next slot may be written already, and then sled's file is synced: that is the next state's case.
            fs::write(copy.path().join(keys::WITNESS_FILE), &done.watermark).unwrap();
            // sled answers some states with a panic of its own: that is a refusal too.
            let result = std::panic::catch_unwind(|| Store::open(copy.path(), feed::channel().0));
            match result {
                Ok(Ok(store)) => {
                    opened += 1;
                    TypeConfig::run(check(store, known));
                }
                Ok(Err(StoreError::Damaged { .. })) | Err(_) => refused += 1,
                Ok(Err(other)) => panic!("{other}"),
            }
        }
    }
    // sled takes torn blocks badly; what is whole opens.
    assert!(opened > refused / 4, "{opened} opened, {refused} refused");
}

async fn check(store: Store, known: &Acknowledged) {
    let mut log = store.log.clone();
    let state = log.get_log_state().await.unwrap();
    assert!(
        state.last_log_id.is_some_and(|last| last.index() >= known.last),
        "{state:?}, and {} was there",
        known.last
    );
    assert!(log.read_vote().await.unwrap() >= Some(known.vote), "the vote {} is forgotten", known.vote);
    // A purge that was forgotten has only left more than is needed; that nothing is missing was checked on opening.
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
