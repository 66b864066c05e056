//! The replicated table: pure, without openraft, sled, clock or random numbers. Every node applies
//! the same entries in the same order and so holds the same table.
//!
//! Before: `consensus` gets an entry agreed on, `store::state_machine` hands it here. After:
//! [`crate::View`] shows the new table to the daemon.
//!
//! A file a noun: its settings, its patch, its record, its rules. [`apply`](mod@apply) is what every entry goes through.

mod apply;
mod backend;
mod check;
mod checking;
mod command;
mod encoding;
#[cfg(test)]
pub(crate) mod golden;
mod health;
mod lease;
mod node;
mod patch;
mod rejection;
mod reply;
mod requests;
mod rows;
mod rules;
mod saved;
mod segment;
mod service;
mod settings;
mod types;
mod vip;

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::Bound,
};

use rpds::RedBlackTreeMapSync as Map;
use uuid::Uuid;

pub use apply::{Applied, Sign, Touched};
pub use backend::{AdminState, Backend, BackendPatch, BackendSettings, Share, Tier};
pub use check::{Check, DnsProbe, DnsRecord, GrpcProbe, HttpProbe, Probe, Rhythm, TlsProbe, UdpProbe};
pub use command::{Body, Command, Evidence, Expected, Mutation, Principal, Withdrawal, decode_command, encode_command};
pub(crate) use encoding::{decode_table, encode_table};
pub use health::{Health, Takers, Takes, Verdict};
pub use lease::{Configuration, Lease};
pub use node::{Attachment, NewNode, Node, Role, Silence};
pub use rejection::{Rejection, RejectionKind};
pub use reply::{Effect, Reply, decode_reply, encode_reply};
pub use requests::RequestId;
pub use rules::Rules;
pub use saved::{decode_saved, encode_saved, restore};
pub use segment::{Segment, SegmentPatch, SegmentSettings};
pub use service::{
    Affinity, DEFAULT_TABLE_SIZE, PortRange, Protocol, Service, ServicePatch, ServiceSettings, TABLE_SIZES,
};
pub use settings::{CLOCK_DRIFT_PPM, ClusterSettings, FlowTimeouts, QuorumLoss, SettingsPatch, Timing};
pub use types::{
    BOOTSTRAP_NODE, Cidr, Epoch, LeaseId, MacAddr, Name, NodeId, ParseError, Revision, Weight, check_cluster_address,
    is_host_address,
};
pub use vip::{Owner, Unmatched, Vip, VipPatch, VipSettings};

pub use crate::codec::{DecodeError, feature_level};
use requests::{Answered, Kept};
use rows::Rows;

/// The level of every table before it is raised, whichever build reads it: equal on all nodes.
const FIRST_FEATURE_LEVEL: u32 = 1;

/// A backend's key: its service and its address.
pub type BackendKey = (Name, IpAddr);

