//! The API's messages for people: rows of tables, and summaries.

use std::time::Duration;

use lb_proto::{
    label,
    rates::{NodeRate, Rate, Rates},
    v1,
};
use serde::Serialize;

use super::{NOTHING, Row, Summary};
use crate::cli::Check;

fn yes(flag: bool) -> String {
    if flag { "yes" } else { NOTHING }.to_owned()
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { NOTHING } else { text }.to_owned()
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

impl Row for v1::Vip {
    const COLUMNS: &'static [&'static str] = &["address", "owner", "prefer", "segment", "unmatched", "epoch", "state"];
    const WIDE: &'static [&'static str] = &["unmatched", "epoch"];

    fn cells(&self) -> Vec<String> {
        let state = match self {
            Self { deleting: true, .. } => "deleting".to_owned(),
            Self { moving_to, .. } if !moving_to.is_empty() => format!("moving to {moving_to}"),
            Self { problem, .. } if !problem.is_empty() => problem.clone(),
            Self { owner, .. } if owner.is_empty() => "no owner".to_owned(),
            _ => "ok".to_owned(),
        };
        let segment = if self.routed { "routed" } else { &self.segment };
        vec![
            self.address.clone(),
            or_dash(&self.owner),
            or_dash(&self.prefer),
            or_dash(segment),
            label::<v1::Unmatched>(self.unmatched).to_owned(),
            self.epoch.to_string(),
            state,
        ]
    }
}

impl Row for v1::Segment {
    const COLUMNS: &'static [&'static str] = &["network", "gateway", "unheard by"];

    fn cells(&self) -> Vec<String> {
        vec![self.network.clone(), self.gateway.clone(), or_dash(&self.unheard_by.join(", "))]
    }
}

fn ports(range: &v1::PortRange) -> String {
    let protocol = label::<v1::Protocol>(range.protocol);
    match (range.first, range.last) {
        (0, _) => format!("any/{protocol}"),
        (first, last) if first == last => format!("{first}/{protocol}"),
        (first, last) => format!("{first}-{last}/{protocol}"),
    }
}

impl Row for v1::Service {
    const COLUMNS: &'static [&'static str] = &[
        "name",
        "vip",
        "ports",
        "affinity",
        "table size",
        "checks",
        "every",
        "min healthy",
        "on all down",
        "on backend down",
        "drain timeout",
        "slow start",
    ];
    const WIDE: &'static [&'static str] =
        &["table size", "every", "min healthy", "on all down", "on backend down", "drain timeout", "slow start"];

    fn cells(&self) -> Vec<String> {
        let ports: Vec<String> = self.ports.iter().map(ports).collect();
        let all = self.checks.iter().flat_map(|list| &list.checks);
        let checks: Vec<String> = all.map(|check| Check(Some(check.clone())).to_string()).collect();
        let every = Duration::from_millis(self.check_interval_ms.into());
        vec![
            self.name.clone(),
            self.vip.clone(),
            ports.join(","),
            label::<v1::Affinity>(self.affinity).to_owned(),
            self.table_size.to_string(),
            or_dash(&checks.join(" ")),
            if checks.is_empty() { "-".to_owned() } else { humantime::format_duration(every).to_string() },
            self.min_healthy.max(1).to_string(),
            label::<v1::OnAllDown>(self.on_all_down).replace('_', "-"),
            label::<v1::OnBackendDown>(self.on_backend_down).to_owned(),
            span(self.drain_timeout_s),
            span(self.slow_start_s),
        ]
    }
}

fn count(of: impl Into<u64>, noun: &str) -> String {
    let of = of.into();
    if of == 1 { format!("1 {noun}") } else { format!("{of} {noun}s") }
}

fn span(seconds: u32) -> String {
    humantime::format_duration(Duration::from_secs(seconds.into())).to_string()
}

