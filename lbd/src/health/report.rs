//! Looks at what the dataplane has found of this node's backends, and has the table say it; and tells the log what the table
//! says of all of them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use lb_dataplane::{Dataplane, SeenBackend, forward::runtime::Liveness};
use lb_raft_store::{
    Consensus,
    table::{Attachment, Body, Health, Node, Silence, Table},
};
use tokio::{sync::watch, time::Instant};

use super::{
    Silences, VERDICTS_LEVEL,
    segments::{Segments, segment_of},
    verdict::{Found, differing},
};
use crate::{clock, link::Link, ownership::Ownership};

const LOOK_EVERY: Duration = Duration::from_millis(100);
const PROPOSAL: Duration = Duration::from_secs(1);
/// Verdicts in one entry at most.
const AT_ONCE: usize = 4096;
/// For so long a backend is silent before it is said. With the first one that is, all others are asked: by then it is known
/// whether they are, too.
const SETTLE: Duration = Duration::from_millis(800);

/// Keeps the table saying what this node finds of its VIPs' backends.
pub(crate) struct Report {
    consensus: Consensus,
    ownership: Ownership,
    dataplane: Arc<Dataplane>,
    links: watch::Receiver<Vec<Link>>,
    /// Where most backends are silent, for the others to compare.
    silences: watch::Sender<Silences>,
    segments: Segments,
    /// Since when each backend that is silent has been so, by their ids.
    silent: HashMap<u64, Instant>,
    /// What the log was told last, by the backends' ids.
    told: BTreeMap<u64, Health>,
}

impl Report {
    pub(crate) fn new(
        consensus: Consensus,
        ownership: Ownership,
        dataplane: Arc<Dataplane>,
        links: watch::Receiver<Vec<Link>>,
        silences: watch::Sender<Silences>,
    ) -> Self {
        let (segments, silent, told) = Default::default();
        Self { consensus, ownership, dataplane, links, silences, segments, silent, told }
    }

    /// Runs until it is aborted.
    pub(crate) async fn run(mut self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let view = self.consensus.view();
            self.tell(&view.table);
            let seen = self.look(&view.table);
            let links = self.links.borrow().clone();
            let silences = self.segments.look(&seen, &links, Instant::now());
            self.silences.send_if_modified(|told| {
                let differs = *told != silences;
                *told = silences;
                differs
            });
            self.report(&view.table, &seen, &links).await;
        }
    }

    async fn report(&self, table: &Table, seen: &[SeenBackend], links: &[Link]) {
        let Some(me) = self.consensus.status().node.and_then(|me| table.node(me)) else { return };
        let plan = self.ownership.grants().borrow().plan(me.id, table);
        let Some(lease) = plan.lease.filter(|_| !plan.answered.is_empty()) else { return };
        if table.feature_level() < VERDICTS_LEVEL {
            return;
        }
        let owns = |vip| plan.answered.contains_key(&vip);
        let found = self.found(table, me, seen, links);
        let verdicts = differing(table, &me.name, owns, &found, clock::unix_ms());
        for some in verdicts.chunks(AT_ONCE) {
            let body = Body::Report { node: me.id, lease, verdicts: some.to_vec() };
            if let Err(error) = self.consensus.propose(&body.into(), Instant::now() + PROPOSAL).await {
                // What is still so is said again.
                return tracing::debug!(%error, "what was found of backends is not in the table yet");
            }
        }
    }

    /// What the dataplane finds; nothing where all is well.
    fn look(&mut self, table: &Table) -> Vec<SeenBackend> {
        let mut seen = Vec::new();
        let mut is_well = table.verdicts().next().is_none();
        self.dataplane.look_at_backends(|backend| is_well &= backend.liveness != Liveness::Silent);
        if !is_well {
            self.dataplane.look_at_backends(|backend| seen.push(backend));
        }
        let now = Instant::now();
        let silent = || seen.iter().filter(|backend| backend.liveness == Liveness::Silent);
        self.silent = silent().map(|b| (b.id, self.silent.get(&b.id).copied().unwrap_or(now))).collect();
        seen
    }

    /// What there is to be said of it. Of a segment whose backends are mostly silent nothing is, until the others have
    /// heard of it and find the same.
    fn found(&self, table: &Table, me: &Node, seen: &[SeenBackend], links: &[Link]) -> Found {
        let silences = self.silences.borrow();
        let is_agreed = |at: &(String, _)| {
            let here = |a: &&Attachment| a.interface == at.0 && a.segment() == Some(at.1);
            let published = me.attachments.iter().find(here).map(|a| a.silence);
            published == Some(Silence::Lasting) && !table.is_blind(me.id)
        };
        let counts = |backend: &SeenBackend| {
            let settled = self.silent.get(&backend.id).is_some_and(|since| since.elapsed() >= SETTLE);
            let at = segment_of(links, backend.port, backend.address);
            settled && at.is_some_and(|at| !silences.contains_key(&at) || is_agreed(&at))
        };
        let mut found = Found::default();
        for backend in seen {
            match backend.liveness {
                Liveness::Silent if counts(backend) => drop(found.silent.insert(backend.id)),
                Liveness::Answers | Liveness::NotAsked => drop(found.there.insert(backend.id)),
                Liveness::Silent | Liveness::Asked => {}
            }
        }
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