/// The table as it is after some entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    cluster: Uuid,
    cluster_name: Option<Name>,
    hash_seed: u128,
    feature_level: u32,
    revision: Revision,
    next_backend_id: u64,
    nodes: Rows<NodeId, Node>,
    leases: Rows<NodeId, Lease>,
    /// By the index of their entries: the present one, and before it as many as an open lease may count in.
    configurations: Map<u64, Configuration>,
    /// For (holder, supporter): evidence older than this entry is void.
    retractions: Map<(NodeId, NodeId), u64>,
    settings: ClusterSettings,
    /// The longest promise that was ever asked for: a restarted node may have given one.
    longest_withdraw_ms: u32,
    /// By the index of the entry that each came with: the present one and the one before.
    heartbeat_keys: Map<u64, u128>,
    segments: Rows<Cidr, Segment>,
    vips: Rows<IpAddr, Vip>,
    services: Rows<Name, Service>,
    backends: Rows<BackendKey, Backend>,
    /// What was found of backends, by their ids; of the others nothing.
    verdicts: Rows<u64, Verdict>,
    /// The services of each VIP.
    services_by_vip: Map<(IpAddr, Name), ()>,
    /// The backends of each address.
    backends_by_address: Map<(IpAddr, Name), ()>,
    /// Which backend has an id.
    backends_by_id: Map<u64, BackendKey>,
    requests: Map<RequestId, Answered>,
    /// The index of the entry that brought each remembered request, so that the oldest of its kind is found.
    request_order: Map<(Kept, u64), RequestId>,
    /// How many are remembered of each kind.
    request_counts: [usize; 3],
    /// The latest stamp of a command.
    clock_ms: u64,
    /// Requests whose ids carry a time up to this one may have been forgotten.
    horizon_ms: u64,
    /// The entry that changed the configuration last; 0 below feature level 11.
    config_revision: Revision,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            cluster: Uuid::nil(),
            cluster_name: None,
            hash_seed: 0,
            feature_level: FIRST_FEATURE_LEVEL,
            revision: 0,
            next_backend_id: 1,
            nodes: Rows::default(),
            leases: Rows::default(),
            configurations: Map::new_sync(),
            retractions: Map::new_sync(),
            settings: ClusterSettings::default(),
            longest_withdraw_ms: Timing::DEFAULT.withdraw_ms,
            heartbeat_keys: Map::new_sync(),
            segments: Rows::default(),
            vips: Rows::default(),
            services: Rows::default(),
            backends: Rows::default(),
            verdicts: Rows::default(),
            services_by_vip: Map::new_sync(),
            backends_by_address: Map::new_sync(),
            backends_by_id: Map::new_sync(),
            requests: Map::new_sync(),
            request_order: Map::new_sync(),
            request_counts: [0; 3],
            clock_ms: 0,
            horizon_ms: 0,
            config_revision: 0,
        }
    }
}

impl Table {
    /// The cluster's identity; nil before its first entry.
    pub fn cluster(&self) -> Uuid {
        self.cluster
    }

    /// The cluster's name; `None` before its first entry.
    pub fn cluster_name(&self) -> Option<&Name> {
        self.cluster_name.as_ref()
    }

    /// The key of all flow hashes in clusters of the versions before; 0 where the nodes have one that is in no log.
    pub fn hash_seed(&self) -> u128 {
        self.hash_seed
    }

    /// The feature level that all nodes have agreed on.
    pub fn feature_level(&self) -> u32 {
        self.feature_level
    }

    /// The log index of the last change.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The entry that changed the configuration last: VIPs, services, backends, segments or settings, and not who owns or
    /// hears what.
    pub fn config_revision(&self) -> Revision {
        if self.config_revision == 0 { self.revision } else { self.config_revision }
    }

    /// The latest stamp of a command, in milliseconds since 1970.
    pub fn clock_ms(&self) -> u64 {
        self.clock_ms
    }

    /// The same without the requests that are remembered.
    pub(crate) fn without_requests(&self) -> Self {
        let fresh = Self::default();
        Self {
            requests: fresh.requests,
            request_order: fresh.request_order,
            request_counts: fresh.request_counts,
            ..self.clone()
        }
    }

    /// All nodes by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// One node.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// The node of that name.
    pub fn node_named(&self, name: &str) -> Option<&Node> {
        self.nodes().find(|node| node.name.as_str() == name)
    }

    /// The lease that a node holds.
    pub fn lease(&self, node: NodeId) -> Option<&Lease> {
        self.leases.get(&node)
    }

    /// All leases by node.
    pub fn leases(&self) -> impl Iterator<Item = (NodeId, &Lease)> {
        self.leases.iter().map(|(node, lease)| (*node, lease))
    }

    /// Who votes now; nobody before the first entry.
    pub fn configuration(&self) -> Configuration {
        self.configurations.last().map(|(_, configuration)| configuration.clone()).unwrap_or_default()
    }

    /// How fast a silent node is noticed.
    pub fn timing(&self) -> Timing {
        self.settings.timing
    }

    /// What holds for the whole cluster.
    pub fn settings(&self) -> ClusterSettings {
        self.settings
    }

    /// The longest promise that any process may have given, in milliseconds.
    pub fn longest_withdraw_ms(&self) -> u32 {
        self.longest_withdraw_ms
    }

