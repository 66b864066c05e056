//! What the log carries. Whatever depends on time or chance was decided by a node before and
//! travels inside the command.

use std::net::{IpAddr, SocketAddr};

use prost::Message as _;
use uuid::Uuid;

use super::{
    backend::{BackendPatch, BackendSettings, Share, Tier},
    health::Verdict,
    node::{Attachment, NewNode, Silence},
    requests::RequestId,
    segment::{SegmentPatch, SegmentSettings},
    service::{ServicePatch, ServiceSettings},
    settings::{ClusterSettings, SettingsPatch},
    types::{Cidr, Epoch, LeaseId, Name, NodeId, Revision, Weight},
    vip::{VipPatch, VipSettings},
};
use crate::codec::{
    self, DecodeError, Field, WRONG, feature_level, record,
    record::{command::Body as BodyRecord, fence::Evidence as EvidenceRecord, mutation::Kind},
    recorded,
};

/// One entry of the log: what it does, and what holds for all that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Makes a repeated request apply once.
    pub request: Option<RequestId>,
    /// The revision that the caller has seen; 0 for any.
    pub expected_revision: Revision,
    /// Of what.
    pub expected_of: Expected,
    /// Of what the caller has sent, before names were resolved: another request under the same id differs in it. 0 where the
    /// command itself counts. Feature level 11.
    pub asked: u64,
    /// The proposer's clock, in milliseconds since 1970; 0 where it said none.
    pub stamp_ms: u64,
    /// On whose behalf.
    pub principal: Option<Principal>,
    /// What it does.
    pub body: Body,
}

/// Of what a caller has seen a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expected {
    /// The whole table, which must be at that revision.
    #[default]
    Table,
    /// What the command changes, which must not have changed since. Feature level 11.
    Object,
    /// All that operators say, which must not have changed since. Feature level 11.
    Configuration,
}

impl Field<u32> for Expected {
    fn put(&self) -> u32 {
        *self as u32
    }

    fn read(number: u32) -> Result<Self, DecodeError> {
        match number {
            0 => Ok(Self::Table),
            1 => Ok(Self::Object),
            2 => Ok(Self::Configuration),
            _ => Err(DecodeError::too_new(0)),
        }
    }
}

/// Who asked for a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// As the node that took the request knows it.
    pub name: String,
    /// That node, which vouches for the name.
    pub node: NodeId,
}

