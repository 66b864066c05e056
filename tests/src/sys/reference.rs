//! What our engines are measured against: a plain recvmmsg/sendmmsg loop with PACKET_VNET_HDR, as one
//! would write it in an afternoon. Also the generator for users who may not load XDP programs, and the
//! switches of veth that have no netlink form.

use std::{
    io, mem,
    os::fd::AsRawFd as _,
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use socket2::Socket;

const BATCH: usize = 64;
const VNET_LEN: usize = 10;
const BUFFER_LEN: usize = 69632;
const SOL_PACKET: i32 = 263;
const PACKET_VNET_HDR: i32 = 15;
const PACKET_QDISC_BYPASS: i32 = 20;
const PACKET_IGNORE_OUTGOING: i32 = 23;

/// Forwards frames for one IPv4 address, on any port, to one of several MAC addresses until it is told to stop.
pub fn forward(ifindex: u32, vip: [u8; 4], own: [u8; 6], backends: &[[u8; 6]], stop: &AtomicBool) -> io::Result<()> {
    let receiver = packet_socket(ifindex, libc::ETH_P_ALL as u16, true)?;
    let sender = packet_socket(ifindex, 0, false)?;
    receiver.set_read_timeout(Some(std::time::Duration::from_millis(50)))?;
    let mut memory = vec![0u8; BATCH * BUFFER_LEN];
    let base = memory.as_mut_ptr();
    // SAFETY: iovec and mmsghdr are plain data for which zero is a value.
    let (mut vectors, mut incoming, mut outgoing): (
        [libc::iovec; BATCH],
        [libc::mmsghdr; BATCH],
        [libc::mmsghdr; BATCH],
    ) = unsafe { (mem::zeroed(), mem::zeroed(), mem::zeroed()) };
    let mut leaving: [libc::iovec; BATCH] = vectors;
    for at in 0..BATCH {
        // SAFETY: at < BATCH, so the pointer stays in the allocation.
        vectors[at] = libc::iovec { iov_base: unsafe { base.add(at * BUFFER_LEN) }.cast(), iov_len: BUFFER_LEN };
        incoming[at].msg_hdr.msg_iov = &raw mut vectors[at];
        incoming[at].msg_hdr.msg_iovlen = 1;
        outgoing[at].msg_hdr.msg_iov = &raw mut leaving[at];
        outgoing[at].msg_hdr.msg_iovlen = 1;
    }
    while !stop.load(Ordering::Relaxed) {
        // SAFETY: every header points at a vector, every vector at a buffer of its own, all alive.
        let received = unsafe {
            libc::recvmmsg(
                receiver.as_raw_fd(),
                incoming.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_WAITFORONE,
                ptr::null_mut(),
            )
        };
        let mut count = 0;
        for (at, message) in incoming.iter().enumerate().take(usize::try_from(received).unwrap_or(0)) {
            let len = message.msg_len as usize;
            // SAFETY: the kernel has written `len` bytes into this buffer, and nothing else refers to it now.
            let bytes = unsafe { std::slice::from_raw_parts_mut(base.add(at * BUFFER_LEN), len) };
            if rewrite(&mut bytes[VNET_LEN.min(len)..], vip, own, backends) {
                leaving[count] = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: len };
                count += 1;
            }
        }
        let mut done = 0;
        while done < count {
            // SAFETY: the headers from `done` on point at filled buffers.
            let sent = unsafe {
                let first = outgoing.as_mut_ptr().add(done);
                libc::sendmmsg(sender.as_raw_fd(), first, (count - done) as u32, libc::MSG_DONTWAIT)
            };
            done += usize::try_from(sent).ok().filter(|sent| *sent > 0).unwrap_or(1);
        }
    }
    Ok(())
}

