//! Which node a VIP goes to: the least loaded able node, the preferred one first. A function of the
//! table alone, so that every node comes to the same answer.

use std::collections::BTreeMap;

use super::{
    Table,
    model::{Role, Vip},
    types::NodeId,
};

/// How many VIPs each node has, those on their way to it included.
pub(super) type Loads = BTreeMap<NodeId, usize>;

impl Table {
    /// Whether a node can own a VIP: it forwards, holds a ready lease and is where the VIP lives.
    pub fn is_able(&self, id: NodeId, vip: &Vip) -> bool {
        let Some(node) = self.nodes.get(&id) else { return false };
        let on_segment = || match vip.settings.segment {
            Some(segment) => node.attachments.iter().any(|a| segment.contains(a.address)),
            None => node.is_attached_to(vip.settings.address) || self.is_routed(vip),
        };
        node.role == Role::Lb
            && self.leases.get(&id).is_some_and(|lease| lease.ready)
            && !node.attachments.is_empty()
            && on_segment()
    }

    /// The VIPs of each node, and those that are to come to it.
    pub(super) fn loads(&self) -> Loads {
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
    pub(super) fn best_owner(&self, vip: &Vip, but: Option<NodeId>, loads: &Loads, heard: &[NodeId]) -> Option<NodeId> {
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
