//! Leases: opened by a process, fenced on evidence. Evidence is weighed here, at apply, and not where it
//! was gathered: what has happened since may have voided it.
//!
//! ```text
//!             OpenLease             Ready
//!   (none) ------------> open -----------------> ready
//!      ^                   |                       |
//!      +---- Fence with sufficient evidence -------+---- OpenLease of the next process: a new lease
//! ```

use std::collections::BTreeSet;

use uuid::Uuid;

use super::{
    super::{
        Table,
        command::{Evidence, Withdrawal},
        lease::{Configuration, Lease},
        node::Node,
        rejection::Rejection,
        reply::Effect,
        types::{LeaseId, Name, NodeId},
    },
    node::no_node,
};

type Outcome = Result<Effect, Rejection>;

impl Table {
    pub(in crate::table) fn open_lease(
        &mut self,
        index: u64,
        node: NodeId,
        nonce: u64,
        previous: Option<LeaseId>,
    ) -> Outcome {
        if !self.nodes.contains_key(&node) {
            return Err(no_node(node));
        }
        // Compare-and-set: an entry that was delayed or sent twice must not end a newer lease.
        if self.leases.get(&node).map(|lease| lease.id) != previous {
            return Ok(Effect::Unchanged);
        }
        self.end_lease(node);
        let id = LeaseId(index);
        // The holder has applied this entry, so it counts in this configuration or in a later one.
        let configuration = self.configuration().index;
        self.leases.insert_mut(node, Lease { id, nonce, ready: false, configuration });
        self.disown_all(index, node, &[]);
        Ok(Effect::LeaseOpened(id))
    }

    pub(in crate::table) fn ready(&mut self, index: u64, node: NodeId, lease: LeaseId) -> Outcome {
        match self.leases.get(&node) {
            Some(held) if held.id == lease && !held.ready => {
                let held = Lease { ready: true, ..*held };
                self.leases.insert_mut(node, held);
                self.place_all(index);
                Ok(Effect::Changed)
            }
            _ => Ok(Effect::Unchanged),
        }
    }

    pub(in crate::table) fn confirm(&mut self, node: NodeId, lease: LeaseId, configuration: u64) -> Outcome {
        let known = self.configurations.contains_key(&configuration);
        match self.leases.get(&node) {
            Some(held) if held.id == lease && known && held.configuration < configuration => {
                let held = Lease { configuration, ..*held };
                self.leases.insert_mut(node, held);
                self.forget_old_configurations();
                Ok(Effect::Changed)
            }
            _ => Ok(Effect::Unchanged),
        }
    }

    pub(in crate::table) fn fence(
        &mut self,
        index: u64,
        node: NodeId,
        lease: LeaseId,
        evidence: &Evidence,
        heard: &[NodeId],
    ) -> Outcome {
        if !self.suffices(node, lease, evidence) {
            return Ok(Effect::Unchanged);
        }
        self.end_lease(node);
        self.disown_all(index, node, heard);
        Ok(Effect::Changed)
    }

    /// Whether the evidence, as things are now, ends that lease.
    pub fn suffices(&self, node: NodeId, lease: LeaseId, evidence: &Evidence) -> bool {
        let Some(held) = self.leases.get(&node).filter(|held| held.id == lease) else { return false };
        match evidence {
            // Who releases falls silent before; the operator's word is that nobody is there to speak.
            Evidence::OwnRelease | Evidence::Operator => true,
            Evidence::Obituary { nonce } => held.nonce == *nonce,
            Evidence::Withdrawals(withdrawals) => {
                let against: BTreeSet<NodeId> = withdrawals
                    .iter()
                    .filter(|withdrawal| self.counts(node, withdrawal))
                    .map(|withdrawal| withdrawal.supporter)
                    .collect();
                // The holder may count in any configuration since the one that it has confirmed.
                self.configurations_of(held).all(|configuration| configuration.is_blocked_by(&against))
            }
        }
    }