fn rewrite(frame: &mut [u8], vip: [u8; 4], own: [u8; 6], backends: &[[u8; 6]]) -> bool {
    if frame.len() < 42 || frame[12..15] != [8, 0, 0x45] || frame[30..34] != vip {
        return false;
    }
    let word = |at: usize| u64::from(u32::from_ne_bytes(frame[at..at + 4].try_into().unwrap_or_default()));
    let mut hash = (word(26) << 32 | word(34)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^= hash >> 32;
    let backend = backends[hash as usize % backends.len()];
    frame[..6].copy_from_slice(&backend);
    frame[6..12].copy_from_slice(&own);
    true
}

/// One whose frames carry the headers of offloads, as they come and as they are to go: one that receives, and may send too,
/// or one that only sends, past the queueing discipline.
pub(crate) fn packet_socket(ifindex: u32, protocol: u16, receive: bool) -> io::Result<Socket> {
    let socket = Socket::new_raw(socket2::Domain::PACKET, socket2::Type::RAW, None)?;
    let options: &[i32] =
        if receive { &[PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING] } else { &[PACKET_VNET_HDR, PACKET_QDISC_BYPASS] };
    for option in options {
        set_option(&socket, *option)?;
    }
    if receive {
        socket.set_recv_buffer_size(4 << 20)?;
    } else {
        socket.set_send_buffer_size(8 << 20)?;
    }
    socket.bind(&super::link_address(ifindex, protocol))?;
    Ok(socket)
}

fn set_option(socket: &Socket, option: i32) -> io::Result<()> {
    let one = 1i32;
    // SAFETY: the value is borrowed for the call, with its length.
    let outcome = unsafe { libc::setsockopt(socket.as_raw_fd(), SOL_PACKET, option, (&raw const one).cast(), 4) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends a batch of frames past the queueing discipline, again and again, until it is told to stop.
pub fn generate(ifindex: u32, frames: &[Vec<u8>], stop: &AtomicBool) -> io::Result<()> {
    let socket = Socket::new_raw(socket2::Domain::PACKET, socket2::Type::RAW, None)?;
    set_option(&socket, PACKET_QDISC_BYPASS)?;
    socket.set_send_buffer_size(8 << 20)?;
    socket.bind(&super::link_address(ifindex, 0))?;
    let mut vectors: Vec<libc::iovec> = frames
        .iter()
        .map(|frame| libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() })
        .collect();
    let mut headers: Vec<libc::mmsghdr> = vectors
        .iter_mut()
        .map(|vector| {
            // SAFETY: plain data for which zero is a value.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header
        })
        .collect();
    while !stop.load(Ordering::Relaxed) {
        for batch in headers.chunks_mut(BATCH) {
            // SAFETY: headers, vectors and frames live; sendmmsg only reads the frames.
            unsafe { libc::sendmmsg(socket.as_raw_fd(), batch.as_mut_ptr(), batch.len() as u32, 0) };
        }
    }
    Ok(())
}

/// Sets a thread's nice and the time for which it runs at most when others wait (sched_setattr(2)).
pub fn share_processor(pid: rustix::process::Pid, nice: i32, slice: std::time::Duration) -> io::Result<()> {
    /// struct sched_attr, first version.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER.cast_unsigned(),
        flags: 0,
        nice,
        priority: 0,
        runtime: slice.as_nanos() as u64,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the attributes are borrowed for the call, and say how long they are.
    let outcome = unsafe { libc::syscall(libc::SYS_sched_setattr, pid.as_raw_pid(), &raw const attributes, 0) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the calling thread run only when nobody else wants the processor.
pub fn become_idle() -> io::Result<()> {
    // SAFETY: plain data for which zero is a value.
    let parameters: libc::sched_param = unsafe { mem::zeroed() };
    // SAFETY: the parameters are borrowed for the call.
    let outcome = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Turns GRO of an interface on: with it a veth has a NAPI context, which XDP needs at its peer.
pub fn enable_gro(interface: &str) -> io::Result<()> {
    const ETHTOOL_SGRO: u32 = 0x2c;
    set_offload(interface, ETHTOOL_SGRO, true)
}

/// Turns TSO of an interface off: the kernel has to segment GSO frames before it hands them over.
pub fn disable_tso(interface: &str) -> io::Result<()> {
    const ETHTOOL_STSO: u32 = 0x1f;
    set_offload(interface, ETHTOOL_STSO, false)
}

/// Has whatever leaves by an interface leave with its checksums, or leaves them to hardware, as is the default.
pub fn complete_checksums(interface: &str, complete: bool) -> io::Result<()> {
    const ETHTOOL_STXCSUM: u32 = 0x17;
    set_offload(interface, ETHTOOL_STXCSUM, !complete)
}

/// Has an interface leave VLAN tags on the frames that it receives.
pub fn keep_tags(interface: &str) -> io::Result<()> {
    take_tags_off(interface, false)
}

/// Has it take them off, or leave them.
pub fn take_tags_off(interface: &str, off: bool) -> io::Result<()> {
    const ETHTOOL_GFLAGS: u32 = 0x25;
    const ETHTOOL_SFLAGS: u32 = 0x26;
    const ETH_FLAG_RXVLAN: u32 = 1 << 8;
    let flags = ethtool(interface, [ETHTOOL_GFLAGS, 0])?;
    let flags = if off { flags | ETH_FLAG_RXVLAN } else { flags & !ETH_FLAG_RXVLAN };
    ethtool(interface, [ETHTOOL_SFLAGS, flags]).map(drop)
}

fn set_offload(interface: &str, command: u32, on: bool) -> io::Result<()> {
    ethtool(interface, [command, u32::from(on)]).map(drop)
}

/// A struct ethtool_value: a command, and what it gives or gets.
fn ethtool(interface: &str, mut value: [u32; 2]) -> io::Result<u32> {
    const SIOCETHTOOL: u64 = 0x8946;
    let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // SAFETY: plain data for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes().take(15)) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: the request names an interface and points at a struct ethtool_value, both alive.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if outcome == 0 { Ok(value[1]) } else { Err(io::Error::last_os_error()) }
}

/// Gives a thread real-time priority, so that it runs as soon as it has something to do.
pub fn make_real_time(pid: rustix::process::Pid) -> io::Result<()> {
    // SAFETY: plain data for which zero is a value.
    let mut parameters: libc::sched_param = unsafe { mem::zeroed() };
    parameters.sched_priority = 50;
    // SAFETY: the parameters are borrowed for the call.
    let outcome = unsafe { libc::sched_setscheduler(pid.as_raw_pid(), libc::SCHED_FIFO, &raw const parameters) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
