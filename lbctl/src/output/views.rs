//! The API's messages as they are printed.

use std::collections::BTreeMap;

use lb_proto::v1;
use serde::Serialize;

use super::Row;

/// An enum value's name in lower case, without its type.
fn lower<E: TryFrom<i32>>(value: i32, name: impl Fn(&E) -> &'static str, prefix: &str) -> String {
    let name = E::try_from(value).map_or("UNKNOWN", |value| name(&value));
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase()
}

fn yes(flag: bool) -> String {
    if flag { "yes" } else { "-" }.to_owned()
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

/// A setting of the cluster.
#[derive(Debug, Serialize)]
pub(crate) struct Setting {
    key: String,
    value: String,
}

impl From<(String, String)> for Setting {
    fn from((key, value): (String, String)) -> Self {
        Self { key, value }
    }
}

impl Row for Setting {
    const COLUMNS: &'static [&'static str] = &["setting", "value"];

    fn cells(&self) -> Vec<String> {
        vec![self.key.clone(), self.value.clone()]
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Vip {
    address: String,
    prefer: String,
    segment: String,
    unmatched: String,
    owner: String,
    lease: u64,
    epoch: u64,
    moving_to: String,
    deleting: bool,
    routed: bool,
    revision: u64,
}

impl From<v1::Vip> for Vip {
    fn from(vip: v1::Vip) -> Self {
        Self {
            unmatched: lower(vip.unmatched, v1::Unmatched::as_str_name, "UNMATCHED_"),
            address: vip.address,
            prefer: vip.prefer,
            segment: vip.segment,
            owner: vip.owner,
            lease: vip.lease,
            epoch: vip.epoch,
            moving_to: vip.moving_to,
            deleting: vip.deleting,
            routed: vip.routed,
            revision: vip.revision,
        }
    }
}

impl Row for Vip {
    const COLUMNS: &'static [&'static str] = &["address", "owner", "prefer", "segment", "unmatched", "epoch", "state"];

    fn cells(&self) -> Vec<String> {
        let state = match self {
            Self { deleting: true, .. } => "deleting".to_owned(),
            Self { moving_to, .. } if !moving_to.is_empty() => format!("moving to {moving_to}"),
            Self { owner, .. } if owner.is_empty() => "no owner".to_owned(),
            _ => "ok".to_owned(),
        };
        let segment = if self.routed { "routed" } else { &self.segment };
        vec![
            self.address.clone(),
            or_dash(&self.owner),
            or_dash(&self.prefer),
            or_dash(segment),
            self.unmatched.clone(),
            self.epoch.to_string(),
            state,
        ]
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Service {
    name: String,
    vip: String,
    ports: Vec<PortRange>,
    affinity: String,
    table_size: u32,
    check: String,
    revision: u64,
}

#[derive(Debug, Serialize)]
struct PortRange {
    protocol: String,
    first: u32,
    last: u32,
}

impl std::fmt::Display for PortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.first, self.last) {
            (0, _) => write!(f, "any/{}", self.protocol),
            (first, last) if first == last => write!(f, "{first}/{}", self.protocol),
            (first, last) => write!(f, "{first}-{last}/{}", self.protocol),
        }
    }
}

impl From<v1::Service> for Service {
    fn from(service: v1::Service) -> Self {
        let port = |range: v1::PortRange| PortRange {
            protocol: lower(range.protocol, v1::Protocol::as_str_name, "PROTOCOL_"),
            first: range.first,
            last: range.last,
        };
        Self {
            affinity: lower(service.affinity, v1::Affinity::as_str_name, "AFFINITY_"),
            name: service.name,
            vip: service.vip,
            ports: service.ports.into_iter().map(port).collect(),
            table_size: service.table_size,
            check: service.check,
            revision: service.revision,
        }
    }
}

