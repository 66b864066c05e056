//! Between the API's messages and the domain's values. Every text is parsed here, once; errors name the
//! field.

use std::{net::IpAddr, str::FromStr};

use lb_proto::{FieldMask, v1};
use lb_raft_store::{
    View,
    table::{
        AdminState, Affinity, Attachment, Backend, BackendKey, BackendPatch, BackendSettings, Check, Cidr,
        DEFAULT_TABLE_SIZE, Health, MacAddr, Mutation, Name, Node, NodeId, PortRange, Protocol, Role, Segment,
        SegmentPatch, SegmentSettings, Service, ServicePatch, ServiceSettings, Sign, Silence, Table, Tier, Unmatched,
        Vip, VipPatch, VipSettings, Weight, check_cluster_address,
    },
};
use tonic::Status;

use super::{checks, settings, status::invalid};
use crate::{
    clock::{self, rfc3339},
    health::CHECKS_LEVEL,
};

/// A required text.
pub(super) fn parsed<T: FromStr<Err: std::fmt::Display>>(field: &str, text: &str) -> Result<T, Status> {
    text.parse().map_err(|error| invalid(field, error))
}

pub(super) fn address(field: &str, text: &str) -> Result<IpAddr, Status> {
    text.parse().map_err(|_| invalid(field, format!("{text:?} is not an IP address")))
}

/// An address that may be empty.
pub(super) fn optional_address(field: &str, text: &str) -> Result<Option<IpAddr>, Status> {
    if text.is_empty() { Ok(None) } else { address(field, text).map(Some) }
}

/// As a token of a list of backends names one.
pub(super) fn backend_key(text: &str) -> Result<BackendKey, Status> {
    let (service, of) =
        text.rsplit_once('/').ok_or_else(|| invalid("page_token", "it is none of a list of backends"))?;
    Ok((parsed("page_token", service)?, address("page_token", of)?))
}

/// What may have been found of backends.
pub(super) fn healths(numbers: &[i32]) -> Result<Vec<Health>, Status> {
    let one = |number: &i32| match v1::Health::try_from(*number) {
        Ok(v1::Health::Unchecked) => Ok(Health::Unchecked),
        Ok(v1::Health::Unreachable) => Ok(Health::Unreachable),
        Ok(v1::Health::Healthy) => Ok(Health::Healthy),
        Ok(v1::Health::Unhealthy) => Ok(Health::Unhealthy),
        Ok(v1::Health::Unspecified) | Err(_) => Err(invalid("health", format!("{number} is not known"))),
    };
    numbers.iter().map(one).collect()
}

/// A text that may be empty.
pub(super) fn optional<T: FromStr<Err: std::fmt::Display>>(field: &str, text: &str) -> Result<Option<T>, Status> {
    if text.is_empty() { Ok(None) } else { parsed(field, text).map(Some) }
}

/// Where a node is reached by the others.
pub(super) fn cluster_address(field: &str, text: &str) -> Result<String, Status> {
    check_cluster_address(text).map_err(|problem| invalid(field, problem))?;
    Ok(text.to_owned())
}

/// A node's name, as an id.
pub(super) fn known_node(field: &str, name: &str, table: &Table) -> Result<NodeId, Status> {
    let of = node_id(field, name, table)?;
    of.ok_or_else(|| invalid(field, format!("it is required; there are: {}", node_names(table))))
}

/// A node's name, as an id; empty for none.
fn node_id(field: &str, name: &str, table: &Table) -> Result<Option<NodeId>, Status> {
    if name.is_empty() {
        return Ok(None);
    }
    match table.node_named(name) {
        Some(node) => Ok(Some(node.id)),
        None => Err(invalid(field, format!("there is no node {name:?}; there are: {}", node_names(table)))),
    }
}

