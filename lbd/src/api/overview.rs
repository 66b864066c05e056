//! What the cluster looks like from here, and what is wrong.

use std::collections::HashSet;

use lb_dataplane::{Acceleration, AcceleratorReport};
use lb_proto::v1;
use lb_raft_store::{
    View,
    table::{Attachment, Backend, Node, Owner, Service, Sign, Table, Vip},
};

use super::{Context, convert};
use crate::{alarms::Alarm, events::Event, health::unserved};

fn accelerator(of: Result<AcceleratorReport, String>) -> v1::AcceleratorStatus {
    let AcceleratorReport { interfaces, forwarded, placed, passed } = match of {
        Ok(report) => report,
        Err(problem) => return v1::AcceleratorStatus { problem, ..v1::AcceleratorStatus::default() },
    };
    let interface = |of: Acceleration| v1::AcceleratedInterface {
        interface: of.interface,
        mode: of.mode.map(|mode| mode.to_string()).unwrap_or_default(),
        reason: of.reason.unwrap_or_default(),
    };
    let passed = passed.into_iter().map(|(reason, frames)| v1::PassedCount { reason: reason.to_owned(), frames });
    v1::AcceleratorStatus {
        problem: String::new(),
        interfaces: interfaces.into_iter().map(interface).collect(),
        forwarded,
        placed,
        passed: passed.collect(),
    }
}

impl Context {
    /// All that this node knows of its cluster. `stale`: nobody has confirmed it; `brief`: without the VIPs.
    pub(crate) fn overview(&self, view: &View, stale: bool, brief: bool) -> v1::GetStatusResponse {
        let config = &self.config;
        let status = self.consensus.status();
        let table = &view.table;
        let waiting = match status.node {
            Some(_) => String::new(),
            None => format!(
                "waiting to be added: run 'lbctl node add {} {}' on a node of the cluster",
                config.name, config.cluster.advertise
            ),
        };
        let dataplane = self.dataplane.as_ref().map(|dataplane| v1::DataplaneStatus {
            engine: dataplane.engine().to_string(),
            reason: dataplane.engine_reason().unwrap_or_default(),
            workers: u32::try_from(dataplane.worker_count()).unwrap_or(u32::MAX),
            running: dataplane.is_running(),
            scheduling: dataplane.scheduling().to_string(),
            accelerator: dataplane.accelerator().map(accelerator),
        });
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        v1::GetStatusResponse {
            cluster: config.cluster.name.to_string(),
            cluster_id: status.cluster.map(|id| id.to_string()).unwrap_or_default(),
            node: config.name.to_string(),
            waiting,
            leader: status.leader.and_then(|id| table.node(id)).map(|node| node.name.to_string()).unwrap_or_default(),
            term: status.term,
            revision: table.revision(),
            applied: view.applied,
            feature_level: table.feature_level(),
            nodes: self.nodes(view, &status),
            vips: count(table.vips().count()),
            unowned_vips: count(table.vips().filter(|vip| vip.owner.is_none()).count()),
            services: count(table.services().count()),
            backends: count(table.backends().count()),
            dataplane,
            lease_valid_ms: self.ownership.valid_ms(),
            held: self.ownership.is_held(),
            version: env!("CARGO_PKG_VERSION").into(),
            stale,
            vip_owners: table.vips().filter(|_| !brief).map(|vip| self.vip(vip, table)).collect(),
            warnings: self.warnings(view, &status, stale),
        }
    }

    /// A VIP, and what this node knows of whether it is answered.
    pub(crate) fn vip(&self, vip: &Vip, table: &Table) -> v1::Vip {
        let me = self.consensus.status().node;
        let address = vip.settings.address;
        let of_alarms = [Alarm::Contested(address), Alarm::OwnVip(address)].into_iter().find_map(|a| self.alarms.of(a));
        let silent = |owner: &Owner| {
            let name = table.node(owner.node).map(|node| node.name.to_string()).unwrap_or_default();
            if me == Some(owner.node) {
                let silent = self.ownership.valid_ms() == 0 && !self.ownership.is_held();
                return silent.then(|| "not answered: the owner's lease has run out".to_owned());
            }
            let heard = self.ownership.heard().peers.get(&owner.node).copied().unwrap_or(false);
            (!heard).then(|| format!("unknown: {name} is not heard"))
        };
        let problem = match &vip.owner {
            None => Some("no node is able to own it".to_owned()),
            Some(owner) => silent(owner).or(of_alarms),
        };
        v1::Vip { problem: problem.unwrap_or_default(), ..convert::vip(vip, table) }
    }

