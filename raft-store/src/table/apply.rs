//! Changes to VIPs, services and backends: bounds, invariants, request ids. Leases and ownership are
//! in [`super::ownership`].

use std::{
    hash::Hasher,
    net::{IpAddr, SocketAddr},
};

use siphasher::sip::SipHasher13;

use super::{
    Answered, Command, FIRST_FEATURE_LEVEL, Table, bounds,
    command::{Effect, Mutate, Mutation, NewNode, Rejection, Reply, RequestId},
    model::{
        AdminState, Attachment, Backend, BackendSettings, ClusterSettings, Node, PortRange, Service, ServiceSettings,
        TABLE_SIZES, Vip, VipSettings,
    },
    types::{BOOTSTRAP_NODE, MacAddr, Name, NodeId, Revision, Weight, is_host_address},
    wire,
};

type Outcome = Result<Effect, Rejection>;

impl Table {
    /// Applies the entry at `index`. The table changes only if the reply says so.
    pub fn apply(&mut self, index: u64, command: &Command) -> Reply {
        if let Some(answered) = self.already_answered(command) {
            return answered;
        }
        // On a copy: a command that fails half-way leaves nothing behind.
        let mut next = self.clone();
        let result = next.dispatch(index, command);
        if let Ok(effect) = result {
            if effect != Effect::Unchanged {
                next.revision = index;
            }
            next.remember(index, command, effect);
            *self = next;
        }
        Reply { revision: self.revision, result }
    }

    fn dispatch(&mut self, index: u64, command: &Command) -> Outcome {
        match command {
            Command::CreateCluster { cluster, cluster_name, hash_seed, heartbeat_key, node } => {
                if !self.cluster.is_nil() {
                    return Err(Rejection::precondition("cluster", "the cluster exists already".into()));
                }
                self.cluster = *cluster;
                self.cluster_name = Some(cluster_name.clone());
                self.hash_seed = *hash_seed;
                self.heartbeat_keys.insert_mut(index, *heartbeat_key);
                self.insert_node(BOOTSTRAP_NODE, node)
            }
            Command::Mutate(mutate) => self.mutate(index, mutate),
            Command::AddNode(node) => self.add_node(index, node),
            Command::RemoveNode { node, heartbeat_key } => self.remove_node(index, *node, *heartbeat_key),
            Command::PublishNode { node, attachments, heartbeat, feature_level } => {
                self.publish_node(index, *node, attachments, heartbeat, *feature_level)
            }
            Command::SetDraining { request: _, expected_revision, node, draining } => {
                self.check_revision(*expected_revision)?;
                self.set_draining(index, *node, *draining)
            }
            Command::OpenLease { node, nonce, previous } => self.open_lease(index, *node, *nonce, *previous),
            Command::Ready { node, lease } => self.ready(index, *node, *lease),
            Command::Fence { node, lease, evidence, heard } => self.fence(index, *node, *lease, evidence, heard),
            Command::Confirm { node, lease, configuration } => self.confirm(*node, *lease, *configuration),
            Command::Retract { supporter, supporter_lease, node, lease } => {
                self.retract(index, (*supporter, *supporter_lease), (*node, *lease))
            }
            Command::UpdateSettings { request: _, expected_revision, settings } => {
                self.check_revision(*expected_revision)?;
                self.update_settings(*settings)
            }
            Command::Rebalance { request: _, expected_revision } => {
                self.check_revision(*expected_revision)?;
                Ok(self.rebalance())
            }
            Command::RaiseFeatureLevel { level } => Ok(self.raise_feature_level(*level)),
            Command::Released { grants } => self.released(index, grants),
            Command::MoveIntent { request: _, expected_revision, vip, to } => {
                self.check_revision(*expected_revision)?;
                self.move_intent(index, *vip, *to)
            }
        }
    }

    fn mutate(&mut self, index: u64, mutate: &Mutate) -> Outcome {
        self.check_revision(mutate.expected_revision)?;
        let mut effect = Effect::Unchanged;
        for mutation in &mutate.mutations {
            if self.mutate_one(index, mutation)? {
                effect = Effect::Changed;
            }
        }
        if effect == Effect::Changed {
            self.place_all(index);
        }
        Ok(effect)
    }

