//! One survivor becomes a new cluster. Offline, by the operator's word that the other voters are gone for good:
//! nothing here can know that. The table stays; the cluster's id, its key, every lease and every other node go, so
//! that the lost ones can never take part again. The old store is kept beside the new one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use openraft::{
    BasicNode, Membership, RaftLogReader as _,
    storage::{RaftLogStorage as _, RaftStateMachine as _},
};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use uuid::Uuid;

use crate::{
    consensus::new_key,
    feed,
    raft::{LogId, SnapshotMeta, StoredMembership, Vote},
    store::{StoreError, identity::Identity, keys, open::Store},
    table::{Name, encode_table},
};

/// Where the new store is made.
const UNFINISHED: &str = "recovering";

/// What became of the store.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// The new cluster's id.
    pub cluster: Uuid,
    /// The old one's.
    pub previous: Uuid,
    /// The nodes that are not part of it any more.
    pub lost: Vec<Name>,
    /// VIPs, services and backends that it holds.
    pub counts: (usize, usize, usize),
    /// Where the old store is now.
    pub kept: PathBuf,
}

/// Why a store was not recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// It cannot be opened, or the new one cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its node was never part of a cluster.
    #[error("the store at {} belongs to no cluster: there is nothing to recover", .0.display())]
    Empty(PathBuf),
    /// A step on the way failed.
    #[error("cannot {0}: {1}")]
    Io(&'static str, io::Error),
}

/// Makes the store in `data_dir` that of a new cluster of one node, which others reach at `address`.
pub async fn recover(data_dir: &Path, address: &str) -> Result<Recovered, RecoverError> {
    let failed = |step| move |error| RecoverError::Io(step, error);
    if !data_dir.join(keys::WITNESS_FILE).exists() && !data_dir.join(keys::SLED_DIR).exists() {
        return Err(RecoverError::Empty(data_dir.to_owned()));
    }
    let old = Store::open(data_dir, feed::channel().0)?;
    let identity = old.identity.clone().ok_or_else(|| RecoverError::Empty(data_dir.to_owned()))?;
    let (me, previous, cluster) = (identity.node, identity.cluster, Uuid::new_v4());
    let (mut log, mut machine) = (old.log.clone(), old.machine.clone());
    let (applied, _) = machine.applied_state().await.map_err(failed("read the table"))?;
    let from = applied.map_or(0, |id| id.index() + 1);
    // What no majority has confirmed is taken too: somebody may have been told that it is done.
    for entry in log.try_get_log_entries(from..).await.map_err(failed("read the log"))? {
        machine.apply_entry(&entry);
    }
    let last = log.get_log_state().await.map_err(failed("read the log"))?.last_log_id;
    let vote = log.read_vote().await.map_err(failed("read the vote"))?;
    let (term, index) = (vote.map_or(0, |vote| vote.leader_id.term) + 1, last.map_or(0, |id| id.index()) + 1);

    let unfinished = data_dir.join(UNFINISHED);
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(failed("remove an earlier attempt"))?;
    }
    let mut new = Store::open(&unfinished, feed::channel().0)?;
    let (table, lost) = machine.table().recovered(me, (cluster, new_key()), (address, new.uuid), index);
    let counts = (table.vips().count(), table.services().count(), table.backends().count());
    let id = LogId::new_term_index(term, index);
    let nodes = BTreeMap::from([(me, BasicNode { addr: address.to_owned() })]);
    let membership = Membership::new(vec![BTreeSet::from([me])], nodes)
        .map_err(|error| RecoverError::Io("make the membership", io::Error::other(error)))?;
    let last_membership = StoredMembership::new(Some(id), membership);
    let meta = SnapshotMeta { last_log_id: Some(id), last_membership };
    new.machine.install_snapshot(&meta, encode_table(&table)).await.map_err(failed("write the table"))?;
    new.log.save_vote(&Vote::new(term, me)).await.map_err(failed("write the vote"))?;
    new.log.purge(id).await.map_err(failed("write the log's start"))?;
    let mut recovered_from = identity.recovered_from.clone();
    recovered_from.push(previous);
    let identity = Identity { cluster, recovered_from, ..identity };
    new.adopt(&identity).await.map_err(failed("write the identity"))?;
    drop(new);
    drop((log, machine, old));
    let kept = swap(data_dir, &unfinished, previous).map_err(failed("put the new store in place"))?;
    Ok(Recovered { cluster, previous, lost, counts, kept })
}

/// Whatever is cut short leaves a store that is refused, and never an empty directory: a witness without sled's
/// data, or the reverse.
fn swap(data_dir: &Path, unfinished: &Path, previous: Uuid) -> io::Result<PathBuf> {
    let kept = data_dir.join(format!("before-recovery-{previous}"));
    fs::create_dir(&kept)?;
    fs::rename(data_dir.join(keys::WITNESS_FILE), kept.join(keys::WITNESS_FILE))?;
    let (old, new) = (data_dir.join(keys::SLED_DIR), unfinished.join(keys::SLED_DIR));
    renameat_with(CWD, &new, CWD, &old, RenameFlags::EXCHANGE)?;
    fs::rename(&new, kept.join(keys::SLED_DIR))?;
    fs::rename(unfinished.join(keys::WITNESS_FILE), data_dir.join(keys::WITNESS_FILE))?;
    fs::remove_dir_all(unfinished)?;
    fs::File::open(data_dir)?.sync_all()?;
    Ok(kept)
}