impl Row for v1::Backend {
    const COLUMNS: &'static [&'static str] =
        &["service", "address", "weight", "mac", "tier", "state", "flows", "health", "since", "reason"];
    const WIDE: &'static [&'static str] = &["mac", "tier", "since"];

    fn name(&self) -> String {
        format!("{} {}", self.service, self.address)
    }

    fn cells(&self) -> Vec<String> {
        let mac = if self.mac.is_empty() { "by ARP".to_owned() } else { self.mac.clone() };
        let state = match label::<v1::AdminState>(self.state) {
            _ if self.drained => "drained".to_owned(),
            "active" if (1..8).contains(&self.share_eighths) => format!("active {}/8", self.share_eighths),
            state => state.to_owned(),
        };
        vec![
            self.service.clone(),
            self.address.clone(),
            self.weight().to_string(),
            mac,
            self.tier.to_string(),
            state,
            self.flows.map_or("-".to_owned(), |flows| flows.to_string()),
            label::<v1::Health>(self.health).to_owned(),
            or_dash(&self.health_since),
            or_dash(&self.health_reason),
        ]
    }
}

impl Row for v1::Node {
    const COLUMNS: &'static [&'static str] = &[
        "name", "id", "role", "address", "leader", "votes", "lease", "draining", "vips", "version", "segments",
        "troubles",
    ];
    const WIDE: &'static [&'static str] = &["id", "votes", "segments"];
    // Nobody was asked for theirs.
    const RARE: &'static [&'static str] = &["version"];

    fn cells(&self) -> Vec<String> {
        let troubled = |a: &v1::Attachment| {
            let isolated = if a.isolated { " ISOLATED" } else { "" };
            let blind = if a.blind { " HEARS NO BACKENDS" } else { "" };
            let missing = if a.misses_gateway { " HEARS NO GATEWAY" } else { "" };
            format!("{} {}{isolated}{blind}{missing}", a.interface, a.address)
        };
        let is_troubled = |a: &&v1::Attachment| a.isolated || a.blind || a.misses_gateway;
        let segments: Vec<String> = self.attachments.iter().map(|a| format!("{} {}", a.interface, a.address)).collect();
        // A node that votes and holds no lease is down, or not reached.
        let silent = (self.voter && !self.ready && self.unfit.is_empty()).then(|| "NO LEASE".to_owned());
        let attached = self.attachments.iter().filter(is_troubled).map(troubled);
        let troubles: Vec<String> = silent.into_iter().chain(attached).collect();
        vec![
            self.name.clone(),
            self.id.to_string(),
            label::<v1::Role>(self.role).to_owned(),
            self.address.clone(),
            yes(self.leader),
            yes(self.voter),
            match (self.unfit.is_empty(), self.ready) {
                (false, _) => "unfit".to_owned(),
                (true, ready) => yes(ready),
            },
            yes(self.draining),
            self.vips.to_string(),
            or_dash(&self.version),
            or_dash(&segments.join(", ")),
            or_dash(&troubles.join(", ")),
        ]
    }
}

/// A line on the accelerator: in which mode it sees which interfaces, and how much of what it sees is its own.
fn accelerator(of: &v1::AcceleratorStatus) -> String {
    if !of.problem.is_empty() {
        return format!("xdp       none: {}\n", of.problem);
    }
    let shown = |at: &v1::AcceleratedInterface| {
        let mode = if at.mode.is_empty() { "not accelerated" } else { &at.mode };
        let reason = if at.reason.is_empty() { String::new() } else { format!(" ({})", at.reason) };
        format!("{} {mode}{reason}", at.interface)
    };
    let interfaces: Vec<String> = of.interfaces.iter().map(shown).collect();
    let share = |part: u64| {
        let all: u64 = of.forwarded + of.passed.iter().map(|passed| passed.frames).sum::<u64>();
        part * 100 / all.max(1)
    };
    let partial: u64 = of.passed.iter().filter(|passed| passed.reason == "partial_checksum").map(|of| of.frames).sum();
    let partial = match share(partial) {
        0 => String::new(),
        percent => format!(", {percent} % with partial checksums"),
    };
    format!("xdp       {}; {} % of all frames{partial}\n", interfaces.join(", "), share(of.forwarded))
}

impl Summary for v1::GetStatusResponse {
    fn summary(&self) -> String {
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
        let accelerator =
            self.dataplane.iter().find_map(|d| d.accelerator.as_ref()).map(accelerator).unwrap_or_default();
        let unowned = match self.unowned_vips {
            0 => String::new(),
            count => format!(", {count} WITHOUT OWNER"),
        };
        let warnings: String = self.warnings.iter().map(|warning| format!("WARNING   {warning}\n")).collect();
        format!(
            "{warnings}cluster   {} ({})\nnode      {} (lbd {}, lease {lease})\nleader    {leader} (term {})\n\
             table     revision {}: {}{unowned}, {}, {}\nengine    {engine}{scheduling}\n{accelerator}\n",
            self.cluster,
            self.cluster_id,
            self.node,
            self.version,
            self.term,
            self.revision,
            count(self.vips, "VIP"),
            count(self.services, "service"),
            count(self.backends, "backend"),
        )
    }
}