    /// Whether a withdrawal still stands.
    fn counts(&self, node: NodeId, withdrawal: &Withdrawal) -> bool {
        let supporter = withdrawal.supporter;
        supporter != node
            && self.leases.get(&supporter).is_some_and(|own| own.id == withdrawal.lease)
            && self.retractions.get(&(node, supporter)).is_none_or(|since| withdrawal.as_of >= *since)
    }

    /// The entry before which the supporter's evidence against the holder's present lease is void.
    pub fn retraction(&self, node: NodeId, supporter: NodeId) -> Option<u64> {
        self.retractions.get(&(node, supporter)).copied()
    }

    /// The configurations in which a holder may be counting.
    fn configurations_of(&self, lease: &Lease) -> impl Iterator<Item = &Configuration> {
        self.configurations.range(lease.configuration..).map(|(_, configuration)| configuration)
    }

    /// Whether every holder counts in the present configuration: the next change may begin.
    pub fn is_configuration_confirmed(&self) -> bool {
        let present = self.configuration().index;
        self.leases.values().all(|lease| lease.configuration >= present)
    }

    pub(in crate::table) fn retract(
        &mut self,
        index: u64,
        (supporter, supporter_lease): (NodeId, LeaseId),
        (node, lease): (NodeId, LeaseId),
    ) -> Outcome {
        let holds = |id: NodeId, lease: LeaseId| self.leases.get(&id).is_some_and(|held| held.id == lease);
        if !holds(supporter, supporter_lease) || !holds(node, lease) {
            return Ok(Effect::Unchanged);
        }
        self.retractions.insert_mut((node, supporter), index);
        Ok(Effect::Changed)
    }

    /// A membership entry was applied: who votes from now on.
    pub fn configure(&mut self, index: u64, halves: Vec<BTreeSet<NodeId>>) {
        self.configurations.insert_mut(index, Configuration { index, halves });
        self.forget_old_configurations();
    }

    /// A lease and all that was said about it.
    pub(in crate::table) fn end_lease(&mut self, node: NodeId) {
        if self.leases.remove_mut(&node) {
            let about = |(holder, supporter): &(NodeId, NodeId)| *holder == node || *supporter == node;
            let past: Vec<(NodeId, NodeId)> = self.retractions.keys().filter(|key| about(key)).copied().collect();
            for key in past {
                self.retractions.remove_mut(&key);
            }
            self.forget_old_configurations();
        }
    }

    /// The table of a new cluster in which `me` is the only node: of all that concerns nodes nothing else is left.
    /// The new cluster's id and key; the node's address and store. And the names of those that are not part of it.
    pub(crate) fn recovered(
        &self,
        me: NodeId,
        (cluster, heartbeat_key): (Uuid, u128),
        (address, store): (&str, Uuid),
        index: u64,
    ) -> (Self, Vec<Name>) {
        let mut table = self.clone();
        let lost: Vec<NodeId> = self.nodes().map(|node| node.id).filter(|id| *id != me).collect();
        let names = lost.iter().filter_map(|id| self.node(*id)).map(|node| node.name.clone()).collect();
        for holder in self.nodes().map(|node| node.id) {
            table.end_lease(holder);
            table.disown_all(index, holder, &[]);
        }
        for id in &lost {
            table.forget_node(*id);
        }
        if let Some(node) = self.node(me) {
            let node = Node { address: address.to_owned(), store, draining: false, starts: 0, ..node.clone() };
            table.nodes.insert_mut(me, node);
        }
        table.cluster = cluster;
        table.heartbeat_keys = [(index, heartbeat_key)].into_iter().collect();
        table.configurations =
            [index].into_iter().map(|i| (i, Configuration { index, halves: vec![[me].into()] })).collect();
        table.revision = index;
        (table, names)
    }

    fn forget_old_configurations(&mut self) {
        let present = self.configuration().index;
        let oldest = self.leases.values().map(|lease| lease.configuration).min().unwrap_or(present).min(present);
        while let Some(first) = self.configurations.keys().next().copied().filter(|first| *first < oldest) {
            self.configurations.remove_mut(&first);
        }
    }
}
