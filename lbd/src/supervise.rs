//! The daemon as two processes: a tiny parent that waits, and the working child. When the child dies, for
//! whatever reason, the parent sends the other nodes the obituary that the child has prepared: after
//! waitpid(2) no thread of it can send again, so they need not wait for its lease to run out.
//!
//! The child hands the datagrams over on its standard output, one line for each complete set. It dies with
//! its parent (PR_SET_PDEATHSIG); then nobody sends an obituary, and the lease runs out.

use std::{
    io::{self, Write as _},
    net::{SocketAddr, UdpSocket},
    os::unix::process::ExitStatusExt as _,
    process::{ExitCode, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{Pid, Resource, Signal, getppid, getrlimit, kill_process, set_parent_process_death_signal},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    signal::unix::{SignalKind, signal},
};

/// How often an obituary is sent, and with which pause: a datagram may be lost.
const TIMES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(3);
/// The child's argument, with the parent's process id.
const CHILD_ARGUMENT: &str = "--working-child-of";

/// Runs this program again as the working child and waits for its end.
pub(crate) fn run() -> io::Result<ExitCode> {
    // One thread: PR_SET_PDEATHSIG fires when the thread that forked ends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(supervise())
}

async fn supervise() -> io::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // By its path, so that its name is not "exe"; by the kernel's link, if the file is gone since.
    let program = std::env::current_exe().ok().filter(|path| path.exists());
    let mut child = Command::new(program.unwrap_or_else(|| "/proc/self/exe".into()))
        .arg0(std::env::args_os().next().unwrap_or_else(|| "lbd".into()))
        .args(std::env::args_os().skip(1))
        .arg(format!("{CHILD_ARGUMENT}={}", std::process::id()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let output = child.stdout.take().ok_or_else(|| io::Error::other("the child has no standard output"))?;
    let mut lines = BufReader::new(output).lines();
    let mut obituary = String::new();
    let mut open = true;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            line = lines.next_line(), if open => match line {
                Ok(Some(line)) => obituary = line,
                _ => open = false,
            },
            _ = terminate.recv() => forward(pid, Signal::TERM),
            _ = interrupt.recv() => forward(pid, Signal::INT),
            _ = hangup.recv() => forward(pid, Signal::HUP),
        }
    };
    // What it had written last.
    while let (true, Ok(Some(line))) = (open, lines.next_line().await) {
        obituary = line;
    }
    send(&obituary);
    if let Some(signal) = status.signal() {
        eprintln!("lbd: the working process was ended by signal {signal}");
    }
    // As a shell would say it.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

fn forward(pid: Option<Pid>, signal: Signal) {
    if let Some(pid) = pid {
        // It may have ended meanwhile; `wait` tells.
        let _ = kill_process(pid, signal);
    }
}

/// Sends what a line says: `ADDRESS HEX ADDRESS HEX ...`.
fn send(line: &str) {
    let mut words = line.split_ascii_whitespace();
    let mut datagrams: Vec<(SocketAddr, Vec<u8>)> = Vec::new();
    while let (Some(address), Some(hex)) = (words.next(), words.next()) {
        if let (Ok(address), Some(bytes)) = (address.parse(), from_hex(hex)) {
            datagrams.push((address, bytes));
        }
    }
    let sockets = [UdpSocket::bind("0.0.0.0:0"), UdpSocket::bind("[::]:0")];
    for round in 0..TIMES {
        for (address, bytes) in &datagrams {
            if let Ok(socket) = &sockets[usize::from(address.is_ipv6())] {
                // Whoever cannot be reached learns it from the others, or by the clock.
                let _ = socket.send_to(bytes, address);
            }
        }
        if round + 1 < TIMES && !datagrams.is_empty() {
            std::thread::sleep(PAUSE);
        }
    }
}

/// The child's end.
#[derive(Clone)]
pub(crate) struct Parent {
    /// Standard output, where a parent listens.
    pipe: Arc<Mutex<io::Stdout>>,
}

impl Parent {
    /// Ties this process's life to its parent's. `None` when that one is dead already.
    pub(crate) fn of_child(parent: u32) -> Option<Self> {
        let tied = set_parent_process_death_signal(Some(Signal::KILL));
        // It may have died before the call.
        let lives = getppid().is_some_and(|pid| pid.as_raw_nonzero().get().cast_unsigned() == parent);
        (tied.is_ok() && lives).then(|| Self { pipe: Arc::new(Mutex::new(io::stdout())) })
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
        let mut line = String::new();
        for (address, bytes) in datagrams {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            line.push_str(&format!("{address} {hex} "));
        }
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = writeln!(pipe, "{line}").and_then(|()| pipe.flush()) {
            tracing::warn!(%error, "the parent process does not take the obituary");
        }
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_obituary_reaches_its_addressees() {
        let receivers = [UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap()];
        let address = |at: usize| receivers[at].local_addr().unwrap();
        send(&format!("{} 00ff10 {} ab nonsense", address(0), address(1)));
        let mut buffer = [0; 16];
        for (receiver, expected) in receivers.iter().zip([&[0u8, 0xff, 0x10][..], &[0xab]]) {
            for _ in 0..TIMES {
                let len = receiver.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..len], expected);
            }
        }
        assert_eq!((from_hex("0"), from_hex("0g")), (None, None));
    }
}
