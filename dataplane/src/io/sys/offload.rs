//! What an interface does itself (ethtool's offloads, linux/ethtool.h).

use std::{io, mem, os::fd::AsRawFd as _, ptr};

use rustix::net::{AddressFamily, SocketType};

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x3;
const ETHTOOL_GTSO: u32 = 0x1e;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// struct ethtool_value
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// struct ethtool_drvinfo
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// Whether an interface segments TCP GSO frames itself; else the kernel does it before it hands them over. The kernel
/// may take its time for the answer: it holds the lock on all links meanwhile.
///
/// # Errors
/// The interface is gone (ENODEV).
pub fn segments_tcp(interface: &str) -> io::Result<bool> {
    ask(interface, ETHTOOL_GTSO).map(|value| value != 0)
}

/// Whether an interface's hardware merges packets that it receives (large receive offload): what was merged cannot be sent on as
/// it came, because the sizes of the packets are lost (Documentation/networking/netdevices.rst, "LRO").
///
/// # Errors
/// The interface is gone (ENODEV), or its driver does not say.
pub fn merges_received(interface: &str) -> io::Result<bool> {
    ask(interface, ETHTOOL_GFLAGS).map(|flags| flags & ETH_FLAG_LRO != 0)
}

/// Whether an interface takes VLAN tags off the frames that it receives: they stand beside the frame then.
///
/// # Errors
/// The interface is gone (ENODEV), or its driver does not say.
pub fn takes_tags_off(interface: &str) -> io::Result<bool> {
    ask(interface, ETHTOOL_GFLAGS).map(|flags| flags & ETH_FLAG_RXVLAN != 0)
}

/// The name of an interface's driver.
///
/// # Errors
/// The interface is gone (ENODEV), or has none (EOPNOTSUPP).
pub fn driver(interface: &str) -> io::Result<String> {
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    call(interface, &mut info)?;
    let name = info.driver.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

fn ask(interface: &str, command: u32) -> io::Result<u32> {
    let mut value = Value { command, data: 0 };
    call(interface, &mut value)?;
    Ok(value.data)
}

/// `what`: a struct of linux/ethtool.h, which begins with the command.
fn call<T>(interface: &str, what: &mut T) -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: plain data for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // The last byte stays zero.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = ptr::from_mut(what).cast();
    // SAFETY: the request names an interface and points at a struct of ethtool; both live for the call.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_segments_and_an_absent_one_is_told() {
        assert!(segments_tcp("lo").unwrap() && !merges_received("lo").unwrap());
        assert_eq!(segments_tcp("no such one, and long").unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
