//! All that is measured, read when it is asked for: between two questions it costs nothing. Each name stands here, or beside the
//! counter that it is of (`dataplane/src/stats`), once.

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use lb_dataplane::Dataplane;
use lb_proto::{Label as _, v1};
use lb_raft_store::{
    Consensus, View,
    table::{AdminState, NodeId, Table},
};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Unit};

use super::{
    datagrams,
    out::{Encoded, Out},
    threads,
    traffic::{self, Flows},
};
use crate::{
    alarms::Alarms,
    connection::{Refusals, Security},
    control::{InForce, Takeovers},
    events::Events,
    ownership::Ownership,
};

/// Where it is read.
#[derive(Clone)]
pub(crate) struct Collect {
    pub(crate) consensus: Consensus,
    pub(crate) ownership: Ownership,
    pub(crate) dataplane: Option<Arc<Dataplane>>,
    /// The revision by which the dataplane forwards.
    pub(crate) in_force: InForce,
    /// Whether each backend has series of its own.
    pub(crate) per_backend: bool,
    pub(crate) takeovers: Takeovers,
    pub(crate) alarms: Alarms,
    pub(crate) events: Events,
    pub(crate) security: Security,
    pub(crate) refusals: Refusals,
    /// Where heartbeats come in.
    pub(crate) heartbeats: Vec<SocketAddr>,
    pub(crate) flows: Flows,
}

impl fmt::Debug for Collect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collect")
    }
}

impl Collect {
    /// Why this node can own no VIP now, if it cannot.
    pub(super) fn not_ready(&self) -> Option<String> {
        if self.consensus.status().node.is_none() {
            return Some("it waits to be added to a cluster".to_owned());
        }
        if let Some(reason) = self.ownership.unfit().borrow().clone() {
            return Some(reason);
        }
        (self.ownership.valid_ms() == 0).then(|| "its lease is not valid".to_owned())
    }
}

impl Collector for Collect {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Encoded {
        let view = self.consensus.view();
        let mut out = Out(encoder);
        self.of_node(&mut out, &view)?;
        self.of_raft(&mut out, &view)?;
        of_table(&mut out, &view.table, self.per_backend)?;
        match &self.dataplane {
            Some(dataplane) => traffic::encode(&mut out, dataplane, &self.flows, &view.table, self.per_backend),
            None => Ok(()),
        }
    }
}

