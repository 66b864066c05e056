//! Publishes to the dataplane how to forward: follows the table and the links, and looks again every second, so that a
//! missed event heals. Everything runs on one task, so a table is never overtaken by an older one. What this node owns goes
//! another way ([`super::publish_grants`]): a takeover does not wait for a table.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lb_dataplane::{Dataplane, forward::spec::TableSpec};
use lb_raft_store::{Change, Consensus, View, request_span, table::NodeId};
use tokio::sync::watch;

use super::{compile::compile, in_force::InForce};
use crate::{
    flow_key::FlowKey,
    link::Link,
    ownership::{Cause, Fitness, Part},
};

const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// For the workers to take a new table up: a batch takes microseconds.
pub(super) const TAKE_UP: Duration = Duration::from_secs(1);

/// Keeps the dataplane forwarding as the table says.
pub(crate) struct PublishTable {
    pub(crate) consensus: Consensus,
    pub(crate) dataplane: Arc<Dataplane>,
    pub(crate) links: watch::Receiver<Vec<Link>>,
    /// Without it this node would send flows elsewhere than the others.
    pub(crate) flow_key: FlowKey,
    /// The revision by which the dataplane forwards.
    pub(crate) in_force: InForce,
    /// A node that does not forward by the table must not own VIPs.
    pub(crate) fitness: Fitness,
}

impl PublishTable {
    /// Runs until it is aborted.
    pub(crate) async fn run(mut self) {
        let (mut table, mut key) = (self.consensus.watch(), self.flow_key.watch());
        let (mut published, mut told) = (None, table.borrow().applied);
        let mut last: Option<(u64, Vec<Link>)> = None;
        let mut look_again = tokio::time::interval(LOOK_AGAIN);
        loop {
            self.fitness.vitals().show(Part::Table);
            tokio::select! {
                changed = table.changed() => if changed.is_err() { return },
                changed = self.links.changed() => if changed.is_err() { return },
                changed = key.changed() => if changed.is_err() { return },
                _ = look_again.tick() => {}
            }
            let begun = Instant::now();
            let Some(me) = self.consensus.status().node else { continue };
            let view = table.borrow_and_update().clone();
            let links = self.links.borrow_and_update().clone();
            // Compiling takes time, and of the same nothing else comes: who owns what does not matter here.
            let same = |last: &(u64, Vec<Link>)| last.0 == view.forwarding && last.1 == links;
            if published.is_none() || !last.as_ref().is_some_and(same) {
                self.publish(me, &view, &links, &mut published).await;
                let is_change = last.as_ref().is_some_and(|last| last.0 != view.forwarding);
                if is_change && published.is_some() {
                    self.in_force.took(begun.elapsed());
                }
                last = Some((view.forwarding, links));
            } else {
                self.in_force.set(view.table.revision());
            }
            if self.in_force.revision() == view.table.revision() {
                Self::tell_of_requests(&view, &mut told);
            }
        }
    }

    async fn publish(&self, me: NodeId, view: &Arc<View>, links: &[Link], published: &mut Option<TableSpec>) {
        let Some(hash_key) = self.flow_key.of(&view.table) else {
            return self
                .fitness
                .set(Cause::Table, Some("no other node has told the key of the flow hashes yet".into()));
        };
        let spec = compile(&view.table, hash_key, me, links);
        if published.as_ref() != Some(&spec) {
            let (dataplane, of_workers) = (self.dataplane.clone(), spec.clone());
            // Until this is known to be in force nothing is: it may be taken up after it was given up waiting for.
            *published = None;
            // Building Maglev tables takes milliseconds: not on the runtime's threads.
            let seen = tokio::task::spawn_blocking(move || {
                let generation = dataplane.publish(&of_workers)?;
                let seen = dataplane.wait_for_table(generation, TAKE_UP);
                // A new interface, or a VIP that was granted before it was in the table.
                dataplane.join_groups();
                Ok::<_, lb_dataplane::guard::GuardError>(seen)
            });
            let problem = match seen.await {
                Ok(Ok(true)) => None,
                Ok(Ok(false)) => Some("the dataplane does not take the table up".to_owned()),
                Ok(Err(error)) => Some(format!("the table is not published: {error}")),
                Err(error) => Some(format!("the table cannot be built: {error}")),
            };
            if let Some(problem) = &problem {
                tracing::debug!(problem, "the table is published again in a moment");
            }
            let failed = problem.is_some();
            self.fitness.set(Cause::Table, problem);
            if failed {
                return;
            }
            *published = Some(spec);
        }
        self.in_force.set(view.table.revision());
    }

    /// Says of each request that is in force now that it is; of none where some are forgotten.
    fn tell_of_requests(view: &View, told: &mut u64) {
        let since = std::mem::replace(told, view.applied);
        if !tracing::enabled!(target: "request", tracing::Level::DEBUG) {
            return;
        }
        for change in view.history.after(since).into_iter().flatten() {
            if let Change {
                index: revision, cause: lb_raft_store::Cause::Caller { request: Some(request), .. }, ..
            } = &**change
            {
                request_span(request)
                    .in_scope(|| tracing::debug!(target: "request", revision, "in force in the dataplane"));
            }
        }
    }
}