impl Summary for v1::GetStatsResponse {
    fn summary(&self) -> String {
        // The sums of several nodes have neither a revision nor MAC addresses.
        let is_of_one = self.nodes.is_empty();
        let mut lines = Vec::new();
        let mut line = |name: &str, value: String| lines.push((name.replace('_', " "), value));
        if is_of_one {
            line("revision", self.table_revision.to_string());
        } else {
            line("received", self.received.to_string());
            line("forwarded", self.forwarded.to_string());
            line("answered", self.answered.to_string());
        }
        for v1::Counter { name, value, .. } in &self.counters {
            line(name, value.to_string());
        }
        for drop in &self.drops {
            line("dropped", format!("{} {}", drop.packets, drop.reason));
        }
        for (at, worker) in self.workers.iter().enumerate().filter(|_| self.workers.len() > 1) {
            line(&format!("worker {at}"), format!("{} received {} handed over", worker.received, worker.handed_over));
        }
        for v1::NodeCount { node, received, forwarded, dropped, .. } in &self.nodes {
            line("node", format!("{node} {received} received {forwarded} forwarded {dropped} dropped"));
        }
        for silent in &self.silent_nodes {
            line("SILENT", silent.clone());
        }
        for vip in &self.vips {
            line("vip", format!("{} {} packets {} bytes", vip.address, vip.packets, vip.bytes));
        }
        for b in &self.backends {
            let mac = match (is_of_one, b.mac.as_str()) {
                (true, "") => " UNRESOLVED".to_owned(),
                (true, mac) => format!(" {mac}"),
                (false, _) => String::new(),
            };
            line("backend", format!("{} {}{mac} {} packets {} bytes", b.service, b.address, b.packets, b.bytes));
        }
        for c in &self.conflicts {
            let claimant = if c.claimant.is_empty() { "somebody unknown" } else { &c.claimant };
            line("CONFLICT", format!("{} is claimed by {} ({claimant}), {} packets", c.vip, c.mac, c.packets));
        }
        let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        lines.into_iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
    }
}

impl Summary for v1::ExplainResponse {
    fn summary(&self) -> String {
        let mut text = format!("verdict    {}\nnode       {}\n", self.verdict, self.node);
        let mut line = |name: &str, value: String| {
            if !value.is_empty() {
                text += &format!("{name:10} {value}\n");
            }
        };
        let protocol = label::<v1::Protocol>(self.protocol);
        line("flow", format!("{} -> {} {protocol}", self.source, self.destination));
        match self.vip.as_str() {
            "" => line("vip", "none: the destination is no VIP".to_owned()),
            vip => {
                let owner = if self.owner.is_empty() { "nobody" } else { &self.owner };
                let here = match (self.answers, *owner == self.node) {
                    (true, _) => ", which answers for it now",
                    (false, true) => ", which does not answer for it now: 'lbctl status' says why",
                    (false, false) => "",
                };
                line("vip", format!("{vip}, owned by {owner}{here}"));
            }
        }
        let note = match self.verdict.as_str() {
            "balanced_twice" => {
                "a load balancer's own frames are not balanced: as a client of a VIP it is served by no other node (docs/operations.md)"
            }
            "bad_source" => {
                "no host may send from this address here: it is a group's, a broadcast, loopback, a VIP, or this node's own. A \
                 load balancer is no client of its VIPs (docs/operations.md)"
            }
            _ => "",
        };
        line("note", note.to_owned());
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

impl Row for v1::ExplainResponse {
    const COLUMNS: &'static [&'static str] =
        &["verdict", "kind", "source", "destination", "proto", "service", "backend", "chosen by"];

    fn cells(&self) -> Vec<String> {
        let of: [&str; 8] = [
            &self.verdict,
            &self.kind,
            &self.source,
            &self.destination,
            label::<v1::Protocol>(self.protocol),
            &self.service,
            &self.backend,
            &self.chosen_by,
        ];
        of.map(or_dash).into()
    }
}

impl Row for v1::Flow {
    const COLUMNS: &'static [&'static str] = &["source", "destination", "proto", "service", "backend", "state", "idle"];