impl Collect {
    fn of_node(&self, out: &mut Out<'_>, view: &View) -> Encoded {
        let engine = self.dataplane.as_ref().map(|dataplane| dataplane.engine().to_string()).unwrap_or_default();
        let build = [("version", env!("CARGO_PKG_VERSION").to_owned()), ("engine", engine)];
        out.gauges("build_info", "What runs here; always 1", None, [(build, 1.0)])?;
        let ready = f64::from(u8::from(self.not_ready().is_none()));
        out.gauge("ready", "Whether this node can own VIPs", None, ready)?;
        let problems = self.alarms.problems().len() as f64;
        out.gauge("problems", "What this node complains of, as 'lbctl status' shows it", None, problems)?;
        let counts = self
            .events
            .counts()
            .into_iter()
            .map(|(kind, count)| ([("kind", v1::EventKind::from(kind).label())], count));
        out.counters("events", "What has happened, as 'lbctl events' has it", counts)?;
        out.counter(
            "takeovers",
            "VIPs for which this node has begun to answer after another one",
            self.takeovers.count(),
        )?;
        let help = "From the last word of the node before to this one's answering, at the last takeover";
        out.gauge("last_takeover_gap", help, Some(&Unit::Seconds), self.takeovers.last_gap().as_secs_f64())?;
        let refusals = self.refusals.counts().map(|(why, count)| ([("reason", why)], count));
        out.counters("refused", "Connections, calls and messages that were refused, by reason", refusals)?;
        let dropped = datagrams::dropped(&self.heartbeats);
        let help = "Datagrams that the kernel dropped where heartbeats come in: they began with no known key, or found no room";
        out.counter("heartbeat_datagrams_dropped", help, dropped)?;
        if let Some(space) = self.consensus.space() {
            let (free, total) = (space.free as f64, space.total as f64);
            out.gauge("data_dir_free", "What is left on the file system of data_dir", Some(&Unit::Bytes), free)?;
            out.gauge("data_dir_size", "All of that file system", Some(&Unit::Bytes), total)?;
        }
        let valid = Duration::from_millis(self.ownership.valid_ms()).as_secs_f64();
        out.gauge("lease_valid", "For how long this node may answer for its VIPs yet", Some(&Unit::Seconds), valid)?;
        if self.dataplane.is_some() {
            let in_force = self.in_force.revision() as f64;
            out.gauge("table_revision_in_force", "The revision by which the dataplane forwards", None, in_force)?;
            let help = "From a change's being applied on this node to the dataplane's forwarding by it";
            out.histogram("change_in_force", help, self.in_force.delays())?;
        }
        let (heard, round_trips) = (self.ownership.heard(), self.ownership.round_trips());
        let name = |id| view.table.node(id).map(|node| node.name.to_string()).unwrap_or_default();
        let heard = heard.peers.iter().map(|(id, heard)| ([("node", name(*id))], f64::from(u8::from(*heard))));
        out.gauges("node_heard", "Whether another node answers heartbeats", None, heard)?;
        let round_trips =
            round_trips.iter().map(|(id, ns)| ([("node", name(*id))], Duration::from_nanos(*ns).as_secs_f64()));
        out.gauges("heartbeat_round_trip", "How far away another node is", Some(&Unit::Seconds), round_trips)?;
        match self.security.not_after().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()) {
            Some(at) => {
                let help = "When this node's certificate ends, in seconds since 1970";
                out.gauge("certificate_expiry_timestamp", help, Some(&Unit::Seconds), at.as_secs_f64())
            }
            None => Ok(()),
        }
    }

    fn of_raft(&self, out: &mut Out<'_>, view: &View) -> Encoded {
        let status = self.consensus.status();
        out.gauge("raft_term", "The term of Raft", None, status.term as f64)?;
        let leads = f64::from(u8::from(status.leader.is_some() && status.leader == status.node));
        out.gauge("raft_leader", "Whether this node is Raft's leader", None, leads)?;
        let has_leader = f64::from(u8::from(status.leader.is_some()));
        out.gauge(
            "raft_has_leader",
            "Whether this node knows a leader: without one no change can be agreed on",
            None,
            has_leader,
        )?;
        out.gauge("table_applied", "The index of the last entry that was applied", None, view.applied as f64)?;
        out.gauge("table_revision", "The revision of the table", None, view.table.revision() as f64)?;
        let measures = self.consensus.measures();
        out.gauge("raft_last_index", "The index of the last entry of the log", None, measures.last_index as f64)?;
        let name = |id: NodeId| view.table.node(id).map(|node| node.name.to_string()).unwrap_or_default();
        let behind = measures.behind.iter().map(|(id, entries)| ([("node", name(*id))], *entries as f64));
        let help = "By how many entries another node is behind this one, where this one leads";
        out.gauges("raft_replication_lag", help, None, behind)?;
        let help = "For an entry to be agreed on and applied, where this node leads";
        out.histogram("raft_commit", help, &measures.commits)?;
        out.histogram("store_sync", "For records to be made durable by this node's disk", &measures.syncs)?;
        let sizes = measures.sizes.iter().map(|(part, bytes)| ([("part", *part)], *bytes as f64));
        out.gauges("store_size", "What the store takes on the disk", Some(&Unit::Bytes), sizes)?;
        let times = threads::times().into_iter().map(|(thread, time)| ([("thread", thread)], time.as_secs_f64()));
        let help = "Processor time of the threads that forward and keep the lease";
        out.sums("thread_cpu", help, &Unit::Seconds, times)
    }
}

/// What all nodes say alike.
fn of_table(out: &mut Out<'_>, table: &Table, per_backend: bool) -> Encoded {
    let owners = table.vips().map(|vip| {
        let owner = vip.owner.and_then(|owner| table.node(owner.node));
        let owner = owner.map(|node| node.name.to_string()).unwrap_or_default();
        ([("vip", vip.settings.address.to_string()), ("node", owner)], 1.0)
    });
    out.gauges("vip_owner", "Which node owns a VIP; none where the label is empty", None, owners)?;
    if !per_backend {
        return Ok(());
    }
    let labels = |backend: &lb_raft_store::table::Backend| {
        [("service", backend.settings.service.to_string()), ("backend", backend.settings.address.to_string())]
    };
    let weights = table.backends().map(|of| {
        let is_active = of.settings.state == AdminState::Active;
        (labels(of), if is_active { f64::from(of.settings.weight.get()) } else { 0.0 })
    });
    out.gauges(
        "backend_weight",
        "By which a backend takes new flows; 0 while it is drained or disabled",
        None,
        weights,
    )?;
    let up = table.backends().map(|of| {
        let is_up = !table.health(of).is_bad();
        (labels(of), f64::from(u8::from(is_up)))
    });
    out.gauges("backend_up", "Whether nothing speaks against a backend: it answers, and so do its checks", None, up)
}
