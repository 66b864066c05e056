//! The guard's table as one transaction: sets of the VIPs, the rules that drop what is for them, and a chain at each
//! interface's ingress that goes through the rules.
//!
//! Before: [`super`] says what is guarded. After: [`super::netlink`] sends it.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, DevHookNumber, Expressions, Hook, HookNumber, Immediate,
    ListAttribute, Lookup, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute, RuleMessage,
    SetAttribute, SetElementAttribute, SetElementList, SetElementMessage, SetMessage, TableAttribute, TableFlags,
    TableMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::{NetfilterProtoFamily, none::ControlMessage};

use super::messages::Messages;
use crate::packet::{
    CHECK_PORTS, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, VLAN_NUMBER,
    ndp,
};

/// Its name, as `nft list ruleset` shows it.
pub(super) const TABLE: &str = "lbd";
/// The chain of the rules, to which those of the interfaces jump.
const RULES: &str = "vips";

/// The addresses of one family.
#[derive(Clone, Copy)]
pub(super) struct Set {
    pub(super) name: &'static str,
    id: u32,
    /// enum of data types in nft; only shown by `nft list`.
    kind: u32,
    address_len: u32,
}

pub(super) const IPV4: Set = Set { name: "vips4", id: 1, kind: 7, address_len: 4 };
pub(super) const IPV6: Set = Set { name: "vips6", id: 2, kind: 8, address_len: 16 };
/// Before anything else at the ingress.
const PRIORITY: i32 = -500;
/// Elements of one message; a netlink attribute holds less than 64 KiB.
const ELEMENTS: usize = 512;
/// NFNL_SUBSYS_NFTABLES, in the resource id of a batch.
const SUBSYS_NFTABLES: u16 = 10;
/// linux/netfilter/nf_tables.h: NFT_PAYLOAD_LL_HEADER, NFT_PAYLOAD_NETWORK_HEADER,
/// NFT_PAYLOAD_TRANSPORT_HEADER.
const LINK_LAYER: u32 = 0;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const POLICY_ACCEPT: u32 = 1;
const NF_DROP: u32 = 0;

/// The flags of a table that outlives its owner and that nobody else can change meanwhile.
pub(super) const OWNED: TableFlags = TableFlags::Owner.union(TableFlags::Persisent);

/// One transaction.
pub(super) struct Batch {
    messages: Messages,
    /// Of the table that it makes.
    flags: TableFlags,
}

impl Batch {
    pub(super) fn new(flags: TableFlags) -> Self {
        let mut messages = Messages::default();
        messages.push(ControlMessage::BatchBegin, NetfilterProtoFamily::Unspec, SUBSYS_NFTABLES, 0);
        Self { messages, flags }
    }

    /// Its bytes; the kernel acknowledges it once.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.messages.acknowledge_last();
        self.messages.push(ControlMessage::BatchEnd, NetfilterProtoFamily::Unspec, SUBSYS_NFTABLES, 0);
        self.messages.bytes
    }

    fn nft(&mut self, message: NfTablesMessage, flags: u16) {
        self.messages.push(message, NetfilterProtoFamily::NetDev, 0, flags);
    }

    /// Makes the table, unless it is there; of one that has lost its owner, it becomes the owner.
    pub(super) fn add_table(&mut self) {
        let flags = self.flags;
        self.add_table_with(flags);
    }

    pub(super) fn add_table_with(&mut self, flags: TableFlags) {
        let mut table = table();
        if !flags.is_empty() {
            table.attributes.push(TableAttribute::Flags(flags));
        }
        self.nft(NfTablesMessage::NewTable(table), NLM_F_CREATE);
    }

    pub(super) fn delete_table(&mut self) {
        self.nft(NfTablesMessage::DeleteTable(table()), 0);
    }

    /// An empty table in place of whatever is there. `before`: the flags of that one, if there is one.
    pub(super) fn replace_table(&mut self, before: TableFlags) {
        // Creating what may be there and deleting it never fails, whether it was there or not.
        self.add_table_with(before);
        self.delete_table();
        self.add_table();
    }

    /// The whole guard.
    pub(super) fn fill_table(&mut self, interfaces: &[String], vips: &[IpAddr]) {
        let of = |v6: bool| vips.iter().filter(move |vip| vip.is_ipv6() == v6).map(octets).collect::<Vec<_>>();
        self.add_set(IPV4, &of(false));
        self.add_set(IPV6, &of(true));
        self.add_rules();
        for (number, interface) in interfaces.iter().enumerate() {
            self.add_ingress(&format!("ingress{number}"), interface);
        }
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
            // What a backend answers to this node's checks, which the kernel knows nothing of: it would reset them. Source
            // address; protocol.
            for protocol in [TCP, UDP] {
                self.drop_answers(
                    ethertype_is(tag, ETHERTYPE_IPV4),
                    in_set(IPV4, 12),
                    payload_is(NETWORK, 9, &[protocol]),
                );
                self.drop_answers(
                    ethertype_is(tag, ETHERTYPE_IPV6),
                    in_set(IPV6, 8),
                    payload_is(NETWORK, 6, &[protocol]),
                );
            }
        }
    }

    fn drop_answers(&mut self, mut when: Vec<Expressions>, from_vip: [Expressions; 2], protocol: [Expressions; 2]) {
        when.extend(from_vip);
        when.extend(protocol);
        when.push(load(TRANSPORT, 2, 2));
        when.push(compared(Operator::GreatherThanEqual, &CHECK_PORTS.start().to_be_bytes()));
        when.push(compared(Operator::LessThanEqual, &CHECK_PORTS.end().to_be_bytes()));
        self.drop(when);
    }

    fn drop_vips(&mut self, mut when: Vec<Expressions>, vip: [Expressions; 2]) {
        when.extend(vip);
        self.drop(when);
    }

    fn drop(&mut self, when: Vec<Expressions>) {
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
}

/// An address as it stands in a set.
pub(super) fn octets(vip: &IpAddr) -> Vec<u8> {
    match vip {
        IpAddr::V4(vip) => vip.octets().to_vec(),
        IpAddr::V6(vip) => vip.octets().to_vec(),
    }
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
    compared(Operator::Equal, bytes)
}

fn compared(operator: Operator, bytes: &[u8]) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(bytes.to_vec())),
    ])
}
