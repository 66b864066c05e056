//! The rules of verdicts: who may give one.

use super::super::{
    Table,
    health::{Health, Verdict},
    reply::Effect,
    types::{LeaseId, Name, NodeId},
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
            let may_say = self.owner_of_backend(verdict.backend) == Some(node) && self.is_asked(verdict);
            let before = self.verdicts.get(&verdict.backend).map_or(Health::Unchecked, |known| known.health);
            if may_say && self.put_verdict(verdict) {
                effect = Effect::Changed;
                if !before.is_good() && verdict.health.is_good() {
                    self.take_flows_again(verdict.backend);
                }
            }
        }
        effect
    }

    fn take_flows_again(&mut self, id: u64) {
        let Some(before) = self.backend_with_id(id) else { return };
        let mut backend = before.clone();
        self.begin_to_rise(&mut backend);
        if backend != *before {
            self.put_backend(backend);
        }
    }

    /// What checks say of a backend of a service that has none any more comes too late.
    fn is_asked(&self, verdict: &Verdict) -> bool {
        let service = self.backends_by_id.get(&verdict.backend).and_then(|(service, _)| self.service(service));
        !verdict.health.is_of_checks() || service.is_some_and(|service| !service.settings.checks.is_empty())
    }

    /// Whether it is another one than before.
    fn put_verdict(&mut self, verdict: &Verdict) -> bool {
        match (self.verdicts.get(&verdict.backend), verdict.health) {
            (known, Health::Unchecked) => known.is_some() && self.verdicts.remove_mut(&verdict.backend),
            (Some(known), Health::Unhealthy) if known.health == Health::Unhealthy && known.reason != verdict.reason => {
                // It is as it was, for another reason.
                let verdict = Verdict { since_ms: known.since_ms, ..verdict.clone() };
                self.verdicts.insert_mut(verdict.backend, verdict);
                true
            }
            (Some(known), health) if known.health == health => false,
            _ => {
                self.verdicts.insert_mut(verdict.backend, verdict.clone());
                true
            }
        }
    }

    /// What checks have said of the backends of a service that has none any more holds no longer.
    pub(in crate::table) fn forget_checks(&mut self, service: &Name) {
        let is_of_checks = |id: &u64| self.verdicts.get(id).is_some_and(|verdict| verdict.health.is_of_checks());
        let backends: Vec<u64> = self.backends_of(service).map(|backend| backend.id).filter(is_of_checks).collect();
        for backend in backends {
            self.verdicts.remove_mut(&backend);
        }
    }

    /// Who owns the VIP that a backend serves.
    fn owner_of_backend(&self, id: u64) -> Option<NodeId> {
        let (service, _) = self.backends_by_id.get(&id)?;
        let vip = self.vip(self.service(service)?.settings.vip)?;
        vip.owner.map(|owner| owner.node)
    }
}
