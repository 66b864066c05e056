//! Which node a VIP goes to: the least loaded able node, the preferred one first. A function of the
//! table alone, so that every node comes to the same answer.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{
    Table,
    node::{Attachment, Node, Role, Silence},
    types::{Cidr, NodeId},
    vip::Vip,
};

/// By what a node notices that it is cut off from a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// Most of the backends there do not answer it.
    Backends,
    /// The gateway there does not.
    Gateway,
}

impl Sign {
    const ALL: &'static [Self] = &[Self::Backends, Self::Gateway];

    fn on(self, attachment: &Attachment) -> Silence {
        match self {
            Self::Backends => attachment.silence,
            Self::Gateway => attachment.gateway_silence,
        }
    }
}

/// How many VIPs each node has, those on their way to it included.
pub(in crate::table) type Loads = BTreeMap<NodeId, usize>;

impl Table {
    /// Whether a node can own a VIP: it forwards and says so, holds a ready lease and is where the VIP lives.
    pub fn is_able(&self, id: NodeId, vip: &Vip) -> bool {
        let Some(node) = self.nodes.get(&id) else { return false };
        let on_segment = |attachment: &Attachment| match vip.settings.segment {
            Some(segment) => segment.contains(attachment.address),
            None => {
                attachment.segment().is_some_and(|segment| segment.contains(vip.settings.address))
                    || self.is_routed(vip)
            }
        };
        node.role == Role::Lb
            && node.unfit.is_empty()
            && self.leases.get(&id).is_some_and(|lease| lease.ready)
            && node.attachments.iter().any(|a| on_segment(a) && !self.is_isolated(id, a))
            && !self.is_blind(id)
    }

    /// Whether those who should be on some segment leave a node unanswered for long, while another node that could do its work
    /// finds nothing of the kind there nor elsewhere: the node's own way to them is broken. Where every node finds it, they are.
    pub fn is_blind(&self, id: NodeId) -> bool {
        Sign::ALL.iter().any(|sign| self.misses_alone(id, *sign))
    }

    /// The signs by which a node is blind on an attachment.
    pub fn blindness(&self, id: NodeId, attachment: &Attachment) -> impl Iterator<Item = Sign> {
        let signs = Sign::ALL.iter().copied();
        signs.filter(move |sign| sign.on(attachment) == Silence::Lasting && self.misses_alone(id, *sign))
    }

    fn misses_alone(&self, id: NodeId, sign: Sign) -> bool {
        let Some(node) = self.nodes.get(&id) else { return false };
        let silent = node.attachments.iter().filter(|a| sign.on(a) == Silence::Lasting);
        let segments: BTreeSet<Cidr> = silent.filter_map(Attachment::segment).collect();
        let sees = |other: &Node| {
            other.unfit.is_empty()
                && self.leases.get(&other.id).is_some_and(|lease| lease.ready)
                && other.attachments.iter().all(|a| sign.on(a) == Silence::None)
                && other.attachments.iter().filter_map(Attachment::segment).any(|segment| segments.contains(&segment))
        };
        !segments.is_empty() && self.nodes().any(|other| other.id != id && sees(other))
    }

    /// Whether a node hears no other one on a segment while others hear each other there: its own link to it is
    /// broken, whatever its carrier says. Of two nodes alone nobody can tell whose it is.
    pub fn is_isolated(&self, id: NodeId, attachment: &Attachment) -> bool {
        let lives = |other: NodeId| self.leases.contains_key(&other);
        let hears = |attachment: &Attachment, but: NodeId| attachment.hears.iter().any(|h| *h != but && lives(*h));
        let Some(segment) = attachment.segment().filter(|_| !hears(attachment, id)) else { return false };
        self.nodes().filter(|node| node.id != id && lives(node.id)).any(|node| {
            let there = |a: &&Attachment| a.segment() == Some(segment);
            node.attachments.iter().filter(there).any(|a| hears(a, id))
        })
    }

    /// The VIPs of each node, and those that are to come to it.
    pub(in crate::table) fn loads(&self) -> Loads {
        let mut loads = Loads::new();
        for vip in self.vips() {
            if let Some(node) = vip.intent.or(vip.owner.map(|owner| owner.node)) {
                *loads.entry(node).or_default() += 1;
            }
        }
        loads
    }

    /// The best owner for a VIP, if it is not to be `but`. Better is, in this order: `heard` lately, not
    /// draining, preferred, fewer VIPs, the last owner, the smaller id. `loads` is counted once for many VIPs.
    pub(in crate::table) fn best_owner(
        &self,
        vip: &Vip,
        but: Option<NodeId>,
        loads: &Loads,
        heard: &[NodeId],
    ) -> Option<NodeId> {
        let able = self.nodes().filter(|node| Some(node.id) != but && self.is_able(node.id, vip));
        let best = able.min_by_key(|node| {
            let load = loads.get(&node.id).copied().unwrap_or(0);
            (
                !heard.contains(&node.id),
                node.draining,
                vip.settings.prefer != Some(node.id),
                load,
                vip.home != Some(node.id),
                node.id,
            )
        });
        best.map(|node| node.id)
    }
}
