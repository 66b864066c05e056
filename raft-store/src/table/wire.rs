//! Commands, replies and whole tables as protobuf, in the log, in snapshots and between nodes. Tags
//! are never reused; a reader skips fields that it does not know, and stops at a command that it
//! does not know.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use prost::{Message, Oneof};
use uuid::Uuid;

use super::{
    Answered, Table,
    command::{
        Command, Effect, Evidence, Mutate, Mutation, NewNode, Rejection, RejectionKind, Reply, RequestId, Withdrawal,
    },
    model::{
        AdminState, Affinity, Attachment, Backend, BackendSettings, ClusterSettings, Configuration, FlowTimeouts,
        Lease, Node, Owner, PortRange, Protocol, QuorumLoss, Role, Service, ServiceSettings, Timing, Unmatched, Vip,
        VipSettings,
    },
    types::{Cidr, Epoch, LeaseId, MacAddr, Name, Weight},
};

/// Why bytes are no command, reply or table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not protobuf at all.
    #[error("not a protobuf message: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// A field holds what it cannot.
    #[error("field {0} is missing or holds a value that it cannot have")]
    Field(&'static str),
    /// From a newer build.
    #[error("a command that needs feature level {needed}, and this build knows {known}: install a newer lbd")]
    TooNew {
        /// What the command needs.
        needed: u32,
        /// What this build knows.
        known: u32,
    },
}

/// A command as it stands in the log.
pub fn encode_command(command: &Command) -> Vec<u8> {
    let needs_level = match command {
        // Whoever does not know what it allows must not go past it.
        Command::RaiseFeatureLevel { level } => *level,
        _ => 1,
    };
    CommandRecord { needs_level, kind: Some(command.into()) }.encode_to_vec()
}

/// The inverse of [`encode_command`].
pub fn decode_command(bytes: &[u8]) -> Result<Command, DecodeError> {
    let record = CommandRecord::decode(bytes)?;
    match record.kind {
        Some(kind) if record.needs_level <= super::FEATURE_LEVEL => kind.try_into(),
        _ => Err(DecodeError::TooNew { needed: record.needs_level, known: super::FEATURE_LEVEL }),
    }
}

/// A reply as it goes back to the node that forwarded a command.
pub fn encode_reply(reply: &Reply) -> Vec<u8> {
    let result = match &reply.result {
        Ok(effect) => ResultKind::Effect((*effect).into()),
        Err(rejection) => ResultKind::Rejection(rejection.into()),
    };
    ReplyRecord { revision: reply.revision, result: Some(result) }.encode_to_vec()
}

/// The inverse of [`encode_reply`].
pub fn decode_reply(bytes: &[u8]) -> Result<Reply, DecodeError> {
    let record = ReplyRecord::decode(bytes)?;
    let result = match record.result.ok_or(DecodeError::Field("result"))? {
        ResultKind::Effect(effect) => Ok(effect.try_into()?),
        ResultKind::Rejection(rejection) => Err(rejection.try_into()?),
    };
    Ok(Reply { revision: record.revision, result })
}

/// A whole table, for a snapshot.
pub(crate) fn encode_table(table: &Table) -> Vec<u8> {
    TableRecord {
        cluster: table.cluster.as_bytes().to_vec(),
        hash_seed: table.hash_seed.to_be_bytes().to_vec(),
        feature_level: table.feature_level,
        revision: table.revision,
        next_backend_id: table.next_backend_id,
        nodes: table.nodes.values().map(Into::into).collect(),
        leases: table.leases.iter().map(|(node, lease)| LeaseRecord::new(*node, lease)).collect(),
        vips: table.vips.values().map(Into::into).collect(),
        services: table.services.values().map(Into::into).collect(),
        backends: table.backends.values().map(Into::into).collect(),
        requests: table.requests.iter().map(|(id, answered)| RequestRecord::new(id, answered)).collect(),
        cluster_name: table.cluster_name.as_ref().map(ToString::to_string).unwrap_or_default(),
        configurations: table.configurations.values().map(Into::into).collect(),
        retractions: table.retractions.iter().map(|((n, s), i)| RetractionRecord::new(*n, *s, *i)).collect(),
        settings: Some(table.settings.into()),
        longest_withdraw_ms: table.longest_withdraw_ms,
        heartbeat_keys: table.heartbeat_keys().map(|(index, key)| KeyRecord::new(index, key)).collect(),
    }
    .encode_to_vec()
}

/// The inverse of [`encode_table`].
pub(crate) fn decode_table(bytes: &[u8]) -> Result<Table, DecodeError> {
    let record = TableRecord::decode(bytes)?;
    let mut table = Table {
        cluster: uuid(&record.cluster, "cluster")?,
        cluster_name: match record.cluster_name.as_str() {
            "" => None,
            text => Some(name(text)?),
        },
        hash_seed: seed(&record.hash_seed)?,
        feature_level: record.feature_level,
        revision: record.revision,
        next_backend_id: record.next_backend_id,
        settings: record.settings.ok_or(DecodeError::Field("settings"))?.try_into()?,
        longest_withdraw_ms: record.longest_withdraw_ms,
        ..Table::default()
    };
    if table.feature_level > super::FEATURE_LEVEL {
        return Err(DecodeError::TooNew { needed: table.feature_level, known: super::FEATURE_LEVEL });
    }
    for node in record.nodes {
        let node = Node::try_from(node)?;
        table.nodes.insert_mut(node.id, node);
    }
    for lease in record.leases {
        let LeaseRecord { node, id, nonce, ready, configuration } = lease;
        table.leases.insert_mut(node, Lease { id: LeaseId(id), nonce, ready, configuration });
    }
    for record in record.configurations {
        let configuration = Configuration::from(record);
        table.configurations.insert_mut(configuration.index, configuration);
    }
    for RetractionRecord { node, supporter, index } in record.retractions {
        table.retractions.insert_mut((node, supporter), index);
    }
    for record in record.heartbeat_keys {
        table.heartbeat_keys.insert_mut(record.index, key(&record.key)?);
    }
    for vip in record.vips {
        let vip = Vip::try_from(vip)?;
        table.vips.insert_mut(vip.settings.address, vip);
    }
    for service in record.services {
        let service = Service::try_from(service)?;
        table.services.insert_mut(service.settings.name.clone(), service);
    }
    for backend in record.backends {
        let backend = Backend::try_from(backend)?;
        table.backends.insert_mut((backend.settings.service.clone(), backend.settings.address), backend);
    }
    for request in record.requests {
        let id = request_id(&request.id)?.ok_or(DecodeError::Field("request.id"))?;
        let effect = request.effect.ok_or(DecodeError::Field("request.effect"))?.try_into()?;
        let answered =
            Answered { index: request.index, fingerprint: request.fingerprint, effect, revision: request.revision };
        table.request_order.insert_mut(answered.index, id.clone());
        table.requests.insert_mut(id, answered);
    }
    Ok(table)
}

