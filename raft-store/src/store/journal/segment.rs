//! The files of a journal. Each is as long as it will be before it is begun, so that a sync writes data alone; one that a
//! snapshot covers is used again.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

use crate::store::{
    disk::{Disk, numbered},
    error::{StoreError, is_unreadable},
};

/// What a segment has room for, in bytes, unless a single group of records needs more. Unit tests begin many.
pub(crate) const SEGMENT_LEN: u64 = if cfg!(test) { 32 << 10 } else { 1 << 20 };
/// A segment that is ready to be begun.
const SPARE: &str = "spare";
/// One that is being made.
const UNFINISHED: &str = "spare.new";

/// The file of the segment whose first record has that sequence.
pub(super) fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}"))
}

/// The segments in a directory, in their order.
pub(super) fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    numbered(dir).map_err(|error| StoreError::io("read", dir, error))
}

/// A segment's bytes. What the medium does not give back counts as zeros: whether that is damage depends on what stood there.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    const PAGE: usize = 4 << 10;
    let failed = |error| StoreError::io("read", path, error);
    match fs::read(path) {
        Err(error) if is_unreadable(&error) => {}
        bytes => return bytes.map_err(failed),
    }
    let file = File::open(path).map_err(failed)?;
    let mut bytes = vec![0; file.metadata().map_err(failed)?.len() as usize];
    for (number, page) in bytes.chunks_mut(PAGE).enumerate() {
        match file.read_exact_at(page, (number * PAGE) as u64) {
            Err(error) if is_unreadable(&error) => page.fill(0),
            read => read.map_err(failed)?,
        }
    }
    Ok(bytes)
}

/// Makes a file of zeros of that length. Written, not only reserved: a write into what is only reserved has to be noted by
/// the file system, in each sync.
pub(super) fn make(disk: &dyn Disk, path: &Path, len: u64) -> io::Result<File> {
    const ZEROS: &[u8] = &[0; 64 << 10];
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    let mut at = 0;
    while at < len {
        let part = ZEROS.len().min((len - at) as usize);
        disk.write(path, &file, &ZEROS[..part], at)?;
        at += part as u64;
    }
    disk.sync(path, &file)?;
    Ok(file)
}

/// Makes the next segment ready, and takes back those that are no longer needed, on a thread of its own: the records wait
/// for neither.
pub(super) struct Depot {
    orders: mpsc::Sender<Order>,
    shelf: Arc<Shelf>,
}

enum Order {
    /// See to a spare segment.
    Spare,
    /// These are not needed any more; the oldest comes first.
    Retire(Vec<PathBuf>),
}

struct Shelf {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    /// Whether there is a spare segment; held while it is looked at or moved.
    spare: Mutex<bool>,
}

impl Depot {
    pub(super) fn open(dir: &Path, disk: Arc<dyn Disk>) -> io::Result<Self> {
        for name in [SPARE, UNFINISHED] {
            match disk.remove(&dir.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let shelf = Arc::new(Shelf { dir: dir.to_owned(), disk, spare: Mutex::new(false) });
        let (orders, inbox) = mpsc::channel::<Order>();
        let worker = shelf.clone();
        thread::Builder::new().name("store-depot".into()).spawn(move || {
            // One that could not be taken back keeps those after it waiting: a hole would look like damage.
            let mut retired = VecDeque::new();
            for order in inbox {
                let done = match order {
                    Order::Spare => worker.make_spare(),
                    Order::Retire(paths) => {
                        retired.extend(paths);
                        worker.retire_all(&mut retired)
                    }
                };
                // What is missing is made when it is needed, and then the error counts.
                if let Err(error) = done {
                    tracing::debug!(%error, "a segment of the journal was not made ready or not taken back");
                }
            }
        })?;
        Ok(Self { orders, shelf })
    }

    /// Sees to a spare segment.
    pub(super) fn order_spare(&self) {
        let _ = self.orders.send(Order::Spare);
    }

    /// Takes back segments that are not needed any more; the oldest comes first.
    pub(super) fn retire(&self, paths: Vec<PathBuf>) {
        if !paths.is_empty() {
            let _ = self.orders.send(Order::Retire(paths));
        }
    }

    /// A segment of at least that length in its place, durably; what is in it are no records of this sequence.
    pub(super) fn take(&self, first: u64, len: u64) -> io::Result<(PathBuf, File)> {
        let Shelf { dir, disk, .. } = &*self.shelf;
        let path = path(dir, first);
        let mut spare = self.shelf.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let file = if *spare && len <= SEGMENT_LEN {
            let file = File::options().read(true).write(true).open(dir.join(SPARE))?;
            disk.rename(&dir.join(SPARE), &path)?;
            *spare = false;
            file
        } else {
            drop(spare);
            make(&**disk, &path, len.max(SEGMENT_LEN))?
        };
        disk.sync_dir(dir)?;
        Ok((path, file))
    }
}

impl Shelf {
    fn make_spare(&self) -> io::Result<()> {
        if *self.spare.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(());
        }
        let unfinished = self.dir.join(UNFINISHED);
        make(&*self.disk, &unfinished, SEGMENT_LEN)?;
        self.put(&unfinished)
    }

    /// Keeps a file as the spare one, or removes it if there is one.
    fn put(&self, path: &Path) -> io::Result<()> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if *spare {
            return self.disk.remove(path);
        }
        self.disk.rename(path, &self.dir.join(SPARE))?;
        *spare = true;
        Ok(())
    }

    fn retire_all(&self, retired: &mut VecDeque<PathBuf>) -> io::Result<()> {
        while let Some(oldest) = retired.front() {
            self.retire(oldest)?;
            retired.pop_front();
        }
        Ok(())
    }

    fn retire(&self, path: &Path) -> io::Result<()> {
        match fs::metadata(path) {
            Ok(file) if file.len() == SEGMENT_LEN => self.put(path)?,
            Ok(_) => self.disk.remove(path)?,
            // It is gone already, and that was not durable yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.disk.sync_dir(&self.dir)
    }
}