pub(super) fn node_names(table: &Table) -> String {
    table.nodes().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn node_name(node: Option<NodeId>, table: &Table) -> String {
    node.and_then(|id| table.node(id)).map(|node| node.name.to_string()).unwrap_or_default()
}

fn unmatched(value: i32) -> Result<Unmatched, Status> {
    match v1::Unmatched::try_from(value) {
        Ok(v1::Unmatched::Unspecified | v1::Unmatched::Drop) => Ok(Unmatched::Drop),
        Ok(v1::Unmatched::Reject) => Ok(Unmatched::Reject),
        Err(_) => Err(invalid("unmatched", format!("{value} is not known"))),
    }
}

fn affinity(value: i32) -> Result<Affinity, Status> {
    match v1::Affinity::try_from(value) {
        Ok(v1::Affinity::Unspecified | v1::Affinity::Flow) => Ok(Affinity::Flow),
        Ok(v1::Affinity::Source) => Ok(Affinity::Source),
        Err(_) => Err(invalid("affinity", format!("{value} is not known"))),
    }
}

fn state(value: i32) -> Result<AdminState, Status> {
    match v1::AdminState::try_from(value) {
        Ok(v1::AdminState::Unspecified | v1::AdminState::Active) => Ok(AdminState::Active),
        Ok(v1::AdminState::Drain) => Ok(AdminState::Drain),
        Ok(v1::AdminState::Down) => Ok(AdminState::Down),
        Err(_) => Err(invalid("state", format!("{value} is not known"))),
    }
}

pub(super) fn role(value: i32) -> Result<Role, Status> {
    match v1::Role::try_from(value) {
        Ok(v1::Role::Unspecified | v1::Role::Lb) => Ok(Role::Lb),
        Ok(v1::Role::Witness) => Ok(Role::Witness),
        Err(_) => Err(invalid("role", format!("{value} is not known"))),
    }
}

fn weight(value: u32) -> Result<Weight, Status> {
    Weight::try_from(value).map_err(|error| invalid("weight", error))
}

fn ports(ranges: &[v1::PortRange]) -> Result<Vec<PortRange>, Status> {
    let mut ports = ranges.iter().map(port).collect::<Result<Vec<_>, _>>()?;
    ports.sort_unstable();
    Ok(ports)
}

fn port(range: &v1::PortRange) -> Result<PortRange, Status> {
    let protocol = match v1::Protocol::try_from(range.protocol) {
        Ok(v1::Protocol::Tcp) => Protocol::Tcp,
        Ok(v1::Protocol::Udp) => Protocol::Udp,
        _ => return Err(invalid("ports.protocol", "it is neither TCP nor UDP")),
    };
    let number = |field: &str, value: u32| {
        u16::try_from(value).map_err(|_| invalid(field, format!("{value} is not a port: 0 to 65535")))
    };
    let (first, last) = (number("ports.first", range.first)?, number("ports.last", range.last)?);
    // One port alone.
    let last = if last == 0 { first } else { last };
    match (first, last) {
        (0, 1..) => Err(invalid("ports.first", "0 stands for any port, and then last is 0 too")),
        _ => Ok(PortRange { protocol, first, last }),
    }
}

pub(super) fn create_vip(vip: Option<&v1::Vip>, table: &Table) -> Result<Mutation, Status> {
    let vip = vip.ok_or_else(|| invalid("vip", "it is required"))?;
    Ok(Mutation::CreateVip(VipSettings {
        address: address("address", &vip.address)?,
        prefer: node_id("prefer", &vip.prefer, table)?,
        segment: optional::<Cidr>("segment", &vip.segment)?,
        unmatched: unmatched(vip.unmatched)?,
    }))
}

pub(super) fn update_vip(request: &v1::UpdateVipRequest, table: &Table) -> Result<Mutation, Status> {
    let mask = Mask::new(request.update_mask.as_ref(), &["prefer", "segment", "unmatched"])?;
    let prefer = request.prefer.as_deref().map(|name| node_id("prefer", name, table)).transpose()?;
    let segment = request.segment.as_deref().map(|text| optional("segment", text)).transpose()?;
    Ok(Mutation::UpdateVip(VipPatch {
        address: address("address", &request.address)?,
        prefer: mask.pick("prefer", prefer),
        segment: mask.pick("segment", segment),
        unmatched: mask.pick("unmatched", request.unmatched.map(unmatched).transpose()?),
    }))
}

pub(super) fn delete_vip(request: &v1::DeleteVipRequest) -> Result<Mutation, Status> {
    Ok(Mutation::DeleteVip { address: address("address", &request.address)?, cascade: request.cascade })
}

pub(super) fn create_segment(segment: Option<&v1::Segment>) -> Result<Mutation, Status> {
    let segment = segment.ok_or_else(|| invalid("segment", "it is required"))?;
    Ok(Mutation::CreateSegment(SegmentSettings {
        network: parsed("network", &segment.network)?,
        gateway: address("gateway", &segment.gateway)?,
    }))
}

pub(super) fn update_segment(request: &v1::UpdateSegmentRequest) -> Result<Mutation, Status> {
    let mask = Mask::new(request.update_mask.as_ref(), &["gateway"])?;
    let gateway = request.gateway.as_deref().map(|text| address("gateway", text)).transpose()?;
    // There is no default that it could become.
    if mask.0.is_some_and(|paths| !paths.is_empty()) && gateway.is_none() {
        return Err(invalid("gateway", "it is required"));
    }
    let gateway = if mask.0.is_some_and(<[String]>::is_empty) { None } else { gateway };
    Ok(Mutation::UpdateSegment(SegmentPatch { network: parsed("network", &request.network)?, gateway }))
}

pub(super) fn delete_segment(request: &v1::DeleteSegmentRequest) -> Result<Mutation, Status> {
    Ok(Mutation::DeleteSegment { network: parsed("network", &request.network)? })
}

pub(super) fn segment(segment: &Segment, table: &Table) -> v1::Segment {
    let is_there = |a: &Attachment| a.segment() == Some(segment.settings.network);
    let misses = |node: &&Node| node.attachments.iter().any(|a| is_there(a) && a.gateway_silence != Silence::None);
    v1::Segment {
        network: segment.settings.network.to_string(),
        gateway: segment.settings.gateway.to_string(),
        unheard_by: table.nodes().filter(misses).map(|node| node.name.to_string()).collect(),
        revision: segment.revision,
    }
}

pub(super) fn create_service(service: Option<&v1::Service>, table: &Table) -> Result<Mutation, Status> {
    let service = service.ok_or_else(|| invalid("service", "it is required"))?;
    let name: Name = parsed("name", &service.name)?;
    let ports = ports(&service.ports)?;
    let checks = match (&service.checks, table.service(&name)) {
        (Some(checks), _) => checks::checks(checks)?,
        // Whoever says nothing of checks asks for none that there are not.
        (None, Some(present)) => present.settings.checks.clone(),
        (None, None) => default_checks(&ports, table),
    };
    Ok(Mutation::CreateService(ServiceSettings {
        name,
        vip: address("vip", &service.vip)?,
        ports,
        affinity: affinity(service.affinity)?,
        table_size: if service.table_size == 0 { DEFAULT_TABLE_SIZE } else { service.table_size },
        min_healthy: service.min_healthy,
        fails_open: fails_open(service.on_all_down)?,
        checks,
        check_interval_ms: service.check_interval_ms,
        check_timeout_ms: service.check_timeout_ms,
        check_jitter_percent: service.check_jitter_percent,
        rise: service.rise,
        fall: service.fall,
        drain_timeout_s: service.drain_timeout_s,
        slow_start_s: service.slow_start_s,
        resets_flows: resets_flows(service.on_backend_down)?,
    }))
}

/// What is asked where nothing is said of it.
fn default_checks(ports: &[PortRange], table: &Table) -> Vec<Check> {
    if table.feature_level() < CHECKS_LEVEL { Vec::new() } else { ServiceSettings::default_checks(ports) }
}

pub(super) fn update_service(request: &v1::UpdateServiceRequest, table: &Table) -> Result<Mutation, Status> {
    let name: Name = parsed("name", &request.name)?;
    let mask = Mask::new(request.update_mask.as_ref(), &SERVICE_FIELDS)?;
    let ports = if request.ports.is_empty() { None } else { Some(ports(&request.ports)?) };
    let ports = mask.pick("ports", ports);
    let by_default = || {
        let present = table.service(&name).map(|service| service.settings.ports.as_slice());
        default_checks(ports.as_deref().or(present).unwrap_or_default(), table)
    };
    let checks = match request.checks.as_ref().map(checks::checks).transpose()? {
        None if mask.names("checks") => Some(by_default()),
        said => mask.pick("checks", said),
    };
    Ok(Mutation::UpdateService(ServicePatch {
        name,
        ports,
        affinity: mask.pick("affinity", request.affinity.map(affinity).transpose()?),
        min_healthy: mask.pick("min_healthy", request.min_healthy),
        fails_open: mask.pick("on_all_down", request.on_all_down.map(fails_open).transpose()?),
        checks,
        check_interval_ms: mask.pick("check_interval_ms", request.check_interval_ms),
        check_timeout_ms: mask.pick("check_timeout_ms", request.check_timeout_ms),
        check_jitter_percent: mask.pick("check_jitter_percent", request.check_jitter_percent),
        rise: mask.pick("rise", request.rise),
        fall: mask.pick("fall", request.fall),
        drain_timeout_s: mask.pick("drain_timeout_s", request.drain_timeout_s),
        slow_start_s: mask.pick("slow_start_s", request.slow_start_s),
        resets_flows: mask.pick("on_backend_down", request.on_backend_down.map(resets_flows).transpose()?),
    }))
}

/// What can be changed of a service.
const SERVICE_FIELDS: [&str; 13] = [
    "ports",
    "affinity",
    "min_healthy",
    "on_all_down",
    "checks",
    "check_interval_ms",
    "check_timeout_ms",
    "check_jitter_percent",
    "rise",
    "fall",
    "drain_timeout_s",
    "slow_start_s",
    "on_backend_down",
];

/// Which fields a change is about: those of a mask, or where there is none those that are there.
struct Mask<'a>(Option<&'a [String]>);

