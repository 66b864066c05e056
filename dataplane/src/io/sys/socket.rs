//! Packet sockets (packet(7)): one to receive and one to send for each interface.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use socket2::{Domain, Socket, Type};

use crate::io::cbpf::{Instruction, filter::ACCEPT};

/// An interface to receive from and to send to.
#[derive(Debug, Clone)]
pub struct PortConfig {
    /// Its name.
    pub name: String,
    /// Its index in the kernel; 0 while it is gone.
    pub ifindex: u32,
    /// Its MTU, which sizes the ring's slots.
    pub mtu: u32,
}

impl PortConfig {
    /// Whether there is no such interface at present.
    pub(crate) fn is_gone(&self) -> bool {
        self.ifindex == 0
    }
}

/// Why a packet socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("interface {interface}: {step}: {source}{hint}", hint = hint(source))]
pub struct SocketError {
    /// The interface.
    pub interface: String,
    /// What was tried.
    pub step: &'static str,
    /// What the system said.
    pub source: io::Error,
}

impl SocketError {
    /// Whether a right is missing.
    pub fn is_permission(&self) -> bool {
        self.source.raw_os_error() == Some(libc::EPERM)
    }

    /// Whether the interface is gone or down.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::ENODEV | libc::ENXIO | libc::ENETDOWN))
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => " (lbd needs the capability CAP_NET_RAW: start it as root or by its systemd unit)",
        Some(libc::ENODEV) => " (the interface is gone)",
        Some(libc::ENETDOWN) => " (the interface is down: ip link set dev IF up)",
        Some(libc::ENOMEM) => " (no memory for the ring)",
        _ => "",
    }
}

/// linux/if_packet.h; libc has most of them, but not all.
const PACKET_COPY_THRESH: libc::c_int = 7;
pub(in crate::io) const PACKET_AUXDATA: libc::c_int = 8;
const PACKET_VERSION: libc::c_int = 10;
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_QDISC_BYPASS: libc::c_int = 20;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const PACKET_RX_RING: libc::c_int = 5;
const PACKET_STATISTICS: libc::c_int = 6;
const PACKET_FANOUT: libc::c_int = 18;
const PACKET_FANOUT_DATA: libc::c_int = 22;
const PACKET_FANOUT_CBPF: u32 = 6;
const PACKET_FANOUT_FLAG_UNIQUEID: u32 = 0x2000;
const PACKET_FANOUT_FLAG_IGNORE_OUTGOING: u32 = 0x4000;

const SEND_BUFFER: libc::c_int = 8 << 20;

/// The shape of a receive ring (struct tpacket_req).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(in crate::io) struct RingRequest {
    pub(in crate::io) block_size: u32,
    pub(in crate::io) block_count: u32,
    pub(in crate::io) slot_size: u32,
    pub(in crate::io) slot_count: u32,
}

/// What [`PacketSocket::receive`] has taken.
pub(in crate::io) struct Received {
    /// Of the frame and its vnet header: more than the buffer holds, if it was cut.
    pub(in crate::io) len: usize,
    pub(in crate::io) control_len: usize,
}

/// A socket of one interface.
pub(in crate::io) struct PacketSocket {
    fd: OwnedFd,
    interface: String,
}

impl PacketSocket {
    /// A socket that receives nothing yet: [`Self::bind`] comes last, when all is set.
    fn open(port: &PortConfig) -> Result<Self, SocketError> {
        let opened = Socket::new_raw(Domain::PACKET, Type::RAW.cloexec(), None);
        let fd = opened.map_err(|source| SocketError {
            interface: port.name.clone(),
            step: "opening a packet socket",
            source,
        })?;
        Ok(Self { fd: fd.into(), interface: port.name.clone() })
    }

    /// For receiving: behind the filter, without our own frames, with vnet headers.
    pub(in crate::io) fn receiver(
        port: &PortConfig,
        filter: &[Instruction],
        buffer_bytes: libc::c_int,
    ) -> Result<Self, SocketError> {
        let socket = Self::plain(port, filter, buffer_bytes)?;
        socket.set(libc::SOL_PACKET, PACKET_VNET_HDR, &1i32, "PACKET_VNET_HDR")?;
        Ok(socket)
    }

