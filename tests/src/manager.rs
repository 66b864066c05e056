//! What a service manager does for a daemon that dies: it keeps descriptors for it, and gives them to the next process
//! (FDSTORE=1 of sd_notify(3), sd_listen_fds(3)).

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// A word that ends the thread: no daemon says it.
const STOP: &[u8] = b"STOP";

/// One for one daemon.
pub struct ServiceManager {
    socket: PathBuf,
    kept: Arc<Mutex<BTreeMap<String, OwnedFd>>>,
    thread: Option<thread::JoinHandle<io::Result<()>>>,
}

impl ServiceManager {
    /// Listens at a path.
    pub fn start(socket: &Path) -> io::Result<Self> {
        let listener = UnixDatagram::bind(socket)?;
        let kept = Arc::<Mutex<BTreeMap<_, _>>>::default();
        let keeps = kept.clone();
        let thread = thread::Builder::new().name("manager".into()).spawn(move || listen(&listener, &keeps))?;
        Ok(Self { socket: socket.to_owned(), kept, thread: Some(thread) })
    }

    /// The names of what it keeps.
    pub fn kept(&self) -> Vec<String> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// How it starts a program: by a shell, which alone knows the process id that the program will have.
    pub(crate) fn starting(&self, program: impl AsRef<OsStr>, command: &mut Command) -> io::Result<()> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let names: Vec<&str> = kept.keys().map(String::as_str).collect();
        command.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"]).arg(program).env("NOTIFY_SOCKET", &self.socket);
        if !names.is_empty() {
            command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        }
        crate::sys::give(command, kept.values())
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        let told = UnixDatagram::unbound().and_then(|socket| socket.send_to(STOP, &self.socket));
        if let (Ok(_), Some(thread)) = (told, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn listen(socket: &UnixDatagram, kept: &Mutex<BTreeMap<String, OwnedFd>>) -> io::Result<()> {
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [0; 4096];
        let received = recvmsg(socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let said = &buffer[..received.bytes];
        if said == STOP {
            return Ok(());
        }
        let said = String::from_utf8_lossy(said);
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let Some(name) = said.lines().find_map(|line| line.strip_prefix("FDNAME=")) else { continue };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        match descriptor {
            Some(descriptor) if said.lines().any(|line| line == "FDSTORE=1") => {
                kept.insert(name.to_owned(), descriptor);
            }
            _ if said.lines().any(|line| line == "FDSTOREREMOVE=1") => drop(kept.remove(name)),
            _ => {}
        }
    }
}