#[derive(Clone, PartialEq, Message)]
struct CommandRecord {
    #[prost(uint32, tag = "1")]
    needs_level: u32,
    #[prost(oneof = "CommandKind", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17")]
    kind: Option<CommandKind>,
}

#[derive(Clone, PartialEq, Oneof)]
enum CommandKind {
    #[prost(message, tag = "2")]
    CreateCluster(CreateClusterRecord),
    #[prost(message, tag = "3")]
    Mutate(MutateRecord),
    #[prost(message, tag = "4")]
    AddNode(NewNodeRecord),
    #[prost(message, tag = "5")]
    RemoveNode(RemoveNodeRecord),
    #[prost(message, tag = "6")]
    PublishNode(PublishNodeRecord),
    #[prost(message, tag = "7")]
    SetDraining(SetDrainingRecord),
    #[prost(message, tag = "8")]
    OpenLease(OpenLeaseRecord),
    #[prost(message, tag = "9")]
    Ready(LeaseRecord),
    #[prost(message, tag = "10")]
    Fence(FenceRecord),
    #[prost(message, tag = "11")]
    Released(ReleasedRecord),
    #[prost(message, tag = "12")]
    MoveIntent(MoveIntentRecord),
    #[prost(message, tag = "13")]
    Confirm(LeaseRecord),
    #[prost(message, tag = "14")]
    Retract(RetractRecord),
    #[prost(message, tag = "15")]
    UpdateSettings(UpdateSettingsRecord),
    #[prost(message, tag = "16")]
    Rebalance(RebalanceRecord),
    #[prost(uint32, tag = "17")]
    RaiseFeatureLevel(u32),
}

