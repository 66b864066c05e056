//! As whom the processes go on when root has started them (systemd's unit starts them as that user).

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, lchown},
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    process::{Gid, Uid, geteuid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

/// What `deploy/systemd/lbd.sysusers.conf` makes.
const DEFAULT: &str = "lbd";
/// `node.user`, for those who want no other.
const ROOT: &str = "root";

/// A user of this machine that is not root.
#[derive(Debug, Clone)]
pub(crate) struct User {
    name: String,
    uid: u32,
    gid: u32,
}

/// Why the processes do not become that user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    /// There is none of that name.
    #[error(
        "node.user: there is no user {0} on this machine: make one ('useradd --system {0}'), or set node.user = \"root\""
    )]
    Unknown(String),
    /// The machine's users cannot be read.
    #[error("node.user: the users of this machine cannot be read: {0}")]
    Unread(nix::errno::Errno),
    /// A file cannot be given to it.
    #[error("{} cannot be given to the user {user}: {source}", path.display())]
    Path {
        /// The file or directory.
        path: PathBuf,
        /// To whom.
        user: String,
        /// What the system said.
        source: io::Error,
    },
    /// A system call was refused.
    #[error("the system does not let this process become another user: {0}")]
    Refused(Errno),
}

impl User {
    /// Whom a process that root has started becomes; `None` where it stays who it is.
    pub(crate) fn to_become(configured: Option<&str>) -> Result<Option<Self>, UserError> {
        let name = configured.unwrap_or(DEFAULT);
        if !geteuid().is_root() || name == ROOT {
            return Ok(None);
        }
        let found = nix::unistd::User::from_name(name).map_err(UserError::Unread)?;
        match found.map(|of| Self { name: of.name, uid: of.uid.as_raw(), gid: of.gid.as_raw() }) {
            // Root of a user namespace that has no such user is no root outside of it.
            Some(user) if user.is_mapped() => Ok(Some(user)),
            None if configured.is_some() => Err(UserError::Unknown(name.to_owned())),
            _ => Ok(None),
        }
    }

    /// How it is called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it may read a file. Tried by a thread that becomes it, and ends.
    pub(crate) fn may_read(&self, path: &Path) -> bool {
        let may = || self.enter().is_ok() && fs::File::open(path).is_ok();
        std::thread::scope(|scope| scope.spawn(may).join().unwrap_or(false))
    }

    fn is_mapped(&self) -> bool {
        let has = |file: &str, id: u32| {
            let map = fs::read_to_string(file).unwrap_or_default();
            map.lines().any(|line| {
                let mut numbers = line.split_whitespace().map(str::parse::<u64>);
                let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) = (numbers.next(), numbers.next(), numbers.next())
                else {
                    return false;
                };
                (first..first + count).contains(&id.into())
            })
        };
        has("/proc/self/uid_map", self.uid) && has("/proc/self/gid_map", self.gid)
    }

    /// Gives it what it writes: the data directory, and the directories of sockets.
    pub(crate) fn own(&self, data_dir: &Path, sockets: &[&Path]) -> Result<(), UserError> {
        self.own_data(data_dir).map_err(|(path, source)| self.not_given(path, source))?;
        for socket in sockets {
            let Some(dir) = socket.parent() else { continue };
            self.own_dir_of(dir, socket).map_err(|source| self.not_given(dir.to_owned(), source))?;
        }
        Ok(())
    }

    fn not_given(&self, path: PathBuf, source: io::Error) -> UserError {
        UserError::Path { path, user: self.name.clone(), source }
    }

    /// All of it, if it is root's. What is another user's may hold links that he has made, and is left as it is.
    fn own_data(&self, dir: &Path) -> Result<(), (PathBuf, io::Error)> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| (path, error)
        };
        if !dir.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
        }
        if fs::metadata(dir).map_err(at(dir))?.uid() != 0 {
            return Ok(());
        }
        let mut left = vec![dir.to_owned()];
        while let Some(path) = left.pop() {
            if fs::symlink_metadata(&path).map_err(at(&path))?.is_dir() {
                for entry in fs::read_dir(&path).map_err(at(&path))? {
                    left.push(entry.map_err(at(&path))?.path());
                }
            }
            lchown(&path, Some(self.uid), Some(self.gid)).map_err(at(&path))?;
        }
        Ok(())
    }

    /// A directory that holds nothing but the socket.
    fn own_dir_of(&self, dir: &Path, socket: &Path) -> io::Result<()> {
        if !dir.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        }
        for entry in fs::read_dir(dir)? {
            if entry?.path() != socket {
                return Ok(());
            }
        }
        if fs::metadata(dir)?.uid() == 0 { lchown(dir, Some(self.uid), Some(self.gid)) } else { Ok(()) }
    }

    /// This thread alone: where there are others, they stay who they are.
    pub(super) fn enter(&self) -> Result<(), UserError> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        set_thread_groups(&[gid])
            .and_then(|()| set_thread_res_gid(gid, gid, gid))
            .and_then(|()| set_thread_res_uid(uid, uid, uid))
            .map_err(UserError::Refused)
    }
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (uid {})", self.name, self.uid)
    }
}