impl From<Body> for Command {
    /// What a node needs itself.
    fn from(body: Body) -> Self {
        Self {
            request: None,
            expected_revision: 0,
            expected_of: Expected::Table,
            asked: 0,
            stamp_ms: 0,
            principal: None,
            body,
        }
    }
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// The first entry of a cluster.
    CreateCluster {
        /// The cluster's identity, carried by every message between nodes.
        cluster: Uuid,
        /// Its name, fixed for good.
        cluster_name: Name,
        /// The key of all flow hashes, equal on every node.
        hash_seed: u128,
        /// The first key of the heartbeats' signatures.
        heartbeat_key: u128,
        /// The node that bootstraps it; its id is 1.
        node: NewNode,
    },
    /// Changes to VIPs, services and backends, in this order: all or none.
    Mutate(Vec<Mutation>),
    /// A machine becomes known; its id is this entry's index.
    AddNode(NewNode),
    /// A node is forgotten and its lease ends. Refused while it owns a VIP.
    RemoveNode {
        /// The node.
        node: NodeId,
        /// The key of the heartbeats' signatures from now on, which the removed node does not learn.
        heartbeat_key: u128,
    },
    /// What a node says of itself.
    PublishNode {
        /// The node.
        node: NodeId,
        /// Its addresses on its listed interfaces.
        attachments: Vec<Attachment>,
        /// Where it listens for heartbeats.
        heartbeat: Vec<SocketAddr>,
        /// The highest feature level it knows.
        feature_level: u32,
        /// Why it can own no VIP now; empty where it can. Feature level 3 where it is not.
        unfit: String,
        /// How often it was started on its store; 0 where it does not say. Feature level 4 where it does.
        starts: u32,
    },
    /// A node is reached at another address. Feature level 3.
    SetNodeAddress {
        /// The node.
        node: NodeId,
        /// Its cluster address from now on, `HOST:PORT`.
        address: String,
    },
    /// A node is drained, or no longer so.
    SetDraining {
        /// The node.
        node: NodeId,
        /// Whether it shall own nothing while another node can.
        draining: bool,
    },
    /// A process asks for a lease. A no-op unless the node's lease is `previous`.
    OpenLease {
        /// The node.
        node: NodeId,
        /// Chosen by that process.
        nonce: u64,
        /// The lease that it ends.
        previous: Option<LeaseId>,
    },
    /// The holder has held its lease validly once and can own VIPs from now on.
    Ready {
        /// The node.
        node: NodeId,
        /// The lease.
        lease: LeaseId,
    },
    /// A lease ends and its VIPs are placed anew. A no-op unless it is the node's lease.
    Fence {
        /// Its holder.
        node: NodeId,
        /// The lease that ends.
        lease: LeaseId,
        /// Why this is safe; weighed again when it is applied.
        evidence: Evidence,
        /// The nodes that the proposer has heard lately: they are given the VIPs first.
        heard: Vec<NodeId>,
    },
    /// A holder counts in this configuration from now on, and in no older one again.
    Confirm {
        /// The node.
        node: NodeId,
        /// The lease.
        lease: LeaseId,
        /// The index of the configuration's entry.
        configuration: u64,
    },
    /// A supporter hears a holder again from which it had withdrawn: its evidence up to here is void.
    Retract {
        /// The node that takes it back.
        supporter: NodeId,
        /// Under which lease of its own.
        supporter_lease: LeaseId,
        /// The holder.
        node: NodeId,
        /// The holder's lease.
        lease: LeaseId,
    },
    /// All settings of the whole cluster change: what two callers change at once, one of them loses.
    UpdateSettings(ClusterSettings),
    /// Some settings of the whole cluster change, the others stay as they are. Feature level 2.
    PatchSettings(SettingsPatch),
    /// VIPs move until no node has two more than another that could own them. Preferred nodes keep theirs.
    Rebalance,
    /// Commands up to this level may be proposed from now on. A no-op unless every node knows it.
    RaiseFeatureLevel {
        /// The level.
        level: u32,
    },
    /// What time has brought to backends, as the leader sees it. Feature level 9.
    Progress {
        /// The ids of those that were drained for as long as their services let them.
        drained: Vec<u64>,
        /// The shares that have risen.
        shares: Vec<Share>,
    },
    /// What an owner has found of its VIPs' backends. Void under another lease, and for VIPs of others. Feature level 6.
    Report {
        /// The node.
        node: NodeId,
        /// Its lease.
        lease: LeaseId,
        /// One for each backend of which something else is found than before.
        verdicts: Vec<Verdict>,
    },
    /// An owner has stopped answering for VIPs. A no-op for those whose epoch is not the VIP's.
    Released {
        /// The VIPs, and their grants.
        grants: Vec<(IpAddr, Epoch)>,
    },
    /// A VIP shall move; it does when its owner has released it.
    MoveIntent {
        /// The VIP that moves.
        vip: IpAddr,
        /// The node that it moves to.
        to: NodeId,
    },
}

impl Command {
    /// The feature level that a table must have for it: whoever knows only a lower one would do something else with it, or
    /// nothing. A function of the whole content.
    pub fn needs_level(&self) -> u32 {
        let of_envelope = match &self.body {
            _ if self.asked != 0 || self.expected_of != Expected::Table => 11,
            _ if self.request.is_none() && self.expected_revision == 0 => 1,
            Body::Mutate(_)
            | Body::SetDraining { .. }
            | Body::UpdateSettings(_)
            | Body::Rebalance
            | Body::MoveIntent { .. } => 1,
            // Whoever knows only level 1 looks for a request id in no other body.
            _ => 2,
        };
        let of_body = match &self.body {
            // Whoever does not know what it allows must not go past it.
            Body::RaiseFeatureLevel { level } => *level,
            Body::PatchSettings(_) => 2,
            Body::SetNodeAddress { .. } | Body::Fence { evidence: Evidence::Operator, .. } => 3,
            Body::Progress { .. } => 9,
            Body::Report { verdicts, .. } => verdicts.iter().map(Verdict::needs_level).max().unwrap_or(6),
            Body::PublishNode { attachments, .. } if attachments.iter().any(|a| a.gateway_silence != Silence::None) => {
                10
            }
            Body::PublishNode { attachments, .. } if attachments.iter().any(|a| a.silence != Silence::None) => 6,
            Body::PublishNode { starts: 1.., .. } => 4,
            Body::PublishNode { unfit, .. } if !unfit.is_empty() => 3,
            Body::Mutate(mutations) => mutations.iter().map(Mutation::needs_level).max().unwrap_or(1),
            _ => 1,
        };
        of_envelope.max(of_body)
    }

