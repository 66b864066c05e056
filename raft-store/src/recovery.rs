//! One survivor becomes a new cluster. Offline, by the operator's word that the other voters are gone for good:
//! nothing here can know that. The table stays; the cluster's id, its key, every lease and every other node go, so
//! that the lost ones can never take part again. The old store is kept beside the new one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use openraft::{
    BasicNode, Membership, RaftLogReader as _,
    storage::{RaftLogStorage as _, RaftStateMachine as _},
};
use uuid::Uuid;

use crate::{
    consensus::new_key,
    feed,
    raft::{LogId, SnapshotMeta, StoredMembership, Vote},
    store::{StoreError, identity::Identity, keys, open::Store},
    table::encode_table,
};

/// What the names of kept stores begin with.
const KEPT: &str = "before-recovery-";

/// What became of the store.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// The new cluster's id.
    pub cluster: Uuid,
    /// The old one's.
    pub previous: Uuid,
    /// The nodes that are not part of it any more.
    pub lost: Vec<String>,
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

fn failed(step: &'static str) -> impl Fn(io::Error) -> RecoverError {
    move |error| RecoverError::Io(step, error)
}

fn open(data_dir: &Path) -> Result<Store, RecoverError> {
    if !data_dir.join(keys::WITNESS_FILE).exists() && !data_dir.join(keys::SLED_DIR).exists() {
        return Err(RecoverError::Empty(data_dir.to_owned()));
    }
    Ok(Store::open(data_dir, feed::channel().0)?)
}

/// Makes the store in `data_dir` that of a new cluster of one node, which others reach at `address`. One that was cut short is
/// gone on with.
pub async fn recover(data_dir: &Path, address: &str) -> Result<Recovered, RecoverError> {
    let unfinished = data_dir.join(keys::RECOVERY_DIR);
    let plan = match Plan::read(&unfinished).map_err(failed("read the earlier attempt"))? {
        Some(plan) => plan,
        None => make(data_dir, &unfinished, address).await?,
    };
    let kept = swap(data_dir, &unfinished, &plan).map_err(failed("put the new store in place"))?;
    let (cluster, counts) = {
        let new = open(data_dir)?;
        let cluster = new.identity.as_ref().map(|identity| identity.cluster).unwrap_or_default();
        let table = new.machine.table();
        (cluster, (table.vips().count(), table.services().count(), table.backends().count()))
    };
    // sled has written on being opened.
    give_to_owner(data_dir).map_err(failed("give the new store to the owner of data_dir"))?;
    Ok(Recovered { cluster, previous: plan.previous, lost: plan.lost, counts, kept })
}

/// Makes the new store beside the old one.
async fn make(data_dir: &Path, unfinished: &Path, address: &str) -> Result<Plan, RecoverError> {
    let old = open(data_dir)?;
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

    if unfinished.exists() {
        fs::remove_dir_all(unfinished).map_err(failed("remove an earlier attempt"))?;
    }
    let mut new = Store::open(unfinished, feed::channel().0)?;
    let (table, lost) = machine.table().recovered(me, (cluster, new_key()), (address, new.uuid), index);
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
    // A place that is free: an operator may have put an earlier store back by hand.
    let first = format!("{KEPT}{previous}");
    let names = std::iter::once(first.clone()).chain((2..).map(|number| format!("{first}-{number}")));
    let kept = names.map(PathBuf::from).find(|name| !data_dir.join(name).exists()).unwrap_or_default();
    let plan = Plan { previous, kept, lost: lost.iter().map(ToString::to_string).collect() };
    let owner = fs::metadata(data_dir).map_err(failed("look at data_dir"))?;
    give(unfinished, owner.uid(), owner.gid()).map_err(failed("give the new store to the owner of data_dir"))?;
    plan.write(unfinished).map_err(failed("write down that the new store is complete"))?;
    // Until then nobody else can open the old one, and from then on nobody may.
    drop((log, machine, old));
    Ok(plan)
}

/// What stands in the new store's directory as soon as it is complete: from then on the recovery only goes forward.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    previous: Uuid,
    /// Where in data_dir the old store is kept.
    kept: PathBuf,
    lost: Vec<String>,
}

impl Plan {
    fn write(&self, unfinished: &Path) -> io::Result<()> {
        let lines: String = self.lost.iter().map(|name| format!("{name}\n")).collect();
        let beside = unfinished.join(keys::RECOVERY_PLAN).with_extension("new");
        let mut file = fs::File::create(&beside)?;
        file.write_all(format!("{}\n{}\n{lines}", self.previous, self.kept.display()).as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, unfinished.join(keys::RECOVERY_PLAN))?;
        sync(unfinished)
    }

