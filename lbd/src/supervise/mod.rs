//! The daemon as two processes: a tiny parent that waits, and the working child. When the child dies, for
//! whatever reason, the parent sends the other nodes the obituary that the child has prepared: after
//! waitpid(2) no thread of it can send again, so they need not wait for its lease to run out.
//!
//! The child hands them over by a socket pair of datagrams, a message for each complete set, so that none is cut. Its end
//! is what it has in place of a standard input: that alone is passed on by exec(3) without unsafe code, and a daemon reads
//! nothing from it. By the same way it gets the socket that owns the nftables guard. The child dies with its parent (PR_SET_PDEATHSIG); then nobody sends an obituary, and the lease runs out.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::{SocketAddr, UdpSocket},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{net::UnixDatagram, process::ExitStatusExt as _},
    },
    process::{ExitCode, Stdio},
    sync::Arc,
    time::Duration,
};

use lb_dataplane::guard;
use prost::Message as _;
use rustix::{
    mm::{MlockAllFlags, mlockall},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        recvmsg, sendmsg,
    },
    process::{Pid, Resource, Signal, getppid, getrlimit, kill_process, set_parent_process_death_signal},
};
use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
};

use crate::{
    privilege::{self, User},
    terminal,
};

/// How often an obituary is sent, and with which pause: a datagram may be lost.
const TIMES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(3);
/// More than the datagrams of a cluster of nine, each with four addresses.
const MAX_MESSAGE: usize = 1 << 16;
/// For so long the child waits for a parent that does not take its message: it may be stopped.
const HAND_OVER: Duration = Duration::from_millis(100);
/// The child's argument, with the parent's process id.
const CHILD_ARGUMENT: &str = "--working-child-of";

/// Runs this program again as the working child and waits for its end.
pub(crate) fn run(user: Option<&User>) -> io::Result<ExitCode> {
    // One thread: PR_SET_PDEATHSIG fires when the thread that forked ends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(supervise(user))
}

async fn supervise(user: Option<&User>) -> io::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // systemd's watchdog ends a process that hangs so, and tells this one.
    let mut abort = signal(SignalKind::from_raw(Signal::ABORT.as_raw()))?;
    let (ours, theirs) = UnixDatagram::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_write_timeout(Some(HAND_OVER))?;
    // What the child puts into the kernel by this socket is this process's: it stays when the child dies, and nobody else
    // takes it away meanwhile. Without it the child has its own.
    let guard = guard::open_socket().ok();
    if let Some(guard) = &guard {
        pass(&ours, guard)?;
    }
    let from_child = tokio::net::UnixDatagram::from_std(ours)?;
    // By its path, so that its name is not "exe"; by the kernel's link, if the file is gone since.
    let program = std::env::current_exe().ok().filter(|path| path.exists());
    let mut child = Command::new(program.unwrap_or_else(|| "/proc/self/exe".into()))
        .arg0(std::env::args_os().next().unwrap_or_else(|| "lbd".into()))
        .args(std::env::args_os().skip(1))
        .arg(format!("{CHILD_ARGUMENT}={}", std::process::id()))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    if let Err(error) = privilege::keep_nothing(user) {
        terminal::complain(&format!("lbd: the parent process may do more than it needs: {error}"));
    }
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut obituary = Obituary::default();
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            received = from_child.recv(&mut buffer) => obituary = Obituary::read(&buffer[..received?]),
            _ = terminate.recv() => forward(pid, Signal::TERM),
            _ = interrupt.recv() => forward(pid, Signal::INT),
            _ = hangup.recv() => forward(pid, Signal::HUP),
            _ = abort.recv() => {
                terminal::complain("lbd: the working process hangs (watchdog): it is ended");
                forward(pid, Signal::KILL);
            }
        }
    };
    // What it had said last.
    while let Ok(len) = from_child.try_recv(&mut buffer) {
        obituary = Obituary::read(&buffer[..len]);
    }
    obituary.send();
    if let Some(signal) = status.signal() {
        terminal::complain(&format!("lbd: the working process was ended by signal {signal}"));
    }
    // As a shell would say it.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Gives a descriptor to the child, before anything else that it could read.
fn pass(to_child: &UnixDatagram, descriptor: &OwnedFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(to_child, &[IoSlice::new(b"guard")], &mut control, SendFlags::empty())?;
    Ok(())
}

/// The descriptor that [`pass`] has given, if there is one.
fn passed(from_parent: &UnixDatagram) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 8];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    recvmsg(from_parent, &mut [IoSliceMut::new(&mut name)], &mut control, flags).ok()?;
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}

