//! A long way between two interfaces: what arrives on one leaves the other some time later. In user space, because not every
//! kernel has netem.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use socket2::Socket;

use crate::sys;

/// Longer than any frame that the kernel leaves to its device to cut into segments.
const MAX_FRAME: usize = 128 << 10;
/// Between two looks at whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The way, in both directions. It ends with this.
pub struct Distance {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Distance {
    /// Between two interfaces of the namespace in which it is called.
    pub(crate) fn between(one: u32, other: u32, by: Duration) -> io::Result<Self> {
        let open = |ifindex| sys::reference::packet_socket(ifindex, libc::ETH_P_ALL as u16, true);
        let (one, other) = (open(one)?, open(other)?);
        let stop = Arc::<AtomicBool>::default();
        let ways = [(one.try_clone()?, other.try_clone()?), (other, one)];
        let carry = |(from, to): (Socket, Socket)| {
            let stop = stop.clone();
            thread::Builder::new().name("distance".into()).spawn(move || carry(&from, &to, by, &stop))
        };
        let threads = ways.into_iter().map(carry).collect::<io::Result<_>>()?;
        Ok(Self { stop, threads })
    }
}

impl Drop for Distance {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if let Ok(Err(error)) = thread.join() {
                eprintln!("the way was broken: {error}");
            }
        }
    }
}

fn carry(from: &Socket, to: &Socket, by: Duration, stop: &AtomicBool) -> io::Result<()> {
    let mut under_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; MAX_FRAME];
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        while let Some((_, frame)) = under_way.pop_front_if(|(due, _)| *due <= now) {
            // Where the other end has no room, or is down, it is lost, as on any way.
            drop(to.send(&frame));
        }
        let wait = under_way.front().map_or(LOOK_EVERY, |(due, _)| due.saturating_duration_since(now).min(LOOK_EVERY));
        from.set_read_timeout(Some(wait.max(Duration::from_micros(100))))?;
        match sys::receive(from, &mut buffer) {
            Ok((len, _)) => under_way.push_back((Instant::now() + by, buffer[..len].to_vec())),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // The interface is down for the moment.
            Err(error) if error.kind() == ErrorKind::NetworkDown => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