    fn read(unfinished: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read_to_string(unfinished.join(keys::RECOVERY_PLAN)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let mut lines = text.lines();
        let previous = lines.next().and_then(|line| line.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        let kept = lines.next().map(PathBuf::from).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some(Self { previous, kept, lost: lines.map(ToOwned::to_owned).collect() }))
    }
}

/// Each step may have been done before. Until the last one a start is refused, because the plan is there.
fn swap(data_dir: &Path, unfinished: &Path, plan: &Plan) -> io::Result<PathBuf> {
    let kept = data_dir.join(&plan.kept);
    if !kept.exists() {
        fs::create_dir(&kept)?;
    }
    for name in keys::OF_A_STORE {
        let (present, new, old) = (data_dir.join(name), unfinished.join(name), kept.join(name));
        // Where the old one is kept already, what is there is the new one.
        if !old.exists() && present.exists() {
            fs::rename(&present, &old)?;
            sync(&kept)?;
        }
        if new.exists() {
            fs::rename(&new, &present)?;
        }
        sync(data_dir)?;
    }
    // While the plan is there the same command does what is missing.
    give_to_owner(data_dir)?;
    fs::remove_file(unfinished.join(keys::RECOVERY_PLAN))?;
    fs::remove_dir_all(unfinished)?;
    sync(data_dir)?;
    Ok(kept)
}

fn sync(directory: &Path) -> io::Result<()> {
    fs::File::open(directory)?.sync_all()
}

/// Whoever runs lbd must be able to open what root has made.
fn give_to_owner(data_dir: &Path) -> io::Result<()> {
    let owner = fs::metadata(data_dir)?;
    for entry in fs::read_dir(data_dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = [keys::LOCK_FILE, keys::RECOVERY_DIR];
        if ours.contains(&name.as_str()) || keys::OF_A_STORE.contains(&name.as_str()) || name.starts_with(KEPT) {
            give(&entry.path(), owner.uid(), owner.gid())?;
        }
    }
    Ok(())
}

fn give(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let of = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        of => of?,
    };
    if (of.uid(), of.gid()) != (uid, gid) {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
    }
    if of.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), uid, gid)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wherever it is cut short, the same command finishes it, and a start in between is refused.
    #[test]
    fn a_recovery_that_is_cut_short_is_gone_on_with() {
        let previous = Uuid::from_u128(7);
        let kept = PathBuf::from(format!("{KEPT}{previous}"));
        let plan = Plan { previous, kept, lost: vec!["lb2".into(), "lb3".into()] };
        let build = || {
            let dir = tempfile::tempdir().unwrap();
            let unfinished = dir.path().join(keys::RECOVERY_DIR);
            for (at, label) in [(dir.path(), "old"), (unfinished.as_path(), "new")] {
                for name in [keys::JOURNAL_DIR, keys::SNAPSHOTS_DIR, keys::SLED_DIR] {
                    fs::create_dir_all(at.join(name)).unwrap();
                    fs::write(at.join(name).join("file"), label).unwrap();
                }
                fs::write(at.join(keys::WITNESS_FILE), label).unwrap();
            }
            plan.write(&unfinished).unwrap();
            (dir, unfinished)
        };
        // As far as a crash lets it come: the first steps of the swap, by hand.
        type Step = Box<dyn Fn(&Path, &Path, &Path) -> io::Result<()>>;
        let mut steps: Vec<Step> = vec![Box::new(|_, _, kept| fs::create_dir(kept))];
        for name in keys::OF_A_STORE {
            steps.push(Box::new(move |dir, _, kept| fs::rename(dir.join(name), kept.join(name))));
            steps.push(Box::new(move |dir, new, _| fs::rename(new.join(name), dir.join(name))));
        }
        for done in 0..=steps.len() {
            let (dir, unfinished) = build();
            let kept = dir.path().join(&plan.kept);
            for step in &steps[..done] {
                step(dir.path(), &unfinished, &kept).unwrap();
            }
            let refused = Store::open(dir.path(), feed::channel().0).err().expect("a recovery is under way");
            assert!(refused.to_string().contains("lbd recover"), "{refused}");
            let found = Plan::read(&unfinished).unwrap().expect("a plan");
            assert_eq!(found, plan);
            assert_eq!(swap(dir.path(), &unfinished, &found).unwrap(), kept);
            let labels = |at: &Path| -> BTreeSet<String> {
                let of = |name: &str| match at.join(name).is_dir() {
                    true => fs::read_to_string(at.join(name).join("file")).unwrap(),
                    false => fs::read_to_string(at.join(name)).unwrap(),
                };
                keys::OF_A_STORE.map(of).into_iter().collect()
            };
            assert_eq!(labels(dir.path()), BTreeSet::from(["new".into()]), "after {done} steps");
            assert_eq!(labels(&kept), BTreeSet::from(["old".into()]), "after {done} steps");
            assert!(!unfinished.exists());
        }
    }
}