impl<'a> Mask<'a> {
    fn new(mask: Option<&'a FieldMask>, known: &[&str]) -> Result<Self, Status> {
        let paths = mask.map(|mask| mask.paths.as_slice());
        match paths.into_iter().flatten().find(|path| !known.contains(&path.as_str())) {
            Some(path) => Err(invalid("update_mask", format!("{path:?} is none of {}", known.join(", ")))),
            None => Ok(Self(paths)),
        }
    }

    fn names(&self, field: &str) -> bool {
        self.0.is_some_and(|paths| paths.iter().any(|path| path == field))
    }

    /// What a field becomes; `None` if it stays.
    fn pick<T: Default>(&self, name: &str, value: Option<T>) -> Option<T> {
        match self.0 {
            None => value,
            Some(_) => self.names(name).then(|| value.unwrap_or_default()),
        }
    }
}

pub(super) fn delete_service(request: &v1::DeleteServiceRequest) -> Result<Mutation, Status> {
    Ok(Mutation::DeleteService { name: parsed("name", &request.name)?, cascade: request.cascade })
}

pub(super) fn create_backend(backend: Option<&v1::Backend>) -> Result<Mutation, Status> {
    let backend = backend.ok_or_else(|| invalid("backend", "it is required"))?;
    Ok(Mutation::CreateBackend(BackendSettings {
        service: parsed("service", &backend.service)?,
        address: address("address", &backend.address)?,
        weight: backend.weight.map_or(Ok(Weight::DEFAULT), weight)?,
        mac: optional::<MacAddr>("mac", &backend.mac)?,
        state: state(backend.state)?,
        tier: tier(backend.tier)?,
    }))
}

