//! What an interface's driver can do for XDP, asked of the kernel (Documentation/netlink/specs/netdev.yaml, Linux 6.3).

use std::{io, mem::MaybeUninit};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::{self, SocketAddrNetlink},
    recv, sendto, socket_with,
};

/// The driver runs programs.
pub(super) const BASIC: u64 = 1;
/// They may send frames on to other interfaces.
pub(super) const REDIRECT: u64 = 1 << 1;
/// Others may send frames to it.
pub(super) const NDO_XMIT: u64 = 1 << 2;

const KERNEL: SocketAddrNetlink = SocketAddrNetlink::new(0, 0);
/// The family of the families (linux/genetlink.h).
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
/// struct nlmsghdr, struct genlmsghdr.
const HEADERS: usize = 16 + 4;

/// The features of an interface.
pub(super) fn of(ifindex: u32) -> io::Result<u64> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::GENERIC))?;
    let ask = |family: u16, command: u8, (attribute, value): (u16, &[u8]), wanted: u16| {
        sendto(&socket, &request(family, command, attribute, value), SendFlags::empty(), &KERNEL)?;
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let ((answer, _), _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        attribute_of(answer, wanted)
    };
    let family = ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, (CTRL_ATTR_FAMILY_NAME, b"netdev\0"), CTRL_ATTR_FAMILY_ID)?;
    let family = family.first_chunk().copied().map(u16::from_ne_bytes).ok_or(io::ErrorKind::InvalidData)?;
    let index = (NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes()[..]);
    let features = ask(family, NETDEV_CMD_DEV_GET, index, NETDEV_A_DEV_XDP_FEATURES)?;
    features.first_chunk().copied().map(u64::from_ne_bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn request(family: u16, command: u8, attribute: u16, value: &[u8]) -> Vec<u8> {
    let attribute_len = 4 + value.len();
    let padded = attribute_len.next_multiple_of(4);
    let len = (HEADERS + padded) as u32;
    let mut message = Vec::with_capacity(len as usize);
    message.extend(len.to_ne_bytes());
    message.extend([family, NLM_F_REQUEST].map(u16::to_ne_bytes).as_flattened());
    // Sequence number and port: nobody else asks on this socket.
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend([attribute_len as u16, attribute].map(u16::to_ne_bytes).as_flattened());
    message.extend(value);
    message.resize(len as usize, 0);
    message
}

/// An attribute of an answer, or the error that it is.
fn attribute_of(answer: &[u8], wanted: u16) -> io::Result<Vec<u8>> {
    let unsound = || io::Error::from(io::ErrorKind::InvalidData);
    let number = |at: usize| answer.get(at..at + 2)?.first_chunk().copied().map(u16::from_ne_bytes);
    if number(4) == Some(NLMSG_ERROR) {
        let code = answer.get(16..20).and_then(|code| code.first_chunk().copied()).map(i32::from_ne_bytes);
        return Err(code.map_or_else(unsound, |code| io::Error::from_raw_os_error(-code)));
    }
    let mut at = HEADERS;
    while let (Some(len), Some(kind)) = (number(at), number(at + 2)) {
        let end = at + usize::from(len);
        let value = answer.get(at + 4..end).ok_or_else(unsound)?;
        if kind == wanted {
            return Ok(value.to_vec());
        }
        at = end.next_multiple_of(4);
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_cut_ones_refused() {
        let answer = request(7, NETDEV_CMD_DEV_GET, NETDEV_A_DEV_XDP_FEATURES, &0x1234_5678_9abcu64.to_ne_bytes());
        assert_eq!(attribute_of(&answer, NETDEV_A_DEV_XDP_FEATURES).unwrap(), 0x1234_5678_9abcu64.to_ne_bytes());
        assert!(attribute_of(&answer, NETDEV_A_DEV_IFINDEX).is_err());
        for len in 0..answer.len() {
            assert!(attribute_of(&answer[..len], NETDEV_A_DEV_XDP_FEATURES).is_err(), "{len}");
        }
        let refused = request(NLMSG_ERROR, 0, 0, &[]);
        let refused = [&refused[..16], &(-19i32).to_ne_bytes()].concat();
        assert_eq!(attribute_of(&refused, 1).unwrap_err().raw_os_error(), Some(19));
    }
}