    /// Whether it is a caller's write that waits while nodes are short of space, or of time. What moves VIPs away from a node,
    /// or mends the membership, does not: that is how such a node is helped.
    pub(crate) fn can_wait(&self) -> bool {
        let helps = matches!(
            self.body,
            Body::Fence { .. }
                | Body::SetDraining { .. }
                | Body::SetNodeAddress { .. }
                | Body::MoveIntent { .. }
                | Body::Rebalance
        );
        self.request.is_some() && !helps
    }

    /// Whether a table of that level takes it. The raise itself is decided by what the nodes know.
    pub fn is_allowed_at(&self, level: u32) -> bool {
        matches!(self.body, Body::RaiseFeatureLevel { .. }) || self.needs_level() <= level
    }
}

impl Body {
    /// Whether it is about what operators say of VIPs, services, backends, segments and settings.
    pub(super) fn is_configuration(&self) -> bool {
        matches!(self, Self::Mutate(_) | Self::UpdateSettings(_) | Self::PatchSettings(_))
    }

    /// The node whose own word it is, which no other can give.
    pub(crate) fn speaks_for(&self) -> Option<NodeId> {
        match self {
            Self::PublishNode { node, .. }
            | Self::OpenLease { node, .. }
            | Self::Ready { node, .. }
            | Self::Confirm { node, .. }
            | Self::Report { node, .. }
            | Self::Fence { node, evidence: Evidence::OwnRelease, .. }
            | Self::Retract { supporter: node, .. } => Some(*node),
            _ => None,
        }
    }

    /// Whether only the leader finds it out or decides it, for itself.
    pub(crate) fn is_of_leader(&self) -> bool {
        matches!(
            self,
            Self::CreateCluster { .. }
                | Self::AddNode(_)
                | Self::RemoveNode { .. }
                | Self::Fence { evidence: Evidence::Obituary { .. } | Evidence::Withdrawals(_), .. }
        )
    }

    /// Whether it is about what the cluster shall do, and not about what was found out.
    pub(super) fn moves_revision(&self) -> bool {
        !matches!(self, Self::Report { .. } | Self::Progress { .. })
    }
}

impl Mutation {
    /// The feature level that a table must have for it.
    fn needs_level(&self) -> u32 {
        let weighs_nothing = |weight: Weight| weight.get() == 0;
        match self {
            Self::CreateService(service) => service.needs_level(),
            Self::UpdateService(patch) => patch.needs_level(),
            Self::CreateBackend(backend) if backend.tier != Tier::First => 7,
            Self::UpdateBackend(patch) if patch.tier.is_some() => 7,
            Self::CreateBackend(backend) if weighs_nothing(backend.weight) => 5,
            Self::UpdateBackend(patch) if patch.weight.is_some_and(weighs_nothing) => 5,
            Self::PatchSettings(_) => 3,
            Self::CreateSegment(_) | Self::UpdateSegment(_) | Self::DeleteSegment { .. } => 10,
            _ => 1,
        }
    }
}

/// Why a lease may be ended without two nodes answering for a VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// The holder itself has stopped answering.
    OwnRelease,
    /// The process is dead: whoever waited for it says so.
    Obituary {
        /// Of the process.
        nonce: u64,
    },
    /// So many voters have withdrawn their support that no majority is left.
    Withdrawals(Vec<Withdrawal>),
    /// An operator says that the machine is off. Feature level 3.
    Operator,
}

/// A voter's word that its promise to a holder has run out and that it gives no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Withdrawal {
    /// The voter.
    pub supporter: NodeId,
    /// Under which lease of its own: another process of the same node knows nothing of it.
    pub lease: LeaseId,
    /// The last entry that it had applied when it said so.
    pub as_of: u64,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the settings that they change")]