pub(super) fn update_backend(request: &v1::UpdateBackendRequest) -> Result<Mutation, Status> {
    let mask = Mask::new(request.update_mask.as_ref(), &["weight", "mac", "state", "tier"])?;
    let mac = request.mac.as_deref().map(|text| optional("mac", text)).transpose()?;
    Ok(Mutation::UpdateBackend(BackendPatch {
        service: parsed("service", &request.service)?,
        address: address("address", &request.address)?,
        weight: mask.pick("weight", request.weight.map(weight).transpose()?),
        mac: mask.pick("mac", mac),
        state: mask.pick("state", request.state.map(state).transpose()?),
        tier: mask.pick("tier", request.tier.map(tier).transpose()?),
    }))
}

fn resets_flows(number: i32) -> Result<bool, Status> {
    match v1::OnBackendDown::try_from(number) {
        Ok(v1::OnBackendDown::Unspecified | v1::OnBackendDown::Reselect) => Ok(false),
        Ok(v1::OnBackendDown::Reset) => Ok(true),
        Err(_) => Err(invalid("on_backend_down", format!("{number} is unknown"))),
    }
}

fn fails_open(number: i32) -> Result<bool, Status> {
    match v1::OnAllDown::try_from(number) {
        Ok(v1::OnAllDown::Unspecified | v1::OnAllDown::Drop) => Ok(false),
        Ok(v1::OnAllDown::FailOpen) => Ok(true),
        Err(_) => Err(invalid("on_all_down", format!("{number} is unknown"))),
    }
}

