//! Opening: the lock, the witness, sled, and the checks that must hold before a byte of it is used.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use prost::Message;
use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use super::{
    StoreError, codec, keys,
    log_store::LogStore,
    state_machine::StateMachine,
    witness::{self, Disk, Files, Witness},
    writer::Writer,
};
use crate::{
    table::{NodeId, Role},
    watch::Publisher,
};

/// sled's page cache. The table lives in memory, so the store is read at start and by lagging peers.
const CACHE_BYTES: u64 = 16 << 20;

/// For a store that closes to let go of its files.
const CLOSING: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// Who a store belongs to, once its node is part of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) cluster: Uuid,
    pub(crate) cluster_name: String,
    pub(crate) name: String,
    pub(crate) role: Role,
    /// Clusters from which this node was recovered as the only survivor; their other nodes are gone for good.
    pub(crate) recovered_from: Vec<Uuid>,
}

#[derive(Clone, PartialEq, Message)]
struct IdentityRecord {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(bytes = "vec", tag = "2")]
    cluster: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    store: Vec<u8>,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(bool, tag = "5")]
    witness_role: bool,
    #[prost(string, tag = "6")]
    cluster_name: String,
    #[prost(bytes = "vec", repeated, tag = "7")]
    recovered_from: Vec<Vec<u8>>,
}

/// An open store. It is closed when the last of its parts is dropped.
pub(crate) struct Store {
    pub(crate) log: LogStore,
    pub(crate) machine: StateMachine,
    pub(crate) identity: Option<Identity>,
    pub(crate) uuid: Uuid,
    meta: sled::Tree,
    writer: Writer,
}

/// Held for as long as any part of the store is in use; the kernel drops it with the process.
pub(crate) struct DirLock {
    _file: File,
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
        let lock = Arc::new(lock(dir)?);
        let witness_path = dir.join(keys::WITNESS_FILE);
        let sled_path = dir.join(keys::SLED_DIR);
        let (witness_file, witness) = match (witness_path.exists(), sled_path.exists()) {
            (false, true) => {
                return Err(StoreError::damaged(&witness_path, "the witness file is missing beside sled's data"));
            }
            (false, false) => witness::create(dir, &witness_path)?,
            (true, _) => {
                let file = File::options()
                    .read(true)
                    .write(true)
                    .open(&witness_path)
                    .map_err(|error| StoreError::io("open", &witness_path, error))?;
                let witness = Witness::read(&witness_path, &file)?;
                (file, witness)
            }
        };
        let acknowledged = witness.vote.is_some() || witness.last.is_some();
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
        let identity = read_identity(&meta, &sled_path, &witness)?;
        let disk = disk(Files { log: log_file, witness: witness_file });
        let writer = Writer::start(db.clone(), disk, witness.clone())
            .map_err(|error| StoreError::io("start the writer of", dir, error))?;
        let log = LogStore::new(sled_path.clone(), log_tree, meta.clone(), writer.clone(), lock);
        let found = log.verify(&witness)?;
        // From now on the witness asks for what was found, not only for what was acknowledged.
        writer.recover(found.vote, found.last).map_err(|error| StoreError::io("sync", &sled_file, error))?;
        let machine = StateMachine::open(sled_path, snapshots, meta.clone(), writer.clone(), publisher)?;
        Ok(Self { log, machine, identity, uuid: witness.store, meta, writer })
    }

    /// Makes the node's place in a cluster durable.
    pub(crate) async fn adopt(&self, identity: &Identity) -> io::Result<()> {
        let record = IdentityRecord {
            node: identity.node,
            cluster: identity.cluster.as_bytes().to_vec(),
            store: self.uuid.as_bytes().to_vec(),
            name: identity.name.clone(),
            witness_role: identity.role == Role::Witness,
            cluster_name: identity.cluster_name.clone(),
            recovered_from: identity.recovered_from.iter().map(|id| id.as_bytes().to_vec()).collect(),
        };
        let key = keys::IDENTITY;
        self.meta.insert(key, codec::seal_message(key.as_bytes(), &record)).map_err(io::Error::other)?;
        self.writer.barrier(super::writer::Note::Nothing).await
    }

    /// Why nothing is durable any more, if so.
    pub(crate) fn failure_probe(&self) -> impl Fn() -> Option<String> + Send + Sync + use<> {
        let writer = self.writer.clone();
        move || writer.failure()
    }
}

/// sled's threads let go of its file some time after the last handle is dropped. Nobody but a store that
/// closes can hold it: the directory's lock is ours.
fn wait_for_sled(path: &Path) -> Result<(), StoreError> {
    let failed = |error| StoreError::io("lock", path, error);
    let file = File::open(path).map_err(failed)?;
    let deadline = Instant::now() + CLOSING;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Given back with the descriptor, right before sled takes it.
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(LOCK_PAUSE),
            Err(error) => return Err(failed(error.into())),
        }
    }
}

fn lock(dir: &Path) -> Result<DirLock, StoreError> {
    let path = dir.join(keys::LOCK_FILE);
    let at = |step: &'static str| {
        let path = path.clone();
        move |error| StoreError::io(step, &path, error)
    };
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(at("open"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // Only to name the holder: an unreadable note takes nothing away from the refusal.
            let _ = file.read_to_string(&mut holder);
            return Err(StoreError::Locked { path: dir.to_owned(), holder: holder.trim().parse().ok() });
        }
        Err(error) => return Err(at("lock")(error.into())),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| write!(file, "{}", std::process::id()))
        .map_err(at("write"))?;
    Ok(DirLock { _file: file })
}

fn read_identity(meta: &sled::Tree, path: &Path, witness: &Witness) -> Result<Option<Identity>, StoreError> {
    let damaged = |what: String| StoreError::damaged(path, format!("the identity record: {what}"));
    let Some(record) = meta.get(keys::IDENTITY).map_err(|error| refused_by_sled(path, error))? else {
        return Ok(None);
    };
    let record: IdentityRecord =
        codec::open_message(keys::IDENTITY.as_bytes(), &record).map_err(|error| damaged(error.to_string()))?;
    if record.store != witness.store.as_bytes() {
        return Err(damaged("the witness belongs to another store".into()));
    }
    Ok(Some(Identity {
        node: record.node,
        cluster: Uuid::from_slice(&record.cluster).map_err(|error| damaged(error.to_string()))?,
        cluster_name: record.cluster_name,
        recovered_from: record.recovered_from.iter().filter_map(|id| Uuid::from_slice(id).ok()).collect(),
        name: record.name,
        role: if record.witness_role { Role::Witness } else { Role::Lb },
    }))
}

/// What sled says on opening or reading: a failed system call, or damage that it noticed itself.
pub(crate) fn refused_by_sled(path: &Path, error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(error) if error.kind() != io::ErrorKind::Other => StoreError::io("open", path, error),
        error => StoreError::damaged(path, error.to_string()),
    }
}
