//! `lbctl snapshot`.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use lb_proto::v1::{self, cluster_service_client::ClusterServiceClient};

use crate::{
    cli::SnapshotCommand,
    exit::{Failure, complain},
    output::{self, Change},
    session::Session,
};

const CHUNK_LEN: usize = 256 << 10;
/// The first bytes of a file, so that another one is not taken for a snapshot; the last one is the format's version.
const MAGIC: &[u8; 8] = b"lbtable\x01";

pub(super) async fn run(session: &Session, command: SnapshotCommand) -> Result<(), Failure> {
    let mut client = ClusterServiceClient::new(session.channel.clone());
    match command {
        SnapshotCommand::Save { file } => {
            let request = v1::SaveSnapshotRequest {};
            let mut stream =
                session.read(request, |request| async move { client.save_snapshot(request).await }).await?;
            let mut bytes = MAGIC.to_vec();
            while let Some(part) = stream.message().await.map_err(|status| Failure::from_status(&status, None))? {
                bytes.extend_from_slice(&part.chunk);
            }
            let checksum = crc32fast::hash(&bytes);
            bytes.extend_from_slice(&checksum.to_le_bytes());
            if file == Path::new("-") {
                return output::print_bytes(&bytes);
            }
            let written =
                write(&file, &bytes).map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
            let told = format!("snapshot saved in {} ({} bytes)\n", file.display(), bytes.len());
            match written {
                Written::File => output::print(&told),
                // It may be this program's own output, in which a further line would be damage.
                Written::Through => {
                    complain(told.trim_end());
                    Ok(())
                }
            }
        }
        SnapshotCommand::Restore { file } => {
            let bytes = read(&file).map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
            let table = check(&bytes).map_err(|problem| Failure::Usage(format!("{}: {problem}", file.display())))?;
            let request_id = session.request_id.clone();
            let part =
                |chunk: &[u8]| v1::RestoreSnapshotRequest { chunk: chunk.to_vec(), request_id: request_id.clone() };
            let parts: Vec<_> = table.chunks(CHUNK_LEN).map(part).collect();
            let stream = futures::stream::iter(parts);
            let done = session.write(stream, |request| async move { client.restore_snapshot(request).await }).await?;
            let what = format!("table restored from {}", file.display());
            let change =
                Change { what, revision: done.revision, unchanged: done.unchanged, request_id, ..Change::default() };
            output::change(session.format(), &change)
        }
    }
}

/// How a snapshot was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    /// As a file, in the place of what was there.
    File,
    /// To what was there: a pipe, a device, an open descriptor.
    Through,
}

/// A regular file is written whole or not at all: an earlier snapshot of that name stays until the new one is there, also
/// where a link names it, and its permissions stay. Everything else, such as a pipe or a device, is written to.
fn write(file: &Path, bytes: &[u8]) -> std::io::Result<Written> {
    let (target, found) = match fs::metadata(file) {
        Ok(found) if found.is_dir() => return Err(std::io::ErrorKind::IsADirectory.into()),
        Ok(found) if !found.is_file() || is_standard_output(&found) => {
            fs::File::options().write(true).open(file)?.write_all(bytes)?;
            return Ok(Written::Through);
        }
        Ok(found) => (fs::canonicalize(file)?, Some(found)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => (link_target(file)?, None),
        Err(error) => return Err(error),
    };
    let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // As another program's file would be made: the mode that the umask leaves.
    let new = fs::Permissions::from_mode(0o666);
    let mut unfinished = tempfile::Builder::new().permissions(new).tempfile_in(directory)?;
    if let Some(found) = found {
        unfinished.as_file().set_permissions(found.permissions())?;
    }
    unfinished.write_all(bytes)?;
    unfinished.as_file().sync_all()?;
    unfinished.persist(&target).map_err(|error| error.error)?;
    fs::File::open(directory)?.sync_all()?;
    Ok(Written::File)
}

/// What a link points to that is not there yet; a name that is no link itself.
fn link_target(file: &Path) -> std::io::Result<PathBuf> {
    /// As many as the kernel follows (path_resolution(7)).
    const LINKS: usize = 40;
    let mut at = file.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&at) {
            Ok(next) => at = at.parent().unwrap_or(Path::new("")).join(next),
            Err(_) => return Ok(at),
        }
    }
    Err(std::io::Error::other("too many links"))
}

/// Whether a file is the one that this program's output goes to.
fn is_standard_output(found: &fs::Metadata) -> bool {
    let output = std::io::stdout().as_fd().try_clone_to_owned().and_then(|fd| fs::File::from(fd).metadata());
    output.is_ok_and(|output| (output.dev(), output.ino()) == (found.dev(), found.ino()))
}

fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    if file != Path::new("-") {
        return fs::read(file);
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What stands between the magic and the checksum.
fn check(bytes: &[u8]) -> Result<&[u8], &'static str> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it is no snapshot of a table, or one of a newer lbctl")?;
    let (table, checksum) = rest.split_last_chunk::<4>().ok_or("it is cut short")?;
    let sound = crc32fast::hash(&bytes[..bytes.len() - 4]).to_le_bytes() == *checksum;
    if sound { Ok(table) } else { Err("it is damaged: its checksum does not match") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_devices_are_written_to_and_files_are_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        write(&at("new"), b"one").unwrap();
        std::os::unix::fs::symlink("new", at("link")).unwrap();
        write(&at("link"), b"two").unwrap();
        assert_eq!(fs::read(at("new")).unwrap(), b"two");
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
        std::os::unix::fs::symlink("/dev/null", at("nothing")).unwrap();
        write(&at("nothing"), b"three").unwrap();
        assert!(fs::symlink_metadata(at("nothing")).unwrap().is_symlink());
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        std::os::unix::fs::symlink("later", at("dangling")).unwrap();
        assert_eq!(write(&at("dangling"), b"five").unwrap(), Written::File);
        assert!(fs::symlink_metadata(at("dangling")).unwrap().is_symlink());
        assert_eq!(fs::read(at("later")).unwrap(), b"five");
        fs::set_permissions(at("new"), fs::Permissions::from_mode(0o640)).unwrap();
        write(&at("new"), b"six").unwrap();
        assert_eq!(fs::metadata(at("new")).unwrap().permissions().mode() & 0o777, 0o640);
        fs::remove_file(at("dangling")).unwrap();
        fs::remove_file(at("later")).unwrap();
        write(dir.path(), b"four").unwrap_err();
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 3, "nothing is left over: {names:?}");
    }

    #[test]
    fn a_damaged_cut_or_foreign_file_is_refused() {
        let mut bytes = [&MAGIC[..], b"table"].concat();
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        assert_eq!(check(&bytes), Ok(&b"table"[..]));
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(check(&flipped).is_err());
            assert!(check(&bytes[..at]).is_err());
        }
    }
}
