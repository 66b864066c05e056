//! Applying entries: what every entry goes through, and which rule each kind is handed to. The rules are with the nouns that
//! they are about.

mod backend;
mod bounds;
mod health;
mod lease;
mod node;
mod ownership;
mod placement;
mod progress;
mod requests;
mod segment;
mod service;
mod settings;
mod vip;

use std::net::IpAddr;

use super::{
    Table,
    command::{Body, Command, Expected, Mutation},
    rejection::Rejection,
    reply::{Effect, Reply},
    types::{BOOTSTRAP_NODE, Cidr, Name, NodeId, Revision},
};

pub use placement::Sign;

type Outcome = Result<Effect, Rejection>;

/// How many VIPs, services, backends and segments an entry has touched so far.
type Marks = [usize; 4];

/// What an entry did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// What it is answered.
    pub reply: Reply,
    /// The rows that it touched; none if it was refused.
    pub touched: Touched,
}

/// The rows that an entry touched, by kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Touched {
    /// VIPs whose settings changed, or that came or went.
    pub vips: Vec<IpAddr>,
    /// VIPs of which only the owner, or where they are going, changed.
    pub owners: Vec<IpAddr>,
    /// Services that changed, came or went.
    pub services: Vec<Name>,
    /// Backends that changed, came or went.
    pub backends: Vec<(Name, IpAddr)>,
    /// Backends, by their ids, of which something else was found.
    pub verdicts: Vec<u64>,
    /// Segments that changed, came or went.
    pub segments: Vec<Cidr>,
    /// Nodes that changed, came or went.
    pub nodes: Vec<NodeId>,
    /// Holders of leases.
    pub leases: Vec<NodeId>,
    /// Settings of the whole cluster, or its identity.
    pub cluster: bool,
}

impl Touched {
    /// How many rows.
    pub fn rows(&self) -> usize {
        let Self { vips, owners, services, backends, verdicts, segments, nodes, leases, cluster } = self;
        let rows = [vips.len(), owners.len(), services.len(), backends.len(), verdicts.len()];
        let others = [segments.len(), nodes.len(), leases.len(), usize::from(*cluster)];
        rows.iter().chain(&others).sum()
    }

    /// Whether it changes how frames are forwarded: more than who owns what.
    pub fn changes_forwarding(&self) -> bool {
        let Self { vips, owners: _, services, backends, verdicts, segments, nodes, leases: _, cluster } = self;
        let rows = [vips.len(), services.len(), backends.len(), verdicts.len(), segments.len(), nodes.len()];
        *cluster || rows.iter().any(|touched| *touched > 0)
    }
}

impl Table {
    /// Applies the entry at `index`. The table changes only if the reply says so.
    pub fn apply(&mut self, index: u64, command: &Command) -> Applied {
        if let Some(reply) = self.already_answered(command) {
            return Applied { reply, touched: Touched::default() };
        }
        // On a copy: a command that fails half-way leaves nothing behind.
        let mut next = self.clone();
        let result = next.apply_whole(index, command);
        let mut touched = Touched::default();
        if let Ok(effect) = result {
            if effect != Effect::Unchanged && command.body.moves_revision() {
                next.revision = index;
            }
            if effect != Effect::Unchanged && command.body.is_configuration() && self.rules().requests_have_time {
                next.config_revision = index;
            }
            next.remember(index, command, effect);
            touched = next.take_touched(self);
            *self = next;
        }
        Applied { reply: Reply { revision: self.revision, result }, touched }
    }

    /// All of an entry, and then what must hold of all that it has touched: its changes may be in any order.
    fn apply_whole(&mut self, index: u64, command: &Command) -> Outcome {
        if !command.is_allowed_at(self.feature_level) {
            return Err(Rejection::precondition(
                "feature_level",
                format!(
                    "it needs feature level {}, and the cluster is at {}: every node must run a version that knows it",
                    command.needs_level(),
                    self.feature_level
                ),
            ));
        }
        self.check_expected(command)?;
        let mut marks = Vec::new();
        let effect = self.dispatch(index, command, &mut marks)?;
        if effect == Effect::Unchanged {
            return Ok(effect);
        }
        match command.body {
            Body::Mutate(_) => {
                self.check_touched(&marks)?;
                // Where nothing about VIPs changed, nothing is placed anew.
                if !self.vips.touched().is_empty() {
                    self.place_all(index);
                }
            }
            Body::AddNode(_) => self.check_bounds()?,
            _ => {}
        }
        Ok(effect)
    }

