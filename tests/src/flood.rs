//! More datagrams for a VIP than a node can forward, as fast as this machine can make them; and whether control frames get
//! through beside them.

use std::{
    collections::BTreeMap,
    io,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use etherparse::PacketBuilder;
use lb_dataplane::packet::{self, Mac, Packet, arp};
use socket2::Socket;

use crate::{
    capture::{Capture, Injector},
    sys::{
        self,
        bpf::{Flows, Generator},
        reference,
    },
    topology::{Host, Network},
};

/// The port to which it goes.
pub const PORT: u16 = 9;
/// Flows of a flood of frames that are no more than a flow table takes.
pub const FLOWS: u32 = 1 << 14;
const SENDER: Mac = Mac([2, 0, 0, 1, 0, 1]);
/// The generator sends a frame or waits in each; between two such runs it looks at whether it is to end.
const TURNS: u32 = 2_000_000;
/// An answer that comes later counts as none.
pub const IN_TIME: Duration = Duration::from_millis(50);

/// The flood; it ends with this.
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Flood {
    /// Small datagrams of so many flows, a power of two, for a VIP, so many a second, from the switch's end of a host's cable. Made by an XDP
    /// program; where that may not be loaded, by a packet socket, as many as it can.
    pub fn start(
        net: &Network,
        host: &Host,
        interface: &str,
        vip: Ipv4Addr,
        flows: u32,
        rate: u64,
    ) -> io::Result<Self> {
        let port = host.port(interface);
        // What an XDP program sends is taken by an interface that collects frames before it hands them up.
        host.ns.enter(|| reference::enable_gro(interface))?;
        let ifindex = net.switch().ifindex(&port.switch_port)?;
        let flows = Flows { count: flows, source: Ipv4Addr::new(10, 66, 0, 0), destination: vip, destinations: 1 };
        let frames: Vec<Vec<u8>> = (0..FLOWS.min(flows.count)).map(|flow| frame(&flows, flow, port.mac)).collect();
        let stop = Arc::<AtomicBool>::default();
        let (stopped, namespace) = (stop.clone(), net.switch().clone());
        let flood = move || {
            namespace.enter(|| match Generator::new(ifindex, rate, &flows, &frames[0]) {
                Ok(generator) => {
                    while !stopped.load(Ordering::Relaxed) {
                        generator.run(&frames[0], TURNS)?;
                    }
                    Ok(())
                }
                Err(_) => reference::generate(ifindex, &frames, &stopped),
            })
        };
        let thread = thread::Builder::new().name("flood".into()).spawn(flood)?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it; fails if it has not lasted.
    pub fn finish(mut self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().map(JoinHandle::join);
        thread.unwrap_or(Ok(Ok(()))).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn frame(flows: &Flows, flow: u32, to: Mac) -> Vec<u8> {
    let (source, port, destination) = flows.tuple(flow);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(SENDER.0, to.0)
        .ipv4(source.octets(), destination.octets(), 64)
        .udp(port, PORT)
        .write(&mut frame, &[0; 18])
        .expect("a frame is written to memory");
    // The generator changes the port and not the checksum: 0 says that there is none (RFC 768).
    frame[40..42].fill(0);
    frame
}

/// Asks who has the VIP, again and again, each time in another address's name, and notes which questions reached the owner's
/// interface and when each was answered.
pub struct Asker {
    stop: Arc<AtomicBool>,
    asking: Option<JoinHandle<u32>>,
    arriving: Option<JoinHandle<io::Result<BTreeMap<Ipv4Addr, Instant>>>>,
    answers: Option<Capture>,
}

/// What became of the questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// Asked.
    pub asked: u32,
    /// That passed the tap at the owner's interface; the others were lost in a device's own queue.
    pub arrived: usize,
    /// And answered within [`IN_TIME`] of that.
    pub in_time: usize,
    /// The longest of these times.
    pub longest: Duration,
}

impl Asker {
    /// Asks every `every` from one host for a VIP that another one owns.
    pub fn start(host: &Host, owner: &Host, vip: Ipv4Addr, every: Duration) -> io::Result<Self> {
        let answers = Capture::start(&host.ns, "eth0", |frame| frame.get(12..14) == Some(&[8, 6]))?;
        let ifindex = owner.ns.ifindex("eth0")?;
        let tap = owner.ns.enter(|| sys::filtering_socket(ifindex, Some(libc::ETH_P_ARP as u16)))?;
        tap.set_read_timeout(Some(Duration::from_millis(20)))?;
        let stop = Arc::<AtomicBool>::default();
        let (injector, own) = (Injector::new(&host.ns, "eth0")?, host.port("eth0").mac);
        let stopped = stop.clone();
        let asking = thread::Builder::new().name("asker".into()).spawn(move || {
            let mut asked = 0;
            while !stopped.load(Ordering::Relaxed) {
                drop(injector.send(&arp::request(own, in_name_of(asked), vip, None)));
                asked += 1;
                thread::sleep(every);
            }
            asked
        })?;
        let stopped = stop.clone();
        let arriving = thread::Builder::new().name("arp-tap".into()).spawn(move || arrivals(&tap, vip, &stopped))?;
        Ok(Self { stop, asking: Some(asking), arriving: Some(arriving), answers: Some(answers) })
    }

    /// Ends it, and compares.
    pub fn finish(mut self) -> io::Result<Answered> {
        thread::sleep(IN_TIME);
        self.stop.store(true, Ordering::Relaxed);
        let asked = self.asking.take().map_or(0, |thread| thread.join().unwrap_or(0));
        let arrived = self.arriving.take().map_or(Ok(Ok(BTreeMap::new())), JoinHandle::join);
        let arrived = arrived.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let mut answered: BTreeMap<Ipv4Addr, Instant> = BTreeMap::new();
        for seen in self.answers.take().map(Capture::finish).unwrap_or_default() {
            if let Some(arp) = seen.arp().filter(|_| !seen.outgoing) {
                answered.entry(arp.target).or_insert(seen.at);
            }
        }
        let took = |(name, at): (&Ipv4Addr, &Instant)| Some(answered.get(name)?.saturating_duration_since(*at));
        let took: Vec<Duration> = arrived.iter().filter_map(took).filter(|took| *took <= IN_TIME).collect();
        let longest = took.iter().max().copied().unwrap_or_default();
        Ok(Answered { asked, arrived: arrived.len(), in_time: took.len(), longest })
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Of the network for benchmarks (RFC 2544), so that no question is taken for another one.
fn in_name_of(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + number % (1 << 17))
}

fn arrivals(tap: &Socket, vip: Ipv4Addr, stop: &AtomicBool) -> io::Result<BTreeMap<Ipv4Addr, Instant>> {
    let mut arrived = BTreeMap::new();
    let mut buffer = [0; 256];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((len, _)) = sys::receive(tap, &mut buffer)
            && let Packet::Arp(arp) = packet::parse(&buffer[..len])
            && arp.target == vip
        {
            arrived.insert(arp.sender, sys::received_at(tap)?);
        }
    }
    Ok(arrived)
}