fn forward(pid: Option<Pid>, signal: Signal) {
    if let Some(pid) = pid {
        // It may have ended meanwhile; `wait` tells.
        let _ = kill_process(pid, signal);
    }
}

/// What the others are told.
#[derive(Clone, PartialEq, prost::Message)]
struct Obituary {
    #[prost(message, repeated, tag = "1")]
    datagrams: Vec<Datagram>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Datagram {
    /// IP:PORT.
    #[prost(string, tag = "1")]
    to: String,
    #[prost(bytes = "vec", tag = "2")]
    payload: Vec<u8>,
}

impl Obituary {
    fn of(datagrams: &[(SocketAddr, Vec<u8>)]) -> Self {
        let datagram =
            |(to, payload): &(SocketAddr, Vec<u8>)| Datagram { to: to.to_string(), payload: payload.clone() };
        Self { datagrams: datagrams.iter().map(datagram).collect() }
    }

    /// Of a message that cannot be read nothing is sent: the lease runs out.
    fn read(message: &[u8]) -> Self {
        Self::decode(message).unwrap_or_default()
    }

    fn send(&self) {
        let sockets = [UdpSocket::bind("0.0.0.0:0"), UdpSocket::bind("[::]:0")];
        for round in 0..TIMES {
            for Datagram { to, payload } in &self.datagrams {
                let Ok(to) = to.parse::<SocketAddr>() else { continue };
                if let Ok(socket) = &sockets[usize::from(to.is_ipv6())] {
                    // Whoever cannot be reached learns it from the others, or by the clock.
                    let _ = socket.send_to(payload, to);
                }
            }
            if round + 1 < TIMES && !self.datagrams.is_empty() {
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// The child's end.
#[derive(Clone)]
pub(crate) struct Parent {
    /// By which it is told what to send; `None` if there is no such socket.
    socket: Option<Arc<UnixDatagram>>,
    /// The parent's socket that owns the guard, if it has one.
    guard: Option<Arc<OwnedFd>>,
}

impl Parent {
    /// Ties this process's life to its parent's. `None` when that one is dead already.
    pub(crate) fn of_child(parent: u32) -> Option<Self> {
        let tied = set_parent_process_death_signal(Some(Signal::KILL));
        // It may have died before the call.
        let lives = getppid().is_some_and(|pid| pid.as_raw_nonzero().get().cast_unsigned() == parent);
        let socket = io::stdin().as_fd().try_clone_to_owned().map(UnixDatagram::from).ok();
        let guard = socket.as_ref().and_then(passed).map(Arc::new);
        (tied.is_ok() && lives).then(|| Self { socket: socket.map(Arc::new), guard })
    }

    /// Whose the guard is: the parent's, so that it outlives this process, or this process's own.
    pub(crate) fn guard(&self) -> guard::Ownership {
        let socket = self.guard.as_ref().and_then(|guard| guard.try_clone().ok());
        socket.map_or(guard::Ownership::Own, guard::Ownership::Of)
    }

    /// Keeps this process's memory from being swapped out, where that is allowed without a limit: a page fault in
    /// the heartbeat or the worker would wait for the disk. Locked as it is touched, not all of it at once.
    pub(crate) fn lock_memory(&self) {
        // Under a limit a later allocation would fail instead.
        if getrlimit(Resource::Memlock).current.is_some() {
            return;
        }
        let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
        if let Err(error) = mlockall(flags) {
            tracing::debug!(%error, "the memory is not locked");
        }
    }

    /// What the parent shall send when this process is dead.
    pub(crate) fn on_death_send(&self, datagrams: &[(SocketAddr, Vec<u8>)]) {
        let message = Obituary::of(datagrams).encode_to_vec();
        let handed =
            self.socket.as_ref().map_or(Err(io::ErrorKind::NotConnected.into()), |socket| socket.send(&message));
        if let Err(error) = handed {
            tracing::warn!(%error, "the parent process does not take the obituary");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_obituary_reaches_its_addressees() {
        let receivers = [UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap()];
        let address = |at: usize| receivers[at].local_addr().unwrap();
        let mut obituary = Obituary::of(&[(address(0), vec![0, 0xff, 0x10]), (address(1), vec![0xab])]);
        obituary.datagrams.push(Datagram { to: "nowhere".into(), payload: vec![1] });
        let message = obituary.encode_to_vec();
        Obituary::read(&message).send();
        let mut buffer = [0; 16];
        for (receiver, expected) in receivers.iter().zip([&[0u8, 0xff, 0x10][..], &[0xab]]) {
            for _ in 0..TIMES {
                let len = receiver.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..len], expected);
            }
        }
        assert_eq!(Obituary::read(&message[..message.len() - 1]), Obituary::default(), "half of a message is none");
    }
}