    /// For both, of frames as they are on the wire: behind the filter, without our own frames.
    pub(in crate::io) fn plain(
        port: &PortConfig,
        filter: &[Instruction],
        buffer_bytes: libc::c_int,
    ) -> Result<Self, SocketError> {
        let socket = Self::open(port)?;
        socket.set(libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1i32, "PACKET_IGNORE_OUTGOING")?;
        socket.attach(filter).map_err(|error| socket.error("attaching the filter", error))?;
        socket.set_buffer(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, buffer_bytes)?;
        Ok(socket)
    }

    /// For sending: past the queueing discipline, with vnet headers.
    pub(in crate::io) fn sender(port: &PortConfig) -> Result<Self, SocketError> {
        let socket = Self::open(port)?;
        socket.set(libc::SOL_PACKET, PACKET_QDISC_BYPASS, &1i32, "PACKET_QDISC_BYPASS")?;
        socket.become_sender(port)
    }

    /// For sending GSO frames: by the queueing discipline, which segments them where the device cannot.
    /// Past it, the kernel drops what it had to segment (dev_direct_xmit).
    pub(in crate::io) fn segmenter(port: &PortConfig) -> Result<Self, SocketError> {
        Self::open(port)?.become_sender(port)
    }

    fn become_sender(self, port: &PortConfig) -> Result<Self, SocketError> {
        self.set(libc::SOL_PACKET, PACKET_VNET_HDR, &1i32, "PACKET_VNET_HDR")?;
        self.set_buffer(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER)?;
        self.bind(port, 0)?;
        Ok(self)
    }

    /// Takes a pending error, such as ENETDOWN after the interface was down: while one is pending, the
    /// socket polls readable.
    pub(in crate::io) fn take_error(&self) -> Option<io::Error> {
        socket2::SockRef::from(&self.fd).take_error().ok().flatten()
    }

    /// Asks for a ring of MTU-sized slots; a longer frame comes whole through the queue.
    pub(in crate::io) fn request_ring(&self, request: RingRequest) -> Result<(), SocketError> {
        const TPACKET_V2: libc::c_int = 1;
        self.set(libc::SOL_PACKET, PACKET_VERSION, &TPACKET_V2, "PACKET_VERSION")?;
        self.set(libc::SOL_PACKET, PACKET_COPY_THRESH, &1i32, "PACKET_COPY_THRESH")?;
        self.set(libc::SOL_PACKET, PACKET_RX_RING, &request, "PACKET_RX_RING")
    }

    /// Asks for VLAN tags as control messages.
    pub(in crate::io) fn request_auxdata(&self) -> Result<(), SocketError> {
        self.set(libc::SOL_PACKET, PACKET_AUXDATA, &1i32, "PACKET_AUXDATA")
    }

    /// Starts to receive all protocols; an ETH_P_IP socket would sit behind the guard and see nothing.
    pub(in crate::io) fn bind_all(&self, port: &PortConfig) -> Result<(), SocketError> {
        self.bind(port, (libc::ETH_P_ALL as u16).to_be())
    }

    /// Founds a fanout group, in which a program picks the socket for each frame. The group's number.
    pub(in crate::io) fn found_group(&self, program: &[Instruction]) -> Result<u16, SocketError> {
        self.fanout(0, PACKET_FANOUT_FLAG_UNIQUEID)?;
        self.set_program(libc::SOL_PACKET, PACKET_FANOUT_DATA, program)
            .map_err(|error| self.error("PACKET_FANOUT_DATA", error))?;
        // SAFETY: a number.
        let group: io::Result<u32> = unsafe { self.get_option(PACKET_FANOUT) };
        Ok(group.map_err(|error| self.error("asking for PACKET_FANOUT", error))? as u16)
    }

    /// Joins one, behind those that are in it.
    pub(in crate::io) fn join_group(&self, id: u16) -> Result<(), SocketError> {
        self.fanout(id, 0)
    }

    fn fanout(&self, id: u16, flags: u32) -> Result<(), SocketError> {
        // The option of the single socket does not count in a group.
        let kind = PACKET_FANOUT_CBPF | PACKET_FANOUT_FLAG_IGNORE_OUTGOING | flags;
        self.set(libc::SOL_PACKET, PACKET_FANOUT, &(u32::from(id) | kind << 16), "PACKET_FANOUT")
    }

