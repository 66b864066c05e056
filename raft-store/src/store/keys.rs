//! The names and keys of everything on disk, in one place. They are frozen: a build that renamed one
//! would find an empty store.

/// The lock that keeps a second process out.
pub(crate) const LOCK_FILE: &str = "lock";
/// The watermark.
pub(crate) const WITNESS_FILE: &str = "witness";
/// What makes changes durable.
pub(crate) const JOURNAL_DIR: &str = "journal";
/// The snapshot files.
pub(crate) const SNAPSHOTS_DIR: &str = "snapshots";
/// sled's own directory.
pub(crate) const SLED_DIR: &str = "sled";
/// The file in it that holds all that is read.
pub(crate) const SLED_FILE: &str = "db";
/// The file beside it that says in which boot it was found sound.
pub(crate) const SLED_BOOT: &str = "boot";
/// All that belongs to a store and moves with it.
pub(crate) const OF_A_STORE: [&str; 4] = [WITNESS_FILE, JOURNAL_DIR, SNAPSHOTS_DIR, SLED_DIR];
/// The feature level from which builds know the journal; those below refuse a store that has one.
pub(crate) const JOURNAL_LEVEL: u32 = 4;

/// Where a recovery makes the new store.
pub(crate) const RECOVERY_DIR: &str = "recovering";
/// The file in it that says that it is complete.
pub(crate) const RECOVERY_PLAN: &str = "plan";

/// Values are cut into parts of this size. sled moves whatever is longer than 128 KiB into its `blobs`
/// directory, which it never syncs, and it writes a leaf of up to 17 records as one piece.
pub(crate) const PART_LEN: usize = 4 << 10;

/// Log entries by index and part.
pub(crate) const LOG_TREE: &str = "log";
/// Single records.
pub(crate) const META_TREE: &str = "meta";
/// The snapshot's chunks.
pub(crate) const SNAPSHOT_TREE: &str = "snapshot";

/// Who the store belongs to; since there is a journal, that says it.
pub(crate) const IDENTITY: &str = "identity";
/// The last vote.
pub(crate) const VOTE: &str = "vote";
/// The highest entry known to be committed; a hint, never synced for its own sake.
pub(crate) const COMMITTED: &str = "committed";
/// The last entry that was purged: the log begins behind it.
pub(crate) const PURGED: &str = "purged";
/// What the snapshot holds and where its chunks are.
pub(crate) const SNAPSHOT: &str = "snapshot";

/// The key of an entry's part: big-endian, so that sled's order is the log's.
pub(crate) fn entry(index: u64, part: u16) -> [u8; 10] {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&index.to_be_bytes());
    key[8..].copy_from_slice(&part.to_be_bytes());
    key
}

/// The inverse of [`entry`].
pub(crate) fn parse_entry(key: &[u8]) -> Option<(u64, u16)> {
    let (index, part) = key.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*index), u16::from_be_bytes(part.try_into().ok()?)))
}

/// A chunk's key: the snapshot's generation, then its position.
pub(crate) fn chunk(generation: u64, position: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&generation.to_be_bytes());
    key[8..].copy_from_slice(&position.to_be_bytes());
    key
}
