//! Questions of one packet: datagrams of UDP, and echo requests.

use std::{
    io,
    net::IpAddr,
    sync::{Arc, Mutex},
    task::Poll,
};

use smoltcp::{
    phy::ChecksumCapabilities,
    socket::{icmp, udp},
    wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress},
};

use super::{
    Kind, Wire,
    flow::Flow,
    outlet::{Ends, lock},
    tcp::no_port,
};

/// Of the packets that wait, and of their bytes.
const PACKETS: usize = 4;
const BYTES: usize = 8 << 10;
/// As many bytes as ping(8) sends.
const ECHO_LEN: usize = 56;

/// Datagrams to one port of a backend.
pub(in crate::health::check) struct Datagrams {
    flow: Arc<Mutex<Flow>>,
}

impl Datagrams {
    /// Sends a datagram.
    pub(in crate::health::check) fn send(wire: &Arc<Wire>, ends: Ends, port: u16, payload: &[u8]) -> io::Result<Self> {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; PACKETS], vec![0; BYTES]);
        let flow = wire
            .open(Kind::Port, ends, |flow, _| flow.add(udp::Socket::new(buffer(), buffer())))
            .ok_or_else(no_port)?;
        {
            let mut flow = lock(&flow);
            let own = flow.port;
            let (socket, _) = flow.socket::<udp::Socket<'_>>().ok_or_else(no_port)?;
            socket.bind(own).map_err(io::Error::other)?;
            socket.send_slice(payload, (IpAddress::from(ends.vip), port)).map_err(io::Error::other)?;
            flow.turn();
        }
        Ok(Self { flow })
    }

    /// The next one that comes from the VIP.
    pub(in crate::health::check) async fn receive(&self) -> Vec<u8> {
        std::future::poll_fn(|context| {
            let mut flow = lock(&self.flow);
            let vip = IpAddress::from(flow.ends.vip);
            let Some((socket, _)) = flow.socket::<udp::Socket<'_>>() else { return Poll::Pending };
            while let Ok((payload, from)) = socket.recv() {
                if from.endpoint.addr == vip {
                    return Poll::Ready(payload.to_vec());
                }
            }
            socket.register_recv_waker(context.waker());
            Poll::Pending
        })
        .await
    }
}

/// Asks for an echo, and waits for it.
pub(in crate::health::check) async fn echo(wire: &Arc<Wire>, ends: Ends) -> io::Result<()> {
    // Several backends answer from one VIP: what comes back says whose answer it is.
    let mut data = [0x5a; ECHO_LEN];
    data[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; PACKETS], vec![0; BYTES]);
    let flow =
        wire.open(Kind::Ident, ends, |flow, _| flow.add(icmp::Socket::new(buffer(), buffer()))).ok_or_else(no_port)?;
    {
        let mut flow = lock(&flow);
        let ident = flow.port;
        let (socket, _) = flow.socket::<icmp::Socket<'_>>().ok_or_else(no_port)?;
        socket.bind(icmp::Endpoint::Ident(ident)).map_err(io::Error::other)?;
        let packet = request(ends, ident, &data);
        socket.send_slice(&packet, ends.vip.into()).map_err(io::Error::other)?;
        flow.turn();
    }
    let vip = IpAddress::from(ends.vip);
    std::future::poll_fn(|context| {
        let mut flow = lock(&flow);
        let Some((socket, _)) = flow.socket::<icmp::Socket<'_>>() else { return Poll::Pending };
        while let Ok((packet, from)) = socket.recv() {
            if from == vip && packet.ends_with(&data) {
                return Poll::Ready(());
            }
        }
        socket.register_recv_waker(context.waker());
        Poll::Pending
    })
    .await;
    Ok(())
}

fn request(ends: Ends, ident: u16, data: &[u8]) -> Vec<u8> {
    let checksums = ChecksumCapabilities::default();
    let seq_no = 1;
    match (ends.source, ends.vip) {
        (IpAddr::V6(source), IpAddr::V6(vip)) => {
            let echo = Icmpv6Repr::EchoRequest { ident, seq_no, data };
            let mut packet = vec![0; echo.buffer_len()];
            echo.emit(&source, &vip, &mut Icmpv6Packet::new_unchecked(&mut packet), &checksums);
            packet
        }
        _ => {
            let echo = Icmpv4Repr::EchoRequest { ident, seq_no, data };
            let mut packet = vec![0; echo.buffer_len()];
            echo.emit(&mut Icmpv4Packet::new_unchecked(&mut packet), &checksums);
            packet
        }
    }
}