impl Row for Service {
    const COLUMNS: &'static [&'static str] = &["name", "vip", "ports", "affinity", "table size", "check"];

    fn cells(&self) -> Vec<String> {
        let ports: Vec<String> = self.ports.iter().map(ToString::to_string).collect();
        vec![
            self.name.clone(),
            self.vip.clone(),
            ports.join(","),
            self.affinity.clone(),
            self.table_size.to_string(),
            self.check.clone(),
        ]
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Backend {
    service: String,
    address: String,
    weight: u32,
    mac: String,
    state: String,
    revision: u64,
}

impl From<v1::Backend> for Backend {
    fn from(backend: v1::Backend) -> Self {
        Self {
            state: lower(backend.state, v1::AdminState::as_str_name, "ADMIN_STATE_"),
            service: backend.service,
            address: backend.address,
            weight: backend.weight,
            mac: backend.mac,
            revision: backend.revision,
        }
    }
}

impl Row for Backend {
    const COLUMNS: &'static [&'static str] = &["service", "address", "weight", "mac", "state"];

    fn cells(&self) -> Vec<String> {
        let mac = if self.mac.is_empty() { "by ARP".to_owned() } else { self.mac.clone() };
        vec![self.service.clone(), self.address.clone(), self.weight.to_string(), mac, self.state.clone()]
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Node {
    id: u64,
    name: String,
    role: String,
    address: String,
    leader: bool,
    voter: bool,
    draining: bool,
    ready: bool,
    vips: u32,
    attachments: Vec<Attachment>,
    feature_level: u32,
}

#[derive(Debug, Serialize)]
struct Attachment {
    interface: String,
    mac: String,
    address: String,
    hears: Vec<String>,
    isolated: bool,
}

impl From<v1::Node> for Node {
    fn from(node: v1::Node) -> Self {
        let attachment = |a: v1::Attachment| Attachment {
            interface: a.interface,
            mac: a.mac,
            address: a.address,
            hears: a.hears,
            isolated: a.isolated,
        };
        Self {
            role: lower(node.role, v1::Role::as_str_name, "ROLE_"),
            id: node.id,
            name: node.name,
            address: node.address,
            leader: node.leader,
            voter: node.voter,
            draining: node.draining,
            ready: node.ready,
            vips: node.vips,
            attachments: node.attachments.into_iter().map(attachment).collect(),
            feature_level: node.feature_level,
        }
    }
}

impl Row for Node {
    const COLUMNS: &'static [&'static str] =
        &["name", "id", "role", "address", "leader", "votes", "lease", "draining", "vips", "segments"];

    fn cells(&self) -> Vec<String> {
        let segment =
            |a: &Attachment| format!("{} {}{}", a.interface, a.address, if a.isolated { " ISOLATED" } else { "" });
        let segments: Vec<String> = self.attachments.iter().map(segment).collect();
        vec![
            self.name.clone(),
            self.id.to_string(),
            self.role.clone(),
            self.address.clone(),
            yes(self.leader),
            yes(self.voter),
            yes(self.ready),
            yes(self.draining),
            self.vips.to_string(),
            or_dash(&segments.join(", ")),
        ]
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Status {
    cluster: String,
    cluster_id: String,
    node: String,
    waiting: String,
    leader: String,
    term: u64,
    revision: u64,
    applied: u64,
    feature_level: u32,
    pub(crate) nodes: Vec<Node>,
    vips: u32,
    unowned_vips: u32,
    services: u32,
    backends: u32,
    dataplane: Option<DataplaneStatus>,
    lease_valid_ms: u64,
    held: bool,
    version: String,
    stale: bool,
    pub(crate) vip_owners: Vec<Vip>,
}

#[derive(Debug, Serialize)]
struct DataplaneStatus {
    engine: String,
    reason: String,
    workers: u32,
    scheduling: String,
    running: bool,
}

impl From<v1::GetStatusResponse> for Status {
    fn from(status: v1::GetStatusResponse) -> Self {
        let dataplane = |d: v1::DataplaneStatus| DataplaneStatus {
            engine: d.engine,
            reason: d.reason,
            workers: d.workers,
            scheduling: d.scheduling,
            running: d.running,
        };
        Self {
            cluster: status.cluster,
            cluster_id: status.cluster_id,
            node: status.node,
            waiting: status.waiting,
            leader: status.leader,
            term: status.term,
            revision: status.revision,
            applied: status.applied,
            feature_level: status.feature_level,
            nodes: status.nodes.into_iter().map(Into::into).collect(),
            vips: status.vips,
            unowned_vips: status.unowned_vips,
            services: status.services,
            backends: status.backends,
            dataplane: status.dataplane.map(dataplane),
            lease_valid_ms: status.lease_valid_ms,
            held: status.held,
            version: status.version,
            stale: status.stale,
            vip_owners: status.vip_owners.into_iter().map(Into::into).collect(),
        }
    }
}

impl Status {
    /// For people.
    pub(crate) fn summary(&self) -> String {
        if !self.waiting.is_empty() {
            return format!("{}\n", self.waiting);
        }
        let leader = if self.leader.is_empty() { "none: no quorum" } else { &self.leader };
        let lease = match self.lease_valid_ms {
            0 if self.held => "run out, VIPs HELD without a majority".to_owned(),
            0 => "not valid: answers for no VIP".to_owned(),
            ms => format!("valid for {ms} ms"),
        };
        let engine = match &self.dataplane {
            None => "none (witness)".to_owned(),
            Some(d) if !d.running => format!("{} has ended: see the log", d.engine),
            Some(d) if d.reason.is_empty() => d.engine.clone(),
            Some(d) => format!("{} ({})", d.engine, d.reason),
        };
        // Nothing to tell if it is normal and shall be.
        let scheduling = self.dataplane.iter().map(|d| d.scheduling.as_str()).find(|how| !["", "normal"].contains(how));
        let scheduling = scheduling.map(|how| format!(", {how}")).unwrap_or_default();
        let unowned = match self.unowned_vips {
            0 => String::new(),
            count => format!(", {count} WITHOUT OWNER"),
        };
        let stale = match self.stale {
            true => "WARNING   no majority confirmed this: it is what this node knew last\n",
            false => "",
        };
        format!(
            "{stale}cluster   {} ({})\nnode      {} (lbd {}, lease {lease})\nleader    {leader} (term {})\n\
             table     revision {}: {} VIPs{unowned}, {} services, {} backends\nengine    {engine}{scheduling}\n\n",
            self.cluster,
            self.cluster_id,
            self.node,
            self.version,
            self.term,
            self.revision,
            self.vips,
            self.services,
            self.backends,
        )
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Stats {
    /// By name, as the node has them: a new one shows without a change here.
    #[serde(flatten)]
    counters: BTreeMap<String, u64>,
    drops: Vec<DropCount>,
    workers: Vec<WorkerCount>,
    vips: Vec<VipCount>,
    backends: Vec<BackendCount>,
    conflicts: Vec<Conflict>,
    table_revision: u64,
}

#[derive(Debug, Serialize)]
struct Conflict {
    vip: String,
    mac: String,
    packets: u64,
    claimant: String,
}

#[derive(Debug, Serialize)]
struct DropCount {
    reason: String,
    packets: u64,
}

#[derive(Debug, Serialize)]
struct WorkerCount {
    received: u64,
    handed_over: u64,
}

#[derive(Debug, Serialize)]
struct VipCount {
    address: String,
    packets: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct BackendCount {
    service: String,
    address: String,
    mac: String,
    packets: u64,
    bytes: u64,
}

impl From<v1::GetStatsResponse> for Stats {
    fn from(stats: v1::GetStatsResponse) -> Self {
        let drop = |d: v1::DropCount| DropCount { reason: d.reason, packets: d.packets };
        let worker = |w: v1::WorkerCount| WorkerCount { received: w.received, handed_over: w.handed_over };
        let vip = |v: v1::VipCount| VipCount { address: v.address, packets: v.packets, bytes: v.bytes };
        let backend = |b: v1::BackendCount| BackendCount {
            service: b.service,
            address: b.address,
            mac: b.mac,
            packets: b.packets,
            bytes: b.bytes,
        };
        Self {
            counters: stats.counters.into_iter().map(|counter| (counter.name, counter.value)).collect(),
            drops: stats.drops.into_iter().map(drop).collect(),
            workers: stats.workers.into_iter().map(worker).collect(),
            vips: stats.vips.into_iter().map(vip).collect(),
            backends: stats.backends.into_iter().map(backend).collect(),
            conflicts: stats
                .conflicts
                .into_iter()
                .map(|c| Conflict { vip: c.vip, mac: c.mac, packets: c.packets, claimant: c.claimant })
                .collect(),
            table_revision: stats.table_revision,
        }
    }
}

impl Stats {
    /// For people.
    pub(crate) fn summary(&self) -> String {
        let mut text = format!("revision   {}\n", self.table_revision);
        for (name, value) in &self.counters {
            text += &format!("{:<10} {value}\n", name.replace('_', " "));
        }
        for drop in &self.drops {
            text += &format!("dropped    {} {}\n", drop.packets, drop.reason);
        }
        for (at, worker) in self.workers.iter().enumerate().filter(|_| self.workers.len() > 1) {
            text += &format!("worker {at:<3} {} received {} handed over\n", worker.received, worker.handed_over);
        }
        for vip in &self.vips {
            text += &format!("vip        {} {} packets {} bytes\n", vip.address, vip.packets, vip.bytes);
        }
        for b in &self.backends {
            let mac = if b.mac.is_empty() { "UNRESOLVED" } else { &b.mac };
            text += &format!("backend    {} {} {mac} {} packets {} bytes\n", b.service, b.address, b.packets, b.bytes);
        }
        for c in &self.conflicts {
            let claimant = if c.claimant.is_empty() { "somebody unknown" } else { &c.claimant };
            text += &format!("CONFLICT   {} is claimed by {} ({claimant}), {} packets\n", c.vip, c.mac, c.packets);
        }
        text
    }
}

/// What a node would do with a packet, and why.
#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    verdict: String,
    kind: String,
    source: String,
    destination: String,
    protocol: String,
    vip: String,
    owner: String,
    answers: bool,
    service: String,
    backend: String,
    mac: String,
    interface: String,
    chosen_by: String,
    table_entry: u32,
    table_size: u32,
    node: String,
}

impl From<v1::ExplainResponse> for Explanation {
    fn from(e: v1::ExplainResponse) -> Self {
        Self {
            protocol: lower(e.protocol, v1::Protocol::as_str_name, "PROTOCOL_"),
            verdict: e.verdict,
            kind: e.kind,
            source: e.source,
            destination: e.destination,
            vip: e.vip,
            owner: e.owner,
            answers: e.answers,
            service: e.service,
            backend: e.backend,
            mac: e.mac,
            interface: e.interface,
            chosen_by: e.chosen_by,
            table_entry: e.table_entry,
            table_size: e.table_size,
            node: e.node,
        }
    }
}

impl Explanation {
    /// For people.
    pub(crate) fn summary(&self) -> String {
        let mut text = format!("verdict    {}\nnode       {}\n", self.verdict, self.node);
        let mut line = |name: &str, value: String| {
            if !value.is_empty() {
                text += &format!("{name:10} {value}\n");
            }
        };
        line("flow", format!("{} -> {} {}", self.source, self.destination, self.protocol));
        match self.vip.as_str() {
            "" => line("vip", "none: the destination is no VIP".to_owned()),
            vip => {
                let owner = if self.owner.is_empty() { "nobody" } else { &self.owner };
                let here = if self.answers { ", which answers for it now" } else { "" };
                line("vip", format!("{vip}, owned by {owner}{here}"));
            }
        }
        line("service", self.service.clone());
        line("backend", self.backend.clone());
        match self.chosen_by.as_str() {
            "flow" => line("because", "the flow table knows the flow".to_owned()),
            "maglev" => line(
                "because",
                format!("new flow: entry {} of {} of the Maglev table", self.table_entry, self.table_size),
            ),
            _ => {}
        }
        line(
            "sent to",
            match (self.mac.as_str(), self.interface.as_str()) {
                ("", _) => String::new(),
                (mac, "") => mac.to_owned(),
                (mac, interface) => format!("{mac} by {interface}"),
            },
        );
        text
    }
}

impl Row for Explanation {
    const COLUMNS: &'static [&'static str] =
        &["verdict", "kind", "source", "destination", "proto", "service", "backend", "chosen by"];

    fn cells(&self) -> Vec<String> {
        let of = [
            &self.verdict,
            &self.kind,
            &self.source,
            &self.destination,
            &self.protocol,
            &self.service,
            &self.backend,
            &self.chosen_by,
        ];
        of.map(|text| or_dash(text)).into()
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Flow {
    source: String,
    destination: String,
    protocol: String,
    service: String,
    backend: String,
    state: String,
    idle_ms: u64,
}

impl From<v1::Flow> for Flow {
    fn from(flow: v1::Flow) -> Self {
        Self {
            protocol: lower(flow.protocol, v1::Protocol::as_str_name, "PROTOCOL_"),
            state: lower(flow.state, v1::FlowState::as_str_name, "FLOW_STATE_"),
            source: flow.source,
            destination: flow.destination,
            service: flow.service,
            backend: flow.backend,
            idle_ms: flow.idle_ms,
        }
    }
}

impl Row for Flow {
    const COLUMNS: &'static [&'static str] = &["source", "destination", "proto", "service", "backend", "state", "idle"];

    fn cells(&self) -> Vec<String> {
        let idle = humantime::format_duration(std::time::Duration::from_secs(self.idle_ms / 1000)).to_string();
        vec![
            self.source.clone(),
            self.destination.clone(),
            self.protocol.clone(),
            or_dash(&self.service),
            or_dash(&self.backend),
            self.state.clone(),
            idle,
        ]
    }
}