fn tier(number: u32) -> Result<Tier, Status> {
    match number {
        0 | 1 => Ok(Tier::First),
        2 => Ok(Tier::Second),
        _ => Err(invalid("tier", format!("{number} is neither 1 nor 2"))),
    }
}

pub(super) fn delete_backend(request: &v1::DeleteBackendRequest) -> Result<Mutation, Status> {
    Ok(Mutation::DeleteBackend {
        service: parsed::<Name>("service", &request.service)?,
        address: address("address", &request.address)?,
    })
}

pub(super) fn mutation(mutation: &v1::Mutation, table: &Table) -> Result<Mutation, Status> {
    use v1::mutation::Change;
    match mutation.change.as_ref().ok_or_else(|| invalid("change", "it is required"))? {
        Change::CreateVip(request) => create_vip(request.vip.as_ref(), table),
        Change::UpdateVip(request) => update_vip(request, table),
        Change::DeleteVip(request) => delete_vip(request),
        Change::CreateService(request) => create_service(request.service.as_ref(), table),
        Change::UpdateService(request) => update_service(request, table),
        Change::DeleteService(request) => delete_service(request),
        Change::CreateBackend(request) => create_backend(request.backend.as_ref()),
        Change::UpdateBackend(request) => update_backend(request),
        Change::DeleteBackend(request) => delete_backend(request),
        Change::CreateSegment(request) => create_segment(request.segment.as_ref()),
        Change::UpdateSegment(request) => update_segment(request),
        Change::DeleteSegment(request) => delete_segment(request),
        Change::UpdateSettings(change) => Ok(Mutation::PatchSettings(settings::patch(Some(change))?)),
    }
}

pub(super) fn vip(vip: &Vip, table: &Table) -> v1::Vip {
    let settings = &vip.settings;
    v1::Vip {
        address: settings.address.to_string(),
        prefer: node_name(settings.prefer, table),
        segment: settings.segment.map(|segment| segment.to_string()).unwrap_or_default(),
        unmatched: match settings.unmatched {
            Unmatched::Drop => v1::Unmatched::Drop,
            Unmatched::Reject => v1::Unmatched::Reject,
        }
        .into(),
        owner: node_name(vip.owner.map(|owner| owner.node), table),
        lease: vip.owner.map_or(0, |owner| owner.lease.0),
        epoch: vip.owner.map_or(0, |owner| owner.epoch.0),
        moving_to: node_name(vip.intent, table),
        deleting: vip.deleting,
        routed: table.is_routed(vip),
        revision: vip.revision,
        problem: String::new(),
    }
}

pub(super) fn service(service: &Service) -> v1::Service {
    let settings = &service.settings;
    let rhythm = settings.rhythm();
    let port = |range: &PortRange| v1::PortRange {
        protocol: match range.protocol {
            Protocol::Tcp => v1::Protocol::Tcp,
            Protocol::Udp => v1::Protocol::Udp,
        }
        .into(),
        first: range.first.into(),
        last: range.last.into(),
    };
    v1::Service {
        name: settings.name.to_string(),
        vip: settings.vip.to_string(),
        ports: settings.ports.iter().map(port).collect(),
        affinity: match settings.affinity {
            Affinity::Flow => v1::Affinity::Flow,
            Affinity::Source => v1::Affinity::Source,
        }
        .into(),
        table_size: settings.table_size,
        checks: Some(checks::shown(&settings.checks)),
        check_interval_ms: rhythm.interval_ms,
        check_timeout_ms: rhythm.timeout_ms,
        check_jitter_percent: rhythm.jitter_percent,
        rise: rhythm.rise,
        fall: rhythm.fall,
        drain_timeout_s: settings.drain_timeout_s(),
        slow_start_s: settings.slow_start_s,
        min_healthy: settings.min_healthy,
        on_all_down: if settings.fails_open { v1::OnAllDown::FailOpen } else { v1::OnAllDown::Drop }.into(),
        on_backend_down: match settings.resets_flows {
            true => v1::OnBackendDown::Reset,
            false => v1::OnBackendDown::Reselect,
        }
        .into(),
        revision: service.revision,
    }
}