#[derive(Clone, PartialEq, Message)]
struct CreateClusterRecord {
    #[prost(bytes = "vec", tag = "1")]
    cluster: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    hash_seed: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    node: Option<NewNodeRecord>,
    #[prost(string, tag = "4")]
    cluster_name: String,
    #[prost(bytes = "vec", tag = "5")]
    heartbeat_key: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct RemoveNodeRecord {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(bytes = "vec", tag = "2")]
    heartbeat_key: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct RetractRecord {
    #[prost(uint64, tag = "1")]
    supporter: u64,
    #[prost(uint64, tag = "2")]
    supporter_lease: u64,
    #[prost(uint64, tag = "3")]
    node: u64,
    #[prost(uint64, tag = "4")]
    lease: u64,
}

#[derive(Clone, PartialEq, Message)]
struct UpdateSettingsRecord {
    #[prost(string, tag = "1")]
    request: String,
    #[prost(uint64, tag = "2")]
    expected_revision: u64,
    #[prost(message, optional, tag = "3")]
    settings: Option<SettingsRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct RebalanceRecord {
    #[prost(string, tag = "1")]
    request: String,
    #[prost(uint64, tag = "2")]
    expected_revision: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct SettingsRecord {
    #[prost(message, optional, tag = "1")]
    timing: Option<TimingRecord>,
    #[prost(bool, tag = "2")]
    hold_on_quorum_loss: bool,
    #[prost(uint32, tag = "3")]
    failback_s: u32,
    #[prost(message, optional, tag = "4")]
    flow_timeouts: Option<FlowTimeoutsRecord>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct FlowTimeoutsRecord {
    #[prost(uint32, tag = "1")]
    tcp_s: u32,
    #[prost(uint32, tag = "2")]
    fin_s: u32,
    #[prost(uint32, tag = "3")]
    udp_s: u32,
}

impl From<FlowTimeouts> for FlowTimeoutsRecord {
    fn from(FlowTimeouts { tcp_s, fin_s, udp_s }: FlowTimeouts) -> Self {
        Self { tcp_s, fin_s, udp_s }
    }
}

impl From<FlowTimeoutsRecord> for FlowTimeouts {
    fn from(FlowTimeoutsRecord { tcp_s, fin_s, udp_s }: FlowTimeoutsRecord) -> Self {
        Self { tcp_s, fin_s, udp_s }
    }
}

impl From<ClusterSettings> for SettingsRecord {
    fn from(settings: ClusterSettings) -> Self {
        Self {
            timing: Some(settings.timing.into()),
            hold_on_quorum_loss: settings.on_quorum_loss == QuorumLoss::Hold,
            failback_s: settings.failback_s,
            flow_timeouts: Some(settings.flow_timeouts.into()),
        }
    }
}

impl TryFrom<SettingsRecord> for ClusterSettings {
    type Error = DecodeError;

    fn try_from(record: SettingsRecord) -> Result<Self, DecodeError> {
        Ok(Self {
            timing: record.timing.ok_or(DecodeError::Field("timing"))?.into(),
            on_quorum_loss: if record.hold_on_quorum_loss { QuorumLoss::Hold } else { QuorumLoss::Release },
            failback_s: record.failback_s,
            flow_timeouts: record.flow_timeouts.map(Into::into).unwrap_or_default(),
        })
    }
}

#[derive(Clone, Copy, PartialEq, Message)]
struct TimingRecord {
    #[prost(uint32, tag = "1")]
    heartbeat_ms: u32,
    #[prost(uint32, tag = "2")]
    lease_ms: u32,
    #[prost(uint32, tag = "3")]
    withdraw_ms: u32,
}

impl From<Timing> for TimingRecord {
    fn from(Timing { heartbeat_ms, lease_ms, withdraw_ms }: Timing) -> Self {
        Self { heartbeat_ms, lease_ms, withdraw_ms }
    }
}

impl From<TimingRecord> for Timing {
    fn from(TimingRecord { heartbeat_ms, lease_ms, withdraw_ms }: TimingRecord) -> Self {
        Self { heartbeat_ms, lease_ms, withdraw_ms }
    }
}

#[derive(Clone, PartialEq, Message)]
struct NewNodeRecord {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    role: u32,
    #[prost(string, tag = "3")]
    address: String,
    #[prost(bytes = "vec", tag = "4")]
    store: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PublishNodeRecord {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(message, repeated, tag = "2")]
    attachments: Vec<AttachmentRecord>,
    #[prost(uint32, tag = "3")]
    feature_level: u32,
    #[prost(string, repeated, tag = "4")]
    heartbeat: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct SetDrainingRecord {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(bool, tag = "2")]
    draining: bool,
    #[prost(string, tag = "3")]
    request: String,
    #[prost(uint64, tag = "4")]
    expected_revision: u64,
}

#[derive(Clone, PartialEq, Message)]
struct OpenLeaseRecord {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(fixed64, tag = "2")]
    nonce: u64,
    #[prost(uint64, optional, tag = "3")]
    previous: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct FenceRecord {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(uint64, tag = "2")]
    lease: u64,
    #[prost(oneof = "EvidenceKind", tags = "3, 4, 5")]
    evidence: Option<EvidenceKind>,
    #[prost(uint64, repeated, tag = "6")]
    heard: Vec<u64>,
}

#[derive(Clone, PartialEq, Oneof)]
enum EvidenceKind {
    #[prost(bool, tag = "3")]
    OwnRelease(bool),
    #[prost(fixed64, tag = "4")]
    Obituary(u64),
    #[prost(message, tag = "5")]
    Withdrawals(WithdrawalsRecord),
}

#[derive(Clone, PartialEq, Message)]
struct WithdrawalsRecord {
    #[prost(message, repeated, tag = "1")]
    withdrawals: Vec<WithdrawalRecord>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct WithdrawalRecord {
    #[prost(uint64, tag = "1")]
    supporter: u64,
    #[prost(uint64, tag = "2")]
    lease: u64,
    #[prost(uint64, tag = "3")]
    as_of: u64,
}

#[derive(Clone, PartialEq, Message)]
struct ReleasedRecord {
    #[prost(message, repeated, tag = "1")]
    grants: Vec<GrantRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct GrantRecord {
    #[prost(bytes = "vec", tag = "1")]
    vip: Vec<u8>,
    #[prost(uint64, tag = "2")]
    epoch: u64,
}

#[derive(Clone, PartialEq, Message)]
struct MoveIntentRecord {
    #[prost(bytes = "vec", tag = "1")]
    vip: Vec<u8>,
    #[prost(uint64, tag = "2")]
    to: u64,
    #[prost(string, tag = "3")]
    request: String,
    #[prost(uint64, tag = "4")]
    expected_revision: u64,
}

#[derive(Clone, PartialEq, Message)]
struct MutateRecord {
    #[prost(string, tag = "1")]
    request: String,
    #[prost(uint64, tag = "2")]
    expected_revision: u64,
    #[prost(message, repeated, tag = "3")]
    mutations: Vec<MutationRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct MutationRecord {
    #[prost(oneof = "MutationKind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    kind: Option<MutationKind>,
}

#[derive(Clone, PartialEq, Oneof)]
enum MutationKind {
    #[prost(message, tag = "1")]
    CreateVip(VipRecord),
    #[prost(message, tag = "2")]
    UpdateVip(VipPatchRecord),
    #[prost(message, tag = "3")]
    DeleteVip(DeleteRecord),
    #[prost(message, tag = "4")]
    CreateService(ServiceRecord),
    #[prost(message, tag = "5")]
    UpdateService(ServicePatchRecord),
    #[prost(message, tag = "6")]
    DeleteService(DeleteRecord),
    #[prost(message, tag = "7")]
    CreateBackend(BackendRecord),
    #[prost(message, tag = "8")]
    UpdateBackend(BackendPatchRecord),
    #[prost(message, tag = "9")]
    DeleteBackend(DeleteRecord),
}

#[derive(Clone, PartialEq, Message)]
struct DeleteRecord {
    #[prost(bytes = "vec", tag = "1")]
    address: Vec<u8>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(bool, tag = "3")]
    cascade: bool,
}

/// In a patch, 0 as a node and an empty text as a network stand for "none".
#[derive(Clone, PartialEq, Message)]
struct VipPatchRecord {
    #[prost(bytes = "vec", tag = "1")]
    address: Vec<u8>,
    #[prost(uint64, optional, tag = "2")]
    prefer: Option<u64>,
    #[prost(string, optional, tag = "3")]
    segment: Option<String>,
    #[prost(uint32, optional, tag = "4")]
    unmatched: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct ServicePatchRecord {
    #[prost(string, tag = "1")]
    name: String,
    /// An empty list leaves the ports as they are: a service always has one.
    #[prost(message, repeated, tag = "2")]
    ports: Vec<PortRecord>,
    #[prost(uint32, optional, tag = "3")]
    affinity: Option<u32>,
}

/// An empty MAC stands for "none".
#[derive(Clone, PartialEq, Message)]
struct BackendPatchRecord {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(bytes = "vec", tag = "2")]
    address: Vec<u8>,
    #[prost(uint32, optional, tag = "3")]
    weight: Option<u32>,
    #[prost(bytes = "vec", optional, tag = "4")]
    mac: Option<Vec<u8>>,
    #[prost(uint32, optional, tag = "5")]
    state: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct AttachmentRecord {
    #[prost(string, tag = "1")]
    interface: String,
    #[prost(bytes = "vec", tag = "2")]
    mac: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    address: Vec<u8>,
    #[prost(uint32, tag = "4")]
    prefix_len: u32,
    #[prost(uint64, repeated, tag = "5")]
    hears: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeRecord {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, optional, tag = "2")]
    settings: Option<NewNodeRecord>,
    #[prost(message, repeated, tag = "3")]
    attachments: Vec<AttachmentRecord>,
    #[prost(uint32, tag = "4")]
    feature_level: u32,
    #[prost(bool, tag = "5")]
    draining: bool,
    #[prost(string, repeated, tag = "6")]
    heartbeat: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct LeaseRecord {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(uint64, tag = "2")]
    id: u64,
    #[prost(fixed64, tag = "3")]
    nonce: u64,
    #[prost(bool, tag = "4")]
    ready: bool,
    #[prost(uint64, tag = "5")]
    configuration: u64,
}

impl LeaseRecord {
    fn new(node: u64, lease: &Lease) -> Self {
        let Lease { id, nonce, ready, configuration } = *lease;
        Self { node, id: id.0, nonce, ready, configuration }
    }
}

#[derive(Clone, PartialEq, Message)]
struct ConfigurationRecord {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(message, repeated, tag = "2")]
    halves: Vec<HalfRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct HalfRecord {
    #[prost(uint64, repeated, tag = "1")]
    voters: Vec<u64>,
}

impl From<&Configuration> for ConfigurationRecord {
    fn from(configuration: &Configuration) -> Self {
        let half = |half: &BTreeSet<u64>| HalfRecord { voters: half.iter().copied().collect() };
        Self { index: configuration.index, halves: configuration.halves.iter().map(half).collect() }
    }
}

impl From<ConfigurationRecord> for Configuration {
    fn from(record: ConfigurationRecord) -> Self {
        let halves = record.halves.into_iter().map(|half| half.voters.into_iter().collect()).collect();
        Self { index: record.index, halves }
    }
}

#[derive(Clone, Copy, PartialEq, Message)]
struct RetractionRecord {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(uint64, tag = "2")]
    supporter: u64,
    #[prost(uint64, tag = "3")]
    index: u64,
}

impl RetractionRecord {
    fn new(node: u64, supporter: u64, index: u64) -> Self {
        Self { node, supporter, index }
    }
}

#[derive(Clone, PartialEq, Message)]
struct KeyRecord {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
}

impl KeyRecord {
    fn new(index: u64, key: u128) -> Self {
        Self { index, key: key.to_be_bytes().to_vec() }
    }
}

#[derive(Clone, PartialEq, Message)]
struct VipRecord {
    #[prost(bytes = "vec", tag = "1")]
    address: Vec<u8>,
    #[prost(uint64, optional, tag = "2")]
    prefer: Option<u64>,
    #[prost(string, optional, tag = "3")]
    segment: Option<String>,
    #[prost(uint32, tag = "4")]
    unmatched: u32,
    #[prost(message, optional, tag = "5")]
    owner: Option<OwnerRecord>,
    #[prost(uint64, optional, tag = "6")]
    home: Option<u64>,
    #[prost(uint64, optional, tag = "7")]
    intent: Option<u64>,
    #[prost(bool, tag = "8")]
    deleting: bool,
    #[prost(uint64, tag = "9")]
    revision: u64,
    #[prost(uint64, tag = "10")]
    grants: u64,
}

#[derive(Clone, PartialEq, Message)]
struct OwnerRecord {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(uint64, tag = "2")]
    lease: u64,
    #[prost(uint64, tag = "3")]
    epoch: u64,
}

#[derive(Clone, PartialEq, Message)]
struct PortRecord {
    #[prost(uint32, tag = "1")]
    protocol: u32,
    #[prost(uint32, tag = "2")]
    first: u32,
    #[prost(uint32, tag = "3")]
    last: u32,
}

#[derive(Clone, PartialEq, Message)]
struct ServiceRecord {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "vec", tag = "2")]
    vip: Vec<u8>,
    #[prost(message, repeated, tag = "3")]
    ports: Vec<PortRecord>,
    #[prost(uint32, tag = "4")]
    affinity: u32,
    #[prost(uint32, tag = "5")]
    table_size: u32,
    #[prost(uint64, tag = "6")]
    revision: u64,
}

#[derive(Clone, PartialEq, Message)]
struct BackendRecord {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(bytes = "vec", tag = "2")]
    address: Vec<u8>,
    #[prost(uint32, tag = "3")]
    weight: u32,
    #[prost(bytes = "vec", tag = "4")]
    mac: Vec<u8>,
    #[prost(uint32, tag = "5")]
    state: u32,
    #[prost(uint64, tag = "6")]
    id: u64,
    #[prost(uint64, tag = "7")]
    revision: u64,
}

