//! Whether backends have their VIPs: asked once, by a ping to the VIP at each backend's MAC address.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use lb_dataplane::{Dataplane, SeenBackend, forward::runtime::Liveness};
use lb_raft_store::table::Table;
use tokio::time::sleep;

use super::check::{Checker, Outcome, Plan};
use crate::link::Link;

/// What came of a ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// It was answered.
    There,
    /// It was not, and the backend answers ARP.
    Missing,
}

/// Asks the backends of the VIPs that this node owns, and waits for so long. Of those that cannot be asked nothing is said.
pub(crate) async fn probe_presence(
    dataplane: &Arc<Dataplane>,
    (table, owns): (&Table, &(dyn Fn(IpAddr) -> bool + Sync)),
    seen: &HashMap<u64, SeenBackend>,
    links: &[Link],
    patience: Duration,
) -> HashMap<u64, Presence> {
    let plan = Plan::of_pings(table, owns, seen, links);
    // It ends with this call, and so does its thread.
    let checker = Checker::start(Arc::downgrade(dataplane));
    if let Ok(checker) = &checker {
        checker.follow(plan);
    }
    sleep(patience).await;
    let outcomes = checker.map(|checker| checker.outcomes()).unwrap_or_default();
    let answers = |id: &u64| seen.get(id).is_some_and(|backend| backend.liveness == Liveness::Answers);
    let presence = outcomes.into_iter().filter_map(|(id, outcome)| match outcome {
        Outcome::Good => Some((id, Presence::There)),
        Outcome::Bad { .. } => answers(&id).then_some((id, Presence::Missing)),
    });
    presence.collect()
}
