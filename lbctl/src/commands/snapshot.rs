//! `lbctl snapshot`.

use std::{
    fs,
    io::Write as _,
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use lb_proto::v1::{self, cluster_service_client::ClusterServiceClient};

use super::declared::{self, How, Wanted};
use crate::{
    cli::SnapshotCommand,
    declared::Others,
    exit::{Failure, complain},
    output::{self, Change},
    session::Session,
};

const CHUNK_LEN: usize = 256 << 10;
/// The first bytes of a file as versions before this one saved it: so many, then the table as the server encodes it, then a checksum.
const MAGIC: &[u8; 8] = b"lbtable\x01";

pub(super) async fn run(session: &Session, command: SnapshotCommand) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Save { file } => {
            let document = declared::document(session).await?;
            let bytes = written(&serde_saphyr::to_string(&document).map_err(std::io::Error::other)?).into_bytes();
            if file == Path::new("-") {
                return output::print_bytes(&bytes);
            }
            let how = write(&file, &bytes).map_err(|error| Failure::of_file(&file, error))?;
            let told = format!("snapshot saved in {} ({} bytes)\n", file.display(), bytes.len());
            match how {
                Written::File => output::print(&told),
                // It may be this program's own output, in which a further line would be damage.
                Written::Through => {
                    complain(told.trim_end());
                    Ok(())
                }
            }
        }
        SnapshotCommand::Restore { file, dry_run } => {
            let bytes = declared::read(&file)?;
            if bytes.starts_with(MAGIC) {
                return restore_binary(session, &file, &bytes, dry_run).await;
            }
            checked(&bytes).map_err(|problem| Failure::of_file(&file, problem))?;
            // With its first lines, which are comments: a fault is told with its line in the file.
            let document = declared::parsed(&file, &bytes)?;
            let wanted = Wanted { file, document, others: Others::MadeAnew, done: "restored" };
            declared::become_as(session, &wanted, if dry_run { How::Shown } else { How::Done }).await
        }
    }
}

/// What versions before this one saved, which the server alone can read.
async fn restore_binary(session: &Session, file: &Path, bytes: &[u8], dry_run: bool) -> Result<(), Failure> {
    let table = check_binary(bytes).map_err(|problem| Failure::of_file(file, problem))?;
    if dry_run {
        return Err(Failure::of_file(
            file,
            "it is of an older version: what it would change is not known before it is restored",
        ));
    }
    let mut client = ClusterServiceClient::new(session.channel.clone());
    let request_id = session.request_id.clone();
    let part = |chunk: &[u8]| v1::RestoreSnapshotRequest { chunk: chunk.to_vec(), request_id: request_id.clone() };
    let parts: Vec<_> = table.chunks(CHUNK_LEN).map(part).collect();
    let stream = futures::stream::iter(parts);
    let done = session.write(stream, |request| async move { client.restore_snapshot(request).await }).await?;
    let what = format!("{} restored", file.display());
    let change = Change { what, revision: done.revision, unchanged: done.unchanged, request_id, ..Change::default() };
    output::change(session.format(), &change)
}

/// The lines before a table; the last one has the checksum of all that follows.
const TITLE: &str =
    "# A table of lbd, as 'lbctl snapshot restore' puts it back. To change it first, use 'lbctl export'.\n";
const CHECKSUM: &str = "# crc32 ";

/// A table with its checksum before it.
fn written(table: &str) -> String {
    format!("{TITLE}{CHECKSUM}{:08x}\n{table}", crc32fast::hash(table.as_bytes()))
}

/// The table behind its checksum.
fn checked(bytes: &[u8]) -> Result<&[u8], &'static str> {
    let rest = bytes.strip_prefix(TITLE.as_bytes()).and_then(|rest| rest.strip_prefix(CHECKSUM.as_bytes()));
    let rest = rest.ok_or(
        "it is no snapshot of a table, or one of a newer lbctl; 'lbctl apply -f' reads tables without a checksum",
    )?;
    let (said, table) = rest.split_at_checked(9).ok_or("it is cut short")?;
    match said == format!("{:08x}\n", crc32fast::hash(table)).as_bytes() {
        true => Ok(table),
        false => Err(
            "it is damaged, or was changed since it was saved: its checksum does not match. If it shall be as it is now: \
             lbctl apply --prune -f FILE",
        ),
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

/// What stands between the magic and the checksum.
fn check_binary(bytes: &[u8]) -> Result<&[u8], &'static str> {
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
        assert_eq!(check_binary(&bytes), Ok(&b"table"[..]));
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(check_binary(&flipped).is_err());
            assert!(check_binary(&bytes[..at]).is_err());
        }
        let text = written("vips: []\n").into_bytes();
        assert_eq!(checked(&text), Ok(&b"vips: []\n"[..]));
        for at in 0..text.len() {
            let mut flipped = text.clone();
            flipped[at] ^= 1;
            assert!(checked(&flipped).is_err() && checked(&text[..at]).is_err(), "{at}");
        }
    }
}
