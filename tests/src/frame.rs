//! Frames of either family, as a client's router would send them.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use lb_dataplane::packet::{ETHERNET_HEADER_LEN, Mac, Protocol};

/// Between which stations, and between which ends.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    /// The sending station.
    pub from: Mac,
    /// The receiving station.
    pub to: Mac,
    /// The client.
    pub client: SocketAddr,
    /// The service.
    pub service: SocketAddr,
}

impl Path {
    /// From a client's port.
    pub fn from_port(self, port: u16) -> Self {
        Self { client: SocketAddr::new(self.client.ip(), port), ..self }
    }

    /// To a service's port.
    pub fn to_port(self, port: u16) -> Self {
        Self { service: SocketAddr::new(self.service.ip(), port), ..self }
    }

    /// Its headers up to that of IP.
    ///
    /// # Panics
    /// If the ends are not of one family.
    pub fn ip(self) -> PacketBuilderStep<IpHeaders> {
        let ethernet = PacketBuilder::ethernet2(self.from.0, self.to.0);
        match (self.client.ip(), self.service.ip()) {
            (IpAddr::V4(client), IpAddr::V4(service)) => ethernet.ipv4(client.octets(), service.octets(), 64),
            (IpAddr::V6(client), IpAddr::V6(service)) => ethernet.ipv6(client.octets(), service.octets(), 64),
            ends => panic!("{ends:?} are of two families"),
        }
    }

    /// A UDP datagram.
    pub fn udp(self, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let udp = self.ip().udp(self.client.port(), self.service.port());
        udp.write(&mut frame, payload).expect("memory takes it");
        frame
    }

    /// A TCP segment that opens a connection.
    pub fn syn(self) -> Vec<u8> {
        let mut frame = Vec::new();
        let tcp = self.ip().tcp(self.client.port(), self.service.port(), 1, 1000);
        tcp.syn().write(&mut frame, &[]).expect("memory takes it");
        frame
    }

    /// What the service would send back, from the IP header up, with so much data.
    pub fn answer(self, protocol: Protocol, data: usize) -> Vec<u8> {
        let back = Self { client: self.service, service: self.client, ..self };
        let mut frame = Vec::new();
        let (from, to) = (back.client.port(), back.service.port());
        let data = vec![7; data];
        let written = match protocol {
            Protocol::Tcp => back.ip().tcp(from, to, 1, 1000).ack(1).write(&mut frame, &data),
            Protocol::Udp => back.ip().udp(from, to).write(&mut frame, &data),
        };
        written.expect("memory takes it");
        frame.split_off(ETHERNET_HEADER_LEN)
    }
}