/// As it stands in the table, whoever looks and whenever.
pub(super) fn backend(backend: &Backend, table: &Table) -> v1::Backend {
    let settings = &backend.settings;
    let verdict = table.verdict(backend);
    v1::Backend {
        service: settings.service.to_string(),
        address: settings.address.to_string(),
        weight: Some(settings.weight.get().into()),
        mac: settings.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        state: match settings.state {
            AdminState::Active => v1::AdminState::Active,
            AdminState::Drain => v1::AdminState::Drain,
            AdminState::Down => v1::AdminState::Down,
        }
        .into(),
        tier: match settings.tier {
            Tier::First => 1,
            Tier::Second => 2,
        },
        revision: backend.revision,
        health: match verdict.map(|verdict| verdict.health) {
            None | Some(Health::Unchecked) => v1::Health::Unchecked,
            Some(Health::Unreachable) => v1::Health::Unreachable,
            Some(Health::Healthy) => v1::Health::Healthy,
            Some(Health::Unhealthy) => v1::Health::Unhealthy,
        }
        .into(),
        health_reason: verdict.map(|verdict| verdict.reason.clone()).unwrap_or_default(),
        health_since: verdict.map(|verdict| rfc3339(verdict.since_ms)).unwrap_or_default(),
        draining_since: if backend.draining_since_ms > 0 { rfc3339(backend.draining_since_ms) } else { String::new() },
        drained: backend.is_drained,
        share_eighths: backend.share(),
        flows: None,
        drain_ends_s: None,
    }
}

/// In so many seconds a backend that is drained loses its flows.
pub(super) fn drain_ends_s(backend: &Backend, table: &Table) -> Option<u64> {
    drain_ends_ms(backend, table).map(|ends_ms| ends_ms.saturating_sub(clock::unix_ms()) / 1000)
}

/// When a backend that is drained loses its flows.
fn drain_ends_ms(backend: &Backend, table: &Table) -> Option<u64> {
    let service = table.service(&backend.settings.service)?;
    let is_draining = backend.draining_since_ms > 0 && !backend.is_drained;
    is_draining.then(|| backend.draining_since_ms + 1000 * u64::from(service.settings.drain_timeout_s()))
}

