//! `lbctl snapshot`.

use std::{fs, io::Write as _, path::Path};

use lb_proto::v1::{self, cluster_service_client::ClusterServiceClient};

use crate::{
    cli::SnapshotCommand,
    exit::Failure,
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
            write(&file, &bytes).map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
            output::print(&format!("snapshot saved in {} ({} bytes)\n", file.display(), bytes.len()))
        }
        SnapshotCommand::Restore { file } => {
            let bytes = fs::read(&file).map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
            let table = check(&bytes).map_err(|problem| Failure::Usage(format!("{}: {problem}", file.display())))?;
            let request_id = session.request_id.clone();
            let part =
                |chunk: &[u8]| v1::RestoreSnapshotRequest { chunk: chunk.to_vec(), request_id: request_id.clone() };
            let parts: Vec<_> = table.chunks(CHUNK_LEN).map(part).collect();
            let stream = futures::stream::iter(parts);
            let done = session.write(stream, |request| async move { client.restore_snapshot(request).await }).await?;
            let what = format!("table restored from {}", file.display());
            let change = Change { what, revision: done.revision, unchanged: done.unchanged, request_id };
            output::change(session.format(), &change)
        }
    }
}

/// Whole or not at all: an earlier snapshot of that name stays until the new one is written.
fn write(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let unfinished = directory.join(name);
    let mut written = fs::File::create(&unfinished)?;
    written.write_all(bytes)?;
    written.sync_all()?;
    fs::rename(unfinished, file)
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
