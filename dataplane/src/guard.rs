//! The guard: the node's own kernel must not answer, accept, forward, redirect or reset anything for a
//! VIP, whatever `ip_forward` says and even if somebody has put the VIP on the node's loopback. An
//! nftables table of our own at the ingress of each interface, behind the packet sockets' tap, drops
//! packets to the VIPs, and ARP requests and neighbour solicitations for them. It stays when the process crashes, is replaced at
//! the next start, and is removed at a graceful stop.
//!
//! Written over netlink in one transaction, so there is no moment with half a table.

use std::{io, net::IpAddr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{
        Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, DevHookNumber, Expressions, Hook, HookNumber,
        Immediate, ListAttribute, Lookup, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute,
        RuleMessage, SetAttribute, SetElementAttribute, SetElementList, SetElementMessage, SetMessage, TableAttribute,
        TableMessage, Verdict, VerdictAttribute,
    },
    none::ControlMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force};

use crate::packet::{
    ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, VLAN_NUMBER, ndp,
};

const TABLE: &str = "lbd";
/// The chain of the rules, to which those of the interfaces jump.
const RULES: &str = "vips";

/// The addresses of one family.
#[derive(Clone, Copy)]
struct Set {
    name: &'static str,
    id: u32,
    /// enum of data types in nft; only shown by `nft list`.
    kind: u32,
    address_len: u32,
}

const IPV4: Set = Set { name: "vips4", id: 1, kind: 7, address_len: 4 };
const IPV6: Set = Set { name: "vips6", id: 2, kind: 8, address_len: 16 };
/// Before anything else at the ingress.
const PRIORITY: i32 = -500;
/// Elements of one message; a netlink attribute holds less than 64 KiB.
const ELEMENTS: usize = 512;
/// NFNL_SUBSYS_NFTABLES, in the resource id of a batch.
const SUBSYS_NFTABLES: u16 = 10;
/// linux/netfilter/nf_tables.h: NFT_PAYLOAD_LL_HEADER, NFT_PAYLOAD_NETWORK_HEADER.
const LINK_LAYER: u32 = 0;
const NETWORK: u32 = 1;
const ICMPV6: u8 = 58;
const POLICY_ACCEPT: u32 = 1;
const NF_DROP: u32 = 0;

/// Why the guard is not in place.
#[derive(Debug, thiserror::Error)]
#[error("the nftables guard: {step}: {source}{hint}", hint = hint(source))]
pub struct GuardError {
    step: &'static str,
    source: io::Error,
}

impl GuardError {
    /// Whether a right is missing.
    pub fn is_permission(&self) -> bool {
        self.source.raw_os_error() == Some(libc::EPERM)
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => " (lbd needs the capability CAP_NET_ADMIN: start it as root or by its systemd unit)",
        Some(libc::EOPNOTSUPP | libc::ENOENT | libc::EPROTONOSUPPORT) => {
            " (the kernel needs nf_tables with the netdev family: modprobe nf_tables)"
        }
        _ => "",
    }
}

/// Puts the guard in place, or replaces it.
pub fn install(interfaces: &[String], vips: &[IpAddr]) -> Result<(), GuardError> {
    let mut batch = Batch::default();
    batch.replace_table();
    let of = |v6: bool| -> Vec<Vec<u8>> {
        let octets = vips.iter().filter(|vip| vip.is_ipv6() == v6).map(|vip| match vip {
            IpAddr::V4(vip) => vip.octets().to_vec(),
            IpAddr::V6(vip) => vip.octets().to_vec(),
        });
        octets.collect()
    };
    batch.add_set(IPV4, &of(false));
    batch.add_set(IPV6, &of(true));
    batch.add_rules();
    for (number, interface) in interfaces.iter().enumerate() {
        batch.add_ingress(&format!("ingress{number}"), interface);
    }
    batch.send()
}

/// Makes sure that there is a table, and that we may change it; what a crash left behind stays in force.
pub fn keep() -> Result<(), GuardError> {
    let mut batch = Batch::default();
    batch.add_table();
    batch.send()
}

/// Takes the guard away.
pub fn remove() -> Result<(), GuardError> {
    let mut batch = Batch::default();
    // Creating what may be there and deleting it never fails, whether it was there or not.
    batch.add_table();
    batch.delete_table();
    batch.send()
}

/// One transaction.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    messages: u32,
    /// Where the last message starts.
    last_at: usize,
}