#[derive(Clone, PartialEq, Message)]
struct RequestRecord {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(uint64, tag = "2")]
    index: u64,
    #[prost(fixed64, tag = "3")]
    fingerprint: u64,
    #[prost(message, optional, tag = "4")]
    effect: Option<EffectRecord>,
    #[prost(uint64, tag = "5")]
    revision: u64,
}

impl RequestRecord {
    fn new(id: &RequestId, answered: &Answered) -> Self {
        Self {
            id: id.as_str().to_owned(),
            index: answered.index,
            fingerprint: answered.fingerprint,
            effect: Some(answered.effect.into()),
            revision: answered.revision,
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct TableRecord {
    #[prost(bytes = "vec", tag = "1")]
    cluster: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    hash_seed: Vec<u8>,
    #[prost(uint32, tag = "3")]
    feature_level: u32,
    #[prost(uint64, tag = "4")]
    revision: u64,
    #[prost(uint64, tag = "5")]
    next_backend_id: u64,
    #[prost(message, repeated, tag = "6")]
    nodes: Vec<NodeRecord>,
    #[prost(message, repeated, tag = "7")]
    leases: Vec<LeaseRecord>,
    #[prost(message, repeated, tag = "8")]
    vips: Vec<VipRecord>,
    #[prost(message, repeated, tag = "9")]
    services: Vec<ServiceRecord>,
    #[prost(message, repeated, tag = "10")]
    backends: Vec<BackendRecord>,
    #[prost(message, repeated, tag = "11")]
    requests: Vec<RequestRecord>,
    #[prost(string, tag = "12")]
    cluster_name: String,
    #[prost(message, repeated, tag = "13")]
    configurations: Vec<ConfigurationRecord>,
    #[prost(message, repeated, tag = "14")]
    retractions: Vec<RetractionRecord>,
    #[prost(message, optional, tag = "15")]
    settings: Option<SettingsRecord>,
    #[prost(uint32, tag = "16")]
    longest_withdraw_ms: u32,
    #[prost(message, repeated, tag = "17")]
    heartbeat_keys: Vec<KeyRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct ReplyRecord {
    #[prost(uint64, tag = "1")]
    revision: u64,
    #[prost(oneof = "ResultKind", tags = "2, 3")]
    result: Option<ResultKind>,
}

#[derive(Clone, PartialEq, Oneof)]
enum ResultKind {
    #[prost(message, tag = "2")]
    Effect(EffectRecord),
    #[prost(message, tag = "3")]
    Rejection(RejectionRecord),
}

#[derive(Clone, PartialEq, Message)]
struct EffectRecord {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint64, tag = "2")]
    id: u64,
}

#[derive(Clone, PartialEq, Message)]
struct RejectionRecord {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(string, tag = "2")]
    subject: String,
    #[prost(string, tag = "3")]
    message: String,
}

/// Numbers of the closed sets, frozen: 0 is never written, so that a missing field is noticed.
macro_rules! numbered {
    ($type:ident, $field:literal, $to:ident, $from:ident: $($variant:ident = $number:literal),+) => {
        fn $to(value: $type) -> u32 {
            match value { $($type::$variant => $number),+ }
        }
        fn $from(number: u32) -> Result<$type, DecodeError> {
            match number { $($number => Ok($type::$variant),)+ _ => Err(DecodeError::Field($field)) }
        }
    };
}

numbered!(Unmatched, "unmatched", unmatched_number, unmatched: Drop = 1, Reject = 2);
numbered!(Protocol, "protocol", protocol_number, protocol: Tcp = 1, Udp = 2);
numbered!(Affinity, "affinity", affinity_number, affinity: Flow = 1, Source = 2);
numbered!(AdminState, "state", state_number, state: Active = 1, Drain = 2, Down = 3);
numbered!(Role, "role", role_number, role: Lb = 1, Witness = 2);
numbered!(RejectionKind, "rejection.kind", rejection_number, rejection:
    InvalidArgument = 1, NotFound = 2, AlreadyExists = 3, FailedPrecondition = 4, ResourceExhausted = 5);

fn ip_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn ip(bytes: &[u8]) -> Result<IpAddr, DecodeError> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(octets));
    }
    <[u8; 16]>::try_from(bytes).map(IpAddr::from).map_err(|_| DecodeError::Field("address"))
}