pub enum Mutation {
    CreateVip(VipSettings),
    UpdateVip(VipPatch),
    DeleteVip {
        address: IpAddr,
        cascade: bool,
    },
    CreateService(ServiceSettings),
    UpdateService(ServicePatch),
    DeleteService {
        name: Name,
        cascade: bool,
    },
    CreateBackend(BackendSettings),
    UpdateBackend(BackendPatch),
    DeleteBackend {
        service: Name,
        address: IpAddr,
    },
    /// Some settings of the whole cluster change together with the rest. Feature level 3.
    PatchSettings(SettingsPatch),
    /// Feature level 10, as the other changes of segments.
    CreateSegment(SegmentSettings),
    UpdateSegment(SegmentPatch),
    DeleteSegment {
        network: Cidr,
    },
}

recorded!(Principal => Principal { name, node });
recorded!(Withdrawal => Withdrawal { supporter, lease, as_of });

/// A command as it stands in the log.
pub fn encode_command(command: &Command) -> Vec<u8> {
    let mut record = record::Command {
        needs_level: command.needs_level(),
        stamp_ms: command.stamp_ms,
        principal: command.principal.put(),
        expected_of: command.expected_of.put(),
        asked: command.asked,
        body: Some(command.body.put()),
        ..record::Command::default()
    };
    let request = command.request.put();
    match record.body.as_mut().and_then(guards) {
        Some((of_body, expected_revision)) => (*of_body, *expected_revision) = (request, command.expected_revision),
        None => (record.request, record.expected_revision) = (request, command.expected_revision),
    }
    record.encode_to_vec()
}

/// The inverse of [`encode_command`].
pub fn decode_command(bytes: &[u8]) -> Result<Command, DecodeError> {
    let record = record::Command::decode(bytes)?;
    if record.needs_level > feature_level() {
        return Err(DecodeError::too_new(record.needs_level));
    }
    let mut record: record::Command = codec::decode(bytes)?;
    let (request, expected_revision) = match record.body.as_mut().and_then(guards) {
        Some((request, expected_revision)) => (std::mem::take(request), *expected_revision),
        None => (record.request, record.expected_revision),
    };
    let command = Command {
        request: Field::read(request)?,
        expected_revision,
        expected_of: Field::read(record.expected_of)?,
        asked: record.asked,
        stamp_ms: record.stamp_ms,
        principal: Field::read(record.principal)?,
        body: Field::read(record.body.ok_or(DecodeError::too_new(record.needs_level))?)?,
    };
    // What it says of itself is not trusted below what it is.
    match command.needs_level() {
        needed if needed > feature_level() => Err(DecodeError::too_new(needed)),
        _ => Ok(command),
    }
}

/// The bodies that carry the request's id and the expected revision themselves.
fn guards(body: &mut BodyRecord) -> Option<(&mut String, &mut u64)> {
    Some(match body {
        BodyRecord::Mutate(record) => (&mut record.request, &mut record.expected_revision),
        BodyRecord::SetDraining(record) => (&mut record.request, &mut record.expected_revision),
        BodyRecord::UpdateSettings(record) => (&mut record.request, &mut record.expected_revision),
        BodyRecord::Rebalance(record) => (&mut record.request, &mut record.expected_revision),
        BodyRecord::MoveIntent(record) => (&mut record.request, &mut record.expected_revision),
        _ => return None,
    })
}

/// Says which body is which record, and which of its fields are which.
macro_rules! bodies {
    ($($body:ident { $($field:ident),* } => $record:ident,)+) => {
        impl Body {
            /// One with named fields.
            fn put_fields(&self) -> Option<BodyRecord> {
                match self {
                    $(Self::$body { $($field),* } => {
                        #[allow(clippy::needless_update, reason = "the guards, and fields of other bodies")]
                        let record = record::$record {
                            $($field: Field::put($field),)*
                            ..record::$record::default()
                        };
                        Some(BodyRecord::$body(record))
                    })+
                    _ => None,
                }
            }

            /// The inverse of [`Self::put_fields`]; what has no named fields comes back.
            fn take_fields(body: BodyRecord) -> Result<Result<Self, BodyRecord>, DecodeError> {
                Ok(match body {
                    $(BodyRecord::$body(record) => Ok(Self::$body {
                        $($field: Field::read(record.$field)
                            .map_err(|error| error.named(stringify!($field)))?,)*
                    }),)+
                    other => Err(other),
                })
            }
        }
    };
}