impl Batch {
    /// Adds a message. That of the last one before the end of the batch is acknowledged: the answers to hundreds would
    /// not find room, and what is refused is told in any case.
    fn push(&mut self, message: impl Into<NetfilterMessageInner>, family: NetfilterProtoFamily, id: u16, flags: u16) {
        let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, id), message);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.messages;
        message.finalize();
        let start = self.bytes.len();
        self.last_at = start;
        self.bytes.resize(start + message.buffer_len(), 0);
        message.serialize(&mut self.bytes[start..]);
        self.messages += 1;
    }

    fn nft(&mut self, message: NfTablesMessage, flags: u16) {
        if self.messages == 0 {
            self.push(ControlMessage::BatchBegin, NetfilterProtoFamily::Unspec, SUBSYS_NFTABLES, 0);
        }
        self.push(message, NetfilterProtoFamily::NetDev, 0, flags);
    }

    fn add_table(&mut self) {
        self.nft(NfTablesMessage::NewTable(table()), NLM_F_CREATE);
    }

    fn delete_table(&mut self) {
        self.nft(NfTablesMessage::DeleteTable(table()), 0);
    }

    fn replace_table(&mut self) {
        self.add_table();
        self.delete_table();
        self.add_table();
    }

    fn add_set(&mut self, set: Set, vips: &[Vec<u8>]) {
        let message = SetMessage {
            attributes: vec![
                SetAttribute::Table(TABLE.into()),
                SetAttribute::Name(set.name.into()),
                SetAttribute::KeyType(set.kind),
                SetAttribute::KeyLen(set.address_len),
                SetAttribute::Id(set.id),
            ],
        };
        self.nft(NfTablesMessage::NewSet(message), NLM_F_CREATE);
        for vips in vips.chunks(ELEMENTS) {
            let element = |vip: &Vec<u8>| {
                let key = DataAttribute::Value(vip.clone());
                ListAttribute::Element(vec![SetElementAttribute::Key(key)])
            };
            let elements = SetElementMessage {
                attributes: vec![
                    SetElementList::Table(TABLE.into()),
                    SetElementList::Set(set.name.into()),
                    SetElementList::Elements(vips.iter().map(element).collect()),
                ],
            };
            self.nft(NfTablesMessage::NewSetElement(elements), NLM_F_CREATE);
        }
    }

    /// A chain at an interface's ingress, which goes through the rules.
    fn add_ingress(&mut self, name: &str, interface: &str) {
        self.add_chain(
            name,
            vec![
                ChainAttribute::Hook(vec![
                    Hook::Number(HookNumber::Dev(DevHookNumber::Ingress)),
                    Hook::Priority(PRIORITY.cast_unsigned()),
                    Hook::NetDeviceName(interface.into()),
                ]),
                ChainAttribute::Policy(POLICY_ACCEPT),
                ChainAttribute::Type("filter".into()),
            ],
        );
        self.add_rule(name, Vec::new(), [VerdictAttribute::Code(Verdict::Jump), VerdictAttribute::Chain(RULES.into())]);
    }

    fn add_chain(&mut self, name: &str, attributes: Vec<ChainAttribute>) {
        let of_table = [ChainAttribute::Table(TABLE.into()), ChainAttribute::Name(name.into())];
        let chain = ChainMessage { attributes: of_table.into_iter().chain(attributes).collect() };
        self.nft(NfTablesMessage::NewChain(chain), NLM_F_CREATE);
    }

    /// The rules of all interfaces.
    fn add_rules(&mut self) {
        self.add_chain(RULES, Vec::new());
        // Untagged, and tagged with VLAN 0, which the kernel treats alike. Other tags belong to other
        // segments and are let by.
        for tag in [None, Some(ETHERTYPE_VLAN), Some(ETHERTYPE_SERVICE_VLAN)] {
            // IPv4: destination address. ARP: operation 1 (request), target address.
            self.drop_vips(ethertype_is(tag, ETHERTYPE_IPV4), in_set(IPV4, 16));
            let mut request = ethertype_is(tag, ETHERTYPE_ARP);
            request.extend(payload_is(NETWORK, 6, &[0, 1]));
            self.drop_vips(request, in_set(IPV4, 24));
            // IPv6: destination address. Neighbour solicitation, right behind the IPv6 header: target address.
            self.drop_vips(ethertype_is(tag, ETHERTYPE_IPV6), in_set(IPV6, 24));
            let mut solicitation = ethertype_is(tag, ETHERTYPE_IPV6);
            solicitation.extend(payload_is(NETWORK, 6, &[ICMPV6]));
            solicitation.extend(payload_is(NETWORK, 40, &[ndp::SOLICITATION]));
            self.drop_vips(solicitation, in_set(IPV6, 48));
        }
    }

    fn drop_vips(&mut self, mut when: Vec<Expressions>, vip: [Expressions; 2]) {
        when.extend(vip);
        self.add_rule(RULES, when, [VerdictAttribute::Code(Verdict::Other(NF_DROP))]);
    }

    fn add_rule<const N: usize>(&mut self, chain: &str, mut when: Vec<Expressions>, verdict: [VerdictAttribute; N]) {
        when.push(Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(DataAttribute::Verdict(verdict.into())),
        ]));
        let rule = RuleMessage {
            attributes: vec![
                RuleAttribute::Table(TABLE.into()),
                RuleAttribute::Chain(chain.into()),
                RuleAttribute::Expressions(when.into_iter().map(Into::into).collect()),
            ],
        };
        self.nft(NfTablesMessage::NewRule(rule), NLM_F_CREATE | NLM_F_APPEND);
    }

    fn send(mut self) -> Result<(), GuardError> {
        // struct nlmsghdr: length, type, flags.
        if let Some(flags) = self.bytes.get_mut(self.last_at + 6..).and_then(|rest| rest.first_chunk_mut()) {
            *flags = (u16::from_ne_bytes(*flags) | NLM_F_ACK).to_ne_bytes();
        }
        self.push(ControlMessage::BatchEnd, NetfilterProtoFamily::Unspec, SUBSYS_NFTABLES, 0);
        let failed = |step| move |source| GuardError { step, source };
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed("opening a netlink socket"))?;
        socket.bind_auto().map_err(failed("binding a netlink socket"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed("connecting to the kernel"))?;
        // It is sent in one piece, however many interfaces and VIPs there are; past the limit where that is allowed.
        let room = 2 * self.bytes.len();
        if set_socket_send_buffer_size_force(&socket, room).is_err() {
            let _ = set_socket_send_buffer_size(&socket, room);
        }
        socket.send(&self.bytes, 0).map_err(failed("sending the transaction"))?;
        // A transaction is carried out within the send; its answers wait already.
        socket.set_non_blocking(true).map_err(failed("reading the answer"))?;
        let mut answers = 0;
        loop {
            let mut buffer = Vec::with_capacity(64 << 10);
            match socket.recv(&mut buffer, 0) {
                Ok(_) => answers += check_answers(&buffer).map_err(failed("the kernel refuses"))?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(failed("reading the answer")(error)),
            }
        }
        let unanswered = || failed("the kernel did not acknowledge the transaction")(io::ErrorKind::InvalidData.into());
        if answers == 1 { Ok(()) } else { Err(unanswered()) }
    }
}

