//! What `grpc.health.v1` says: the truth. The node as a whole serves while it belongs to a cluster and does not stop; the services of
//! the table and of the cluster besides only while there is a leader.

use std::time::Duration;

use lb_raft_store::Consensus;
use tokio::{sync::watch, time::MissedTickBehavior};
use tonic_health::{ServingStatus, server::HealthReporter};

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// All services that are told of, and whether each needs a leader.
const SERVICES: [(&str, bool); 4] =
    [("", false), ("lb.v1.NodeService", false), ("lb.v1.TableService", true), ("lb.v1.ClusterService", true)];

/// Keeps it so until the node stops.
pub(super) async fn report(reporter: HealthReporter, consensus: Consensus, mut stop: watch::Receiver<bool>) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = [None; SERVICES.len()];
    loop {
        let is_stopping = *stop.borrow();
        let status = consensus.status();
        for ((service, needs_leader), told) in SERVICES.into_iter().zip(&mut told) {
            let serves = !is_stopping && status.node.is_some() && (!needs_leader || status.leader.is_some());
            let now = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
            if told.replace(serves) != Some(serves) {
                reporter.set_service_status(service, now).await;
            }
        }
        if is_stopping {
            return;
        }
        tokio::select! {
            _ = looks.tick() => {}
            _ = stop.changed() => {}
        }
    }
}
