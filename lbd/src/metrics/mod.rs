//! What monitoring asks: the counters in OpenMetrics' text (`/metrics`), whether the process lives (`/healthz`), and whether it can
//! own VIPs (`/readyz`).

mod collect;
mod datagrams;
mod out;
mod plain;
mod routes;
mod threads;
mod traffic;

pub(crate) use collect::Collect;
pub(crate) use routes::routes;
pub(crate) use traffic::Flows;
