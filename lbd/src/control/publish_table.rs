//! Publishes to the dataplane how to forward: follows the table and the links, and looks again every second, so that a
//! missed event heals. Everything runs on one task, so a table is never overtaken by an older one. What this node owns goes
//! another way ([`super::publish_grants`]): a takeover does not wait for a table.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lb_dataplane::{Dataplane, forward::spec::TableSpec};
use lb_raft_store::{Consensus, View, table::NodeId};
use tokio::sync::watch;

use super::compile::compile;
use crate::{
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
    /// The revision by which the dataplane forwards.
    pub(crate) in_force: Arc<AtomicU64>,
    /// A node that does not forward by the table must not own VIPs.
    pub(crate) fitness: Fitness,
}

impl PublishTable {
    /// Runs until it is aborted.
    pub(crate) async fn run(mut self) {
        let mut table = self.consensus.watch();
        let mut published = None;
        let mut last: Option<(u64, Vec<Link>)> = None;
        let mut look_again = tokio::time::interval(LOOK_AGAIN);
        loop {
            self.fitness.vitals().show(Part::Table);
            tokio::select! {
                changed = table.changed() => if changed.is_err() { return },
                changed = self.links.changed() => if changed.is_err() { return },
                _ = look_again.tick() => {}
            }
            let Some(me) = self.consensus.status().node else { continue };
            let view = table.borrow_and_update().clone();
            let links = self.links.borrow_and_update().clone();
            // Compiling takes time, and of the same nothing else comes: who owns what does not matter here.
            let same = |last: &(u64, Vec<Link>)| last.0 == view.forwarding && last.1 == links;
            if published.is_none() || !last.as_ref().is_some_and(same) {
                self.publish(me, &view, &links, &mut published).await;
                last = Some((view.forwarding, links));
            } else {
                self.in_force.store(view.table.revision(), Ordering::Relaxed);
            }
        }
    }

    async fn publish(&self, me: NodeId, view: &Arc<View>, links: &[Link], published: &mut Option<TableSpec>) {
        let spec = compile(&view.table, me, links);
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
        self.in_force.store(view.table.revision(), Ordering::Relaxed);
    }
}
