//! Publishes to the dataplane which VIPs this node owns, and gives up what it has fallen silent for. The order is
//! [`Grants`]'s: a plan is published, the workers judge by it, and only then is what leaves by it given up.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use lb_dataplane::{Dataplane, Grant};
use lb_raft_store::{
    Consensus, View,
    table::{Epoch, NodeId},
};

use super::{
    answered::Answered,
    publish_table::TAKE_UP,
    takeovers::{Before, Takeovers},
};
use crate::ownership::{Grants, Ownership, Part, Plan};

const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Keeps the dataplane owning what the table gives it.
pub(crate) struct PublishGrants {
    pub(crate) consensus: Consensus,
    pub(crate) ownership: Ownership,
    /// Absent on a witness.
    pub(crate) dataplane: Option<Arc<Dataplane>>,
    /// How often it has begun to.
    pub(crate) takeovers: Takeovers,
}

/// What is told of it.
#[derive(Default)]
struct Told {
    answered: Answered,
    before: Before,
    /// By what the workers speak, as far as that is known.
    published: Option<BTreeMap<IpAddr, Epoch>>,
}

impl PublishGrants {
    /// Runs until it is aborted.
    pub(crate) async fn run(self) {
        let mut table = self.consensus.watch();
        let mut grants = self.ownership.grants();
        let mut told = Told::default();
        let mut look_again = tokio::time::interval(LOOK_AGAIN);
        loop {
            self.ownership.fitness().vitals().show(Part::Grants);
            tokio::select! {
                biased;
                changed = grants.changed() => if changed.is_err() { return },
                changed = table.changed() => if changed.is_err() { return },
                _ = look_again.tick() => {}
            }
            if let Some(me) = self.consensus.status().node {
                let view = table.borrow_and_update().clone();
                let held = grants.borrow_and_update().clone();
                self.publish(me, &view, &held, &mut told).await;
            }
        }
    }

    async fn publish(&self, me: NodeId, view: &Arc<View>, held: &Grants, told: &mut Told) {
        let plan = held.plan(me, &view.table);
        if told.published.as_ref() != Some(&plan.answered)
            && let Some(dataplane) = &self.dataplane
        {
            // Until this is known to be in force nothing is.
            told.published = None;
            if !in_force(dataplane, &plan, view).await {
                // A worker that has stopped is seen by its progress.
                return tracing::debug!("the dataplane does not take the new grants up");
            }
            told.before.taken_on(plan.answered.keys(), self.ownership.last_heard(), &self.takeovers);
            told.answered.tell(&plan.answered);
            told.published = Some(plan.answered.clone());
            // It may wait for the kernel, and nobody waits for it.
            let dataplane = dataplane.clone();
            tokio::task::spawn_blocking(move || dataplane.join_groups());
        }
        // A witness answers for nothing; what it was given by mistake it gives back at once.
        self.ownership.in_force(&plan, view);
        // For the next time: nobody waits for it.
        told.before.look(me, &view.table);
    }
}

/// Has the workers speak by a plan. Whether they do, and by nothing older.
pub(super) async fn in_force(dataplane: &Arc<Dataplane>, plan: &Plan, view: &View) -> bool {
    let first = |vip: &IpAddr| view.table.vip(*vip).is_some_and(|vip| vip.grants == 1);
    let grant = |(vip, epoch): (&IpAddr, &Epoch)| Grant { vip: *vip, epoch: epoch.0, first: first(vip) };
    let grants: Vec<Grant> = plan.answered.iter().map(grant).collect();
    let dataplane = dataplane.clone();
    let seen = tokio::task::spawn_blocking(move || {
        let generation = dataplane.own(&grants);
        dataplane.wait_for_grants(generation, TAKE_UP)
    });
    seen.await.unwrap_or(false)
}