pub(super) fn node(node: &Node, view: &View, leader: Option<NodeId>) -> v1::Node {
    let attachment = |a: &Attachment| v1::Attachment {
        interface: a.interface.clone(),
        mac: a.mac.to_string(),
        address: format!("{}/{}", a.address, a.prefix_len),
        hears: a.hears.iter().filter_map(|id| view.table.node(*id)).map(|node| node.name.to_string()).collect(),
        isolated: view.table.is_isolated(node.id, a),
        blind: view.table.blindness(node.id, a).any(|sign| sign == Sign::Backends),
        misses_gateway: view.table.blindness(node.id, a).any(|sign| sign == Sign::Gateway),
    };
    v1::Node {
        id: node.id,
        name: node.name.to_string(),
        role: match node.role {
            Role::Lb => v1::Role::Lb,
            Role::Witness => v1::Role::Witness,
        }
        .into(),
        address: node.address.clone(),
        leader: leader == Some(node.id),
        voter: view.voters.contains(&node.id),
        draining: node.draining,
        ready: view.table.lease(node.id).is_some_and(|lease| lease.ready),
        vips: view.table.vips_of(node.id).count().try_into().unwrap_or(u32::MAX),
        attachments: node.attachments.iter().map(attachment).collect(),
        feature_level: node.feature_level,
        unfit: node.unfit.clone(),
        heard: false,
        round_trip_us: 0,
        starts: node.starts,
        version: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_their_ends() {
        let range = |first, last| v1::PortRange { protocol: v1::Protocol::Tcp.into(), first, last };
        for (first, last) in [(0, 0), (1, 1), (65_535, 65_535), (1, 65_535)] {
            let read = port(&range(first, last)).unwrap();
            assert_eq!((u32::from(read.first), u32::from(read.last)), (first, last));
        }
        for (first, last) in [(0, 1), (0, 65_535), (1, 65_536), (65_536, 65_536), (u32::MAX, u32::MAX)] {
            assert!(port(&range(first, last)).is_err(), "{first}-{last}");
        }
        assert!(port(&v1::PortRange { protocol: 0, first: 1, last: 1 }).is_err(), "no protocol");
        assert!(port(&v1::PortRange { protocol: 9, first: 1, last: 1 }).is_err(), "an unknown one");
    }

    #[test]
    fn a_weight_that_is_not_set_is_one_and_zero_is_zero() {
        let created = |weight| {
            let (service, address) = ("web".to_owned(), "192.0.2.1".to_owned());
            let backend = v1::Backend { service, address, weight, ..v1::Backend::default() };
            match create_backend(Some(&backend)) {
                Ok(Mutation::CreateBackend(settings)) => Ok(settings.weight.get()),
                Ok(other) => panic!("{other:?}"),
                Err(status) => Err(status.code()),
            }
        };
        assert_eq!([None, Some(0), Some(1), Some(1000)].map(created), [Ok(1), Ok(0), Ok(1), Ok(1000)]);
        assert_eq!([Some(1001), Some(u32::MAX)].map(created), [Err(tonic::Code::InvalidArgument); 2]);
    }

    fn mask(paths: &[&str]) -> Option<FieldMask> {
        Some(FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() })
    }

    #[test]
    fn a_mask_says_what_changes_and_what_is_absent_gets_its_default() {
        let request = v1::UpdateBackendRequest {
            service: "web".into(),
            address: "192.0.2.5".into(),
            weight: Some(7),
            mac: Some("02:00:00:00:00:05".into()),
            ..v1::UpdateBackendRequest::default()
        };
        let patch = |mask| match update_backend(&v1::UpdateBackendRequest { update_mask: mask, ..request.clone() }) {
            Ok(Mutation::UpdateBackend(patch)) => (patch.weight.map(Weight::get), patch.mac, patch.state, patch.tier),
            other => panic!("{other:?}"),
        };
        let mac = Some(Some("02:00:00:00:00:05".parse().unwrap()));
        assert_eq!(patch(None), (Some(7), mac, None, None));
        assert_eq!(patch(mask(&["weight"])), (Some(7), None, None, None));
        assert_eq!(patch(mask(&["tier", "state"])), (None, None, Some(AdminState::Active), Some(Tier::First)));
        assert_eq!(patch(mask(&[])), (None, None, None, None));
        let absent = v1::UpdateBackendRequest { weight: None, mac: None, ..request.clone() };
        let of = v1::UpdateBackendRequest { update_mask: mask(&["weight", "mac"]), ..absent };
        let Ok(Mutation::UpdateBackend(patch)) = update_backend(&of) else { panic!("it is sound") };
        assert_eq!((patch.weight, patch.mac), (Some(Weight::DEFAULT), Some(None)));
        let wrong = v1::UpdateBackendRequest { update_mask: mask(&["weigth"]), ..request };
        let refused = update_backend(&wrong).unwrap_err();
        assert!(refused.message().contains("update_mask: \"weigth\" is none of weight"), "{refused}");
    }

    #[test]
    fn every_setting_of_a_service_can_be_masked() {
        let request = v1::UpdateServiceRequest { name: "web".into(), ..v1::UpdateServiceRequest::default() };
        for field in SERVICE_FIELDS {
            let one = v1::UpdateServiceRequest { update_mask: mask(&[field]), ..request.clone() };
            let Ok(Mutation::UpdateService(patch)) = update_service(&one, &Table::default()) else { panic!("{field}") };
            let nothing = ServicePatch::of("web".parse().unwrap());
            assert_ne!(patch, nothing, "{field} is not looked at");
        }
    }
}
