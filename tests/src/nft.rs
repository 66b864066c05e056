//! What other programs do to a machine's nftables ruleset, by hand: `nft` need not be there.

use std::{io, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::{self, SocketAddrNetlink},
    recv, sendto, socket_with,
};

use crate::netns::Namespace;

/// linux/netfilter/nfnetlink.h and nf_tables.h.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYS_NFTABLES: u16 = 10;
const NEW_TABLE: u16 = SUBSYS_NFTABLES << 8;
const DELETE_TABLE: u16 = SUBSYS_NFTABLES << 8 | 2;
const FAMILY_NETDEV: u8 = 5;
const ATTRIBUTE_NAME: u16 = 1;
const ATTRIBUTE_FLAGS: u16 = 2;
const OWNER: u32 = 2;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
/// NLMSG_ERROR, also with the code 0.
const ERROR: u16 = 2;

/// `nft flush ruleset`, as a restart of Debian's nftables service does it.
pub fn flush_ruleset(namespace: &Namespace) -> io::Result<()> {
    transact(&open(namespace)?, &[message(DELETE_TABLE, ACK, 0, 0, &[])])
}

/// `nft delete table netdev NAME`.
pub fn delete_table(namespace: &Namespace, name: &str) -> io::Result<()> {
    transact(&open(namespace)?, &[message(DELETE_TABLE, ACK, FAMILY_NETDEV, 0, &named(name))])
}

/// Puts a netdev table that nobody else can change while the descriptor lives in place of the one of that name.
pub fn take_table(namespace: &Namespace, name: &str) -> io::Result<OwnedFd> {
    let socket = open(namespace)?;
    let flags = attribute(ATTRIBUTE_FLAGS, &OWNER.to_be_bytes());
    let delete = message(DELETE_TABLE, 0, FAMILY_NETDEV, 0, &named(name));
    let create = message(NEW_TABLE, ACK | CREATE, FAMILY_NETDEV, 0, &[named(name), flags].concat());
    transact(&socket, &[delete, create])?;
    Ok(socket)
}

fn named(name: &str) -> Vec<u8> {
    attribute(ATTRIBUTE_NAME, &[name.as_bytes(), &[0]].concat())
}

fn open(namespace: &Namespace) -> io::Result<OwnedFd> {
    namespace.enter(|| {
        let flags = SocketFlags::CLOEXEC;
        Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER))?)
    })
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = 4 + value.len();
    let mut bytes = [(len as u16).to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(len.next_multiple_of(4), 0);
    bytes
}

fn message(kind: u16, flags: u16, family: u8, id: u16, attributes: &[u8]) -> Vec<u8> {
    let mut bytes = ((20 + attributes.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]);
    // struct nfgenmsg: family, version, resource id.
    bytes.extend([family, 0]);
    bytes.extend(id.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

/// One of the messages is acknowledged.
fn transact(socket: &OwnedFd, messages: &[Vec<u8>]) -> io::Result<()> {
    let [begin, end] = [BATCH_BEGIN, BATCH_END].map(|kind| message(kind, 0, 0, SUBSYS_NFTABLES, &[]));
    let batch = [begin, messages.concat(), end].concat();
    sendto(socket, &batch, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    // It has been carried out when the send returns.
    let mut answer = [0; 4096];
    let (_, len) = recv(socket, &mut answer, RecvFlags::DONTWAIT)?;
    let word = |at: usize| -> Option<[u8; 4]> { answer[..len].get(at..at + 4)?.try_into().ok() };
    let kind = word(4).map(|[low, high, ..]| u16::from_ne_bytes([low, high]));
    match (kind, word(16).map(i32::from_ne_bytes)) {
        (Some(ERROR), Some(0)) => Ok(()),
        (Some(ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
