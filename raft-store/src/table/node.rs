//! Nodes: the machines that run `lbd`.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use uuid::Uuid;

use super::types::{Cidr, MacAddr, Name, NodeId};
use crate::codec::{DecodeError, Field, numbered, record, recorded};

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// It forwards and votes.
    #[default]
    Lb,
    /// It votes only.
    Witness,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lb => "lb",
            Self::Witness => "witness",
        })
    }
}

/// An address of a node on one of its listed interfaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The interface's name on that node.
    pub interface: String,
    /// The interface's MAC.
    pub mac: MacAddr,
    /// The node's own address there.
    pub address: IpAddr,
    /// The length of that network's prefix.
    pub prefix_len: u8,
    /// The other nodes that answer ARP there, sorted.
    pub hears: Vec<NodeId>,
    /// Whether most of the backends there leave the node unanswered. Feature level 6 where they do.
    pub silence: Silence,
    /// Whether the segment's gateway does. Feature level 10 where it does.
    pub gateway_silence: Silence,
}

/// Whether those who should be on a segment leave a node unanswered: most of the backends, or the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Silence {
    /// They answer, or there are none.
    #[default]
    None,
    /// They do not since a moment ago: others may not have noticed yet.
    Begun,
    /// They do not for so long that every node has noticed for which it is so.
    Lasting,
}

impl Field<u32> for Silence {
    fn put(&self) -> u32 {
        *self as u32
    }

    fn read(number: u32) -> Result<Self, DecodeError> {
        match number {
            0 => Ok(Self::None),
            1 => Ok(Self::Begun),
            2 => Ok(Self::Lasting),
            _ => Err(DecodeError::too_new(0)),
        }
    }
}

impl Attachment {
    /// The network that this attaches the node to.
    pub fn segment(&self) -> Option<Cidr> {
        Cidr::containing(self.address, self.prefix_len)
    }
}

/// A machine that runs `lbd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its name, unique in the cluster.
    pub name: Name,
    /// What it does.
    pub role: Role,
    /// Its cluster address, `HOST:PORT`.
    pub address: String,
    /// The identity of its store; another store under the same id is refused.
    pub store: Uuid,
    /// The addresses on its listed interfaces, as it published them.
    pub attachments: Vec<Attachment>,
    /// Where it listens for heartbeats, as it published them.
    pub heartbeat: Vec<SocketAddr>,
    /// The highest feature level that it knows.
    pub feature_level: u32,
    /// It shall own nothing while another node can.
    pub draining: bool,
    /// Why it can own no VIP now, as it published it; empty where it can.
    pub unfit: String,
    /// How often it was started on its store, as it published it.
    pub starts: u32,
}

impl Node {
    /// Whether that is its cluster address, where it is no name.
    pub fn is_reached_at(&self, address: IpAddr) -> bool {
        host_of(&self.address) == Some(address)
    }

    /// Whether the node is on the segment that `address` is in.
    pub fn is_attached_to(&self, address: IpAddr) -> bool {
        self.attachments.iter().filter_map(Attachment::segment).any(|s| s.contains(address))
    }
}

/// The IP address in a `HOST:PORT`, where HOST is no name.
pub(super) fn host_of(address: &str) -> Option<IpAddr> {
    let (host, _) = address.rsplit_once(':')?;
    host.trim_matches(['[', ']']).parse().ok()
}

/// A machine that joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewNode {
    /// Its name.
    pub name: Name,
    /// What it does.
    pub role: Role,
    /// Its cluster address.
    pub address: String,
    /// The identity of its store.
    pub store: Uuid,
}

numbered!(Role: Lb, Witness);
recorded!(NewNode => NewNode { name, role, address, store });
recorded!(Attachment => Attachment { interface, mac, address, prefix_len, hears, silence, gateway_silence });

impl Field<record::Node> for Node {
    fn put(&self) -> record::Node {
        let settings =
            NewNode { name: self.name.clone(), role: self.role, address: self.address.clone(), store: self.store };
        record::Node {
            id: self.id,
            settings: settings.put(),
            attachments: self.attachments.put(),
            heartbeat: self.heartbeat.put(),
            feature_level: self.feature_level,
            draining: self.draining,
            unfit: self.unfit.clone(),
            starts: self.starts,
        }
    }

    fn read(record: record::Node) -> Result<Self, DecodeError> {
        let NewNode { name, role, address, store } =
            Field::read(record.settings).map_err(|error: DecodeError| error.named("node"))?;
        Ok(Self {
            id: record.id,
            name,
            role,
            address,
            store,
            attachments: Field::read(record.attachments)?,
            heartbeat: Field::read(record.heartbeat).map_err(|error: DecodeError| error.named("heartbeat"))?,
            feature_level: record.feature_level,
            draining: record.draining,
            unfit: record.unfit,
            starts: record.starts,
        })
    }
}