bodies! {
    CreateCluster { cluster, cluster_name, hash_seed, heartbeat_key, node } => CreateCluster,
    RemoveNode { node, heartbeat_key } => RemoveNode,
    PublishNode { node, attachments, heartbeat, feature_level, unfit, starts } => PublishNode,
    SetNodeAddress { node, address } => SetNodeAddress,
    SetDraining { node, draining } => SetDraining,
    OpenLease { node, nonce, previous } => OpenLease,
    Fence { node, lease, evidence, heard } => Fence,
    Retract { supporter, supporter_lease, node, lease } => Retract,
    Report { node, lease, verdicts } => Report,
    Progress { drained, shares } => Progress,
    Released { grants } => Released,
    MoveIntent { vip, to } => MoveIntent,
}

impl Field<BodyRecord> for Body {
    fn put(&self) -> BodyRecord {
        match self {
            Self::Mutate(mutations) => {
                BodyRecord::Mutate(record::Mutate { mutations: mutations.put(), ..record::Mutate::default() })
            }
            Self::AddNode(node) => BodyRecord::AddNode(node.put()),
            Self::UpdateSettings(settings) => {
                let settings = settings.put();
                BodyRecord::UpdateSettings(record::UpdateSettings { settings, ..record::UpdateSettings::default() })
            }
            Self::PatchSettings(patch) => BodyRecord::PatchSettings(patch.put()),
            Self::Rebalance => BodyRecord::Rebalance(record::Rebalance::default()),
            Self::RaiseFeatureLevel { level } => BodyRecord::RaiseFeatureLevel(*level),
            Self::Ready { node, lease } => {
                BodyRecord::Ready(record::Lease { node: *node, id: lease.0, ..record::Lease::default() })
            }
            Self::Confirm { node, lease, configuration } => BodyRecord::Confirm(record::Lease {
                node: *node,
                id: lease.0,
                configuration: *configuration,
                ..record::Lease::default()
            }),
            // Every other one has named fields.
            body => body.put_fields().unwrap_or(BodyRecord::RaiseFeatureLevel(0)),
        }
    }

    fn read(record: BodyRecord) -> Result<Self, DecodeError> {
        Ok(match Self::take_fields(record)? {
            Ok(body) => body,
            Err(BodyRecord::Mutate(record)) => Self::Mutate(Field::read(record.mutations)?),
            Err(BodyRecord::AddNode(record)) => Self::AddNode(Field::read(record)?),
            Err(BodyRecord::UpdateSettings(record)) => {
                Self::UpdateSettings(Field::read(record.settings).map_err(|error| error.named("settings"))?)
            }
            Err(BodyRecord::PatchSettings(record)) => Self::PatchSettings(Field::read(record)?),
            Err(BodyRecord::Rebalance(_)) => Self::Rebalance,
            Err(BodyRecord::RaiseFeatureLevel(level)) => Self::RaiseFeatureLevel { level },
            Err(BodyRecord::Ready(record)) => Self::Ready { node: record.node, lease: LeaseId(record.id) },
            Err(BodyRecord::Confirm(record)) => {
                let (lease, configuration) = (LeaseId(record.id), record.configuration);
                Self::Confirm { node: record.node, lease, configuration }
            }
            Err(_) => return Err(WRONG),
        })
    }
}

impl Field<Option<EvidenceRecord>> for Evidence {
    fn put(&self) -> Option<EvidenceRecord> {
        Some(match self {
            Self::OwnRelease => EvidenceRecord::OwnRelease(true),
            Self::Obituary { nonce } => EvidenceRecord::Obituary(*nonce),
            Self::Withdrawals(withdrawals) => {
                EvidenceRecord::Withdrawals(record::Withdrawals { withdrawals: withdrawals.put() })
            }
            Self::Operator => EvidenceRecord::Operator(true),
        })
    }

