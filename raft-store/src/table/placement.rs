//! Which node a VIP goes to: the least loaded able node, the preferred one first. A function of the
//! table alone, so that every node comes to the same answer.

use std::collections::BTreeMap;

use super::{
    Table,
    model::{Role, Vip},
    types::NodeId,
};

/// How many VIPs are on their way to each node.
pub(super) type Promised = BTreeMap<NodeId, usize>;

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

    /// The best owner for a VIP, if it is not to be `but`. Better is, in this order: not draining,
    /// preferred, fewer VIPs (those that it is promised, too), the last owner, the smaller id.
    pub(super) fn best_owner(&self, vip: &Vip, but: Option<NodeId>, promised: &Promised) -> Option<NodeId> {
        let able = self.nodes().filter(|node| Some(node.id) != but && self.is_able(node.id, vip));
        let best = able.min_by_key(|node| {
            let load = self.vips_of(node.id).count() + promised.get(&node.id).copied().unwrap_or(0);
            (node.draining, vip.settings.prefer != Some(node.id), load, vip.home != Some(node.id), node.id)
        });
        best.map(|node| node.id)
    }
}
