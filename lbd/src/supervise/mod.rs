//! The daemon as two processes: a tiny parent that waits, and the working child. When the child dies, for
//! whatever reason, the parent sends the other nodes the obituary that the child has prepared: after
//! waitpid(2) no thread of it can send again, so they need not wait for its lease to run out.
//!
//! They talk by a socket pair of datagrams ([`words`]). The child's end is what it has in place of a standard input: that
//! alone is passed on by exec(3) without unsafe code, and a daemon reads nothing from it. The child dies with its parent
//! (PR_SET_PDEATHSIG); then nobody sends an obituary, and the lease runs out.
//!
//! What the child has put into the kernel is the parent's, too, so that it outlives a crash: the nftables guard, and the links
//! by which an accelerator is on its interfaces. A service manager has copies of those, and gives them to the next parent.

mod child;
mod words;

use std::{
    collections::BTreeMap,
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{net::UnixDatagram, process::ExitStatusExt as _},
    },
    process::{ExitCode, Stdio},
    time::Duration,
};

use lb_dataplane::{guard, io::sys::passed, is_link_name};
use rustix::process::{Pid, Signal, kill_process};
use sd_notify::NotifyState;
use tokio::{
    io::Interest,
    process::Command,
    signal::unix::{SignalKind, signal},
};

pub(crate) use self::child::Parent;
use self::words::{MAX_LINKS, Names, Obituary, Said, hear, say};
use crate::{
    privilege::{self, User},
    terminal,
};

/// For so long the child waits for a parent that does not take its message: it may be stopped.
const HAND_OVER: Duration = Duration::from_millis(100);
/// For so long an accelerator forwards what still comes here after a crash. The VIPs have moved by then.
const LAST_FRAMES: Duration = Duration::from_millis(500);
/// The child's argument, with the parent's process id.
const CHILD_ARGUMENT: &str = "--working-child-of";
/// The name of the socket that owns the guard.
const GUARD: &str = "guard";

/// Runs this program again as the working child and waits for its end.
pub(crate) fn run(user: Option<&User>) -> io::Result<ExitCode> {
    // First of all: nobody else may have their numbers.
    let links = Links::of_before();
    // One thread: PR_SET_PDEATHSIG fires when the thread that forked ends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(supervise(user, links))
}

async fn supervise(user: Option<&User>, mut links: Links) -> io::Result<ExitCode> {
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
    // Before anything else that the child could hear.
    links.give(&ours, guard.as_ref())?;
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
    let mut obituary = Obituary::default();
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            heard = from_child.async_io(Interest::READABLE, || hear(&from_child)) => {
                let (said, descriptors) = heard?;
                take_in(said, descriptors, &mut obituary, &mut links);
            }
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
    while let Ok((said, descriptors)) = hear(&from_child) {
        take_in(said, descriptors, &mut obituary, &mut links);
    }
    obituary.send();
    if let Some(signal) = status.signal() {
        terminal::complain(&format!("lbd: the working process was ended by signal {signal}"));
    }
    if !links.all.is_empty() {
        tokio::select! {
            () = tokio::time::sleep(LAST_FRAMES) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    // As a shell would say it.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Does as the child says.
fn take_in(said: Option<Said>, descriptors: Vec<OwnedFd>, obituary: &mut Obituary, links: &mut Links) {
    match said {
        Some(Said::Descriptors(Names { names })) => {
            names.into_iter().zip(descriptors).for_each(|(name, link)| links.keep(name, link));
        }
        Some(Said::LetGo(name)) => links.let_go(&name),
        Some(Said::Obituary(newer)) => *obituary = newer,
        // Of what cannot be read nothing is sent: the lease runs out.
        None => *obituary = Obituary::default(),
    }
}

fn forward(pid: Option<Pid>, signal: Signal) {
    if let Some(pid) = pid {
        // It may have ended meanwhile; `wait` tells.
        let _ = kill_process(pid, signal);
    }
}

/// By which an accelerator is on its interfaces.
#[derive(Debug, Default)]
struct Links {
    all: BTreeMap<String, OwnedFd>,
}

impl Links {
    /// Those that the service manager has kept, if there are some.
    fn of_before() -> Self {
        let all = passed::by_service_manager().unwrap_or_else(|error| {
            terminal::complain(&format!("lbd: what the service manager has kept cannot be used: {error}"));
            Vec::new()
        });
        // Whatever else a unit may have it opened is closed.
        Self { all: all.into_iter().filter(|(name, _)| is_link_name(name)).take(MAX_LINKS).collect() }
    }

    /// The child has them too, and the guard's socket.
    fn give(&self, to_child: &UnixDatagram, guard: Option<&OwnedFd>) -> io::Result<()> {
        let links = self.all.iter().map(|(name, link)| (name.clone(), link.as_fd()));
        let all = guard.iter().map(|guard| (GUARD.to_owned(), guard.as_fd())).chain(links);
        let (names, descriptors): (Vec<String>, Vec<BorrowedFd<'_>>) = all.unzip();
        say(to_child, Said::Descriptors(Names { names }), &descriptors)
    }

    fn keep(&mut self, name: String, link: OwnedFd) {
        // Without a manager, or one that keeps nothing, this process alone has it.
        let _ = sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(&name)], &[link.as_fd()]);
        self.all.insert(name, link);
    }

    fn let_go(&mut self, name: &str) {
        let _ = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
        self.all.remove(name);
    }
}
