//! The rules of nodes' coming and going.

use std::net::SocketAddr;

use super::super::{
    FIRST_FEATURE_LEVEL, Table,
    node::{Attachment, NewNode, Node, host_of},
    rejection::Rejection,
    reply::Effect,
    types::{Name, NodeId},
    vip::Vip,
};

type Outcome = Result<Effect, Rejection>;

impl Table {
    pub(in crate::table) fn add_node(&mut self, index: u64, new: &NewNode) -> Outcome {
        if let Some(node) = self.node_named(new.name.as_str()) {
            return if (node.role, node.address.as_str(), node.store) == (new.role, new.address.as_str(), new.store) {
                Ok(Effect::NodeAdded(node.id))
            } else {
                Err(Rejection::exists(
                    "name",
                    format!(
                        "node {} exists at {} as {} with another store or address: remove it first ('lbctl node \
                         remove {}'); a node whose data was lost is always removed and added anew",
                        node.name, node.address, node.role, node.name
                    ),
                ))
            };
        }
        if let Some(node) = self.nodes().find(|node| node.address == new.address || node.store == new.store) {
            return Err(Rejection::precondition(
                "address",
                format!("{} at {} is node {} already", new.name, new.address, node.name),
            ));
        }
        self.check_cluster_address(&new.name, &new.address)?;
        self.insert_node(index, new)
    }

    /// No node is reached at a VIP: its kernel would not answer there.
    fn check_cluster_address(&self, name: &Name, address: &str) -> Result<(), Rejection> {
        let vip = host_of(address).filter(|host| self.vips.contains_key(host));
        match vip.filter(|_| self.rules().reserved_addresses_are_refused) {
            Some(vip) => {
                Err(Rejection::precondition("address", format!("{vip} is a VIP: {name} cannot be reached there")))
            }
            None => Ok(()),
        }
    }

    pub(in crate::table) fn insert_node(&mut self, id: NodeId, new: &NewNode) -> Outcome {
        let node = Node {
            id,
            name: new.name.clone(),
            role: new.role,
            address: new.address.clone(),
            store: new.store,
            attachments: Vec::new(),
            heartbeat: Vec::new(),
            feature_level: FIRST_FEATURE_LEVEL,
            draining: false,
            unfit: String::new(),
            starts: 0,
        };
        self.nodes.insert_mut(id, node);
        Ok(Effect::NodeAdded(id))
    }

    pub(in crate::table) fn remove_node(&mut self, index: u64, id: NodeId, heartbeat_key: u128) -> Outcome {
        let Some(node) = self.nodes.get(&id) else { return Ok(Effect::Unchanged) };
        if let Some(vip) = self.vips_of(id).next() {
            return Err(Rejection::precondition(
                "node",
                format!("{} owns VIP {}: drain it first", node.name, vip.settings.address),
            ));
        }
        self.end_lease(id);
        self.forget_node(id);
        let newest = self.heartbeat_keys.last().map(|(index, _)| *index);
        self.heartbeat_keys = self.heartbeat_keys().filter(|(index, _)| Some(*index) == newest).collect();
        self.heartbeat_keys.insert_mut(index, heartbeat_key);
        // A VIP on whose segment only this node was is a routed one now: others are able to own it.
        self.place_all(index);
        Ok(Effect::Changed)
    }

    /// Takes a node out, wherever it is named.
    pub(in crate::table) fn forget_node(&mut self, id: NodeId) {
        self.nodes.remove_mut(&id);
        let named: Vec<Vip> = self
            .vips()
            .filter(|vip| [vip.settings.prefer, vip.home, vip.intent].contains(&Some(id)))
            .cloned()
            .collect();
        for mut vip in named {
            for reference in [&mut vip.settings.prefer, &mut vip.home, &mut vip.intent] {
                *reference = reference.filter(|node| *node != id);
            }
            self.vips.insert_mut(vip.settings.address, vip);
        }
    }

    pub(in crate::table) fn publish_node(
        &mut self,
        index: u64,
        id: NodeId,
        attachments: &[Attachment],
        heartbeat: &[SocketAddr],
        feature_level: u32,
        (unfit, starts): (&str, u32),
    ) -> Outcome {
        let before = self.nodes.get(&id).ok_or_else(|| no_node(id))?;
        let node = Node {
            attachments: attachments.to_vec(),
            heartbeat: heartbeat.to_vec(),
            feature_level,
            unfit: unfit.to_owned(),
            // One that was on its way while the node was started again says less.
            starts: before.starts.max(starts),
            ..before.clone()
        };
        if node == *before {
            return Ok(Effect::Unchanged);
        }
        self.nodes.insert_mut(id, node);
        self.place_all(index);
        Ok(Effect::Changed)
    }

    /// A node is reached at another address from now on. Who votes by which address is openraft's to know.
    pub(in crate::table) fn set_node_address(&mut self, id: NodeId, address: &str) -> Outcome {
        let node = self.nodes.get(&id).ok_or_else(|| no_node(id))?.clone();
        if node.address == address {
            return Ok(Effect::Unchanged);
        }
        if let Some(other) = self.nodes().find(|other| other.address == address) {
            return Err(Rejection::precondition("address", format!("{address} is {}'s address", other.name)));
        }
        self.check_cluster_address(&node.name, address)?;
        self.nodes.insert_mut(id, Node { address: address.to_owned(), ..node });
        Ok(Effect::Changed)
    }
}

pub(in crate::table) fn no_node(id: NodeId) -> Rejection {
    Rejection::not_found("node", format!("there is no node {id}: 'lbctl node list' shows them"))
}
