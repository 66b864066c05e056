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
const NEW_CHAIN: u16 = SUBSYS_NFTABLES << 8 | 3;
const FAMILY_NETDEV: u8 = 5;
const ATTRIBUTE_NAME: u16 = 1;
const ATTRIBUTE_FLAGS: u16 = 2;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4 | NESTED;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_DEVICE: u16 = 3;
const NESTED: u16 = 0x8000;
/// The kernel takes 1024 on one hook (MAX_HOOK_COUNT in net/netfilter/core.c), of which lbd has one.
const MOST_CHAINS: usize = 1023;
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

/// Puts so many chains of a table of that name on an interface that no further one finds room.
pub fn crowd(namespace: &Namespace, name: &str, interface: &str) -> io::Result<()> {
    let socket = open(namespace)?;
    rustix::net::sockopt::set_socket_send_buffer_size_force(&socket, 1 << 20)
        .or_else(|_| rustix::net::sockopt::set_socket_send_buffer_size(&socket, 1 << 20))?;
    let text = |kind, text: &str| attribute(kind, &[text.as_bytes(), &[0]].concat());
    let hook = [
        attribute(HOOK_NUMBER, &0u32.to_be_bytes()),
        attribute(HOOK_PRIORITY, &0u32.to_be_bytes()),
        text(HOOK_DEVICE, interface),
    ];
    let chain = |number: usize| {
        let chain = [
            text(CHAIN_TABLE, name),
            text(CHAIN_NAME, &format!("chain{number}")),
            attribute(CHAIN_HOOK, &hook.concat()),
            text(CHAIN_TYPE, "filter"),
        ];
        let ack = if number + 1 == MOST_CHAINS { ACK } else { 0 };
        message(NEW_CHAIN, ack | CREATE, FAMILY_NETDEV, 0, &chain.concat())
    };
    let table = message(NEW_TABLE, CREATE, FAMILY_NETDEV, 0, &named(name));
    transact(&socket, &[table].into_iter().chain((0..MOST_CHAINS).map(chain)).collect::<Vec<_>>())
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
