//! Observers that run beside a test: who answers ARP for a VIP, and what becomes of a stream of UDP.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lb_dataplane::packet::{Mac, arp};

use crate::{
    capture::{Capture, Injector},
    topology::Host,
};

/// Asks "who has the VIP?" every few milliseconds and notes who answers.
pub struct ArpObserver {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
    capture: Option<Capture>,
    vip: Ipv4Addr,
}

impl ArpObserver {
    /// Asks from an interface of a host, as `address`.
    pub fn start(host: &Host, interface: &str, address: Ipv4Addr, vip: Ipv4Addr, every: Duration) -> io::Result<Self> {
        let capture = Capture::start(&host.ns, interface, |frame| frame.get(12..14) == Some(&[8, 6]))?;
        let injector = Injector::new(&host.ns, interface)?;
        let question = arp::request(host.port(interface).mac, address, vip, None);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new().name("arp-observer".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                drop(injector.send(&question));
                thread::sleep(every);
            }
        })?;
        Ok(Self { stop, thread: Some(thread), capture: Some(capture), vip })
    }

    /// Each answer or announcement for the VIP: when, and whose MAC address it names.
    pub fn finish(mut self) -> Vec<(Instant, Mac)> {
        self.end();
        let seen = self.capture.take().map(Capture::finish).unwrap_or_default();
        let claims = seen.into_iter().filter(|seen| !seen.outgoing).filter_map(|seen| {
            let arp = seen.arp().filter(|arp| arp.sender == self.vip)?;
            Some((seen.at, arp.sender_mac))
        });
        claims.collect()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Drop for ArpObserver {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether the claims are those of one owner after the other: no MAC address comes back after
/// another one has been heard. The owners, in their order.
pub fn owners_in_turn(claims: &[(Instant, Mac)]) -> Result<Vec<Mac>, String> {
    let mut owners: Vec<Mac> = Vec::new();
    for (_, mac) in claims {
        match owners.iter().position(|owner| owner == mac) {
            None => owners.push(*mac),
            Some(at) if at + 1 == owners.len() => {}
            Some(_) => return Err(format!("{mac} answers again after {}", owners[owners.len() - 1])),
        }
    }
    Ok(owners)
}

/// A stream of numbered UDP datagrams to an echo, and their answers.
pub struct UdpStream {
    stop: Arc<AtomicBool>,
    sender: Option<thread::JoinHandle<()>>,
    receiver: Option<thread::JoinHandle<()>>,
    record: Arc<Mutex<Record>>,
}

#[derive(Default)]
struct Record {
    sent: BTreeMap<u64, Instant>,
    answered: BTreeMap<u64, Instant>,
}

/// What became of a stream.
#[derive(Debug, Clone)]
pub struct UdpReport {
    /// Datagrams sent.
    pub sent: usize,
    /// Datagrams without an answer.
    pub lost: usize,
    /// The longest time between two answers.
    pub longest_gap: Duration,
}

impl UdpStream {
    /// Sends from a host to an echo, a datagram every `every`.
    pub fn start(host: &Host, to: SocketAddrV4, every: Duration) -> io::Result<Self> {
        let socket = host.ns.enter(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(to)?;
            Ok::<_, io::Error>(socket)
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let record = Arc::new(Mutex::new(Record::default()));
        let (stopped, noted, sending) = (stop.clone(), record.clone(), socket.try_clone()?);
        let sender = thread::Builder::new().name("udp-sender".into()).spawn(move || {
            let mut next = Instant::now();
            for number in 0u64.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                noted.lock().expect("observers do not panic").sent.insert(number, Instant::now());
                drop(sending.send(&number.to_be_bytes()));
                next += every;
                if let Some(pause) = next.checked_duration_since(Instant::now()) {
                    thread::sleep(pause);
                }
            }
        })?;
        let (stopped, noted) = (stop.clone(), record.clone());
        let receiver = thread::Builder::new().name("udp-receiver".into()).spawn(move || {
            let mut buffer = [0; 256];
            loop {
                match socket.recv(&mut buffer) {
                    Ok(len) if len >= 8 => {
                        let number = u64::from_be_bytes(buffer[..8].try_into().unwrap_or_default());
                        let mut record = noted.lock().expect("observers do not panic");
                        record.answered.entry(number).or_insert_with(Instant::now);
                    }
                    Ok(_) => {}
                    Err(_) if stopped.load(Ordering::Relaxed) => return,
                    Err(_) => {}
                }
            }
        })?;
        Ok(Self { stop, sender: Some(sender), receiver: Some(receiver), record })
    }

    /// When the last answer came.
    pub fn last_answer(&self) -> Option<Instant> {
        self.record.lock().expect("observers do not panic").answered.values().max().copied()
    }

    /// The longest time without an answer since then, up to now.
    pub fn longest_gap_since(&self, since: Instant) -> Duration {
        let record = self.record.lock().expect("observers do not panic");
        let mut arrivals: Vec<Instant> = record.answered.values().filter(|at| **at >= since).copied().collect();
        arrivals.extend([since, Instant::now()]);
        arrivals.sort_unstable();
        arrivals.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// Stops, and counts.
    pub fn finish(mut self) -> UdpReport {
        self.end();
        let record = self.record.lock().expect("observers do not panic");
        let mut arrivals: Vec<Instant> = record.answered.values().copied().collect();
        arrivals.sort_unstable();
        let gaps = arrivals.windows(2).map(|pair| pair[1] - pair[0]);
        UdpReport {
            sent: record.sent.len(),
            lost: record.sent.keys().filter(|number| !record.answered.contains_key(number)).count(),
            longest_gap: gaps.max().unwrap_or_default(),
        }
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in [self.sender.take(), self.receiver.take()].into_iter().flatten() {
            drop(thread.join());
        }
    }
}

impl Drop for UdpStream {
    fn drop(&mut self) {
        self.end();
    }
}
