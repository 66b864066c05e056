//! The rules of verdicts: who may give one.

use super::super::{
    Table,
    health::{Health, Verdict},
    reply::Effect,
    types::{LeaseId, NodeId},
};

impl Table {
    /// A node says what it has found of backends. It is heard under its present lease, and on backends of VIPs that it owns;
    /// the rest of what it says is void.
    pub(in crate::table) fn report(&mut self, node: NodeId, lease: LeaseId, verdicts: &[Verdict]) -> Effect {
        if self.lease(node).is_none_or(|held| held.id != lease) {
            return Effect::Unchanged;
        }
        let mut effect = Effect::Unchanged;
        for verdict in verdicts {
            if self.owner_of_backend(verdict.backend) == Some(node) && self.put_verdict(verdict) {
                effect = Effect::Changed;
            }
        }
        effect
    }

    /// Whether it is another one than before.
    fn put_verdict(&mut self, verdict: &Verdict) -> bool {
        match (self.verdicts.get(&verdict.backend), verdict.health) {
            (known, Health::Unchecked) => known.is_some() && self.verdicts.remove_mut(&verdict.backend),
            (Some(known), health) if known.health == health => false,
            _ => {
                self.verdicts.insert_mut(verdict.backend, verdict.clone());
                true
            }
        }
    }

    /// Who owns the VIP that a backend serves.
    fn owner_of_backend(&self, id: u64) -> Option<NodeId> {
        let (service, _) = self.backends_by_id.get(&id)?;
        let vip = self.vip(self.service(service)?.settings.vip)?;
        vip.owner.map(|owner| owner.node)
    }
}
