//! The addresses that lbd listens on.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixListener,
    },
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};

use crate::exit::Failure;

/// For so long an address may be in use.
const ENDING: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(2);

/// Binds, again for a while where the address is in use: after SIGKILL the sockets of the lbd that ran before stay open
/// until its last thread is gone, and whoever started it may start this one sooner.
fn patiently<T>(key: &'static str, bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + ENDING;
    let mut told = false;
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                if !told {
                    tracing::info!("{key} is still in use: waiting for whoever listens there to end");
                    told = true;
                }
                thread::sleep(PAUSE);
            }
            decided => return decided,
        }
    }
}

/// Binds, or says who has the address.
pub(crate) fn tcp(key: &'static str, address: SocketAddr) -> Result<TcpListener, Failure> {
    patiently(key, || TcpListener::bind(address)).map_err(|source| {
        let holder = match source.kind() {
            io::ErrorKind::AddrInUse => holder_of(address),
            io::ErrorKind::AddrNotAvailable => " (no interface of this machine has that address)".into(),
            _ => String::new(),
        };
        Failure::Listen { key, address, source, holder }
    })
}

/// The API's socket in the file system, or why it cannot be had.
pub(crate) fn unix(key: &'static str, path: &Path) -> Result<UnixListener, Failure> {
    patiently(key, || at_path(path)).map_err(|source| Failure::Socket { path: path.to_owned(), source })
}

/// The heartbeat's sockets, one at each address.
pub(crate) fn heartbeats(listen: &[SocketAddr]) -> Result<Vec<UdpSocket>, Failure> {
    let socket = |&address: &SocketAddr| {
        patiently("cluster.listen", || UdpSocket::bind(address))
            .map_err(|source| Failure::Heartbeat { address, source })
    };
    listen.iter().map(socket).collect()
}

/// The directory is made if missing; a socket that nobody serves any more is replaced.
fn at_path(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent().filter(|dir| !dir.is_dir()) {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    }
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            let problem = "there is something that is no socket: name another path, or move it away";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, problem));
        }
        if is_served(path)? {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another lbd serves it"));
        }
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Whether somebody serves a socket; without waiting for one that has stopped, whose queue is full.
fn is_served(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let connected = connect(&socket, &SocketAddrUnix::new(path)?);
    Ok(matches!(connected, Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS)))
}

/// Who listens on an address, from /proc: the socket's inode, then the process that has it open.
fn holder_of(address: SocketAddr) -> String {
    let unknown = " (another process listens there: 'ss -ltnp' shows which)".to_owned();
    let Some(inode) = listening_inode(address) else { return unknown };
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) else { continue };
        let descriptors = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let holds = |fd: fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|to| to.to_str() == Some(&wanted));
        if descriptors.into_iter().any(holds) {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return format!(" ({} with process id {pid} listens there)", command.trim());
        }
    }
    unknown
}

fn listening_inode(address: SocketAddr) -> Option<u64> {
    const LISTEN: &str = "0A";
    let file = if address.is_ipv4() { "/proc/self/net/tcp" } else { "/proc/self/net/tcp6" };
    let port = format!(":{:04X}", address.port());
    fs::read_to_string(file).ok()?.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, _, _, _, _, _, inode, ..] = fields[..] else { return None };
        (local.ends_with(&port) && state == LISTEN).then(|| inode.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn an_address_in_use_is_waited_for_and_no_other_trouble_is() {
        let (tries, any) = (Cell::new(0), SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = TcpListener::bind(any).unwrap();
        let taken = listener.local_addr().unwrap();
        let held = Cell::new(Some(listener));
        let bound = patiently("test.listen", || {
            tries.set(tries.get() + 1);
            if tries.get() == 4 {
                held.set(None);
            }
            TcpListener::bind(taken)
        });
        assert_eq!((bound.unwrap().local_addr().unwrap(), tries.get()), (taken, 4));
        tries.set(0);
        let refused = patiently("test.listen", || {
            tries.set(tries.get() + 1);
            TcpListener::bind("192.0.2.1:0")
        });
        assert_eq!((refused.unwrap_err().kind(), tries.get()), (io::ErrorKind::AddrNotAvailable, 1));
    }
}
