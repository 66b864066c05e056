//! What depends on time and is nobody's request: the leader has VIPs go back to the nodes that they prefer, and
//! raises the feature level when all nodes know it. It only proposes; what comes of it the table decides.

use std::{collections::BTreeMap, time::Duration};

use lb_raft_store::{
    Consensus, View,
    table::{Body, LeaseId, NodeId},
};
use tokio::time::{Instant, interval};

const LOOK_EVERY: Duration = Duration::from_secs(1);
const PROPOSAL: Duration = Duration::from_secs(1);
/// VIPs that go back at once; the others follow at the next look.
const AT_ONCE: usize = 16;

/// Runs on every node until it is aborted; only the leader's proposes.
pub(crate) async fn run_leader_tasks(consensus: Consensus) {
    let mut looks = interval(LOOK_EVERY);
    // Since when each lease has been seen ready without a break.
    let mut ready: BTreeMap<NodeId, (LeaseId, Instant)> = BTreeMap::new();
    loop {
        looks.tick().await;
        let view = consensus.view();
        ready.retain(|node, (lease, _)| view.table.lease(*node).is_some_and(|held| held.ready && held.id == *lease));
        for (node, lease) in view.table.leases().filter(|(_, lease)| lease.ready) {
            ready.entry(node).or_insert((lease.id, Instant::now()));
        }
        if !consensus.is_leader() {
            continue;
        }
        let steady = |node: NodeId, span: Duration| ready.get(&node).is_some_and(|(_, since)| since.elapsed() >= span);
        let commands = raised(&view).into_iter().chain(returning(&view, steady).into_iter().take(AT_ONCE));
        for command in commands {
            if let Err(error) = consensus.propose(&command.clone().into(), Instant::now() + PROPOSAL).await {
                tracing::debug!(%error, ?command, "not agreed on yet");
            }
        }
    }
}

/// The level that every node knows, if that is more than the table's.
fn raised(view: &View) -> Option<Body> {
    let level = view.table.nodes().map(|node| node.feature_level).min()?;
    (level > view.table.feature_level()).then_some(Body::RaiseFeatureLevel { level })
}

/// VIPs that are not where they should be, although that node has been able for long enough.
fn returning(view: &View, steady: impl Fn(NodeId, Duration) -> bool) -> Vec<Body> {
    let table = &view.table;
    let span = match table.settings().failback_s {
        0 => return Vec::new(),
        seconds => Duration::from_secs(seconds.into()),
    };
    let away = table.vips().filter(|vip| vip.intent.is_none() && !vip.deleting);
    away.filter_map(|vip| {
        let to = vip.settings.prefer.filter(|to| vip.owner.is_some_and(|owner| owner.node != *to))?;
        let able = table.is_able(to, vip) && table.node(to).is_some_and(|node| !node.draining) && steady(to, span);
        let vip = vip.settings.address;
        able.then_some(Body::MoveIntent { vip, to })
    })
    .collect()
}
