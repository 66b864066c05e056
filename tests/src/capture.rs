//! Captures on the peer's side: the node's own taps do not see what it sends past its queueing
//! discipline.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lb_dataplane::packet::{self, Mac, Packet, arp};

use crate::{netns::Namespace, sys};

/// A frame as it was seen.
#[derive(Debug, Clone)]
pub struct Seen {
    /// When the kernel took it from its device.
    pub at: Instant,
    /// Sent by the namespace of the capture, not received by it.
    pub outgoing: bool,
    /// The frame.
    pub frame: Vec<u8>,
}

impl Seen {
    /// Its destination.
    pub fn destination(&self) -> Mac {
        packet::destination(&self.frame).unwrap_or_default()
    }

    /// Its source.
    pub fn source(&self) -> Mac {
        packet::source(&self.frame).unwrap_or_default()
    }

    /// From the IP header up.
    pub fn packet(&self) -> &[u8] {
        self.frame.get(packet::ETHERNET_HEADER_LEN..).unwrap_or_default()
    }

    /// If it is ARP.
    pub fn arp(&self) -> Option<arp::Arp> {
        match packet::parse(&self.frame) {
            Packet::Arp(arp) => Some(arp),
            _ => None,
        }
    }

    /// If it is TCP or UDP over IPv4.
    pub fn flow(&self) -> Option<packet::FlowPacket> {
        match packet::parse(&self.frame) {
            Packet::Flow(flow) => Some(flow),
            _ => None,
        }
    }
}

/// For what was captured before the stop to be read.
const LEFTOVERS: Duration = Duration::from_millis(500);

/// A running capture.
pub struct Capture {
    seen: Arc<Mutex<Vec<Seen>>>,
    received: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Capture {
    /// Captures all frames of an interface that `keep` wants, in both directions.
    pub fn start(
        namespace: &Namespace,
        interface: &str,
        keep: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> io::Result<Self> {
        Self::watch(namespace, interface, move |frame, _, _| keep(frame))
    }

    /// The same; `keep` is also told when the frame was seen, and whether the namespace sent it.
    pub fn watch(
        namespace: &Namespace,
        interface: &str,
        keep: impl Fn(&[u8], Instant, bool) -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let ifindex = namespace.ifindex(interface)?;
        let socket = namespace.enter(|| sys::packet_socket(ifindex))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicUsize::new(0));
        let (into, counted, stopped) = (seen.clone(), received.clone(), stop.clone());
        let thread = thread::Builder::new().name("capture".into()).spawn(move || {
            let mut buffer = vec![0; 1 << 17];
            let mut stopping: Option<Instant> = None;
            // On a busy interface there is always something left to read.
            while stopping.is_none_or(|since| since.elapsed() < LEFTOVERS) {
                if stopping.is_none() && stopped.load(Ordering::Relaxed) {
                    stopping = Some(Instant::now());
                }
                match sys::receive(&socket, &mut buffer) {
                    Ok((len, outgoing)) => {
                        // Of what it sends itself the kernel notes no time.
                        let at = sys::received_at(&socket).unwrap_or_else(|_| Instant::now());
                        if keep(&buffer[..len], at, outgoing) {
                            let frame = buffer[..len].to_vec();
                            counted.fetch_add(usize::from(!outgoing), Ordering::Relaxed);
                            into.lock().expect("captures do not panic").push(Seen { at, outgoing, frame });
                        }
                    }
                    // Only when nothing is left to read.
                    Err(_) if stopped.load(Ordering::Relaxed) => return,
                    Err(_) => {}
                }
            }
        })?;
        Ok(Self { seen, received, stop, thread: Some(thread) })
    }

    /// How many frames were received so far, not counting those that the namespace sent.
    pub fn received(&self) -> usize {
        self.received.load(Ordering::Relaxed)
    }

    /// What was seen so far.
    pub fn so_far(&self) -> Vec<Seen> {
        self.seen.lock().expect("captures do not panic").clone()
    }

    /// Stops when all is read, and returns everything.
    pub fn finish(mut self) -> Vec<Seen> {
        self.end();
        std::mem::take(&mut self.seen.lock().expect("captures do not panic"))
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

/// Sends frames as they are.
pub struct Injector(socket2::Socket);

impl Injector {
    /// By an interface.
    pub fn new(namespace: &Namespace, interface: &str) -> io::Result<Self> {
        let ifindex = namespace.ifindex(interface)?;
        Ok(Self(namespace.enter(|| sys::sending_socket(ifindex))?))
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.0.send(frame).map(drop)
    }
}