    /// A service.
    pub(crate) fn service(service: &Service) -> v1::Service {
        convert::service(service)
    }

    /// A backend, and how long it has yet.
    pub(crate) fn backend(backend: &Backend, table: &Table) -> v1::Backend {
        v1::Backend { drain_ends_s: convert::drain_ends_s(backend, table), ..convert::backend(backend, table) }
    }

    /// What has happened on this node, as it is told.
    pub(crate) fn event(&self, event: &Event, missed: bool) -> v1::WatchEventsResponse {
        v1::WatchEventsResponse {
            event: event.news.reason.clone(),
            number: event.number,
            time: humantime::format_rfc3339_millis(event.at).to_string(),
            node: self.config.name.to_string(),
            kind: v1::EventKind::from(event.news.kind).into(),
            objects: event.news.objects.clone(),
            revision: event.news.revision,
            warning: event.news.is_bad,
            missed,
        }
    }

    fn nodes(&self, view: &View, status: &lb_raft_store::Status) -> Vec<v1::Node> {
        let heard = self.ownership.heard();
        let round_trips = self.ownership.round_trips();
        let row = |node: &Node| v1::Node {
            heard: status.node == Some(node.id) || heard.peers.get(&node.id).copied().unwrap_or(false),
            round_trip_us: round_trips.get(&node.id).map_or(0, |ns| u32::try_from(ns / 1000).unwrap_or(u32::MAX)),
            ..convert::node(node, view, status.leader)
        };
        view.table.nodes().map(row).collect()
    }

    /// What is wrong: what this node sees itself, and what stands in the table.
    fn warnings(&self, view: &View, status: &lb_raft_store::Status, stale: bool) -> Vec<String> {
        let table = &view.table;
        // What clients feel comes first.
        let mut warnings = unserved(table);
        if stale {
            warnings.push("no majority confirmed this: it is what this node knew last".to_owned());
        }
        if status.node.is_some() && status.leader.is_none() {
            warnings.push("there is no leader: no change can be agreed on".to_owned());
        }
        warnings.extend(self.alarms.problems());
        for node in table.nodes().filter(|node| Some(node.id) != status.node) {
            if !node.unfit.is_empty() {
                warnings.push(format!("{} can own no VIP: {}", node.name, node.unfit));
            }
        }
        for node in table.nodes().filter(|node| view.voters.contains(&node.id)) {
            if table.lease(node.id).is_none() {
                warnings.push(format!("{} holds no lease: it is down, or not reached by the others", node.name));
            }
            for attachment in node.attachments.iter().filter(|attachment| table.is_isolated(node.id, attachment)) {
                let interface = &attachment.interface;
                warnings
                    .push(format!("{} hears no other node on {interface}: its segment is cut off there", node.name));
            }
            let signs = |a| table.blindness(node.id, a).map(move |sign| (sign, a));
            for (sign, Attachment { interface, .. }) in node.attachments.iter().flat_map(signs) {
                let (name, can_own) = (&node.name, "it can own no VIP until its way there is mended");
                warnings.push(match sign {
                    Sign::Backends => {
                        format!("{name} hears hardly any backend on {interface}, and others hear them: {can_own}")
                    }
                    Sign::Gateway => {
                        format!("{name} does not hear the gateway on {interface}, and others hear it: {can_own}")
                    }
                });
            }
        }
        for node in table.nodes().filter(|node| Some(node.id) != status.node) {
            for attachment in node.attachments.iter().filter(|attachment| table.vip(attachment.address).is_some()) {
                warnings.push(format!(
                    "VIP {} is configured on {}'s interface {}: its kernel answers beside the owner when lbd stops there",
                    attachment.address, node.name, attachment.interface
                ));
            }
        }
        let unowned: Vec<String> =
            table.vips().filter(|vip| vip.owner.is_none()).map(|vip| vip.settings.address.to_string()).collect();
        if !unowned.is_empty() {
            warnings.push(format!("no node is able to own {}", unowned.join(", ")));
        }
        // An interface with several addresses is told of once.
        let mut told = HashSet::new();
        warnings.retain(|warning| told.insert(warning.clone()));
        warnings
    }
}