    fn dispatch(&mut self, index: u64, command: &Command, marks: &mut Vec<Marks>) -> Outcome {
        match &command.body {
            Body::CreateCluster { cluster, cluster_name, hash_seed, heartbeat_key, node } => {
                if !self.cluster.is_nil() {
                    return Err(Rejection::precondition("cluster", "the cluster exists already".into()));
                }
                self.cluster = *cluster;
                self.cluster_name = Some(cluster_name.clone());
                self.hash_seed = *hash_seed;
                self.heartbeat_keys.insert_mut(index, *heartbeat_key);
                self.insert_node(BOOTSTRAP_NODE, node)
            }
            Body::Mutate(mutations) => self.mutate(index, command.stamp_ms, mutations, marks),
            Body::AddNode(node) => self.add_node(index, node),
            Body::RemoveNode { node, heartbeat_key } => self.remove_node(index, *node, *heartbeat_key),
            Body::PublishNode { node, attachments, heartbeat, feature_level, unfit, starts } => {
                self.publish_node(index, *node, attachments, heartbeat, *feature_level, (unfit, *starts))
            }
            Body::SetNodeAddress { node, address } => self.set_node_address(*node, address),
            Body::SetDraining { node, draining } => self.set_draining(index, *node, *draining),
            Body::OpenLease { node, nonce, previous } => self.open_lease(index, *node, *nonce, *previous),
            Body::Ready { node, lease } => self.ready(index, *node, *lease),
            Body::Fence { node, lease, evidence, heard } => self.fence(index, *node, *lease, evidence, heard),
            Body::Confirm { node, lease, configuration } => self.confirm(*node, *lease, *configuration),
            Body::Retract { supporter, supporter_lease, node, lease } => {
                self.retract(index, (*supporter, *supporter_lease), (*node, *lease))
            }
            Body::UpdateSettings(settings) => self.update_settings(*settings),
            Body::PatchSettings(patch) => self.update_settings(patch.of(self.settings)),
            Body::Rebalance => Ok(self.rebalance()),
            Body::RaiseFeatureLevel { level } => Ok(self.raise_feature_level(*level)),
            Body::Report { node, lease, verdicts } => Ok(self.report(*node, *lease, verdicts)),
            Body::Progress { drained, shares } => Ok(self.progress(drained, shares)),
            Body::Released { grants } => self.released(index, grants),
            Body::MoveIntent { vip, to } => self.move_intent(index, *vip, *to),
        }
    }

    fn mutate(&mut self, index: u64, stamp_ms: u64, mutations: &[Mutation], marks: &mut Vec<Marks>) -> Outcome {
        let mut effect = Effect::Unchanged;
        for (at, mutation) in mutations.iter().enumerate() {
            let changed = self.mutate_one(index, stamp_ms, mutation).map_err(|error| self.blame(at, error))?;
            if changed {
                effect = Effect::Changed;
            }
            marks.push(self.marks());
        }
        Ok(effect)
    }

    /// Whether the mutation changed anything.
    fn mutate_one(&mut self, index: u64, stamp_ms: u64, mutation: &Mutation) -> Result<bool, Rejection> {
        match mutation {
            Mutation::CreateVip(settings) => self.create_vip(index, settings),
            Mutation::UpdateVip(patch) => self.patch_vip(index, patch),
            Mutation::DeleteVip { address, cascade } => Ok(self.delete_vip(index, *address, *cascade)),
            Mutation::CreateService(settings) => self.create_service(index, settings),
            Mutation::UpdateService(patch) => self.patch_service(index, patch),
            Mutation::DeleteService { name, cascade } => Ok(self.delete_service(name, *cascade)),
            Mutation::CreateBackend(settings) => self.create_backend(index, stamp_ms, settings),
            Mutation::UpdateBackend(patch) => self.patch_backend(index, stamp_ms, patch),
            Mutation::DeleteBackend { service, address } => Ok(self.delete_backend(service, *address)),
            Mutation::CreateSegment(settings) => self.create_segment(index, settings),
            Mutation::UpdateSegment(patch) => self.patch_segment(index, patch),
            Mutation::DeleteSegment { network } => Ok(self.delete_segment(network)),
            Mutation::PatchSettings(patch) => Ok(self.update_settings(patch.of(self.settings))? != Effect::Unchanged),
        }
    }

    /// Whether what the caller has seen is so still.
    pub fn check_expected(&self, command: &Command) -> Result<(), Rejection> {
        let expected = command.expected_revision;
        if expected == 0 {
            return Ok(());
        }
        let (what, at) = match (command.expected_of, &command.body) {
            (Expected::Table, _) => ("the table".to_owned(), self.revision),
            (Expected::Object, Body::Mutate(mutations)) if mutations.len() == 1 => self.revision_of(&mutations[0]),
            (Expected::Object, Body::MoveIntent { vip, .. }) => {
                (format!("VIP {vip}"), self.vip(*vip).map_or(0, |vip| vip.revision))
            }
            (Expected::Object | Expected::Configuration, _) => ("the configuration".to_owned(), self.config_revision()),
        };
        let is_as_seen = match command.expected_of {
            Expected::Table => at == expected,
            // Nobody has seen what has not been.
            Expected::Object | Expected::Configuration => at <= expected && expected <= self.revision,
        };
        if is_as_seen {
            return Ok(());
        }
        Err(Rejection::precondition(
            "expected_revision",
            format!("{what} is at revision {at}, not {expected}: read it again and decide anew"),
        ))
    }

