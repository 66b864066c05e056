//! Netlink messages, one behind the other, as one datagram takes them.

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};

/// Messages one behind the other, as they are sent.
#[derive(Default)]
pub(super) struct Messages {
    pub(super) bytes: Vec<u8>,
    count: u32,
    /// Where the last message starts.
    last_at: usize,
}

impl Messages {
    pub(super) fn push(
        &mut self,
        message: impl Into<NetfilterMessageInner>,
        family: NetfilterProtoFamily,
        id: u16,
        flags: u16,
    ) {
        let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, id), message);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.count;
        message.finalize();
        let start = self.bytes.len();
        self.last_at = start;
        self.bytes.resize(start + message.buffer_len(), 0);
        message.serialize(&mut self.bytes[start..]);
        self.count += 1;
    }

    /// Has the last one acknowledged: the answers to hundreds would not find room, and what is refused is told in any case.
    pub(super) fn acknowledge_last(&mut self) {
        // struct nlmsghdr: length, type, flags.
        if let Some(flags) = self.bytes.get_mut(self.last_at + 6..).and_then(|rest| rest.first_chunk_mut()) {
            *flags = (u16::from_ne_bytes(*flags) | NLM_F_ACK).to_ne_bytes();
        }
    }
}
