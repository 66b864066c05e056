//! The way of a client's packets, for checks: an IP stack in this process (smoltcp) that sends to a backend's MAC address with
//! the VIP as destination. Kernel sockets cannot: to the kernel the VIP is one host, it may be the node's own where the VIP
//! is on its loopback, and each backend would need a route of its own.
//!
//! A [`Flow`] is one conversation. What comes is told apart by the port that it comes to: each flow has one of its own.

mod datagram;
mod flow;
mod outlet;
mod tcp;

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, Weak},
};

use lb_dataplane::{io::CheckSocket, packet::CHECK_PORTS};
use tokio::io::{Interest, unix::AsyncFd};

pub(super) use self::{
    datagram::{Datagrams, echo},
    outlet::Ends,
    tcp::TcpFlow,
};
use self::{
    flow::Flow,
    outlet::{Outlet, lock},
};

/// Packets that are taken before others get their turn.
const AT_ONCE: usize = 64;

/// The segment of an interface.
pub(super) struct Wire {
    outlet: Arc<Outlet>,
    ready: AsyncFd<OwnedFd>,
    flows: Mutex<Flows>,
}

/// The flows by their ports; those that have ended go when their port is taken again.
#[derive(Default)]
struct Flows {
    by_port: HashMap<u16, (Kind, Weak<Mutex<Flow>>)>,
    /// Taken last: a port rests for as long as it can before another flow gets it.
    last: u16,
}

impl Flows {
    fn take_port(&mut self) -> Option<u16> {
        let (first, last) = (*CHECK_PORTS.start(), *CHECK_PORTS.end());
        let mut port = self.last.max(first - 1);
        for _ in CHECK_PORTS {
            port = if port == last { first } else { port + 1 };
            if self.by_port.get(&port).is_none_or(|(_, flow)| flow.strong_count() == 0) {
                self.last = port;
                return Some(port);
            }
        }
        None
    }
}

impl Wire {
    /// Must be called in a tokio runtime; [`Self::run`] takes what comes.
    pub(super) fn new(socket: CheckSocket) -> io::Result<Arc<Self>> {
        let outlet = Arc::new(Outlet::new(socket));
        #[expect(deprecated, reason = "it is unsound only for what may close the descriptor: an OwnedFd does not")]
        let ready = AsyncFd::with_interest(outlet.descriptor()?, Interest::READABLE)?;
        Ok(Arc::new(Self { outlet, ready, flows: Mutex::default() }))
    }

    /// Gives each flow what comes for it, until the socket fails.
    pub(super) async fn run(&self) -> io::Error {
        loop {
            let mut ready = match self.ready.readable().await {
                Ok(ready) => ready,
                Err(error) => return error,
            };
            for _ in 0..AT_ONCE {
                let packet = match self.outlet.receive() {
                    Ok(packet) => packet,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready.clear_ready();
                        break;
                    }
                    // The interface is gone or down.
                    Err(error) => return error,
                };
                let flow = port_of(&packet).and_then(|(kind, port)| {
                    let flows = lock(&self.flows);
                    let (of, flow) = flows.by_port.get(&port)?;
                    // Every socket for checks gets the answers to all of them.
                    flow.upgrade().filter(|_| *of == kind)
                });
                if let Some(flow) = flow {
                    lock(&flow).take(packet);
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Registers a flow under a port that is free.
    fn open(&self, kind: Kind, ends: Ends, make: impl FnOnce(&mut Flow, u16)) -> Option<Arc<Mutex<Flow>>> {
        let mut flows = lock(&self.flows);
        let port = flows.take_port()?;
        let mut flow = Flow::new(self.outlet.clone(), ends, port);
        make(&mut flow, port);
        let flow = Arc::new(Mutex::new(flow));
        flows.by_port.insert(port, (kind, Arc::downgrade(&flow)));
        Some(flow)
    }
}

/// What tells the answers of a flow apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A port of TCP or UDP.
    Port,
    /// The identifier of an echo.
    Ident,
}

/// Of whom this is an answer.
fn port_of(packet: &[u8]) -> Option<(Kind, u16)> {
    let (protocol, transport) = match packet.first()? >> 4 {
        4 => (*packet.get(9)?, packet.get(usize::from(packet[0] & 0xf) * 4..)?),
        _ => (*packet.get(6)?, packet.get(40..)?),
    };
    let (kind, at) = match protocol {
        6 | 17 => (Kind::Port, 2),
        _ => (Kind::Ident, 4),
    };
    transport.get(at..at + 2).map(|bytes| (kind, u16::from_be_bytes([bytes[0], bytes[1]])))
}
