//! VIPs: what an operator says of them, and what the table adds.

use std::net::IpAddr;

use super::{
    patch::patches,
    types::{Cidr, Epoch, LeaseId, NodeId, Revision},
};
use crate::codec::{numbered, recorded, recorded_with_settings};

/// What happens to a packet for a VIP that no service takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unmatched {
    /// It is dropped and counted.
    #[default]
    Drop,
    /// It is answered by a TCP reset or an ICMP port unreachable.
    Reject,
}

/// What an operator says of a VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VipSettings {
    /// The virtual address.
    pub address: IpAddr,
    /// The node that should own it while it is able to.
    pub prefer: Option<NodeId>,
    /// The network whose nodes answer for it, where that is not simply the one it is in.
    pub segment: Option<Cidr>,
    /// What becomes of packets that no service takes.
    pub unmatched: Unmatched,
}

/// A VIP's owner: who, under which lease, since which grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The node that answers for the VIP.
    pub node: NodeId,
    /// The lease under which it does.
    pub lease: LeaseId,
    /// The grant; it grows with every move.
    pub epoch: Epoch,
}

/// A virtual address and who answers for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vip {
    /// What the operator said.
    pub settings: VipSettings,
    /// Its owner, if any node is able to own it.
    pub owner: Option<Owner>,
    /// While unowned: its last owner, which gets it back if it is as good as any other.
    pub home: Option<NodeId>,
    /// Where it is moving to, once its owner has released it.
    pub intent: Option<NodeId>,
    /// How often it was granted to a node; its first owner asks whether somebody else has the address.
    pub grants: u64,
    /// It vanishes when its owner releases it or its owner's lease ends.
    pub deleting: bool,
    /// The revision of its last change of settings.
    pub revision: Revision,
}

/// A change of a VIP's settings; `None` leaves a value as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the settings that they change")]
pub struct VipPatch {
    pub address: IpAddr,
    pub prefer: Option<Option<NodeId>>,
    pub segment: Option<Option<Cidr>>,
    pub unmatched: Option<Unmatched>,
}

numbered!(Unmatched: Drop, Reject);
recorded!(VipSettings => Vip { address, prefer, segment, unmatched });
recorded_with_settings!(Vip => Vip { owner, home, intent, grants, deleting, revision });
patches!(VipPatch of VipSettings by { address: IpAddr } { prefer, segment, unmatched });
recorded!(VipPatch => VipPatch { address, prefer, segment, unmatched });

recorded!(Owner => Owner { node, lease, epoch });