    fn cells(&self) -> Vec<String> {
        let idle = humantime::format_duration(Duration::from_secs(self.idle_ms / 1000)).to_string();
        vec![
            self.source.clone(),
            self.destination.clone(),
            label::<v1::Protocol>(self.protocol).to_owned(),
            or_dash(&self.service),
            or_dash(&self.backend),
            label::<v1::FlowState>(self.state).to_owned(),
            idle,
        ]
    }
}

/// The counters of a node by their names, so that a program asks for `handed_over` and not for an entry of a list.
pub(crate) fn with_counters(stats: &v1::GetStatsResponse) -> std::io::Result<serde_json::Value> {
    let mut object = serde_json::to_value(stats)?;
    object["counters"].take();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("counters");
        fields.extend(stats.counters.iter().map(|counter| (counter.name.clone(), counter.value.into())));
    }
    Ok(object)
}

/// How fast something's counters grow.
#[derive(Debug, Serialize)]
pub(crate) struct Pace {
    name: String,
    packets_per_second: f64,
    bits_per_second: f64,
    new_flows_per_second: f64,
}

impl Pace {
    fn new(name: String, rate: &Rate) -> Self {
        Self {
            name,
            packets_per_second: rate.packets_per_second,
            bits_per_second: rate.bytes_per_second * 8.0,
            new_flows_per_second: rate.new_flows_per_second,
        }
    }
}

impl Row for Pace {
    const COLUMNS: &'static [&'static str] = &["of", "packets/s", "Mbit/s", "new flows/s"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            format!("{:.0}", self.packets_per_second),
            format!("{:.1}", self.bits_per_second / 1e6),
            format!("{:.0}", self.new_flows_per_second),
        ]
    }
}

/// How fast a node's counters grow.
#[derive(Debug, Serialize)]
pub(crate) struct NodePace {
    node: String,
    #[serde(flatten)]
    rate: NodeRate,
}

impl Row for NodePace {
    const COLUMNS: &'static [&'static str] = &["node", "received/s", "forwarded/s", "dropped/s"];

    fn cells(&self) -> Vec<String> {
        let NodeRate { received_per_second, forwarded_per_second, dropped_per_second } = self.rate;
        let rates = [received_per_second, forwarded_per_second, dropped_per_second].map(|rate| format!("{rate:.0}"));
        [vec![self.node.clone()], rates.into()].concat()
    }
}

/// Frames dropped in a second.
#[derive(Debug, Serialize)]
pub(crate) struct DropPace {
    reason: String,
    per_second: f64,
}

impl Row for DropPace {
    const COLUMNS: &'static [&'static str] = &["dropped", "in a second"];

    fn cells(&self) -> Vec<String> {
        vec![self.reason.clone(), format!("{:.0}", self.per_second)]
    }
}

/// How fast the counters of all nodes grow.
#[derive(Debug, Serialize)]
pub(crate) struct Paced {
    pub(crate) nodes: Vec<NodePace>,
    pub(crate) vips: Vec<Pace>,
    pub(crate) backends: Vec<Pace>,
    /// Reasons for which nothing is dropped now are left out.
    pub(crate) drops: Vec<DropPace>,
}

impl Paced {
    /// In the order of the counters.
    pub(crate) fn new(rates: &Rates, of: &v1::GetStatsResponse) -> Self {
        let node = |of: &v1::NodeCount| NodePace {
            node: of.node.clone(),
            rate: rates.nodes.get(&of.node).copied().unwrap_or_default(),
        };
        let vip = |of: &v1::VipCount| {
            Pace::new(of.address.clone(), &rates.vips.get(&of.address).copied().unwrap_or_default())
        };
        let backend = |of: &v1::BackendCount| {
            let key = (of.service.clone(), of.address.clone());
            Pace::new(format!("{} {}", of.service, of.address), &rates.backends.get(&key).copied().unwrap_or_default())
        };
        let dropped = rates.drops.iter().filter(|(_, rate)| **rate > 0.0);
        Self {
            nodes: of.nodes.iter().map(node).collect(),
            vips: of.vips.iter().map(vip).collect(),
            backends: of.backends.iter().map(backend).collect(),
            drops: dropped.map(|(reason, rate)| DropPace { reason: reason.clone(), per_second: *rate }).collect(),
        }
    }
}