    /// The keys of the heartbeats' signatures by the index of their entries; the last one signs.
    pub fn heartbeat_keys(&self) -> impl DoubleEndedIterator<Item = (u64, u128)> {
        self.heartbeat_keys.iter().map(|(index, key)| (*index, *key))
    }

    /// All segments of which more is known, by network.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.values()
    }

    /// One segment.
    pub fn segment(&self, network: &Cidr) -> Option<&Segment> {
        self.segments.get(network)
    }

    /// All VIPs by address.
    pub fn vips(&self) -> impl Iterator<Item = &Vip> {
        self.vips.values()
    }

    /// The VIPs after one of them, or all.
    pub fn vips_after(&self, after: Option<IpAddr>) -> impl Iterator<Item = &Vip> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.vips.range((from, Bound::Unbounded)).map(|(_, vip)| vip)
    }

    /// One VIP.
    pub fn vip(&self, address: IpAddr) -> Option<&Vip> {
        self.vips.get(&address)
    }

    /// The VIPs that a node owns.
    pub fn vips_of(&self, node: NodeId) -> impl Iterator<Item = &Vip> {
        self.vips().filter(move |vip| vip.owner.is_some_and(|owner| owner.node == node))
    }

    /// Whether no node is on the VIP's segment, so that a router has to send its packets here.
    pub fn is_routed(&self, vip: &Vip) -> bool {
        vip.settings.segment.is_none() && !self.nodes().any(|node| node.is_attached_to(vip.settings.address))
    }

    /// All services by name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The services after one of them, or all.
    pub fn services_after(&self, after: Option<Name>) -> impl Iterator<Item = &Service> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.services.range((from, Bound::Unbounded)).map(|(_, service)| service)
    }

    /// One service.
    pub fn service(&self, name: &Name) -> Option<&Service> {
        self.services.get(name)
    }

    /// The services on a VIP.
    pub fn services_on(&self, vip: IpAddr) -> impl Iterator<Item = &Service> {
        let of_vip = self.services_by_vip.range((vip, Name::LOWEST)..).take_while(move |((of, _), ())| *of == vip);
        of_vip.filter_map(|((_, name), ())| self.services.get(name))
    }

    /// All backends by service and address.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.backends.values()
    }

    /// The backends after one of them, or all.
    pub fn backends_after(&self, after: Option<&BackendKey>) -> impl Iterator<Item = &Backend> {
        let from = after.cloned().map_or(Bound::Unbounded, Bound::Excluded);
        self.backends.range((from, Bound::Unbounded)).map(|(_, backend)| backend)
    }

    /// One backend.
    pub fn backend(&self, service: &Name, address: IpAddr) -> Option<&Backend> {
        self.backends.get(&(service.clone(), address))
    }

    /// The backend with an id.
    pub fn backend_with_id(&self, id: u64) -> Option<&Backend> {
        self.backends.get(self.backends_by_id.get(&id)?)
    }

    /// What was found of backends; the others are [`Health::Unchecked`].
    pub fn verdicts(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts.values()
    }

    /// What was found of a backend.
    pub fn verdict(&self, backend: &Backend) -> Option<&Verdict> {
        self.verdicts.get(&backend.id)
    }

    /// What was found of a backend, in a word.
    pub fn health(&self, backend: &Backend) -> Health {
        self.verdict(backend).map_or(Health::Unchecked, |verdict| verdict.health)
    }

    /// The backends with an address, of all services.
    pub fn backends_with(&self, address: IpAddr) -> impl Iterator<Item = &Backend> {
        let with = self.backends_by_address.range((address, Name::LOWEST)..);
        let with = with.take_while(move |((of, _), ())| *of == address);
        with.filter_map(|((address, service), ())| self.backends.get(&(service.clone(), *address)))
    }

    /// The backends of a service.
    pub fn backends_of<'a>(&'a self, service: &'a Name) -> impl Iterator<Item = &'a Backend> {
        let lowest = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        self.backends
            .range((service.clone(), lowest)..)
            .map(|(_, backend)| backend)
            .take_while(move |backend| backend.settings.service == *service)
    }
}