fn mac_bytes(mac: Option<MacAddr>) -> Vec<u8> {
    mac.map(|mac| mac.octets().to_vec()).unwrap_or_default()
}

fn mac(bytes: &[u8]) -> Result<Option<MacAddr>, DecodeError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let octets = <[u8; 6]>::try_from(bytes).map_err(|_| DecodeError::Field("mac"))?;
    MacAddr::try_from(octets).map(Some).map_err(|_| DecodeError::Field("mac"))
}

fn uuid(bytes: &[u8], field: &'static str) -> Result<Uuid, DecodeError> {
    Uuid::from_slice(bytes).map_err(|_| DecodeError::Field(field))
}

fn seed(bytes: &[u8]) -> Result<u128, DecodeError> {
    bytes.try_into().map(u128::from_be_bytes).map_err(|_| DecodeError::Field("hash_seed"))
}

fn key(bytes: &[u8]) -> Result<u128, DecodeError> {
    bytes.try_into().map(u128::from_be_bytes).map_err(|_| DecodeError::Field("heartbeat_key"))
}

fn name(text: &str) -> Result<Name, DecodeError> {
    text.parse().map_err(|_| DecodeError::Field("name"))
}

fn weight(number: u32) -> Result<Weight, DecodeError> {
    Weight::try_from(number).map_err(|_| DecodeError::Field("weight"))
}

fn cidr(text: &str) -> Result<Option<Cidr>, DecodeError> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| DecodeError::Field("segment")),
    }
}

fn request_id(text: &str) -> Result<Option<RequestId>, DecodeError> {
    RequestId::parse(text).map_err(|_| DecodeError::Field("request"))
}

fn request_text(request: Option<&RequestId>) -> String {
    request.map(|id| id.as_str().to_owned()).unwrap_or_default()
}

fn port(number: u32) -> Result<u16, DecodeError> {
    u16::try_from(number).map_err(|_| DecodeError::Field("port"))
}

