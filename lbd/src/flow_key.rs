//! The key of the hashes by which flows are spread: the same on all nodes of a cluster. Whoever knows it can choose clients' ports
//! such that one backend gets all of them, so it is in no log and no snapshot: each node has it in a file of its own, and gets it
//! from another one by the connections between nodes. Clusters of the versions before have theirs in the table, and keep it.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use lb_raft_store::table::Table;
use tokio::sync::watch;
use uuid::Uuid;

/// In data_dir.
const FILE: &str = "flow.key";
/// 128 bits.
const LEN: usize = 16;

/// Why the key is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FlowKeyError {
    /// A system call failed.
    #[error("cannot {step} {}: {source}", path.display())]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    /// The file holds something else.
    #[error(
        "{}: 32 hexadecimal digits are expected, the key of the flow hashes. Remove the file: the node gets the key from \
         another one", .0.display()
    )]
    Wrong(PathBuf),
}

/// What this node knows of it. Clones are handles to the same.
#[derive(Clone)]
pub(crate) struct FlowKey {
    dir: PathBuf,
    known: watch::Sender<Option<u128>>,
}

impl FlowKey {
    /// As data_dir has it.
    pub(crate) fn load(data_dir: &Path) -> Result<Self, FlowKeyError> {
        let path = data_dir.join(FILE);
        let known = match fs::read_to_string(&path) {
            Ok(text) => {
                let key = Uuid::try_parse(text.trim()).map_err(|_| FlowKeyError::Wrong(path))?;
                Some(key.as_u128())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(FlowKeyError::Io { step: "read", path, source }),
        };
        Ok(Self { dir: data_dir.to_owned(), known: watch::Sender::new(known) })
    }

    /// By which the flows of this cluster are spread; `None` while this node does not know it.
    pub(crate) fn of(&self, table: &Table) -> Option<u128> {
        match table.hash_seed() {
            0 => *self.known.borrow(),
            seed => Some(seed),
        }
    }

    /// For another node: nothing while it is not known.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.known.borrow().map(|key| key.to_be_bytes().to_vec()).unwrap_or_default()
    }

    /// What [`FlowKey::bytes`] of another node has said; `None` where that one does not know it.
    pub(crate) fn read(bytes: &[u8]) -> Option<u128> {
        <[u8; LEN]>::try_from(bytes).ok().map(u128::from_be_bytes)
    }

    /// Keeps it, durably before anybody can ask for it.
    pub(crate) fn keep(&self, key: u128) -> Result<(), FlowKeyError> {
        let (path, unfinished) = (self.dir.join(FILE), self.dir.join(FILE).with_extension("new"));
        let at = |step| {
            let path = path.clone();
            move |source| FlowKeyError::Io { step, path, source }
        };
        let mut file = File::create(&unfinished).map_err(at("write"))?;
        writeln!(file, "{}", Uuid::from_u128(key).as_simple()).map_err(at("write"))?;
        file.sync_all().map_err(at("sync"))?;
        fs::rename(&unfinished, &path).map_err(at("rename"))?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(at("sync the directory of"))?;
        self.known.send_replace(Some(key));
        Ok(())
    }

    /// Wakes when it becomes known.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<u128>> {
        self.known.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_kept_in_a_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let fresh = FlowKey::load(dir.path()).unwrap();
        assert_eq!((fresh.of(&Table::default()), fresh.bytes()), (None, Vec::new()));
        let key = lb_raft_store::new_key();
        fresh.keep(key).unwrap();
        let again = FlowKey::load(dir.path()).unwrap();
        assert_eq!(again.of(&Table::default()), Some(key));
        assert_eq!(FlowKey::read(&again.bytes()), Some(key));
        assert_eq!(FlowKey::read(&[]), None);
        fs::write(dir.path().join(FILE), "nonsense\n").unwrap();
        let wrong = FlowKey::load(dir.path()).err().unwrap().to_string();
        assert!(wrong.contains("flow.key") && wrong.contains("Remove the file"), "{wrong}");
    }
}
