//! The store's own writes and syncs, behind a seam: tests make each of them fail or tear, and look at the files around it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

/// What the store does to files that are its own; sled's are sled's.
pub(crate) trait Disk: Send + Sync + 'static {
    /// Writes bytes of a file, which are not durable by that.
    fn write(&self, _path: &Path, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    /// Makes what was written to a file durable.
    fn sync(&self, _path: &Path, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// Gives a file its place.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    /// Makes durable which files a directory has.
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

/// The disk itself.
pub(crate) struct Files;

impl Disk for Files {}

/// The files of a directory whose names are numbers of 20 digits, in their order.
pub(super) fn numbered(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for file in fs::read_dir(dir)? {
        let path = file?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.len() == 20
            && let Ok(number) = name.parse()
        {
            files.push((number, path));
        }
    }
    files.sort_unstable();
    Ok(files)
}