impl From<&Command> for CommandKind {
    fn from(command: &Command) -> Self {
        match command {
            Command::CreateCluster { cluster, cluster_name, hash_seed, heartbeat_key, node } => {
                Self::CreateCluster(CreateClusterRecord {
                    cluster: cluster.as_bytes().to_vec(),
                    cluster_name: cluster_name.to_string(),
                    hash_seed: hash_seed.to_be_bytes().to_vec(),
                    heartbeat_key: heartbeat_key.to_be_bytes().to_vec(),
                    node: Some(node.into()),
                })
            }
            Command::Mutate(mutate) => Self::Mutate(MutateRecord {
                request: request_text(mutate.request.as_ref()),
                expected_revision: mutate.expected_revision,
                mutations: mutate.mutations.iter().map(Into::into).collect(),
            }),
            Command::AddNode(node) => Self::AddNode(node.into()),
            Command::RemoveNode { node, heartbeat_key } => {
                Self::RemoveNode(RemoveNodeRecord { node: *node, heartbeat_key: heartbeat_key.to_be_bytes().to_vec() })
            }
            Command::PublishNode { node, attachments, heartbeat, feature_level } => {
                Self::PublishNode(PublishNodeRecord {
                    node: *node,
                    attachments: attachments.iter().map(Into::into).collect(),
                    heartbeat: heartbeat.iter().map(ToString::to_string).collect(),
                    feature_level: *feature_level,
                })
            }
            Command::SetDraining { request, expected_revision, node, draining } => {
                Self::SetDraining(SetDrainingRecord {
                    node: *node,
                    draining: *draining,
                    request: request_text(request.as_ref()),
                    expected_revision: *expected_revision,
                })
            }
            Command::OpenLease { node, nonce, previous } => {
                Self::OpenLease(OpenLeaseRecord { node: *node, nonce: *nonce, previous: previous.map(|lease| lease.0) })
            }
            Command::Ready { node, lease } => {
                Self::Ready(LeaseRecord { node: *node, id: lease.0, ..LeaseRecord::default() })
            }
            Command::Fence { node, lease, evidence, heard } => Self::Fence(FenceRecord {
                node: *node,
                lease: lease.0,
                evidence: Some(match evidence {
                    Evidence::OwnRelease => EvidenceKind::OwnRelease(true),
                    Evidence::Obituary { nonce } => EvidenceKind::Obituary(*nonce),
                    Evidence::Withdrawals(withdrawals) => {
                        let record = |w: &Withdrawal| WithdrawalRecord {
                            supporter: w.supporter,
                            lease: w.lease.0,
                            as_of: w.as_of,
                        };
                        let withdrawals = withdrawals.iter().map(record).collect();
                        EvidenceKind::Withdrawals(WithdrawalsRecord { withdrawals })
                    }
                }),
                heard: heard.clone(),
            }),
            Command::Confirm { node, lease, configuration } => Self::Confirm(LeaseRecord {
                node: *node,
                id: lease.0,
                configuration: *configuration,
                ..LeaseRecord::default()
            }),
            Command::Retract { supporter, supporter_lease, node, lease } => Self::Retract(RetractRecord {
                supporter: *supporter,
                supporter_lease: supporter_lease.0,
                node: *node,
                lease: lease.0,
            }),
            Command::Rebalance { request, expected_revision } => Self::Rebalance(RebalanceRecord {
                request: request_text(request.as_ref()),
                expected_revision: *expected_revision,
            }),
            Command::RaiseFeatureLevel { level } => Self::RaiseFeatureLevel(*level),
            Command::UpdateSettings { request, expected_revision, settings } => {
                Self::UpdateSettings(UpdateSettingsRecord {
                    request: request_text(request.as_ref()),
                    expected_revision: *expected_revision,
                    settings: Some((*settings).into()),
                })
            }
            Command::Released { grants } => {
                let grant = |(vip, epoch): &(IpAddr, Epoch)| GrantRecord { vip: ip_bytes(*vip), epoch: epoch.0 };
                Self::Released(ReleasedRecord { grants: grants.iter().map(grant).collect() })
            }
            Command::MoveIntent { request, expected_revision, vip, to } => Self::MoveIntent(MoveIntentRecord {
                expected_revision: *expected_revision,
                vip: ip_bytes(*vip),
                to: *to,
                request: request_text(request.as_ref()),
            }),
        }
    }
}

impl TryFrom<CommandKind> for Command {
    type Error = DecodeError;

    fn try_from(kind: CommandKind) -> Result<Self, DecodeError> {
        Ok(match kind {
            CommandKind::CreateCluster(record) => Self::CreateCluster {
                cluster: uuid(&record.cluster, "cluster")?,
                cluster_name: name(&record.cluster_name)?,
                hash_seed: seed(&record.hash_seed)?,
                heartbeat_key: key(&record.heartbeat_key)?,
                node: record.node.ok_or(DecodeError::Field("node"))?.try_into()?,
            },
            CommandKind::Mutate(record) => Self::Mutate(Mutate {
                request: request_id(&record.request)?,
                expected_revision: record.expected_revision,
                mutations: record.mutations.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            }),
            CommandKind::AddNode(record) => Self::AddNode(record.try_into()?),
            CommandKind::RemoveNode(record) => {
                Self::RemoveNode { node: record.node, heartbeat_key: key(&record.heartbeat_key)? }
            }
            CommandKind::PublishNode(record) => Self::PublishNode {
                node: record.node,
                attachments: attachments(record.attachments)?,
                heartbeat: socket_addresses(&record.heartbeat)?,
                feature_level: record.feature_level,
            },
            CommandKind::SetDraining(record) => Self::SetDraining {
                request: request_id(&record.request)?,
                expected_revision: record.expected_revision,
                node: record.node,
                draining: record.draining,
            },
            CommandKind::OpenLease(record) => {
                Self::OpenLease { node: record.node, nonce: record.nonce, previous: record.previous.map(LeaseId) }
            }
            CommandKind::Ready(record) => Self::Ready { node: record.node, lease: LeaseId(record.id) },
            CommandKind::Fence(record) => Self::Fence {
                node: record.node,
                lease: LeaseId(record.lease),
                evidence: match record.evidence.ok_or(DecodeError::Field("evidence"))? {
                    EvidenceKind::OwnRelease(_) => Evidence::OwnRelease,
                    EvidenceKind::Obituary(nonce) => Evidence::Obituary { nonce },
                    EvidenceKind::Withdrawals(record) => {
                        let withdrawal = |w: WithdrawalRecord| Withdrawal {
                            supporter: w.supporter,
                            lease: LeaseId(w.lease),
                            as_of: w.as_of,
                        };
                        Evidence::Withdrawals(record.withdrawals.into_iter().map(withdrawal).collect())
                    }
                },
                heard: record.heard,
            },
            CommandKind::Confirm(record) => {
                Self::Confirm { node: record.node, lease: LeaseId(record.id), configuration: record.configuration }
            }
            CommandKind::Retract(record) => Self::Retract {
                supporter: record.supporter,
                supporter_lease: LeaseId(record.supporter_lease),
                node: record.node,
                lease: LeaseId(record.lease),
            },
            CommandKind::UpdateSettings(record) => Self::UpdateSettings {
                request: request_id(&record.request)?,
                expected_revision: record.expected_revision,
                settings: record.settings.ok_or(DecodeError::Field("settings"))?.try_into()?,
            },
            CommandKind::Rebalance(record) => {
                Self::Rebalance { request: request_id(&record.request)?, expected_revision: record.expected_revision }
            }
            CommandKind::RaiseFeatureLevel(level) => Self::RaiseFeatureLevel { level },
            CommandKind::Released(record) => {
                let grant = |grant: &GrantRecord| Ok::<_, DecodeError>((ip(&grant.vip)?, Epoch(grant.epoch)));
                Self::Released { grants: record.grants.iter().map(grant).collect::<Result<_, _>>()? }
            }
            CommandKind::MoveIntent(record) => Self::MoveIntent {
                request: request_id(&record.request)?,
                expected_revision: record.expected_revision,
                vip: ip(&record.vip)?,
                to: record.to,
            },
        })
    }
}

