//! Looks at what the dataplane has found of this node's backends, and has the table say it; and tells the log what the table
//! says of all of them.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use lb_dataplane::{Dataplane, forward::runtime::Liveness};
use lb_raft_store::{
    Consensus,
    table::{Body, Health, Table},
};
use tokio::time::Instant;

use super::verdict::{Found, differing};
use crate::{clock, ownership::Ownership};

const LOOK_EVERY: Duration = Duration::from_millis(100);
const PROPOSAL: Duration = Duration::from_secs(1);
/// Verdicts in one entry at most.
const AT_ONCE: usize = 4096;
/// The feature level that knows of verdicts.
const VERDICTS_LEVEL: u32 = 6;

/// Keeps the table saying what this node finds of its VIPs' backends.
pub(crate) struct Report {
    consensus: Consensus,
    ownership: Ownership,
    dataplane: Arc<Dataplane>,
    /// What the log was told last, by the backends' ids.
    told: BTreeMap<u64, Health>,
}

impl Report {
    pub(crate) fn new(consensus: Consensus, ownership: Ownership, dataplane: Arc<Dataplane>) -> Self {
        Self { consensus, ownership, dataplane, told: BTreeMap::new() }
    }

    /// Runs until it is aborted.
    pub(crate) async fn run(mut self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let view = self.consensus.view();
            self.tell(&view.table);
            self.report(&view.table).await;
        }
    }

    async fn report(&self, table: &Table) {
        let Some(me) = self.consensus.status().node.and_then(|me| table.node(me)) else { return };
        let plan = self.ownership.grants().borrow().plan(me.id, table);
        let Some(lease) = plan.lease.filter(|_| !plan.answered.is_empty()) else { return };
        if table.feature_level() < VERDICTS_LEVEL {
            return;
        }
        let owns = |vip| plan.answered.contains_key(&vip);
        let verdicts = differing(table, &me.name, owns, &self.look(table), clock::unix_ms());
        for some in verdicts.chunks(AT_ONCE) {
            let body = Body::Report { node: me.id, lease, verdicts: some.to_vec() };
            if let Err(error) = self.consensus.propose(&body.into(), Instant::now() + PROPOSAL).await {
                // What is still so is said again.
                return tracing::debug!(%error, "what was found of backends is not in the table yet");
            }
        }
    }

    fn look(&self, table: &Table) -> Found {
        let judged: HashSet<u64> = table.verdicts().map(|verdict| verdict.backend).collect();
        let mut found = Found::default();
        self.dataplane.look_at_backends(|id, liveness| match liveness {
            Liveness::Silent => drop(found.silent.insert(id)),
            Liveness::Answers | Liveness::NotAsked if judged.contains(&id) => drop(found.there.insert(id)),
            Liveness::Answers | Liveness::NotAsked | Liveness::Asked => {}
        });
        found
    }

    /// A line for each verdict, on every node: from here on it chooses by it.
    fn tell(&mut self, table: &Table) {
        for verdict in table.verdicts() {
            if self.told.insert(verdict.backend, verdict.health) != Some(verdict.health)
                && let Some(backend) = table.backend_with_id(verdict.backend)
            {
                let settings = &backend.settings;
                let (service, address, reason) = (&settings.service, settings.address, &verdict.reason);
                tracing::warn!(%service, backend = %address, reason, "a backend is unreachable: no new flows for it");
            }
        }
        self.told.retain(|id, _| {
            let Some(backend) = table.backend_with_id(*id) else { return false };
            let holds = table.verdict(backend).is_some();
            if !holds {
                let settings = &backend.settings;
                tracing::info!(service = %settings.service, backend = %settings.address, "a backend answers again");
            }
            holds
        });
    }
}
