//! Hundreds of clients, each with a socket of its own: what one warm flow does not show, such as memory that is touched for
//! the first time, or flows that another node does not know. An answer that is late is as good as none.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::topology::Host;

/// How many.
pub const CLIENTS: usize = 300;
/// Each asks so often.
const EVERY: Duration = Duration::from_millis(100);
/// An answer that takes longer counts as none.
pub const LATE: Duration = Duration::from_millis(100);

/// The clients, until they are counted.
pub struct Crowd {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
    questions: Arc<Mutex<Vec<Question>>>,
}

/// When it was asked, and answered.
type Question = (Instant, Option<Instant>);

/// What became of the questions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CrowdReport {
    /// How many were asked.
    pub asked: usize,
    /// Without an answer.
    pub lost: usize,
    /// Answered later than [`LATE`].
    pub late: usize,
    /// Of a hundred answers one took longer.
    pub p99: Duration,
    /// The longest.
    pub longest: Duration,
}

impl CrowdReport {
    /// Those without an answer in time.
    pub fn failed(&self) -> usize {
        self.lost + self.late
    }
}

impl Crowd {
    /// From a host to an echo.
    pub fn start(host: &Host, to: SocketAddrV4) -> io::Result<Self> {
        let open = || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(to)?;
            socket.set_nonblocking(true)?;
            Ok(Arc::new(socket))
        };
        let sockets = host.ns.enter(|| (0..CLIENTS).map(|_| open()).collect::<io::Result<Vec<_>>>())?;
        let stop = Arc::<AtomicBool>::default();
        let questions = Arc::<Mutex<Vec<Question>>>::default();
        let (to_ask, asked, stopped) = (sockets.clone(), questions.clone(), stop.clone());
        let asking = thread::Builder::new().name("crowd-asks".into()).spawn(move || {
            ask(&to_ask, &asked, &stopped);
            Ok(())
        })?;
        let (asked, stopped) = (questions.clone(), stop.clone());
        let hearing =
            thread::Builder::new().name("crowd-hears".into()).spawn(move || hear(&sockets, &asked, &stopped))?;
        Ok(Self { stop, threads: vec![asking, hearing], questions })
    }

    /// Ends it, and counts.
    pub fn finish(mut self) -> io::Result<CrowdReport> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        let questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
        let mut took: Vec<Duration> =
            questions.iter().filter_map(|(asked, at)| Some(at.as_ref()?.duration_since(*asked))).collect();
        took.sort_unstable();
        Ok(CrowdReport {
            asked: questions.len(),
            lost: questions.len() - took.len(),
            late: took.iter().filter(|took| **took > LATE).count(),
            p99: took.get(took.len() * 99 / 100).copied().unwrap_or_default(),
            longest: took.last().copied().unwrap_or_default(),
        })
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// One after the other, so that each has its turn.
fn ask(sockets: &[Arc<UdpSocket>], questions: &Mutex<Vec<Question>>, stop: &AtomicBool) {
    let mut next = Instant::now();
    for socket in sockets.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let number = {
            let mut questions = questions.lock().unwrap_or_else(PoisonError::into_inner);
            questions.push((Instant::now(), None));
            questions.len() - 1
        };
        drop(socket.send(&number.to_be_bytes()));
        next += EVERY / CLIENTS as u32;
        if let Some(pause) = next.checked_duration_since(Instant::now()) {
            thread::sleep(pause);
        }
    }
}

/// After the end for as long as an answer may take.
fn hear(sockets: &[Arc<UdpSocket>], questions: &Mutex<Vec<Question>>, stop: &AtomicBool) -> io::Result<()> {
    let wait = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    let mut ending: Option<Instant> = None;
    let mut buffer = [0; 256];
    while ending.is_none_or(|since| since.elapsed() < LATE) {
        if ending.is_none() && stop.load(Ordering::Relaxed) {
            ending = Some(Instant::now());
        }
        let mut fds: Vec<PollFd<'_>> = sockets.iter().map(|socket| PollFd::new(&**socket, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        for (socket, _) in sockets.iter().zip(ready).filter(|(_, ready)| *ready) {
            // An error is an ICMP message, and takes the place of an answer.
            while let Ok(len) = socket.recv(&mut buffer) {
                let now = Instant::now();
                let number = buffer[..len].first_chunk().map(|number| usize::from_be_bytes(*number));
                let mut questions = questions.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((_, answered)) = number.and_then(|number| questions.get_mut(number)) {
                    answered.get_or_insert(now);
                }
            }
        }
    }
    Ok(())
}
