//! What the dataplane has done with its frames.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use lb_dataplane::{BackendReport, Dataplane, Report, VipReport, stats::LEVELS};
use lb_raft_store::table::Table;

use super::out::{Encoded, Out};

/// Counting flows means that each worker looks through its table: not oftener, however often it is asked for.
const COUNT_EVERY: Duration = Duration::from_secs(30);

/// How many flows there are, as they were counted last. Clones are handles to the same.
#[derive(Clone, Default)]
pub(crate) struct Flows(Arc<Mutex<Option<Counted>>>);

struct Counted {
    at: Instant,
    /// By the backend's id.
    flows: Arc<HashMap<u64, u64>>,
}

impl Flows {
    /// Nothing where the workers do not answer.
    fn count(&self, dataplane: &Dataplane) -> Arc<HashMap<u64, u64>> {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*counted {
            Some(Counted { at, flows }) if at.elapsed() < COUNT_EVERY => flows.clone(),
            _ => {
                let flows = Arc::new(dataplane.count_flows().unwrap_or_default());
                *counted = Some(Counted { at: Instant::now(), flows: flows.clone() });
                flows
            }
        }
    }
}

pub(super) fn encode(
    out: &mut Out<'_>,
    dataplane: &Dataplane,
    flows: &Flows,
    table: &Table,
    per_backend: bool,
) -> Encoded {
    let report = dataplane.report();
    for (name, help, value) in report.totals.iter() {
        let help = help.trim_end_matches('.');
        if LEVELS.contains(&name) {
            out.gauge(name, help, None, value as f64)?;
        } else {
            out.counter(name, help, value)?;
        }
    }
    let drops = report.drops.iter().map(|(reason, count)| ([("reason", reason.label().to_owned())], *count));
    out.counters("dropped", "Frames dropped, by reason", drops)?;
    of_vips(out, &report)?;
    let (counted, vips) = (flows.count(dataplane), vip_of_services(table));
    let mut of_vip: HashMap<IpAddr, u64> = table.vips().map(|vip| (vip.settings.address, 0)).collect();
    for backend in table.backends() {
        if let Some(vip) = vips.get(backend.settings.service.as_str()) {
            *of_vip.entry(*vip).or_default() += counted.get(&backend.id).copied().unwrap_or_default();
        }
    }
    let series = of_vip.into_iter().map(|(vip, count)| ([("vip", vip.to_string())], count as f64));
    out.gauges("vip_flows", "Flows that this node remembers, as counted in the last 30 s", None, series)?;
    if !per_backend {
        return Ok(());
    }
    of_backends(out, &report)?;
    let series = table.backends().map(|backend| {
        let labels =
            [("service", backend.settings.service.to_string()), ("backend", backend.settings.address.to_string())];
        (labels, counted.get(&backend.id).copied().unwrap_or_default() as f64)
    });
    out.gauges("backend_flows", "Flows that this node remembers, as counted in the last 30 s", None, series)
}

fn vip_of_services(table: &Table) -> HashMap<&str, IpAddr> {
    table.services().map(|service| (service.settings.name.as_str(), service.settings.vip)).collect()
}

fn of_vips(out: &mut Out<'_>, report: &Report) -> Encoded {
    let vips =
        |of: fn(&VipReport) -> u64| report.vips.iter().map(move |vip| ([("vip", vip.address.to_string())], of(vip)));
    out.counters("vip_packets", "Packets for a VIP that were sent on by this node", vips(|vip| vip.packets))?;
    out.counters("vip_bytes", "Their bytes", vips(|vip| vip.bytes))?;
    out.counters("vip_new_flows", "Flows for which this node has chosen a backend", vips(|vip| vip.new_flows))
}

fn of_backends(out: &mut Out<'_>, report: &Report) -> Encoded {
    let backends = |of: fn(&BackendReport) -> u64| {
        let labels =
            |backend: &BackendReport| [("service", backend.service.clone()), ("backend", backend.address.to_string())];
        report.backends.iter().map(move |backend| (labels(backend), of(backend)))
    };
    out.counters("backend_packets", "Packets that this node sent to a backend", backends(|of| of.packets))?;
    out.counters("backend_bytes", "Their bytes", backends(|of| of.bytes))?;
    out.counters("backend_new_flows", "Flows for which this node has chosen it", backends(|of| of.new_flows))
}
