//! Questions of the control plane to the worker: it alone knows its flows. It answers between two batches, so each
//! question is short.

pub(crate) mod report;

use std::{
    net::IpAddr,
    ops::Range,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::Duration,
};

use crate::{
    forward::{decide::Why, flow::FlowEntry},
    packet::{Mac, Tuple},
    verdict::DropReason,
};
pub use report::{BackendReport, Report, VipReport, WorkerReport};

/// A worker looks at its questions at least this often, and answers at once.
const ANSWER: Duration = Duration::from_secs(1);

pub(crate) enum Query {
    /// What would become of this?
    Explain(Question, Reply<Explanation>),
    /// Ask the segments whether somebody else has a VIP that this node owns. How many were asked for.
    ProbeVips(Reply<usize>),
    /// The live flows in these slots, and how many slots there are.
    ListFlows(Range<usize>, Reply<(Vec<FlowEntry>, usize)>),
}

/// Where the answer goes.
pub(crate) struct Reply<T>(SyncSender<T>);

impl<T> Reply<T> {
    /// And where it comes from.
    pub(crate) fn channel() -> (Self, Answer<T>) {
        let (sender, receiver) = sync_channel(1);
        (Self(sender), Answer(receiver))
    }

    /// Nobody may wait any more; and there is room for one.
    pub(crate) fn give(self, answer: T) {
        let _ = self.0.try_send(answer);
    }
}

/// An answer that comes.
pub(crate) struct Answer<T>(Receiver<T>);

impl<T> Answer<T> {
    /// `None` if the worker does not answer in time.
    pub(crate) fn wait(self) -> Option<T> {
        self.0.recv_timeout(ANSWER).ok()
    }
}

/// What is to be explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// A packet of a flow, not the first of a TCP connection.
    Flow(Tuple),
    /// An Ethernet frame as it would arrive. Its MAC addresses do not matter.
    Frame(Vec<u8>),
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A packet of a flow.
    Flow,
    /// A part of a datagram.
    Fragment,
    /// An ICMP error about a packet of a flow.
    IcmpError,
    /// An echo request.
    Echo,
    /// A request or a reply of ARP (RFC 826).
    Arp,
    /// A solicitation or an advertisement of neighbour discovery (RFC 4861).
    Neighbor,
    /// Anything else.
    Other,
}

/// What would become of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is sent to a backend.
    Forward,
    /// It is delivered locally: this node is the backend.
    Deliver,
    /// This node answers it.
    Answer,
    /// It waits for, or goes with, the first fragment of its datagram.
    WithFirstFragment,
    /// It is dropped, and counted under this reason. [`DropReason::Rejected`]: its sender is told.
    Drop(DropReason),
}

/// What would become of a packet, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// What it is.
    pub kind: Kind,
    /// What becomes of it.
    pub outcome: Outcome,
    /// Its flow, if it names one.
    pub tuple: Option<Tuple>,
    /// Where it is sent to, or which address it asks for.
    pub destination: Option<IpAddr>,
    /// That is a VIP.
    pub is_vip: bool,
    /// This node answers for it at this moment.
    pub answers: bool,
    /// The service that takes its port.
    pub service: Option<String>,
    /// The backend.
    pub backend: Option<IpAddr>,
    /// What chose the backend.
    pub why: Option<Why>,
    /// Entries of the service's Maglev table.
    pub table_size: Option<u32>,
    /// The backend's MAC address, if it is known.
    pub mac: Option<Mac>,
    /// The interface that it would leave by.
    pub interface: Option<String>,
}