    fn read(record: Option<EvidenceRecord>) -> Result<Self, DecodeError> {
        Ok(match record.ok_or(WRONG)? {
            EvidenceRecord::OwnRelease(_) => Self::OwnRelease,
            EvidenceRecord::Obituary(nonce) => Self::Obituary { nonce },
            EvidenceRecord::Withdrawals(record) => Self::Withdrawals(Field::read(record.withdrawals)?),
            EvidenceRecord::Operator(_) => Self::Operator,
        })
    }
}

impl Field<record::Grant> for (IpAddr, Epoch) {
    fn put(&self) -> record::Grant {
        record::Grant { vip: self.0.put(), epoch: self.1.put() }
    }

    fn read(record: record::Grant) -> Result<Self, DecodeError> {
        Ok((Field::read(record.vip).map_err(|error: DecodeError| error.named("vip"))?, Epoch(record.epoch)))
    }
}

impl Field<record::Mutation> for Mutation {
    fn put(&self) -> record::Mutation {
        let kind = match self {
            Self::CreateVip(settings) => Kind::CreateVip(settings.put()),
            Self::UpdateVip(patch) => Kind::UpdateVip(patch.put()),
            Self::DeleteVip { address, cascade } => {
                let address = address.put();
                Kind::DeleteVip(record::Delete { address, cascade: *cascade, ..record::Delete::default() })
            }
            Self::CreateService(settings) => Kind::CreateService(settings.put()),
            Self::UpdateService(patch) => Kind::UpdateService(patch.put()),
            Self::DeleteService { name, cascade } => {
                let name = name.put();
                Kind::DeleteService(record::Delete { name, cascade: *cascade, ..record::Delete::default() })
            }
            Self::CreateBackend(settings) => Kind::CreateBackend(settings.put()),
            Self::UpdateBackend(patch) => Kind::UpdateBackend(patch.put()),
            Self::DeleteBackend { service, address } => {
                Kind::DeleteBackend(record::Delete { address: address.put(), name: service.put(), cascade: false })
            }
            Self::PatchSettings(patch) => Kind::PatchSettings(patch.put()),
            Self::CreateSegment(settings) => Kind::CreateSegment(settings.put()),
            Self::UpdateSegment(patch) => Kind::UpdateSegment(patch.put()),
            Self::DeleteSegment { network } => {
                Kind::DeleteSegment(record::Delete { name: network.put(), ..record::Delete::default() })
            }
        };
        record::Mutation { kind: Some(kind) }
    }

    fn read(record: record::Mutation) -> Result<Self, DecodeError> {
        // The tag of a kind that is not known was skipped.
        Ok(match record.kind.ok_or(DecodeError::too_new(0))? {
            Kind::CreateVip(record) => Self::CreateVip(Field::read(record)?),
            Kind::UpdateVip(record) => Self::UpdateVip(Field::read(record)?),
            Kind::DeleteVip(record) => Self::DeleteVip {
                address: Field::read(record.address).map_err(|error: DecodeError| error.named("address"))?,
                cascade: record.cascade,
            },
            Kind::CreateService(record) => Self::CreateService(Field::read(record)?),
            Kind::UpdateService(record) => Self::UpdateService(Field::read(record)?),
            Kind::DeleteService(record) => Self::DeleteService {
                name: Field::read(record.name).map_err(|error: DecodeError| error.named("name"))?,
                cascade: record.cascade,
            },
            Kind::CreateBackend(record) => Self::CreateBackend(Field::read(record)?),
            Kind::UpdateBackend(record) => Self::UpdateBackend(Field::read(record)?),
            Kind::DeleteBackend(record) => Self::DeleteBackend {
                service: Field::read(record.name).map_err(|error: DecodeError| error.named("name"))?,
                address: Field::read(record.address).map_err(|error: DecodeError| error.named("address"))?,
            },
            Kind::PatchSettings(record) => Self::PatchSettings(Field::read(record)?),
            Kind::CreateSegment(record) => Self::CreateSegment(Field::read(record)?),
            Kind::UpdateSegment(record) => Self::UpdateSegment(Field::read(record)?),
            Kind::DeleteSegment(record) => Self::DeleteSegment {
                network: Field::read(record.name).map_err(|error: DecodeError| error.named("network"))?,
            },
        })
    }
}
