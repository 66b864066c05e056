//! Opening: the lock, the watermark, sled, and the checks that must hold before a byte of it is used.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
};

use uuid::Uuid;

use super::{
    envelope,
    error::{StoreError, refused_by_sled},
    identity::{Identity, read_identity},
    keys,
    lock::{lock, wait_for_sled},
    log_store::LogStore,
    state_machine::StateMachine,
    watermark::{self, Disk, Files, Watermark},
    writer::{Note, StoreFailure, Writer},
};
use crate::feed::Publisher;

/// sled's page cache. The table lives in memory, so the store is read at start and by lagging peers.
const CACHE_BYTES: u64 = 16 << 20;

/// An open store. It is closed when the last of its parts is dropped.
pub(crate) struct Store {
    pub(crate) log: LogStore,
    pub(crate) machine: StateMachine,
    pub(crate) identity: Option<Identity>,
    pub(crate) uuid: Uuid,
    meta: sled::Tree,
    writer: Writer,
}

impl Store {
    /// Opens or creates the store in `dir`.
    pub(crate) fn open(dir: &Path, publisher: Publisher) -> Result<Self, StoreError> {
        Self::open_on(dir, publisher, |files| Box::new(files))
    }

    /// The same on a disk that tests may put in between.
    pub(crate) fn open_on(
        dir: &Path,
        publisher: Publisher,
        disk: impl FnOnce(Files) -> Box<dyn Disk>,
    ) -> Result<Self, StoreError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| StoreError::io("create", dir, error))?;
        // One that a recovery has made is not where it belongs.
        let lock = Arc::new(lock(dir)?);
        // One that cannot be looked at counts too: root has begun it, and this is not root.
        if dir.join(keys::RECOVERY_DIR).join(keys::RECOVERY_PLAN).try_exists().unwrap_or(true) {
            return Err(StoreError::Unfinished { path: dir.to_owned() });
        }
        let watermark_path = dir.join(keys::WITNESS_FILE);
        let sled_path = dir.join(keys::SLED_DIR);
        let (watermark_file, watermark) = match (watermark_path.exists(), sled_path.exists()) {
            (false, true) => {
                return Err(StoreError::damaged(&watermark_path, "the witness file is missing beside sled's data"));
            }
            (false, false) => watermark::create(dir, &watermark_path)?,
            (true, _) => {
                let file = File::options()
                    .read(true)
                    .write(true)
                    .open(&watermark_path)
                    .map_err(|error| StoreError::io("open", &watermark_path, error))?;
                let watermark = Watermark::read(&watermark_path, &file)?;
                (file, watermark)
            }
        };
        let acknowledged = watermark.vote.is_some() || watermark.last.is_some();
        if acknowledged && !sled_path.join(keys::SLED_FILE).exists() {
            return Err(StoreError::damaged(&sled_path, "the witness speaks of data, and sled's file is missing"));
        }
        let sled_file = sled_path.join(keys::SLED_FILE);
        // What a killed process wrote and did not sync is in the page cache. Read as it is, it would be taken
        // for durable, and a power cut could still take it away.
        if sled_file.exists() {
            File::open(&sled_file)
                .and_then(|file| file.sync_data())
                .map_err(|error| StoreError::io("sync", &sled_file, error))?;
            wait_for_sled(&sled_file)?;
        }
        let db = sled::Config::new()
            .path(&sled_path)
            .mode(sled::Mode::LowSpace)
            .cache_capacity(CACHE_BYTES)
            // sled frees space only in its flusher thread; durability does not depend on it.
            .flush_every_ms(Some(500))
            .open()
            .map_err(|error| refused_by_sled(&sled_path, error))?;
        let log_file = File::options()
            .read(true)
            .write(true)
            .open(&sled_file)
            .map_err(|error| StoreError::io("open", &sled_file, error))?;
        for path in [sled_path.as_path(), dir] {
            File::open(path).and_then(|dir| dir.sync_all()).map_err(|error| StoreError::io("sync", path, error))?;
        }
        let tree = |name: &str| db.open_tree(name).map_err(|error| refused_by_sled(&sled_path, error));
        let (log_tree, meta, snapshots) = (tree(keys::LOG_TREE)?, tree(keys::META_TREE)?, tree(keys::SNAPSHOT_TREE)?);
        let identity = read_identity(&meta, &sled_path, watermark.store)?;
        let disk = disk(Files { log: log_file, watermark: watermark_file });
        let writer = Writer::start(db.clone(), disk, watermark.clone())
            .map_err(|error| StoreError::io("start the writer of", dir, error))?;
        let log = LogStore::new(sled_path.clone(), log_tree, meta.clone(), writer.clone(), lock);
        let found = log.verify(&watermark)?;
        // From now on the watermark asks for what was found, not only for what was acknowledged.
        writer.recover(found.vote, found.last).map_err(|error| StoreError::io("sync", &sled_file, error))?;
        let machine = StateMachine::open(sled_path, snapshots, meta.clone(), writer.clone(), publisher)?;
        Ok(Self { log, machine, identity, uuid: watermark.store, meta, writer })
    }

    /// Makes the node's place in a cluster durable.
    pub(crate) async fn adopt(&self, identity: &Identity) -> io::Result<()> {
        let key = keys::IDENTITY;
        let record = envelope::seal_message(key.as_bytes(), &identity.record(self.uuid));
        self.writer.checked(self.meta.insert(key, record))?;
        self.writer.barrier(Note::Nothing).await
    }

    /// Why nothing is durable any more, if so.
    pub(crate) fn failure_probe(&self) -> impl Fn() -> Option<StoreFailure> + Send + Sync + use<> {
        let writer = self.writer.clone();
        move || writer.failure()
    }
}
