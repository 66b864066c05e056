//! Who owns which VIP: grants, releases, moves. The entry that ends a lease ([`super::lease`]) places its
//! VIPs anew, so there is no moment at which a VIP has two owners or is forgotten.
//!
//! A VIP's row:
//!
//! ```text
//!              place                MoveIntent            Released (owner let go)
//!   unowned ---------> owned ----------------> leaving -----------------------> owned, new epoch
//!      ^                 |  lease ends             |  lease ends                    (or unowned)
//!      +-----------------+-------------------------+---> placed anew in the same entry
//!
//!   deleting + (Released | lease ends) ---> gone
//! ```

use std::net::IpAddr;

use super::{
    super::{
        Table,
        rejection::Rejection,
        reply::Effect,
        types::{Epoch, NodeId},
        vip::{Owner, Vip},
    },
    node::no_node,
};

type Outcome = Result<Effect, Rejection>;

impl Table {
    pub(in crate::table) fn released(&mut self, index: u64, grants: &[(IpAddr, Epoch)]) -> Outcome {
        let mut effect = Effect::Unchanged;
        for (address, epoch) in grants {
            let vip = self.vips.get(address).filter(|vip| vip.owner.is_some_and(|owner| owner.epoch == *epoch));
            let Some(vip) = vip.cloned() else { continue };
            effect = Effect::Changed;
            self.disown(&vip);
            if let Some(to) = vip.intent.filter(|&to| self.is_able(to, &vip)) {
                self.grant(index, *address, to);
            }
        }
        if effect == Effect::Changed {
            // Nobody else able: it goes back to the node that released it, under a new epoch. And if the target
            // is drained meanwhile, it moves on from there.
            self.place_all(index);
        }
        Ok(effect)
    }

    pub(in crate::table) fn move_intent(&mut self, index: u64, address: IpAddr, to: NodeId) -> Outcome {
        let Some(target) = self.nodes.get(&to) else { return Err(no_node(to)) };
        let Some(vip) = self.vips.get(&address).filter(|vip| !vip.deleting) else {
            return Err(Rejection::not_found("vip", format!("there is no VIP {address}")));
        };
        if vip.owner.is_some_and(|owner| owner.node == to) && vip.intent.is_none() {
            return Ok(Effect::Unchanged);
        }
        if !self.is_able(to, vip) {
            return Err(Rejection::precondition(
                "node",
                format!(
                    "{} cannot own {address} now: it is a witness, has no lease, or is not on the VIP's segment or \
                     cut off from it ('lbctl status' shows it)",
                    target.name
                ),
            ));
        }
        if target.draining {
            return Err(Rejection::precondition(
                "node",
                format!("{0} is drained: 'lbctl node undrain {0}' lets it own VIPs again", target.name),
            ));
        }
        match vip.owner {
            None => self.grant(index, address, to),
            Some(owner) => {
                let intent = Some(to).filter(|to| *to != owner.node);
                let vip = Vip { intent, ..vip.clone() };
                self.vips.insert_mut(address, vip);
            }
        }
        Ok(Effect::Changed)
    }

    /// Marks a node and asks its VIPs to leave it, each for the best of the other able nodes.
    pub(in crate::table) fn set_draining(&mut self, index: u64, id: NodeId, draining: bool) -> Outcome {
        let Some(node) = self.nodes.get(&id) else { return Err(no_node(id)) };
        let mut node = node.clone();
        let marked = node.draining != draining;
        node.draining = draining;
        self.nodes.insert_mut(id, node);
        let changed = if draining { self.send_away(id) } else { self.call_back(id) };
        if marked {
            // A node that is not drained any more takes what others that are have had to keep.
            self.place_all(index);
        }
        Ok(if marked || changed { Effect::Changed } else { Effect::Unchanged })
    }

    /// Gives every VIP of a draining node that has none an intent. Whether there was anything to do.
    fn send_away(&mut self, id: NodeId) -> bool {
        let staying = self.vips_of(id).filter(|vip| vip.intent.is_none() && !vip.deleting).cloned().collect();
        self.send_to_others(staying)
    }

    /// Gives every VIP whose owner is not able any more (it lost the segment) an intent.
    fn leave_the_unable(&mut self) {
        let unable = |vip: &&Vip| {
            let owner = vip.owner.filter(|_| vip.intent.is_none() && !vip.deleting);
            owner.is_some_and(|owner| !self.is_able(owner.node, vip))
        };
        let leaving = self.vips().filter(unable).cloned().collect();
        self.send_to_others(leaving);
    }

