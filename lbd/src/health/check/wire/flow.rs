//! One conversation: an IP stack with one socket, which knows one address of this node and reaches everybody by one MAC address.

use std::{
    collections::VecDeque,
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::AnySocket,
    time::{Duration, Instant},
    wire::{HardwareAddress, IpCidr},
};

use super::outlet::{Ends, Outlet};

/// What every Ethernet carries.
const MTU: usize = 1500;

/// One conversation.
pub(super) struct Flow {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: Option<SocketHandle>,
    queues: Queues,
    outlet: Arc<Outlet>,
    pub(super) ends: Ends,
    /// Its own: a port, or the identifier of its echoes.
    pub(super) port: u16,
}

impl Flow {
    pub(super) fn new(outlet: Arc<Outlet>, ends: Ends, port: u16) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = RandomState::new().hash_one(port);
        let mut queues = Queues::default();
        let mut interface = Interface::new(config, &mut queues, Instant::now());
        // Everybody is on the segment.
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(ends.source.into(), 0));
        });
        Self { interface, sockets: SocketSet::new(Vec::new()), handle: None, queues, outlet, ends, port }
    }

    /// Its only socket.
    pub(super) fn add(&mut self, socket: impl AnySocket<'static>) {
        self.handle = Some(self.sockets.add(socket));
    }

    /// The socket, and what it needs to connect; `None` before there is one.
    pub(super) fn socket<T: AnySocket<'static>>(&mut self) -> Option<(&mut T, &mut smoltcp::iface::Context)> {
        let handle = self.handle?;
        Some((self.sockets.get_mut::<T>(handle), self.interface.context()))
    }

    /// A packet has come.
    pub(super) fn take(&mut self, packet: Vec<u8>) {
        self.queues.received.push_back(packet);
        self.turn();
    }

    /// Deals with what has come, and sends what is due.
    pub(super) fn turn(&mut self) {
        self.interface.poll(Instant::now(), &mut self.queues, &mut self.sockets);
        for packet in self.queues.sent.drain(..) {
            self.outlet.send(self.ends.mac, &packet);
        }
    }

    /// When the next turn is due without anything that comes.
    pub(super) fn due(&mut self) -> Option<Duration> {
        self.interface.poll_delay(Instant::now(), &self.sockets)
    }
}

/// The packets that wait for the stack, and those that it has made.
#[derive(Default)]
struct Queues {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

impl Device for Queues {
    type RxToken<'a> = Packet;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Packet, Room<'_>)> {
        let packet = self.received.pop_front()?;
        Some((Packet(packet), Room(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        Some(Room(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        // Those of what comes are the device's business, and not there yet in a packet that never was on a wire.
        let checksums = &mut capabilities.checksum;
        (checksums.ipv4, checksums.tcp, checksums.udp) = (Checksum::Tx, Checksum::Tx, Checksum::Tx);
        (checksums.icmpv4, checksums.icmpv6) = (Checksum::Tx, Checksum::Tx);
        capabilities
    }
}

struct Packet(Vec<u8>);

impl RxToken for Packet {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Room<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut packet = vec![0; len];
        let result = write(&mut packet);
        self.0.push(packet);
        result
    }
}