    fn check_revision(&self, expected: Revision) -> Result<(), Rejection> {
        if expected == 0 || expected == self.revision {
            return Ok(());
        }
        Err(Rejection::precondition(
            "expected_revision",
            format!("the table is at revision {}, not {expected}: read it again and decide anew", self.revision),
        ))
    }

    /// Whether the mutation changed anything.
    fn mutate_one(&mut self, index: u64, mutation: &Mutation) -> Result<bool, Rejection> {
        match mutation {
            Mutation::CreateVip(settings) => self.create_vip(index, settings),
            Mutation::UpdateVip { address, prefer, segment, unmatched } => {
                let mut settings = self.settled_vip(*address)?.settings.clone();
                settings.prefer = prefer.unwrap_or(settings.prefer);
                settings.segment = segment.unwrap_or(settings.segment);
                settings.unmatched = unmatched.unwrap_or(settings.unmatched);
                self.update_vip(index, settings)
            }
            Mutation::DeleteVip { address, cascade } => self.delete_vip(index, *address, *cascade),
            Mutation::CreateService(settings) => self.create_service(index, settings),
            Mutation::UpdateService { name, ports, affinity } => {
                let service = self.services.get(name).ok_or_else(|| no_service(name))?;
                let mut settings = service.settings.clone();
                settings.ports = ports.clone().unwrap_or(settings.ports);
                settings.affinity = affinity.unwrap_or(settings.affinity);
                self.update_service(index, settings)
            }
            Mutation::DeleteService { name, cascade } => self.delete_service(name, *cascade),
            Mutation::CreateBackend(settings) => self.create_backend(index, settings),
            Mutation::UpdateBackend { service, address, weight, mac, state } => {
                self.update_backend(index, service, *address, *weight, *mac, *state)
            }
            Mutation::DeleteBackend { service, address } => Ok(self.backends.remove_mut(&(service.clone(), *address))),
        }
    }

    fn create_vip(&mut self, index: u64, settings: &VipSettings) -> Result<bool, Rejection> {
        let address = settings.address;
        if let Some(vip) = self.vips.get(&address) {
            return match vip {
                vip if vip.deleting => Err(still_deleting(address)),
                vip if vip.settings == *settings => Ok(false),
                _ => Err(Rejection::exists(
                    "vip",
                    format!("VIP {address} exists with other settings: change them with 'lbctl vip set {address}'"),
                )),
            };
        }
        if !is_host_address(address) {
            return Err(Rejection::invalid("address", format!("{address} is no address that a host can have")));
        }
        self.check_prefer(settings.prefer)?;
        if let Some((node, attachment)) = self.node_with(address) {
            return Err(Rejection::precondition(
                "address",
                format!(
                    "{address} is {}'s own address on {}: a VIP must be configured on no machine but the backends' loopbacks",
                    node.name, attachment.interface
                ),
            ));
        }
        if let Some(backend) = self.backends().find(|b| b.settings.address == address) {
            return Err(Rejection::precondition(
                "address",
                format!("{address} is a backend of service {}", backend.settings.service),
            ));
        }
        bounded("VIPs", self.vips.size(), bounds::VIPS)?;
        let vip = Vip {
            settings: settings.clone(),
            owner: None,
            home: None,
            intent: None,
            grants: 0,
            deleting: false,
            revision: index,
        };
        self.vips.insert_mut(address, vip);
        Ok(true)
    }

    fn update_vip(&mut self, index: u64, settings: VipSettings) -> Result<bool, Rejection> {
        self.check_prefer(settings.prefer)?;
        let mut vip = self.settled_vip(settings.address)?.clone();
        if vip.settings == settings {
            return Ok(false);
        }
        let address = settings.address;
        vip.settings = settings;
        vip.revision = index;
        self.vips.insert_mut(address, vip);
        Ok(true)
    }