impl From<&Mutation> for MutationRecord {
    fn from(mutation: &Mutation) -> Self {
        let delete = |address: Option<IpAddr>, name: Option<&Name>, cascade: bool| DeleteRecord {
            address: address.map(ip_bytes).unwrap_or_default(),
            name: name.map(ToString::to_string).unwrap_or_default(),
            cascade,
        };
        let kind = match mutation {
            Mutation::CreateVip(settings) => MutationKind::CreateVip(settings.into()),
            Mutation::UpdateVip { address, prefer, segment, unmatched } => MutationKind::UpdateVip(VipPatchRecord {
                address: ip_bytes(*address),
                prefer: prefer.map(Option::unwrap_or_default),
                segment: segment.map(|s| s.map(|s| s.to_string()).unwrap_or_default()),
                unmatched: unmatched.map(unmatched_number),
            }),
            Mutation::DeleteVip { address, cascade } => MutationKind::DeleteVip(delete(Some(*address), None, *cascade)),
            Mutation::CreateService(settings) => MutationKind::CreateService(settings.into()),
            Mutation::UpdateService { name, ports, affinity } => MutationKind::UpdateService(ServicePatchRecord {
                name: name.to_string(),
                ports: ports.iter().flatten().map(Into::into).collect(),
                affinity: affinity.map(affinity_number),
            }),
            Mutation::DeleteService { name, cascade } => {
                MutationKind::DeleteService(delete(None, Some(name), *cascade))
            }
            Mutation::CreateBackend(settings) => MutationKind::CreateBackend(settings.into()),
            Mutation::UpdateBackend { service, address, weight, mac, state } => {
                MutationKind::UpdateBackend(BackendPatchRecord {
                    service: service.to_string(),
                    address: ip_bytes(*address),
                    weight: weight.map(|weight| weight.get().into()),
                    mac: mac.map(mac_bytes),
                    state: state.map(state_number),
                })
            }
            Mutation::DeleteBackend { service, address } => {
                MutationKind::DeleteBackend(delete(Some(*address), Some(service), false))
            }
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<MutationRecord> for Mutation {
    type Error = DecodeError;

    fn try_from(record: MutationRecord) -> Result<Self, DecodeError> {
        Ok(match record.kind.ok_or(DecodeError::Field("mutation"))? {
            MutationKind::CreateVip(record) => Self::CreateVip(Vip::try_from(record)?.settings),
            MutationKind::UpdateVip(patch) => Self::UpdateVip {
                address: ip(&patch.address)?,
                prefer: patch.prefer.map(|node| (node != 0).then_some(node)),
                segment: patch.segment.as_deref().map(cidr).transpose()?,
                unmatched: patch.unmatched.map(unmatched).transpose()?,
            },
            MutationKind::DeleteVip(record) => {
                Self::DeleteVip { address: ip(&record.address)?, cascade: record.cascade }
            }
            MutationKind::CreateService(record) => Self::CreateService(Service::try_from(record)?.settings),
            MutationKind::UpdateService(patch) => Self::UpdateService {
                name: name(&patch.name)?,
                ports: if patch.ports.is_empty() { None } else { Some(ports(patch.ports)?) },
                affinity: patch.affinity.map(affinity).transpose()?,
            },
            MutationKind::DeleteService(record) => {
                Self::DeleteService { name: name(&record.name)?, cascade: record.cascade }
            }
            MutationKind::CreateBackend(record) => Self::CreateBackend(Backend::try_from(record)?.settings),
            MutationKind::UpdateBackend(patch) => Self::UpdateBackend {
                service: name(&patch.service)?,
                address: ip(&patch.address)?,
                weight: patch.weight.map(weight).transpose()?,
                mac: patch.mac.as_deref().map(mac).transpose()?,
                state: patch.state.map(state).transpose()?,
            },
            MutationKind::DeleteBackend(record) => {
                Self::DeleteBackend { service: name(&record.name)?, address: ip(&record.address)? }
            }
        })
    }
}

impl From<&NewNode> for NewNodeRecord {
    fn from(node: &NewNode) -> Self {
        Self {
            name: node.name.to_string(),
            role: role_number(node.role),
            address: node.address.clone(),
            store: node.store.as_bytes().to_vec(),
        }
    }
}

impl TryFrom<NewNodeRecord> for NewNode {
    type Error = DecodeError;

    fn try_from(record: NewNodeRecord) -> Result<Self, DecodeError> {
        Ok(Self {
            name: name(&record.name)?,
            role: role(record.role)?,
            address: record.address,
            store: uuid(&record.store, "store")?,
        })
    }
}

impl From<&Attachment> for AttachmentRecord {
    fn from(attachment: &Attachment) -> Self {
        Self {
            interface: attachment.interface.clone(),
            mac: mac_bytes(Some(attachment.mac)),
            address: ip_bytes(attachment.address),
            prefix_len: attachment.prefix_len.into(),
            hears: attachment.hears.clone(),
        }
    }
}

fn attachments(records: Vec<AttachmentRecord>) -> Result<Vec<Attachment>, DecodeError> {
    let attachment = |record: AttachmentRecord| {
        Ok(Attachment {
            interface: record.interface,
            mac: mac(&record.mac)?.ok_or(DecodeError::Field("attachment.mac"))?,
            address: ip(&record.address)?,
            prefix_len: u8::try_from(record.prefix_len).map_err(|_| DecodeError::Field("prefix_len"))?,
            hears: record.hears,
        })
    };
    records.into_iter().map(attachment).collect()
}

fn socket_addresses(texts: &[String]) -> Result<Vec<SocketAddr>, DecodeError> {
    texts.iter().map(|text| text.parse().map_err(|_| DecodeError::Field("heartbeat"))).collect()
}

impl From<&Node> for NodeRecord {
    fn from(node: &Node) -> Self {
        let settings =
            NewNode { name: node.name.clone(), role: node.role, address: node.address.clone(), store: node.store };
        Self {
            id: node.id,
            settings: Some((&settings).into()),
            attachments: node.attachments.iter().map(Into::into).collect(),
            heartbeat: node.heartbeat.iter().map(ToString::to_string).collect(),
            feature_level: node.feature_level,
            draining: node.draining,
        }
    }
}

impl TryFrom<NodeRecord> for Node {
    type Error = DecodeError;

    fn try_from(record: NodeRecord) -> Result<Self, DecodeError> {
        let settings: NewNode = record.settings.ok_or(DecodeError::Field("node"))?.try_into()?;
        Ok(Self {
            id: record.id,
            name: settings.name,
            role: settings.role,
            address: settings.address,
            store: settings.store,
            attachments: attachments(record.attachments)?,
            heartbeat: socket_addresses(&record.heartbeat)?,
            feature_level: record.feature_level,
            draining: record.draining,
        })
    }
}

impl From<&VipSettings> for VipRecord {
    fn from(settings: &VipSettings) -> Self {
        Self {
            address: ip_bytes(settings.address),
            prefer: settings.prefer,
            segment: settings.segment.map(|segment| segment.to_string()),
            unmatched: unmatched_number(settings.unmatched),
            ..Self::default()
        }
    }
}

impl From<&Vip> for VipRecord {
    fn from(vip: &Vip) -> Self {
        let owner = |owner: Owner| OwnerRecord { node: owner.node, lease: owner.lease.0, epoch: owner.epoch.0 };
        Self {
            owner: vip.owner.map(owner),
            home: vip.home,
            intent: vip.intent,
            grants: vip.grants,
            deleting: vip.deleting,
            revision: vip.revision,
            ..Self::from(&vip.settings)
        }
    }
}

impl TryFrom<VipRecord> for Vip {
    type Error = DecodeError;

    fn try_from(record: VipRecord) -> Result<Self, DecodeError> {
        let owner =
            |owner: OwnerRecord| Owner { node: owner.node, lease: LeaseId(owner.lease), epoch: Epoch(owner.epoch) };
        Ok(Self {
            settings: VipSettings {
                address: ip(&record.address)?,
                prefer: record.prefer,
                segment: cidr(record.segment.as_deref().unwrap_or_default())?,
                unmatched: unmatched(record.unmatched)?,
            },
            owner: record.owner.map(owner),
            home: record.home,
            intent: record.intent,
            grants: record.grants,
            deleting: record.deleting,
            revision: record.revision,
        })
    }
}

impl From<&PortRange> for PortRecord {
    fn from(range: &PortRange) -> Self {
        Self { protocol: protocol_number(range.protocol), first: range.first.into(), last: range.last.into() }
    }
}

fn ports(records: Vec<PortRecord>) -> Result<Vec<PortRange>, DecodeError> {
    let range = |record: PortRecord| {
        Ok(PortRange { protocol: protocol(record.protocol)?, first: port(record.first)?, last: port(record.last)? })
    };
    records.into_iter().map(range).collect()
}

impl From<&ServiceSettings> for ServiceRecord {
    fn from(settings: &ServiceSettings) -> Self {
        Self {
            name: settings.name.to_string(),
            vip: ip_bytes(settings.vip),
            ports: settings.ports.iter().map(Into::into).collect(),
            affinity: affinity_number(settings.affinity),
            table_size: settings.table_size,
            revision: 0,
        }
    }
}

impl From<&Service> for ServiceRecord {
    fn from(service: &Service) -> Self {
        Self { revision: service.revision, ..Self::from(&service.settings) }
    }
}

impl TryFrom<ServiceRecord> for Service {
    type Error = DecodeError;

    fn try_from(record: ServiceRecord) -> Result<Self, DecodeError> {
        Ok(Self {
            settings: ServiceSettings {
                name: name(&record.name)?,
                vip: ip(&record.vip)?,
                ports: ports(record.ports)?,
                affinity: affinity(record.affinity)?,
                table_size: record.table_size,
            },
            revision: record.revision,
        })
    }
}

impl From<&BackendSettings> for BackendRecord {
    fn from(settings: &BackendSettings) -> Self {
        Self {
            service: settings.service.to_string(),
            address: ip_bytes(settings.address),
            weight: settings.weight.get().into(),
            mac: mac_bytes(settings.mac),
            state: state_number(settings.state),
            id: 0,
            revision: 0,
        }
    }
}

impl From<&Backend> for BackendRecord {
    fn from(backend: &Backend) -> Self {
        Self { id: backend.id, revision: backend.revision, ..Self::from(&backend.settings) }
    }
}

impl TryFrom<BackendRecord> for Backend {
    type Error = DecodeError;

    fn try_from(record: BackendRecord) -> Result<Self, DecodeError> {
        Ok(Self {
            settings: BackendSettings {
                service: name(&record.service)?,
                address: ip(&record.address)?,
                weight: weight(record.weight)?,
                mac: mac(&record.mac)?,
                state: state(record.state)?,
            },
            id: record.id,
            revision: record.revision,
        })
    }
}

impl From<Effect> for EffectRecord {
    fn from(effect: Effect) -> Self {
        let (kind, id) = match effect {
            Effect::Unchanged => (1, 0),
            Effect::Changed => (2, 0),
            Effect::NodeAdded(node) => (3, node),
            Effect::LeaseOpened(lease) => (4, lease.0),
        };
        Self { kind, id }
    }
}

impl TryFrom<EffectRecord> for Effect {
    type Error = DecodeError;

    fn try_from(record: EffectRecord) -> Result<Self, DecodeError> {
        match record.kind {
            1 => Ok(Self::Unchanged),
            2 => Ok(Self::Changed),
            3 => Ok(Self::NodeAdded(record.id)),
            4 => Ok(Self::LeaseOpened(LeaseId(record.id))),
            _ => Err(DecodeError::Field("effect.kind")),
        }
    }
}

impl From<&Rejection> for RejectionRecord {
    fn from(rejection: &Rejection) -> Self {
        Self {
            kind: rejection_number(rejection.kind),
            subject: rejection.subject.clone(),
            message: rejection.message.clone(),
        }
    }
}

impl TryFrom<RejectionRecord> for Rejection {
    type Error = DecodeError;

    fn try_from(record: RejectionRecord) -> Result<Self, DecodeError> {
        Ok(Self { kind: rejection(record.kind)?, subject: record.subject, message: record.message })
    }
}