    /// What a mutation is about, and the revision of its last change; 0 if it is not there.
    fn revision_of(&self, mutation: &Mutation) -> (String, Revision) {
        let vip = |address: IpAddr| (format!("VIP {address}"), self.vip(address).map_or(0, |vip| vip.revision));
        let service = |name: &Name| (format!("service {name}"), self.service(name).map_or(0, |of| of.revision));
        let backend = |service: &Name, address: IpAddr| {
            let revision = self.backend(service, address).map_or(0, |backend| backend.revision);
            (format!("backend {address} of {service}"), revision)
        };
        let segment =
            |network: Cidr| (format!("segment {network}"), self.segment(&network).map_or(0, |of| of.revision));
        match mutation {
            Mutation::CreateVip(settings) => vip(settings.address),
            Mutation::UpdateVip(patch) => vip(patch.address),
            Mutation::DeleteVip { address, .. } => vip(*address),
            Mutation::CreateService(settings) => service(&settings.name),
            Mutation::UpdateService(patch) => service(&patch.name),
            Mutation::DeleteService { name, .. } => service(name),
            Mutation::CreateBackend(settings) => backend(&settings.service, settings.address),
            Mutation::UpdateBackend(patch) => backend(&patch.service, patch.address),
            Mutation::DeleteBackend { service, address } => backend(service, *address),
            Mutation::CreateSegment(settings) => segment(settings.network),
            Mutation::UpdateSegment(patch) => segment(patch.network),
            Mutation::DeleteSegment { network } => segment(*network),
            Mutation::PatchSettings(_) => ("the configuration".to_owned(), self.config_revision()),
        }
    }

    /// What must hold of the rows that the entry has touched. `marks`: how many were touched after each mutation.
    fn check_touched(&self, marks: &[Marks]) -> Result<(), Rejection> {
        let blame = |kind: usize, at: usize| {
            move |rejection| self.blame(marks.partition_point(|mark| mark[kind] <= at), rejection)
        };
        let vips = self.vips.touched().iter().enumerate().map(|(at, vip)| self.check_vip(*vip).map_err(blame(0, at)));
        let services = self.services.touched().iter().enumerate();
        let services = services.map(|(at, service)| self.check_service(service).map_err(blame(1, at)));
        let backends = self.backends.touched().iter().enumerate();
        let backends = backends.map(|(at, (of, address))| self.check_backend(of, *address).map_err(blame(2, at)));
        let segments = self.segments.touched().iter().enumerate();
        let segments = segments.map(|(at, network)| self.check_segment(network).map_err(blame(3, at)));
        // Of two mutations that do not go together the later one is named.
        let wrong = vips.chain(services).chain(backends).chain(segments).filter_map(Result::err);
        if let Some(rejection) = wrong.max_by_key(|rejection| rejection.mutation) {
            return Err(rejection);
        }
        self.check_bounds()
    }

    /// It is this mutation that is refused; nodes below feature level 11 could not read that.
    fn blame(&self, mutation: usize, rejection: Rejection) -> Rejection {
        let mutation = u32::try_from(mutation).ok().filter(|_| self.rules().requests_have_time);
        Rejection { mutation, ..rejection }
    }

    fn marks(&self) -> Marks {
        [
            self.vips.touched().len(),
            self.services.touched().len(),
            self.backends.touched().len(),
            self.segments.touched().len(),
        ]
    }

    /// What an entry has touched, each row once.
    fn take_touched(&mut self, before: &Self) -> Touched {
        let mut vips = self.vips.take_touched();
        vips.sort_unstable();
        vips.dedup();
        let (vips, owners) = vips.into_iter().partition(|address| {
            let of =
                |table: &Self| table.vips.get(address).map(|vip| (vip.settings.clone(), vip.deleting, vip.revision));
            of(self) != of(before)
        });
        Touched {
            vips,
            owners,
            services: once(self.services.take_touched()),
            backends: once(self.backends.take_touched()),
            verdicts: once(self.verdicts.take_touched()),
            segments: once(self.segments.take_touched()),
            nodes: once(self.nodes.take_touched()),
            leases: once(self.leases.take_touched()),
            cluster: self.settings != before.settings
                || self.cluster != before.cluster
                || self.feature_level != before.feature_level,
        }
    }
}

fn once<K: Ord>(mut keys: Vec<K>) -> Vec<K> {
    keys.sort_unstable();
    keys.dedup();
    keys
}

#[cfg(test)]
mod tests;