    fn delete_vip(&mut self, index: u64, address: IpAddr, cascade: bool) -> Result<bool, Rejection> {
        let Some(vip) = self.vips.get(&address).filter(|vip| !vip.deleting) else { return Ok(false) };
        let mut vip = vip.clone();
        let services: Vec<Name> = self.services_on(address).map(|s| s.settings.name.clone()).collect();
        if !services.is_empty() && !cascade {
            return Err(has_dependants(&format!("VIP {address}"), "service", &services));
        }
        for service in &services {
            self.delete_service(service, true)?;
        }
        if vip.owner.is_some() {
            vip.deleting = true;
            vip.revision = index;
            self.vips.insert_mut(address, vip);
        } else {
            self.vips.remove_mut(&address);
        }
        Ok(true)
    }

    fn create_service(&mut self, index: u64, settings: &ServiceSettings) -> Result<bool, Rejection> {
        let name = &settings.name;
        if let Some(service) = self.services.get(name) {
            if service.settings == *settings {
                return Ok(false);
            }
            return Err(Rejection::exists(
                "service",
                format!("service {name} exists with other settings: change them with 'lbctl service set {name}'"),
            ));
        }
        self.settled_vip(settings.vip)?;
        if !TABLE_SIZES.contains(&settings.table_size) {
            return Err(Rejection::invalid(
                "table_size",
                format!("{} is none of 4093, 16381, 65537, 655373", settings.table_size),
            ));
        }
        self.check_ports(settings)?;
        bounded("services", self.services.size(), bounds::SERVICES)?;
        self.services.insert_mut(name.clone(), Service { settings: settings.clone(), revision: index });
        Ok(true)
    }

    fn update_service(&mut self, index: u64, settings: ServiceSettings) -> Result<bool, Rejection> {
        self.check_ports(&settings)?;
        if self.services.get(&settings.name).is_some_and(|service| service.settings == settings) {
            return Ok(false);
        }
        self.services.insert_mut(settings.name.clone(), Service { settings, revision: index });
        Ok(true)
    }

    fn check_ports(&self, settings: &ServiceSettings) -> Result<(), Rejection> {
        let ports = &settings.ports;
        if ports.is_empty() || ports.len() > bounds::PORTS_PER_SERVICE {
            return Err(Rejection::invalid(
                "ports",
                format!("{} port ranges; a service has 1 to {}", ports.len(), bounds::PORTS_PER_SERVICE),
            ));
        }
        for (i, port) in ports.iter().enumerate() {
            if port.first > port.last {
                return Err(Rejection::invalid("ports", format!("{port} ends before it begins")));
            }
            if let Some(twin) = ports[..i].iter().find(|other| other.collides_with(port)) {
                return Err(Rejection::invalid("ports", format!("{twin} and {port} overlap")));
            }
        }
        let others = self.services_on(settings.vip).filter(|other| other.settings.name != settings.name);
        for other in others {
            let collides = |port: &&PortRange| other.settings.ports.iter().any(|taken| taken.collides_with(port));
            if let Some(port) = ports.iter().find(collides) {
                return Err(Rejection::precondition(
                    "ports",
                    format!("{port} on {} belongs to service {}", settings.vip, other.settings.name),
                ));
            }
        }
        Ok(())
    }

    fn delete_service(&mut self, name: &Name, cascade: bool) -> Result<bool, Rejection> {
        let backends: Vec<IpAddr> = self.backends_of(name).map(|b| b.settings.address).collect();
        if !backends.is_empty() && !cascade {
            return Err(has_dependants(&format!("service {name}"), "backend", &backends));
        }
        for address in backends {
            self.backends.remove_mut(&(name.clone(), address));
        }
        Ok(self.services.remove_mut(name))
    }