/// How many messages a datagram acknowledges.
fn check_answers(mut bytes: &[u8]) -> io::Result<u32> {
    let mut acknowledged = 0;
    while !bytes.is_empty() {
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(bytes).map_err(io::Error::other)?;
        if let NetlinkPayload::Error(error) = &message.payload {
            match error.code {
                None => acknowledged += 1,
                Some(code) => return Err(io::Error::from_raw_os_error(-code.get())),
            }
        }
        let len = (message.header.length as usize).next_multiple_of(4).min(bytes.len());
        bytes = &bytes[len..];
    }
    Ok(acknowledged)
}

fn table() -> TableMessage {
    TableMessage { attributes: vec![TableAttribute::Name(TABLE.into())] }
}

/// The frame is of that type, untagged, or under such a tag with the VLAN number 0.
fn ethertype_is(tag: Option<u16>, ethertype: u16) -> Vec<Expressions> {
    let mut all = Vec::new();
    match tag {
        Some(tag) => {
            all.extend(payload_is(LINK_LAYER, 12, &tag.to_be_bytes()));
            // Priorities are what such tags are used for: any of them.
            all.push(load(LINK_LAYER, 14, 2));
            all.push(Expressions::Bitwise(vec![
                Bitwise::SourceRegister(Register::Reg1),
                Bitwise::DestinationRegister(Register::Reg1),
                Bitwise::Length(2),
                Bitwise::Mask(DataAttribute::Value(VLAN_NUMBER.to_be_bytes().to_vec())),
                Bitwise::Xor(DataAttribute::Value(vec![0, 0])),
            ]));
            all.push(equals(&[0, 0]));
            all.extend(payload_is(LINK_LAYER, 16, &ethertype.to_be_bytes()));
        }
        None => {
            // The protocol that the kernel will use is that of the frame; a tag that the device took out
            // is put back by nftables for a look at the link layer.
            all.push(Expressions::Meta(vec![
                Meta::Key(MetaKey::EtherTypeProtocol),
                Meta::DestinationRegister(Register::Reg1),
            ]));
            all.push(equals(&ethertype.to_be_bytes()));
            all.extend(payload_is(LINK_LAYER, 12, &ethertype.to_be_bytes()));
        }
    }
    all
}

fn payload_is(base: u32, offset: u32, bytes: &[u8]) -> [Expressions; 2] {
    [load(base, offset, bytes.len() as u32), equals(bytes)]
}

fn in_set(set: Set, offset: u32) -> [Expressions; 2] {
    let lookup = Expressions::Lookup(vec![
        Lookup::Set(set.name.into()),
        Lookup::SourceRegister(Register::Reg1),
        Lookup::SetId(set.id),
    ]);
    [load(NETWORK, offset, set.address_len), lookup]
}

fn load(base: u32, offset: u32, len: u32) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(len),
    ])
}

fn equals(bytes: &[u8]) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(Operator::Equal),
        Cmp::Data(DataAttribute::Value(bytes.to_vec())),
    ])
}
