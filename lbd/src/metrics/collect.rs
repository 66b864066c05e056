//! All that is measured, read when it is asked for: between two questions it costs nothing. Each name stands here, or beside the
//! counter that it is of (`dataplane/src/stats`), once.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use lb_dataplane::{Dataplane, Report};
use lb_proto::{Label as _, v1};
use lb_raft_store::{
    Consensus, View,
    table::{AdminState, Health, Table},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use crate::{alarms::Alarms, connection::Security, events::Events, ownership::Ownership};

/// Where it is read.
#[derive(Clone)]
pub(crate) struct Collect {
    pub(crate) consensus: Consensus,
    pub(crate) ownership: Ownership,
    pub(crate) dataplane: Option<Arc<Dataplane>>,
    /// The revision by which the dataplane forwards.
    pub(crate) in_force: Arc<AtomicU64>,
    pub(crate) alarms: Alarms,
    pub(crate) events: Events,
    pub(crate) security: Security,
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
        of_table(&mut out, &view.table)?;
        match &self.dataplane {
            Some(dataplane) => of_dataplane(&mut out, &dataplane.report()),
            None => Ok(()),
        }
    }
}

type Encoded = Result<(), fmt::Error>;

impl Collect {
    fn of_node(&self, out: &mut Out<'_>, view: &View) -> Encoded {
        let status = self.consensus.status();
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
        if let Some(space) = self.consensus.space() {
            let (free, total) = (space.free as f64, space.total as f64);
            out.gauge("data_dir_free", "What is left on the file system of data_dir", Some(&Unit::Bytes), free)?;
            out.gauge("data_dir_size", "All of that file system", Some(&Unit::Bytes), total)?;
        }
        let valid = Duration::from_millis(self.ownership.valid_ms()).as_secs_f64();
        out.gauge("lease_valid", "For how long this node may answer for its VIPs yet", Some(&Unit::Seconds), valid)?;
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
        if self.dataplane.is_some() {
            let in_force = self.in_force.load(Ordering::Relaxed) as f64;
            out.gauge("table_revision_in_force", "The revision by which the dataplane forwards", None, in_force)?;
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
}

/// What all nodes say alike.
fn of_table(out: &mut Out<'_>, table: &Table) -> Encoded {
    let owners = table.vips().map(|vip| {
        let owner = vip.owner.and_then(|owner| table.node(owner.node));
        let owner = owner.map(|node| node.name.to_string()).unwrap_or_default();
        ([("vip", vip.settings.address.to_string()), ("node", owner)], 1.0)
    });
    out.gauges("vip_owner", "Which node owns a VIP; none where the label is empty", None, owners)?;
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
        let is_up = !matches!(table.health(of), Health::Unreachable | Health::Unhealthy);
        (labels(of), f64::from(u8::from(is_up)))
    });
    out.gauges("backend_up", "Whether nothing speaks against a backend: it answers, and so do its checks", None, up)
}

fn of_dataplane(out: &mut Out<'_>, report: &Report) -> Encoded {
    for (name, help, value) in report.totals.iter() {
        out.counter(name, help.trim_end_matches('.'), value)?;
    }
    let drops = report.drops.iter().map(|(reason, count)| ([("reason", reason.label().to_owned())], *count));
    out.counters("dropped", "Frames dropped, by reason", drops)?;
    let vips = |of: fn(&(std::net::IpAddr, u64, u64)) -> u64| {
        report.vips.iter().map(move |vip| ([("vip", vip.0.to_string())], of(vip)))
    };
    out.counters("vip_packets", "Packets for a VIP that were sent on by this node", vips(|vip| vip.1))?;
    out.counters("vip_bytes", "Their bytes", vips(|vip| vip.2))?;
    let backends = |of: fn(&lb_dataplane::BackendReport) -> u64| {
        let labels = |backend: &lb_dataplane::BackendReport| {
            [("service", backend.service.clone()), ("backend", backend.address.to_string())]
        };
        report.backends.iter().map(move |backend| (labels(backend), of(backend)))
    };
    out.counters("backend_packets", "Packets that this node sent to a backend", backends(|of| of.packets))?;
    out.counters("backend_bytes", "Their bytes", backends(|of| of.bytes))
}

/// Metrics, each with its series.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: f64) -> Encoded {
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> Encoded {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl IntoIterator<Item = (L, f64)>,
    ) -> Encoded {
        let mut metric = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in series {
            ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, u64)>,
    ) -> Encoded {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in series {
            ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
