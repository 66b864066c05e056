//! What is promised, and checked after every event or in the end.

use super::*;

impl World {
    /// The nodes that answer for a VIP at this moment.
    pub(super) fn owners(&self, address: IpAddr) -> Vec<NodeId> {
        let answers = |(_, node): &(&NodeId, &Node)| {
            if !node.up || node.paused || node.halted {
                return false;
            }
            let local = local_time(self.now, node.offset, node.drift_ppm);
            node.plan.answered.contains_key(&address) && node.member.valid_until_ns() > local
        };
        self.nodes.iter().filter(answers).map(|(id, _)| *id).collect()
    }

    /// P1
    pub(super) fn check_owners(&self) {
        for number in 0..VIPS {
            let owners = self.owners(vip(number));
            assert!(owners.len() <= 1, "P1: {} has the owners {owners:?} at {} us", vip(number), self.now / US);
        }
    }

    /// P2, P4 and P5, when everything has been well for a while.
    pub(super) fn check_the_end(&self) {
        if self.trace {
            for (id, node) in &self.nodes {
                eprintln!(
                    "{id}: up {} paused {} applied {} of {} plan {:?} local {} {:?}",
                    node.up,
                    node.paused,
                    node.applied,
                    self.log.len(),
                    node.plan,
                    self.local(*id),
                    node.member
                );
            }
        }
        self.check_verdicts();
        let table = &self.newest().table;
        for vip in table.vips() {
            let address = vip.settings.address;
            let able = table.nodes().any(|node| table.is_able(node.id, vip));
            assert!(able, "P2: nobody is able to own {address}: {:?}", table.leases().collect::<Vec<_>>());
            assert_eq!(self.owners(address).len(), 1, "P2: {address} is not answered: {vip:?}");
        }
        for (id, node) in &self.nodes {
            let member = table.node(*id).is_some() && self.deaf != Some(*id);
            assert!(!member || node.member.lease().is_some(), "P2: node {id} holds no lease at the end");
            let mut standing = node.member.standing_withdrawals();
            standing.retain(|(of, _)| self.deaf != Some(*of));
            assert!(standing.is_empty() || !member, "P2: node {id} has withdrawn from {standing:?}");
        }
        let draining = table.nodes().filter(|node| node.draining).count();
        for vip in table.vips() {
            let owner = vip.owner.expect("an owner").node;
            let owner = table.node(owner).expect("a node");
            let others = table.nodes().filter(|node| table.is_able(node.id, vip)).count() > draining;
            assert!(!owner.draining || !others, "P4: a draining node keeps {}", vip.settings.address);
        }
    }
}
