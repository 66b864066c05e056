//! Which node a VIP goes to: the least loaded able node, the preferred one first. A function of the
//! table alone, so that every node comes to the same answer.

use super::{
    Table,
    model::{Role, Vip},
    types::NodeId,
};

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

    /// The best owner for a VIP. Better is, in this order: not draining, preferred, fewer VIPs, the
    /// last owner, the smaller id.
    pub(super) fn best_owner(&self, vip: &Vip) -> Option<NodeId> {
        self.nodes().filter(|node| self.is_able(node.id, vip)).map(|node| node.id).min_by_key(|&id| {
            let draining = self.nodes.get(&id).is_some_and(|node| node.draining);
            let load = self.vips_of(id).count();
            (draining, vip.settings.prefer != Some(id), load, vip.home != Some(id), id)
        })
    }
}
