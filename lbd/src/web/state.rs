//! What a page shows: the API's own messages, with how fast their counters grow.

use lb_proto::{
    rates::{NodeRate, Rate, Rates},
    v1,
};
use lb_raft_store::table::{AdminState, Backend, Service, Table};
use serde::Serialize;

use crate::api::Context;

/// More rows of a kind than these are counted, and not shown: what is wrong comes first.
const VIPS: usize = 500;
const SERVICES: usize = 500;
const BACKENDS: usize = 500;
const EVENTS: usize = 50;

#[derive(Serialize)]
pub(super) struct Shown {
    /// When it was made, in milliseconds since 1970.
    at_ms: u64,
    status: v1::GetStatusResponse,
    nodes: Vec<NodeRow>,
    vips: Vec<Row<v1::Vip>>,
    services: Vec<ServiceRow>,
    backends: Vec<Row<v1::Backend>>,
    drops: Vec<Drop>,
    /// Nodes that do not say what they count.
    silent_nodes: Vec<String>,
    /// The last one first.
    events: Vec<v1::WatchEventsResponse>,
}

/// A row, and how fast its counters grow, where that is known.
#[derive(Serialize)]
struct Row<T> {
    #[serde(flatten)]
    of: T,
    rate: Option<Rate>,
}

#[derive(Serialize)]
struct NodeRow {
    #[serde(flatten)]
    of: v1::Node,
    rate: Option<NodeRate>,
}

#[derive(Serialize)]
struct ServiceRow {
    #[serde(flatten)]
    of: v1::Service,
    /// Backends, those that take new flows, and those against which something speaks.
    backends: usize,
    taking: usize,
    failing: usize,
}

#[derive(Serialize)]
struct Drop {
    reason: String,
    packets: u64,
    per_second: Option<f64>,
}

/// What this node knows now.
pub(super) fn of(context: &Context, at_ms: u64, stats: Option<&v1::GetStatsResponse>, rates: Option<&Rates>) -> Shown {
    let view = context.consensus.view();
    let table = &view.table;
    let mut status = context.overview(&view, false, true);
    let node = |of: v1::Node| NodeRow { rate: rates.and_then(|rates| rates.nodes.get(&of.name).copied()), of };
    let nodes = std::mem::take(&mut status.nodes).into_iter().map(node).collect();
    let vip = |vip| {
        let of = context.vip(vip, table);
        Row { rate: rates.and_then(|rates| rates.vips.get(&of.address).copied()), of }
    };
    let mut vips: Vec<Row<v1::Vip>> = table.vips().map(vip).collect();
    vips.sort_by_key(|row| row.of.problem.is_empty());
    vips.truncate(VIPS);
    let mut services: Vec<ServiceRow> = table.services().map(|of| service(of, table)).collect();
    services.sort_by_key(|row| row.failing == 0 && row.taking > 0);
    services.truncate(SERVICES);
    let backend = |of: &Backend| {
        let key = (of.settings.service.to_string(), of.settings.address.to_string());
        let rate = rates.and_then(|rates| rates.backends.get(&key).copied());
        Row { of: Context::backend(of, table), rate }
    };
    let failing = table.backends().filter(|of| table.health(of).is_bad());
    let others = table.backends().filter(|of| !table.health(of).is_bad());
    let backends = failing.chain(others).take(BACKENDS).map(backend).collect();
    let per_second = |reason: &str| rates.and_then(|rates| rates.drops.get(reason).copied());
    let drop = |of: &v1::DropCount| Drop {
        reason: of.reason.clone(),
        packets: of.packets,
        per_second: per_second(&of.reason),
    };
    Shown {
        at_ms,
        status,
        nodes,
        vips,
        services,
        backends,
        drops: stats.map(|stats| stats.drops.iter().map(drop).collect()).unwrap_or_default(),
        silent_nodes: stats.map(|stats| stats.silent_nodes.clone()).unwrap_or_default(),
        events: context.events.last(EVENTS).iter().map(|event| context.event(event, false)).collect(),
    }
}

fn service(of: &Service, table: &Table) -> ServiceRow {
    let mut row = ServiceRow { of: Context::service(of), backends: 0, taking: 0, failing: 0 };
    for backend in table.backends_of(&of.settings.name) {
        row.backends += 1;
        row.failing += usize::from(table.health(backend).is_bad());
        row.taking += usize::from(backend.settings.state == AdminState::Active && !table.health(backend).is_bad());
    }
    row
}
