//! Netlink as the guard speaks it: transactions, and reading back what is in the kernel.

use std::{
    collections::BTreeSet,
    hash::Hasher as _,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::{
    NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{
        ChainAttribute, ChainMessage, DataAttribute, GenAttribute, GenMessage, ListAttribute, NfTablesMessage,
        RuleAttribute, RuleMessage, SetElementAttribute, SetElementList, SetElementMessage,
    },
};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
        netlink::{self, SocketAddrNetlink},
        recv, sendto, socket_with,
        sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size, set_socket_send_buffer_size_force},
    },
};
use siphasher::sip::SipHasher13;

use super::{
    error::{GuardError, failed},
    messages::Messages,
    rules::{IPV4, IPV6, TABLE},
};

/// The port of the kernel.
const KERNEL: SocketAddrNetlink = SocketAddrNetlink::new(0, 0);
/// The multicast group of changes of the ruleset, NFNLGRP_NFTABLES, as a bit.
const CHANGES: u32 = 1 << (7 - 1);
/// More than the kernel puts into one datagram of a dump.
const ANSWER_BYTES: usize = 64 << 10;
/// struct nlmsghdr, and behind it struct nfgenmsg: what follows is the message's own.
const HEADERS_BYTES: usize = 16 + 4;
/// The dump was not of one moment (linux/netlink.h: NLM_F_DUMP_INTR).
const INTERRUPTED: u16 = 0x10;

/// A netlink socket. A table that was made by it with an owner belongs to it, and to whoever else has it.
pub(super) struct Netlink(OwnedFd);

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Netlink {
    pub(super) fn open() -> Result<OwnedFd, GuardError> {
        socket(0)
    }

    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Hears of every change of the ruleset.
    pub(super) fn listener() -> Result<OwnedFd, GuardError> {
        let listener = socket(CHANGES)?;
        // What has no room is noticed as an error, and that is a change too.
        let _ = set_socket_recv_buffer_size(&listener, ANSWER_BYTES);
        Ok(listener)
    }

    /// Carries out a transaction.
    pub(super) fn transact(&self, batch: &[u8]) -> Result<(), GuardError> {
        // What an earlier process has left unread.
        while self.receive().map_err(failed("reading the answer"))?.is_some() {}
        // It is sent in one piece, however many interfaces and VIPs there are; past the limit where that is allowed.
        let room = 2 * batch.len();
        if set_socket_send_buffer_size_force(&self.0, room).is_err() {
            let _ = set_socket_send_buffer_size(&self.0, room);
        }
        let sent = sendto(&self.0, batch, SendFlags::empty(), &KERNEL);
        sent.map_err(|error| failed("sending the transaction")(error.into()))?;
        // It is carried out within the send; its answers wait already.
        let mut acknowledged = 0;
        while let Some(answers) = self.receive().map_err(failed("reading the answer"))? {
            for answer in split(&answers) {
                let message = NetlinkMessage::<NetfilterMessage>::deserialize(answer);
                let message = message.map_err(|error| failed("reading the answer")(io::Error::other(error)))?;
                if let NetlinkPayload::Error(error) = message.payload {
                    match error.code {
                        None => acknowledged += 1,
                        Some(code) => {
                            return Err(failed("the kernel refuses")(io::Error::from_raw_os_error(-code.get())));
                        }
                    }
                }
            }
        }
        let unanswered = || failed("the kernel did not acknowledge the transaction")(io::ErrorKind::InvalidData.into());
        if acknowledged == 1 { Ok(()) } else { Err(unanswered()) }
    }

    /// A number that changes with every transaction of anybody.
    pub(super) fn generation(&self) -> io::Result<u32> {
        let mut generation = None;
        let request = NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() });
        self.ask(request, 0, |_, message| {
            if let NfTablesMessage::NewGen(GenMessage { attributes }) = message {
                generation = attributes.into_iter().find_map(|attribute| match attribute {
                    GenAttribute::Id(id) => Some(id),
                    _ => None,
                });
            }
        })?;
        generation.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// What stands in our table.
    pub(super) fn read(&self) -> io::Result<Contents> {
        let mut hasher = SipHasher13::new();
        let of_table = RuleMessage { attributes: vec![RuleAttribute::Table(TABLE.into())] };
        self.ask(NfTablesMessage::GetRule(of_table), NLM_F_DUMP, |bytes, message| {
            if let NfTablesMessage::NewRule(RuleMessage { attributes }) = message
                && attributes.contains(&RuleAttribute::Table(TABLE.into()))
            {
                hasher.write(bytes);
            }
        })?;
        // A chain's attributes count its rules; those of others are not ours.
        let chains = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        self.ask(chains, NLM_F_DUMP, |bytes, message| {
            if let NfTablesMessage::NewChain(ChainMessage { attributes }) = message
                && attributes.contains(&ChainAttribute::Table(TABLE.into()))
            {
                hasher.write(bytes);
            }
        })?;
        let mut vips = BTreeSet::new();
        for set in [IPV4, IPV6] {
            let elements = SetElementMessage {
                attributes: vec![SetElementList::Table(TABLE.into()), SetElementList::Set(set.name.into())],
            };
            let read = self.ask(NfTablesMessage::GetSetElement(elements), NLM_F_DUMP, |_, message| {
                if let NfTablesMessage::NewSetElement(SetElementMessage { attributes }) = message {
                    vips.extend(attributes.into_iter().flat_map(keys));
                }
            });
            match read {
                // There is no such set, or no table.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Contents::default()),
                read => read?,
            }
        }
        Ok(Contents { rules: hasher.finish(), vips })
    }

    /// Asks, and shows every message of the answer: its own bytes, and what they say.
    fn ask(
        &self,
        question: NfTablesMessage,
        flags: u16,
        mut show: impl FnMut(&[u8], NfTablesMessage),
    ) -> io::Result<()> {
        while self.receive()?.is_some() {}
        let mut request = Messages::default();
        request.push(question, NetfilterProtoFamily::NetDev, 0, flags | NLM_F_ACK);
        sendto(&self.0, &request.bytes, SendFlags::empty(), &KERNEL)?;
        loop {
            // A dump goes on as it is read: nothing more to read means that it has been told already, or is lost.
            let Some(answers) = self.receive()? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
            for answer in split(&answers) {
                let message = NetlinkMessage::<NetfilterMessage>::deserialize(answer).map_err(io::Error::other)?;
                if message.header.flags & INTERRUPTED != 0 {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(()),
                            Some(code) => Err(io::Error::from_raw_os_error(-code.get())),
                        };
                    }
                    NetlinkPayload::InnerMessage(NetfilterMessage {
                        inner: NetfilterMessageInner::NfTables(message),
                        ..
                    }) => show(answer.get(HEADERS_BYTES..).unwrap_or_default(), message),
                    _ => {}
                }
            }
        }
    }

    /// The next datagram, if there is one.
    fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        take(&self.0)
    }
}

