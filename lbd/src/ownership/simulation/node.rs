//! What a node does besides the protocol: it follows the log, publishes its grants, and proposes.

use super::*;

impl World {
    pub(super) fn follow(&mut self, id: NodeId) {
        if !self.runs(id) {
            return;
        }
        let Some((leader, term)) = self.leader else { return };
        if !self.connected(id, leader) || !self.runs(leader) {
            return;
        }
        let now = self.local(id);
        let lead = Lead { leader: Some(leader), term };
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.believes != lead {
            node.believes = lead;
            node.member.on_lead(lead, now);
        }
        let (from, to) = (node.applied, self.log.len());
        if from < to {
            self.apply_up_to(id, to);
        } else {
            self.settle(id);
        }
    }

    /// What the daemon does with a new table: it publishes the plan, and waits until the workers judge by it.
    pub(super) fn publish(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| !node.paused) else { return };
        node.publish_again = node.published.is_some();
        if node.publish_again {
            return;
        }
        let view = self.views[node.applied].clone();
        node.grants.hold(node.member.lease());
        node.published = Some((view.clone(), node.grants.plan(id, &view.table)));
        let life = node.life;
        self.release(id);
        let after = self.some_delay();
        self.schedule(after, Event::TakeUp { node: id, life });
    }

    /// The workers judge by the plan: its lease may be used, and what leaves by it is let go of.
    pub(super) fn take_up(&mut self, id: NodeId) {
        let now = self.local(id);
        let Some(node) = self.nodes.get_mut(&id).filter(|node| !node.paused && !node.halted) else { return };
        let Some((view, plan)) = node.published.take() else { return };
        node.member.on_in_force(plan.lease);
        node.grants.in_force(&plan, &view.table);
        node.plan = plan;
        node.member.on_time(now);
        let (life, again) = (node.life, std::mem::take(&mut node.publish_again));
        let releasing = self.release(id);
        if again || releasing {
            // What stands is given up again.
            self.schedule(if again { 0 } else { 20 * MS }, Event::Publish { node: id, life });
        }
        self.settle(id);
    }

    /// The heartbeat's thread knows whether the node does its work.
    pub(super) fn find_out(&mut self, id: NodeId, fit: bool) {
        let now = self.local(id);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.fit = fit;
        // While it is paused, nobody finds out anything.
        if node.paused {
            return;
        }
        node.member.on_fitness(fit, now);
        self.settle(id);
    }

    /// Its workers go on where they were.
    pub(super) fn unhalt(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.halted = false;
        let (life, publishing) = (node.life, node.published.is_some());
        if publishing {
            self.schedule(0, Event::TakeUp { node: id, life });
        }
        self.schedule(MS, Event::Fitness { node: id, life, fit: true });
    }

    /// Gives up what is silent. Whether there is something.
    pub(super) fn release(&mut self, id: NodeId) -> bool {
        let node = &self.nodes[&id];
        let grants = node.grants.to_release(id, &self.views[node.applied].table);
        let releasing = !grants.is_empty();
        if releasing {
            self.propose(id, Body::Released { grants }, None);
        }
        releasing
    }

    pub(super) fn take_proposal(&mut self, by: NodeId, entry: Entry, term: Option<u64>) {
        let Some((leader, in_term)) = self.leader else { return };
        let reaches = self.connected(by, leader) && self.runs(leader);
        if !reaches || term.is_some_and(|term| term != in_term || by != leader) {
            return;
        }
        let after = self.some_delay();
        self.schedule(after, Event::Commit { leader, term: in_term, entry });
    }
}
