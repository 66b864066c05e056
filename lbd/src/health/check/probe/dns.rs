//! A question for a name server (RFC 1035), by UDP.

use std::str::FromStr as _;

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use lb_raft_store::table::{DnsProbe, DnsRecord};

use super::super::answer::{Failure, said};

/// Each question has a flow of its own, so its number tells nothing.
const ID: u16 = 0x6c62;

pub(super) fn question(probe: &DnsProbe) -> Result<Vec<u8>, Failure> {
    let mut name = Name::from_str(&probe.name).map_err(|error| said(error.to_string()))?;
    name.set_fqdn(true);
    let mut message = Message::new(ID, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind(probe)));
    message.to_vec().map_err(|error| said(error.to_string()))
}

pub(super) fn judge(probe: &DnsProbe, answer: &[u8]) -> Result<(), Failure> {
    let message = Message::from_vec(answer).map_err(|error| said(format!("what came is no DNS message: {error}")))?;
    if message.metadata.message_type != MessageType::Response || message.metadata.id != ID {
        return Err(said("what came is no answer to the question"));
    }
    let (name, kind) = (&probe.name, kind(probe));
    match message.metadata.response_code {
        ResponseCode::NoError => {}
        code => return Err(said(format!("the answer to {name} {kind} is {code}"))),
    }
    let is_there = message.answers.iter().any(|record| record.record_type() == kind);
    is_there.then_some(()).ok_or_else(|| said(format!("the answer has no {kind} record of {name}")))
}

fn kind(probe: &DnsProbe) -> RecordType {
    match probe.record {
        DnsRecord::A => RecordType::A,
        DnsRecord::Aaaa => RecordType::AAAA,
        DnsRecord::Ns => RecordType::NS,
        DnsRecord::Soa => RecordType::SOA,
        DnsRecord::Mx => RecordType::MX,
        DnsRecord::Txt => RecordType::TXT,
    }
}
