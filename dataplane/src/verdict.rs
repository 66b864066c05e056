//! How a frame ends: sent, answered, or dropped with a reason that is counted. Below everything else, because whoever
//! touches a frame may have to say it.

/// How a frame ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Rewritten in place, to be sent out of this port.
    Forward {
        /// The index of the outgoing interface.
        port: u16,
        /// Bytes behind the packet that are not sent: with them the interface would not take the frame.
        trailer: u16,
        /// To whom, as flow entries name it.
        backend: u32,
    },
    /// Rewritten in place, for local delivery: this node is the backend.
    Deliver {
        /// As flow entries name it; 0 if another node has chosen it.
        backend: u32,
    },
    /// Sent on beside the engine, in another form than it came: in fragments.
    Apart,
    /// Turned in place into an answer, to be sent where it came from.
    Answer,
    /// Kept until the first fragment of its datagram says where it goes.
    Hold,
    /// A copy went to the worker that owns its flow.
    HandOff,
    /// Not sent.
    Drop(DropReason),
}

/// How a frame was counted that is sent after its verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// As one that goes on.
    Forwarded {
        /// To whom, as flow entries name it; 0 if another node has chosen it.
        backend: u32,
        /// What it was counted with.
        bytes: u32,
    },
    /// As an answer.
    Answered,
    /// As one that this node made itself.
    Originated,
    /// Not at all: one more fragment of a packet that was counted with its first.
    Fragment,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)+) => {
        /// Why a frame is not sent. A closed set, so that each has a counter.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason { $($(#[$doc])* $name,)+ }

        impl DropReason {
            /// All of them, in the order of their discriminants.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// As it stands in metrics and on the screen.
            pub fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }
        }
    };
}

reasons! {
    /// Addressed to another station; a switch flooded it.
    NotForUs = "not_for_us",
    /// For no VIP: the node's own traffic, which its kernel handles.
    NotVip = "not_vip",
    /// It carries a VLAN tag and so belongs to another segment.
    VlanTagged = "vlan_tagged",
    /// From no host: a group's or no MAC address, or our own, which came back; or an IP address that no host may have there
    /// (a group's, a broadcast, loopback, none, this node's own, a VIP: RFC 1812 5.3.7).
    BadSource = "bad_source",
    /// Headers that lie about their lengths or do not fit.
    Malformed = "malformed",
    /// Neither IP nor ARP.
    NotIp = "not_ip",
    /// A fragment that overlaps another one of its datagram, or repeats it (RFC 5722).
    FragmentOverlap = "fragment_overlap",
    /// A fragment whose first one did not come in time.
    FragmentTimeout = "fragment_timeout",
    /// A fragment that came before its first one, and had to make room for later ones; or of a datagram in too many
    /// pieces.
    FragmentNoRoom = "fragment_no_room",
    /// An ICMP error that quotes no packet of a flow of the VIP.
    IcmpUnrelated = "icmp_unrelated",
    /// For a VIP, but nothing that is balanced or answered.
    ProtocolUnsupported = "protocol_unsupported",
    /// No service takes the port.
    NoService = "no_service",
    /// No service takes the port, and the sender was told so.
    Rejected = "rejected",
    /// The flow's backend is down, and its service has such flows reset: the VIP's owner does, unless there are too many.
    BackendDown = "backend_down",
    /// The flow's backend is down, and the sender was sent a reset.
    FlowReset = "flow_reset",
    /// The service has no backend that takes flows.
    NoBackend = "no_backend",
    /// The backend's MAC address is not known (yet).
    BackendUnresolved = "backend_unresolved",
    /// The backend is on no segment of this node.
    BackendUnreachable = "backend_unreachable",
    /// It came from the backend that it would go to.
    Hairpin = "hairpin",
    /// It came from another load balancer, which has balanced it already.
    BalancedTwice = "balanced_twice",
    /// Larger than the outgoing interface takes.
    TooBig = "too_big",
    /// ARP that needs no answer of ours, or that we may not give: not the owner, or no valid lease.
    ArpNotOurs = "arp_not_ours",
    /// Another station claims a VIP that we own.
    ArpConflict = "arp_conflict",
    /// Neighbour discovery that needs no answer of ours, or that we may not give.
    NdpNotOurs = "ndp_not_ours",
    /// Another station claims, by neighbour discovery, a VIP that we own.
    NdpConflict = "ndp_conflict",
    /// An echo request to a VIP that another node owns.
    EchoNotOurs = "echo_not_ours",
    /// An echo request to a VIP of ours, of which too many come.
    EchoLimited = "echo_limited",
    /// The ring's slot was too small and the copy did not arrive.
    RingTruncated = "ring_truncated",
    /// The worker that has its flow had too many frames of others to look at.
    HandoverFull = "handover_full",
    /// The outgoing queue was full.
    SendFailed = "send_failed",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_say_of_each_reason_whether_it_is_trouble() {
        let document = include_str!("../../docs/operations.md");
        let section = document.split("\n## ").find(|section| section.starts_with("Drops\n")).unwrap();
        for reason in DropReason::ALL {
            assert!(section.contains(&format!("`{}`", reason.label())), "{reason:?}");
        }
    }
}