    /// Gives owned VIPs an intent, each for the best of the other nodes. Whether there was one for any.
    fn send_to_others(&mut self, leaving: Vec<Vip>) -> bool {
        if leaving.is_empty() {
            return false;
        }
        // Each VIP that leaves counts for its target already, so that they spread.
        let mut loads = self.loads();
        let mut changed = false;
        for vip in leaving {
            let owner = vip.owner.map(|owner| owner.node);
            let target = self.best_owner(&vip, owner, &loads, &[]);
            if let Some(to) = target.filter(|to| self.nodes.get(to).is_some_and(|node| !node.draining)) {
                *loads.entry(to).or_default() += 1;
                self.vips.insert_mut(vip.settings.address, Vip { intent: Some(to), ..vip });
                changed = true;
            }
        }
        changed
    }

    /// Gives VIPs intents until no node has two more than another one that could own one of them. As few as that
    /// takes; a VIP on the node that it prefers stays.
    pub(in crate::table) fn rebalance(&mut self) -> Effect {
        let mut loads = self.loads();
        let mut effect = Effect::Unchanged;
        let settled: Vec<Vip> = self.vips().filter(|vip| vip.intent.is_none() && !vip.deleting).cloned().collect();
        for vip in settled {
            let Some(owner) = vip.owner.map(|owner| owner.node).filter(|node| vip.settings.prefer != Some(*node))
            else {
                continue;
            };
            let load = |node: NodeId| loads.get(&node).copied().unwrap_or(0);
            let target = self.best_owner(&vip, Some(owner), &loads, &[]);
            let target = target.filter(|to| self.nodes.get(to).is_some_and(|node| !node.draining));
            let Some(to) = target.filter(|to| load(*to) + 1 < load(owner)) else { continue };
            *loads.entry(owner).or_default() -= 1;
            *loads.entry(to).or_default() += 1;
            self.vips.insert_mut(vip.settings.address, Vip { intent: Some(to), ..vip });
            effect = Effect::Changed;
        }
        effect
    }

    /// Takes the intents of a node's VIPs back.
    fn call_back(&mut self, id: NodeId) -> bool {
        let leaving: Vec<Vip> = self.vips_of(id).filter(|vip| vip.intent.is_some()).cloned().collect();
        let changed = !leaving.is_empty();
        for vip in leaving {
            self.vips.insert_mut(vip.settings.address, Vip { intent: None, ..vip });
        }
        changed
    }

    /// A node may be able now that was not, or the reverse: what nobody owns finds an owner, and what nodes keep
    /// that should not own it is asked to leave.
    pub(in crate::table) fn place_all(&mut self, index: u64) {
        self.place_unowned(index);
        self.leave_the_unable();
        let draining: Vec<NodeId> = self.nodes().filter(|node| node.draining).map(|node| node.id).collect();
        for id in draining {
            self.send_away(id);
        }
    }

    /// Gives every unowned VIP to its best able node.
    pub(in crate::table) fn place_unowned(&mut self, index: u64) {
        self.place_unowned_with(index, &[]);
    }

    /// The same; those that were `heard` lately come first, if anybody was.
    pub(in crate::table) fn place_unowned_with(&mut self, index: u64, heard: &[NodeId]) {
        let unowned: Vec<Vip> = self.vips().filter(|vip| vip.owner.is_none()).cloned().collect();
        if unowned.is_empty() {
            return;
        }
        let mut loads = self.loads();
        for vip in unowned {
            if let Some(node) = self.best_owner(&vip, None, &loads, heard) {
                *loads.entry(node).or_default() += 1;
                self.grant(index, vip.settings.address, node);
            }
        }
    }

    /// Takes everything from a node and places it anew.
    pub(in crate::table) fn disown_all(&mut self, index: u64, node: NodeId, heard: &[NodeId]) {
        let held: Vec<Vip> = self.vips_of(node).cloned().collect();
        for vip in &held {
            self.disown(vip);
        }
        self.place_unowned_with(index, heard);
    }

    /// Takes a VIP from its owner; one that is being deleted is gone with it.
    fn disown(&mut self, vip: &Vip) {
        let address = vip.settings.address;
        if vip.deleting {
            self.vips.remove_mut(&address);
        } else {
            let home = vip.owner.map(|owner| owner.node);
            self.vips.insert_mut(address, Vip { owner: None, home, intent: None, ..vip.clone() });
        }
    }

    fn grant(&mut self, index: u64, address: IpAddr, node: NodeId) {
        let (Some(vip), Some(lease)) = (self.vips.get(&address), self.leases.get(&node)) else { return };
        let owner = Owner { node, lease: lease.id, epoch: Epoch(index) };
        let vip = Vip { owner: Some(owner), home: None, intent: None, grants: vip.grants + 1, ..vip.clone() };
        self.vips.insert_mut(address, vip);
    }
}
