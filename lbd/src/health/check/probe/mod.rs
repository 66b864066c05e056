//! The questions themselves: each gets the way to a backend and says what is wrong with the answer, in the check's own words.

mod connection;
mod dns;
mod grpc;
mod http;
mod tls;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_raft_store::table::{Probe, UdpProbe};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpStream, UdpSocket};

use self::connection::Connection;
use super::{
    answer::{Failure, said},
    wire::{Datagrams, Ends, TcpFlow, Wire, echo},
};

/// The way to a backend.
#[derive(Clone)]
pub(super) enum Way {
    /// By the segment of an interface.
    Wire(Arc<Wire>, Ends),
    /// This node is the backend, and has the VIP on its loopback.
    Local(IpAddr),
}

impl Way {
    /// Asks one question. Whoever waits says for how long.
    pub(super) async fn ask(&self, probe: &Probe, port: u16) -> Result<(), Failure> {
        match probe {
            Probe::Tcp => self.connect(port).await.map(drop),
            Probe::Http(probe) => {
                let connection = self.connect(port).await?;
                http::ask(connection, probe, self.vip(), port).await
            }
            Probe::Grpc(probe) => {
                let connection = self.connect(port).await?;
                grpc::ask(connection, probe, self.vip(), port).await
            }
            Probe::Udp(UdpProbe { payload, answer }) => {
                let came = self.exchange(port, payload).await?;
                let is_it = came.starts_with(answer);
                is_it.then_some(()).ok_or_else(|| said(format!("the answer is {}", shown(&came))))
            }
            Probe::Dns(probe) => {
                let question = dns::question(probe)?;
                dns::judge(probe, &self.exchange(port, &question).await?)
            }
            Probe::Icmp => self.echo().await,
        }
    }

    fn vip(&self) -> IpAddr {
        match self {
            Self::Wire(_, ends) => ends.vip,
            Self::Local(vip) => *vip,
        }
    }

    async fn connect(&self, port: u16) -> Result<Box<dyn Connection>, Failure> {
        let connection: io::Result<Box<dyn Connection>> = match self {
            Self::Wire(wire, ends) => TcpFlow::connect(wire, *ends, port).await.map(|flow| Box::new(flow) as _),
            Self::Local(vip) => connect_locally(*vip, port).await.map(|stream| Box::new(stream) as _),
        };
        connection.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => said("it refuses the connection"),
            _ => said(error.to_string()),
        })
    }

    /// Sends a datagram; what comes back.
    async fn exchange(&self, port: u16, payload: &[u8]) -> Result<Vec<u8>, Failure> {
        let came = match self {
            Self::Wire(wire, ends) => match Datagrams::send(wire, *ends, port, payload) {
                Ok(datagrams) => Ok(datagrams.receive().await),
                Err(error) => Err(error),
            },
            Self::Local(vip) => exchange_locally(*vip, port, payload).await,
        };
        came.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => said("nobody is on that port"),
            _ => said(error.to_string()),
        })
    }

    async fn echo(&self) -> Result<(), Failure> {
        match self {
            Self::Wire(wire, ends) => echo(wire, *ends).await,
            // The kernel answers for its own addresses.
            Self::Local(vip) => local(*vip, Type::DGRAM, None).map(drop),
        }
        .map_err(|error| said(error.to_string()))
    }
}

/// A socket from the VIP on this node to itself.
fn local(vip: IpAddr, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
    let address = SocketAddr::new(vip, 0);
    let socket = Socket::new(Domain::for_address(address), kind, protocol)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into()).map_err(|error| match error.raw_os_error() {
        Some(libc_eaddrnotavail) if libc_eaddrnotavail == rustix::io::Errno::ADDRNOTAVAIL.raw_os_error() => {
            io::Error::other("this node is the backend, and the VIP is not on its loopback")
        }
        _ => error,
    })?;
    Ok(socket)
}

async fn connect_locally(vip: IpAddr, port: u16) -> io::Result<TcpStream> {
    let socket = local(vip, Type::STREAM, Some(Protocol::TCP))?;
    // As on the wire: what is left behind is reset.
    SockRef::from(&socket).set_linger(Some(std::time::Duration::ZERO))?;
    let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
    socket.connect(SocketAddr::new(vip, port)).await
}

async fn exchange_locally(vip: IpAddr, port: u16, payload: &[u8]) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::from_std(local(vip, Type::DGRAM, Some(Protocol::UDP))?.into())?;
    socket.connect(SocketAddr::new(vip, port)).await?;
    socket.send(payload).await?;
    let mut buffer = vec![0; 8 << 10];
    let len = socket.recv(&mut buffer).await?;
    buffer.truncate(len);
    Ok(buffer)
}

/// The beginning of what came, for people.
fn shown(bytes: &[u8]) -> String {
    const SHOWN: usize = 32;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]);
    format!("{text:?}{}", if bytes.len() > SHOWN { "..." } else { "" })
}