    fn create_backend(&mut self, index: u64, settings: &BackendSettings) -> Result<bool, Rejection> {
        let (service, address) = (&settings.service, settings.address);
        if let Some(backend) = self.backend(service, address) {
            if backend.settings == *settings {
                return Ok(false);
            }
            return Err(Rejection::exists(
                "backend",
                format!(
                    "backend {address} of {service} exists with other settings: change them with \
                     'lbctl backend set {service} {address}'"
                ),
            ));
        }
        if !self.services.contains_key(service) {
            return Err(no_service(service));
        }
        if !is_host_address(address) {
            return Err(Rejection::invalid("address", format!("{address} is no address that a host can have")));
        }
        if self.vips.contains_key(&address) {
            return Err(Rejection::precondition(
                "address",
                format!("{address} is a VIP: name the backend by its own address"),
            ));
        }
        if settings.mac.is_none() && !self.nodes().any(|node| node.is_attached_to(address)) {
            return Err(Rejection::precondition(
                "address",
                format!(
                    "{address} is on no node's segment: direct server return needs the backend on a segment of the \
                     load balancers ('lbctl node list' shows them), or name its MAC with --mac"
                ),
            ));
        }
        bounded("backends", self.backends.size(), bounds::BACKENDS)?;
        let id = self.next_backend_id;
        self.next_backend_id += 1;
        let backend = Backend { settings: settings.clone(), id, revision: index };
        self.backends.insert_mut((service.clone(), address), backend);
        Ok(true)
    }

    fn update_backend(
        &mut self,
        index: u64,
        service: &Name,
        address: IpAddr,
        weight: Option<Weight>,
        mac: Option<Option<MacAddr>>,
        state: Option<AdminState>,
    ) -> Result<bool, Rejection> {
        let Some(before) = self.backend(service, address) else {
            return Err(Rejection::not_found(
                "backend",
                format!("service {service} has no backend {address}: 'lbctl backend list {service}' shows them"),
            ));
        };
        let mut backend = before.clone();
        let settings = &mut backend.settings;
        settings.weight = weight.unwrap_or(settings.weight);
        settings.mac = mac.unwrap_or(settings.mac);
        settings.state = state.unwrap_or(settings.state);
        if backend == *before {
            return Ok(false);
        }
        backend.revision = index;
        self.backends.insert_mut((service.clone(), address), backend);
        Ok(true)
    }

    fn add_node(&mut self, index: u64, new: &NewNode) -> Outcome {
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
        bounded("nodes", self.nodes.size(), bounds::NODES)?;
        self.insert_node(index, new)
    }