/// What was read of our table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// A hash of its chains and rules.
    pub(super) rules: u64,
    /// The addresses in its sets.
    pub(super) vips: BTreeSet<Vec<u8>>,
}

/// The next datagram of a netlink socket, if there is one.
pub(super) fn take(socket: impl AsFd) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); ANSWER_BYTES];
    match recv(socket, &mut buffer, RecvFlags::DONTWAIT) {
        Ok(((received, _), _)) => Ok(Some(received.to_vec())),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn socket(groups: u32) -> Result<OwnedFd, GuardError> {
    let made = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER));
    let socket = made.map_err(|error| failed("opening a netlink socket")(error.into()))?;
    let bound = bind(&socket, &SocketAddrNetlink::new(0, groups));
    bound.map_err(|error| failed("binding a netlink socket")(error.into()))?;
    Ok(socket)
}

/// The messages of a datagram.
fn split(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let (message, _) = bytes.split_at_checked(len.max(16))?;
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
        Some(message)
    })
}

/// The keys of a list of elements.
fn keys(list: SetElementList) -> Vec<Vec<u8>> {
    let SetElementList::Elements(elements) = list else { return Vec::new() };
    let key = |attribute| match attribute {
        SetElementAttribute::Key(DataAttribute::Value(key)) => Some(key),
        _ => None,
    };
    let of_element = |element| match element {
        ListAttribute::Element(attributes) => attributes.into_iter().find_map(key),
        _ => None,
    };
    elements.into_iter().filter_map(of_element).collect()
}
