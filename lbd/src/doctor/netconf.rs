//! How the kernel treats packets that come by an interface (rtnetlink(7), `RTM_GETNETCONF`): what /proc/sys/net/ipv4/conf has, also
//! where that is hidden from a service.

use std::io::{self, Read as _};

use rustix::net::AddressFamily;
use socket2::{Domain, Protocol, Socket, Type};

/// Of the loopback interface, in each namespace.
pub(super) const LO: i32 = 1;
/// Of all of them (`NETCONFA_IFINDEX_ALL`).
pub(super) const ALL: i32 = -1;

// linux/rtnetlink.h, linux/netconf.h, linux/netlink.h.
const NEW: u16 = 80;
const GET: u16 = 82;
const REQUEST: u16 = 1;
const IFINDEX: u16 = 1;
const FORWARDING: u16 = 2;
const RP_FILTER: u16 = 3;
const ROUTE: i32 = 0;
/// Of a message, and of the family behind it.
const HEADER_LEN: usize = 16 + 4;
const ATTRIBUTE_LEN: usize = 4;

/// What is not known of a family is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Netconf {
    pub(super) forwards: Option<bool>,
    /// 1 is strict (ip-sysctl, rp_filter).
    pub(super) rp_filter: Option<u8>,
}

/// Asks the kernel.
pub(super) fn read(family: AddressFamily, interface: i32) -> io::Result<Netconf> {
    let netlink = Domain::from(i32::from(AddressFamily::NETLINK.as_raw()));
    let mut socket = Socket::new(netlink, Type::RAW, Some(Protocol::from(ROUTE)))?;
    socket.send(&request(family, interface))?;
    let mut answer = [0; 512];
    let len = socket.read(&mut answer)?;
    parse(&answer[..len]).ok_or_else(|| io::Error::other("the kernel does not say"))
}

fn request(family: AddressFamily, interface: i32) -> Vec<u8> {
    let attribute_len = ATTRIBUTE_LEN + size_of::<i32>();
    let len = HEADER_LEN + attribute_len;
    let family = u8::try_from(family.as_raw()).unwrap_or_default();
    [
        &u32::try_from(len).unwrap_or_default().to_ne_bytes()[..],
        &GET.to_ne_bytes(),
        &REQUEST.to_ne_bytes(),
        // Its number, and whose it is: the kernel answers on the same socket.
        &[0; 8],
        &[family, 0, 0, 0],
        &u16::try_from(attribute_len).unwrap_or_default().to_ne_bytes(),
        &IFINDEX.to_ne_bytes(),
        &interface.to_ne_bytes(),
    ]
    .concat()
}

fn parse(message: &[u8]) -> Option<Netconf> {
    let half = |at: usize| Some(u16::from_ne_bytes(message.get(at..at + 2)?.try_into().ok()?));
    if half(4)? != NEW {
        return None;
    }
    let mut found = Netconf::default();
    let mut at = HEADER_LEN;
    while let (Some(len), Some(kind)) = (half(at), half(at + 2)) {
        let end = at + usize::from(len).max(ATTRIBUTE_LEN);
        let value = message.get(at + ATTRIBUTE_LEN..end)?.try_into().map(i32::from_ne_bytes).ok();
        match kind {
            FORWARDING => found.forwards = value.map(|value| value != 0),
            RP_FILTER => found.rp_filter = value.and_then(|value| value.try_into().ok()),
            _ => {}
        }
        at = end.next_multiple_of(4);
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_what_its_files_have() {
        let file = |name: &str| -> u8 {
            std::fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap().trim().parse().unwrap()
        };
        for (interface, name) in [(ALL, "all"), (LO, "lo")] {
            let found = read(AddressFamily::INET, interface).unwrap();
            assert_eq!(found.rp_filter, Some(file(&format!("ipv4/conf/{name}/rp_filter"))));
            assert_eq!(found.forwards, Some(file(&format!("ipv4/conf/{name}/forwarding")) != 0));
        }
        // A machine may be without it.
        if std::path::Path::new("/proc/sys/net/ipv6").exists() {
            let found = read(AddressFamily::INET6, ALL).unwrap();
            assert_eq!(found, Netconf { forwards: Some(file("ipv6/conf/all/forwarding") != 0), rp_filter: None });
        }
        assert!(read(AddressFamily::INET, i32::MAX).is_err());
    }

    #[test]
    fn whatever_is_answered_is_read_or_refused() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let _ = parse(bytes);
        });
    }
}