    fn insert_node(&mut self, id: NodeId, new: &NewNode) -> Outcome {
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
        };
        self.nodes.insert_mut(id, node);
        Ok(Effect::NodeAdded(id))
    }

    fn remove_node(&mut self, index: u64, id: NodeId, heartbeat_key: u128) -> Outcome {
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
    pub(super) fn forget_node(&mut self, id: NodeId) {
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

    fn publish_node(
        &mut self,
        index: u64,
        id: NodeId,
        attachments: &[Attachment],
        heartbeat: &[SocketAddr],
        feature_level: u32,
    ) -> Outcome {
        let mut node = self.nodes.get(&id).ok_or_else(|| no_node(id))?.clone();
        if node.attachments == attachments && node.heartbeat == heartbeat && node.feature_level == feature_level {
            return Ok(Effect::Unchanged);
        }
        node.attachments = attachments.to_vec();
        node.heartbeat = heartbeat.to_vec();
        node.feature_level = feature_level;
        self.nodes.insert_mut(id, node);
        self.place_all(index);
        Ok(Effect::Changed)
    }

    fn update_settings(&mut self, settings: ClusterSettings) -> Outcome {
        if let Some(problem) = settings.timing.problem() {
            return Err(Rejection::invalid("timing", problem));
        }
        if let Some((name, problem)) = settings.flow_timeouts.problem() {
            return Err(Rejection::invalid(name, problem));
        }
        if self.settings == settings {
            return Ok(Effect::Unchanged);
        }
        self.settings = settings;
        self.longest_withdraw_ms = self.longest_withdraw_ms.max(settings.timing.withdraw_ms);
        Ok(Effect::Changed)
    }

    fn raise_feature_level(&mut self, level: u32) -> Effect {
        let known = self.nodes().map(|node| node.feature_level).min().unwrap_or(0);
        if level <= self.feature_level || level > known {
            return Effect::Unchanged;
        }
        self.feature_level = level;
        Effect::Changed
    }

    fn check_prefer(&self, prefer: Option<NodeId>) -> Result<(), Rejection> {
        match prefer {
            Some(id) if !self.nodes.contains_key(&id) => Err(no_node(id)),
            _ => Ok(()),
        }
    }

    /// A VIP that is not on its way out.
    fn settled_vip(&self, address: IpAddr) -> Result<&Vip, Rejection> {
        match self.vips.get(&address) {
            None => Err(Rejection::not_found(
                "vip",
                format!("there is no VIP {address}: 'lbctl vip add {address}' creates it"),
            )),
            Some(vip) if vip.deleting => Err(still_deleting(address)),
            Some(vip) => Ok(vip),
        }
    }

    fn node_with(&self, address: IpAddr) -> Option<(&Node, &Attachment)> {
        self.nodes().find_map(|node| {
            let attachment = node.attachments.iter().find(|a| a.address == address)?;
            Some((node, attachment))
        })
    }

    /// The reply to a request id that was seen before.
    fn already_answered(&self, command: &Command) -> Option<Reply> {
        let answered = self.requests.get(request_of(command)?)?;
        let result = if answered.fingerprint == fingerprint(command) {
            Ok(answered.effect)
        } else {
            Err(Rejection::invalid("request_id", "it was used for another request: choose a new one"))
        };
        Some(Reply { revision: answered.revision, result })
    }

    fn remember(&mut self, index: u64, command: &Command, effect: Effect) {
        let Some(request) = request_of(command) else { return };
        let answered = Answered { index, fingerprint: fingerprint(command), effect, revision: self.revision };
        self.requests.insert_mut(request.clone(), answered);
        self.request_order.insert_mut(index, request.clone());
        if self.requests.size() > bounds::REQUESTS
            && let Some((oldest, request)) = self.request_order.first().map(|(i, r)| (*i, r.clone()))
        {
            self.request_order.remove_mut(&oldest);
            self.requests.remove_mut(&request);
        }
    }
}

fn request_of(command: &Command) -> Option<&RequestId> {
    match command {
        Command::Mutate(mutate) => mutate.request.as_ref(),
        Command::MoveIntent { request, .. }
        | Command::SetDraining { request, .. }
        | Command::Rebalance { request, .. }
        | Command::UpdateSettings { request, .. } => request.as_ref(),
        _ => None,
    }
}

/// Of what the command asks for; two commands under one request id must agree in it.
fn fingerprint(command: &Command) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(&wire::encode_command(command));
    hasher.finish()
}

fn bounded(what: &str, size: usize, bound: usize) -> Result<(), Rejection> {
    if size < bound {
        Ok(())
    } else {
        Err(Rejection::exhausted(what, format!("the table holds {size} {what}, as many as it takes")))
    }
}

fn no_service(name: &Name) -> Rejection {
    Rejection::not_found(
        "service",
        format!("there is no service {name}: 'lbctl service add {name} --vip IP --port 80/tcp' creates it"),
    )
}

pub(super) fn no_node(id: NodeId) -> Rejection {
    Rejection::not_found("node", format!("there is no node {id}: 'lbctl node list' shows them"))
}

fn still_deleting(address: IpAddr) -> Rejection {
    Rejection::precondition(
        "vip",
        format!("VIP {address} is being removed: its owner has yet to let go of it; try again in a second"),
    )
}

fn has_dependants(whole: &str, part: &str, parts: &[impl ToString]) -> Rejection {
    const SHOWN: usize = 5;
    let mut names: Vec<String> = parts.iter().take(SHOWN).map(ToString::to_string).collect();
    if parts.len() > SHOWN {
        names.push(format!("{} more", parts.len() - SHOWN));
    }
    let plural = if parts.len() == 1 { "" } else { "s" };
    Rejection::precondition(
        "dependants",
        format!("{whole} has {part}{plural} {}: remove them first, or all together with --cascade", names.join(", ")),
    )
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
