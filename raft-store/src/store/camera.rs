//! A disk that looks at the files around the store's syncs, and makes of them what a power cut can leave. A power cut leaves of
//! each file all that was synced, and of what was written after that any part, in blocks of 512 bytes; of new, renamed and
//! removed files it leaves or undoes what no sync of their directory has made durable.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use super::{
    disk::{Disk, Files},
    keys,
};

const BLOCK: usize = 512;

/// What a power cut at some moment can leave: files by their paths.
pub(crate) type Image = BTreeMap<PathBuf, Vec<u8>>;

/// A file's bytes without the zeros at its end, its length, and its number, which stays when it is renamed.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Bytes {
    used: Arc<Vec<u8>>,
    len: usize,
    pub(super) inode: u64,
}

impl Bytes {
    fn read(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let (mut bytes, inode) = (Vec::new(), file.metadata()?.ino());
        let len = file.read_to_end(&mut bytes)?;
        bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        Ok(Self { used: Arc::new(bytes), len, inode })
    }

    pub(super) fn whole(&self) -> Vec<u8> {
        let mut bytes = self.used.to_vec();
        bytes.resize(self.len, 0);
        bytes
    }
}

/// What our syncs have made durable.
#[derive(Clone, Default)]
pub(super) struct Durable {
    /// As of which moment a file is, and as what.
    pub(super) since: BTreeMap<u64, (usize, Bytes)>,
    /// The names that directories have.
    names: BTreeSet<PathBuf>,
    /// The renames that are not yet.
    renames: Vec<(PathBuf, PathBuf)>,
}

/// The files right before one of our syncs, and what was acknowledged then.
pub(crate) struct Moment<K> {
    /// What is synced now.
    pub(super) syncing: PathBuf,
    pub(super) files: BTreeMap<PathBuf, Bytes>,
    pub(super) durable: Durable,
    pub(super) known: K,
}

struct Film<K> {
    durable: Durable,
    moments: Vec<Moment<K>>,
    /// The power is cut: nothing becomes durable any more.
    is_cut: bool,
}

/// Looks at the files before each of our syncs.
pub(crate) struct Camera<K> {
    dir: PathBuf,
    known: Arc<Mutex<K>>,
    /// Keeps each moment; else only the last one can be had.
    films: bool,
    film: Mutex<Film<K>>,
}

impl<K: Clone + Send + 'static> Camera<K> {
    /// From now on; all that is there is durable.
    pub(crate) fn new(dir: &Path, known: Arc<Mutex<K>>, films: bool) -> Self {
        let files = files(dir);
        let since = files.values().map(|file| (file.inode, (0, file.clone()))).collect();
        let names = files.keys().cloned().collect();
        let durable = Durable { since, names, renames: Vec::new() };
        let film = Mutex::new(Film { durable, moments: Vec::new(), is_cut: false });
        Self { dir: dir.to_owned(), known, films, film }
    }

    /// All the moments up to now.
    pub(super) fn film(&self) -> Vec<Moment<K>> {
        std::mem::take(&mut self.film.lock().unwrap().moments)
    }

    /// Cuts the power: no sync succeeds from now on. What can be left is one of many.
    pub(crate) fn cut_power(&self, random: &mut fastrand::Rng) -> Image {
        let mut film = self.film.lock().unwrap();
        film.is_cut = true;
        let known = self.known.lock().unwrap().clone();
        let now = Moment { syncing: PathBuf::new(), files: files(&self.dir), durable: film.durable.clone(), known };
        cut(&[now], 0, random)
    }

    /// Takes a picture, lets the sync happen, and notes what it has made durable. One at a time.
    fn picture(
        &self,
        path: &Path,
        sync: impl FnOnce() -> io::Result<()>,
        note: impl FnOnce(&mut Durable, &Path, usize),
    ) -> io::Result<()> {
        let mut film = self.film.lock().unwrap();
        if film.is_cut {
            return Err(io::Error::other("the power is cut"));
        }
        let syncing = path.strip_prefix(&self.dir).unwrap().to_owned();
        if self.films {
            // What is acknowledged was so before the files were looked at.
            let known = self.known.lock().unwrap().clone();
            let durable = film.durable.clone();
            film.moments.push(Moment { syncing: syncing.clone(), files: files(&self.dir), durable, known });
        }
        sync()?;
        let number = film.moments.len();
        note(&mut film.durable, &syncing, number);
        Ok(())
    }
}

impl<K: Clone + Send + 'static> Disk for Camera<K> {
    fn sync(&self, path: &Path, file: &File) -> io::Result<()> {
        // What is written while it is synced may be durable or not: before it counts.
        let contents = Bytes::read(path)?;
        self.picture(
            path,
            || Files.sync(path, file),
            |durable, _, number| {
                durable.since.insert(contents.inode, (number, contents));
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
pub(super) fn cut<K>(moments: &[Moment<K>], at: usize, random: &mut fastrand::Rng) -> Image {
    let Moment { files, durable, .. } = &moments[at];
    let mut left = BTreeMap::new();
    for (path, later) in files {
        // The kernel writes a file back when it likes: what is under the later blocks is of any time since the last sync.
        let (since, synced) = durable.since.get(&later.inode).cloned().unwrap_or_default();
        let between = &moments[since.min(at)..at];
        let base = match random.usize(0..=between.len()) {
            0 => synced,
            n => between[n - 1].files.values().find(|file| file.inode == later.inode).cloned().unwrap_or(synced),
        };
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
pub(super) fn changed(synced: &[u8], later: &[u8]) -> Vec<usize> {
    let of = |bytes: &[u8], at: usize| bytes.get(at..(at + BLOCK).min(bytes.len())).map(<[u8]>::to_vec);
    (0..later.len()).step_by(BLOCK).filter(|at| of(synced, *at) != of(later, *at)).collect()
}

pub(super) fn take_back(image: &mut [u8], synced: &[u8], at: usize) {
    let end = (at + BLOCK).min(image.len());
    match synced.get(at..end) {
        Some(old) => image[at..end].copy_from_slice(old),
        None => image[at..end].fill(0),
    }
}

/// Makes a directory of an image.
pub(crate) fn put(dir: &Path, files: &Image) {
    for name in [keys::JOURNAL_DIR, keys::SNAPSHOTS_DIR, keys::SLED_DIR] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    for (path, bytes) in files {
        fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
        fs::write(dir.join(path), bytes).unwrap();
    }
}