    /// Replaces the filter; the change is atomic. The kernel has the old one and the new one for a moment, and may have no room
    /// for both (net.core.optmem_max): then all frames are let by meanwhile. If an error is returned, they still are: whoever
    /// judges them looks again.
    pub(in crate::io) fn attach(&self, filter: &[Instruction]) -> io::Result<()> {
        let attach = |filter: &[Instruction]| self.set_program(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, filter);
        match attach(filter) {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => attach(&[ACCEPT]).and_then(|()| attach(filter)),
            attached => attached,
        }
    }

    fn set_program(&self, level: libc::c_int, option: libc::c_int, program: &[Instruction]) -> io::Result<()> {
        let mut program: Vec<libc::sock_filter> = program
            .iter()
            .map(|i| libc::sock_filter { code: i.code, jt: i.jump_true, jf: i.jump_false, k: i.operand })
            .collect();
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        self.set_option(level, option, &program)
    }

    /// Frames that the kernel dropped since the last call.
    pub(in crate::io) fn lost(&self) -> u64 {
        #[repr(C)]
        #[derive(Clone, Copy, Default)]
        struct Statistics {
            packets: u32,
            drops: u32,
        }
        // SAFETY: two numbers.
        let statistics: io::Result<Statistics> = unsafe { self.get_option(PACKET_STATISTICS) };
        statistics.map_or(0, |statistics| statistics.drops.into())
    }

    /// Takes the next frame with its vnet header and its control message, without waiting.
    pub(in crate::io) fn receive(&self, buffer: &mut [u8], control: &mut [u8]) -> io::Result<Received> {
        let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: plain data for which zero is a value.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        (message.msg_iov, message.msg_iovlen) = (&raw mut vector, 1);
        (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), control.len());
        // SAFETY: the message points at one vector, at `buffer` and at `control`, all of which are borrowed for the call,
        // with their lengths.
        let len = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT | libc::MSG_TRUNC) };
        let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
        Ok(Received { len, control_len: message.msg_controllen.min(control.len()) })
    }

    /// To an interface. A socket for one that is gone stays unbound: it receives nothing, and sends fail.
    fn bind(&self, port: &PortConfig, protocol_be: u16) -> Result<(), SocketError> {
        if port.is_gone() {
            return Ok(());
        }
        // SAFETY: sockaddr_ll is plain data for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol_be;
        address.sll_ifindex = port.ifindex.cast_signed();
        // SAFETY: the address is valid for the length given with it.
        let outcome = unsafe {
            libc::bind(
                self.fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if outcome == 0 { Ok(()) } else { Err(self.error("binding a packet socket", io::Error::last_os_error())) }
    }

    /// Past the system's limit where that is allowed, up to it where not.
    fn set_buffer(&self, force: libc::c_int, plain: libc::c_int, bytes: libc::c_int) -> Result<(), SocketError> {
        if self.set_option(libc::SOL_SOCKET, force, &bytes).is_ok() {
            return Ok(());
        }
        self.set(libc::SOL_SOCKET, plain, &bytes, "setting a buffer's size")
    }

    fn set<T>(
        &self,
        level: libc::c_int,
        option: libc::c_int,
        value: &T,
        step: &'static str,
    ) -> Result<(), SocketError> {
        self.set_option(level, option, value).map_err(|error| self.error(step, error))
    }

    fn set_option<T>(&self, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: the kernel reads `size_of::<T>()` bytes from a value that is borrowed for the call.
        let outcome = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                option,
                (value as *const T).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// An option of packet sockets.
    ///
    /// # Safety
    /// Any bytes are a value of `T`.
    unsafe fn get_option<T: Copy + Default>(&self, option: libc::c_int) -> io::Result<T> {
        let mut value = T::default();
        let mut len = size_of::<T>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes, the size of the value that it is given, of which the caller
        // says that any bytes will do.
        let outcome = unsafe {
            libc::getsockopt(self.fd.as_raw_fd(), libc::SOL_PACKET, option, (&raw mut value).cast(), &raw mut len)
        };
        if outcome == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
    }

    pub(in crate::io) fn error(&self, step: &'static str, source: io::Error) -> SocketError {
        SocketError { interface: self.interface.clone(), step, source }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> libc::c_int {
        self.fd.as_raw_fd()
    }
}
