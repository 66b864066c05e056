//! Looks at what the dataplane has found of this node's backends, and has the table say it; and tells the log what the table
//! says of all of them.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::IpAddr,
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
    CHECKS_LEVEL, Silences, VERDICTS_LEVEL,
    check::{Checker, Outcome, Plan},
    segments::{Segments, gateways, mostly, segment_of},
    verdict::{Found, differing},
};
use crate::{
    alarms::{Alarm, Alarms},
    clock,
    link::Link,
    ownership::Ownership,
};

const LOOK_EVERY: Duration = Duration::from_millis(100);
const PROPOSAL: Duration = Duration::from_secs(1);
/// Verdicts in one entry at most.
const AT_ONCE: usize = 4096;
/// For so long a backend is silent before it is said. With the first one that is, all others are asked: by then it is known
/// whether they are, too.
const SETTLE: Duration = Duration::from_millis(800);
/// Where checks of most machines of a segment are not answered at all, it is soon known whether the machines are there, and
/// whether this node is cut off: until then nothing is said of them.
const HOLD: Duration = Duration::from_millis(2500);
/// What is asked follows the table so often at most.
const PLAN_EVERY: Duration = Duration::from_millis(500);
/// What is found at almost the same time goes into one entry.
const GATHER: Duration = Duration::from_millis(10);

/// Keeps the table saying what this node finds of its VIPs' backends.
pub(crate) struct Report {
    consensus: Consensus,
    ownership: Ownership,
    dataplane: Arc<Dataplane>,
    links: watch::Receiver<Vec<Link>>,
    /// Where most backends are silent, for the others to compare.
    silences: watch::Sender<Silences>,
    segments: Segments,
    checker: Checker,
    alarms: Alarms,
    /// When what is asked was last looked at, and the VIPs that it was about.
    planned: Option<(Instant, Vec<IpAddr>)>,
    /// Since when the checks of each backend have not been answered at all, by their ids.
    unanswered: HashMap<u64, Instant>,
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
        alarms: Alarms,
    ) -> io::Result<Self> {
        let checker = Checker::start(Arc::downgrade(&dataplane))?;
        let (segments, planned, unanswered, silent, told) = Default::default();
        Ok(Self {
            consensus,
            ownership,
            dataplane,
            links,
            silences,
            segments,
            checker,
            alarms,
            planned,
            unanswered,
            silent,
            told,
        })
    }

    /// Runs until it is aborted.
    pub(crate) async fn run(mut self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = self.checker.changed() => tokio::time::sleep(GATHER).await,
            }
            let view = self.consensus.view();
            self.tell(&view.table);
            let seen = self.look();
            let links = self.links.borrow().clone();
            let gateways = gateways(&view.table, &links);
            let heard = if gateways.is_empty() { Vec::new() } else { self.dataplane.heard_peers() };
            let silences = self.segments.look((&seen, &links), (&gateways, &heard), Instant::now());
            self.silences.send_if_modified(|told| {
                let differs = *told != silences;
                *told = silences;
                differs
            });
            self.report(&view.table, &seen, &links).await;
        }
    }

    async fn report(&mut self, table: &Table, seen: &[SeenBackend], links: &[Link]) {
        let Some(me) = self.consensus.status().node.and_then(|me| table.node(me)) else { return };
        let plan = self.ownership.grants().borrow().plan(me.id, table);
        self.plan_checks(table, plan.answered.keys().copied().collect(), seen, links);
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

    /// Has the backends of the VIPs that this node owns checked.
    fn plan_checks(&mut self, table: &Table, owned: Vec<IpAddr>, seen: &[SeenBackend], links: &[Link]) {
        let is_due = |(at, of): &(Instant, Vec<IpAddr>)| at.elapsed() >= PLAN_EVERY || *of != owned;
        if !self.planned.as_ref().is_none_or(is_due) {
            return;
        }
        let owns = |vip| table.feature_level() >= CHECKS_LEVEL && owned.contains(&vip);
        let seen = seen.iter().map(|backend| (backend.id, *backend)).collect();
        self.checker.follow(Plan::new(table, owns, &seen, links));
        self.planned = Some((Instant::now(), owned));
        let stretch = f64::from(self.checker.stretch()) / 1000.0;
        let problem = || {
            format!(
                "the checks of backends would take too much of a core: their intervals are {stretch:.1} times as long as they should be"
            )
        };
        self.alarms.set(Alarm::Checks, (stretch > 1.0).then(problem));
    }

    /// What the dataplane finds.
    fn look(&mut self) -> Vec<SeenBackend> {
        let mut seen = Vec::new();
        self.dataplane.look_at_backends(|backend| seen.push(backend));
        let now = Instant::now();
        let silent = || seen.iter().filter(|backend| backend.liveness == Liveness::Silent);
        self.silent = silent().map(|b| (b.id, self.silent.get(&b.id).copied().unwrap_or(now))).collect();
        seen
    }

    /// What there is to be said of it. Of a segment whose backends are mostly silent nothing is, until the others have
    /// heard of it and find the same.
    fn found(&mut self, table: &Table, me: &Node, seen: &[SeenBackend], links: &[Link]) -> Found {
        let checked = self.checked(seen, links);
        let silences = self.silences.borrow();
        let is_agreed = |at: &(String, _)| {
            let here = |a: &&Attachment| a.interface == at.0 && a.segment() == Some(at.1);
            let published = me.attachments.iter().find(here).map(|a| a.silence);
            published == Some(Silence::Lasting) && !table.is_blind(me.id)
        };
        let counts = |backend: &SeenBackend| {
            let settled = self.silent.get(&backend.id).is_some_and(|since| since.elapsed() >= SETTLE);
            let at = segment_of(links, backend.port, backend.address);
            settled && at.is_some_and(|at| !silences.backends.contains_key(&at) || is_agreed(&at))
        };
        let mut found = Found { checked, ..Found::default() };
        for backend in seen {
            match backend.liveness {
                Liveness::Silent if counts(backend) => drop(found.silent.insert(backend.id)),
                Liveness::Answers | Liveness::NotAsked => drop(found.there.insert(backend.id)),
                Liveness::Silent | Liveness::Asked => {}
            }
        }
        found
    }

    /// What the checks have found, but for what this node may not be the one to say.
    fn checked(&mut self, seen: &[SeenBackend], links: &[Link]) -> HashMap<u64, Outcome> {
        let mut checked = self.checker.outcomes();
        let now = Instant::now();
        let is_unanswered = |id: &u64| matches!(checked.get(id), Some(Outcome::Bad { is_said: false, .. }));
        let unanswered = checked.keys().filter(|id| is_unanswered(id));
        self.unanswered = unanswered.map(|id| (*id, self.unanswered.get(id).copied().unwrap_or(now))).collect();
        if self.unanswered.is_empty() {
            return checked;
        }
        let asked = seen.iter().filter(|backend| checked.contains_key(&backend.id));
        let mostly = mostly(asked.map(|backend| (backend, self.unanswered.contains_key(&backend.id))), links);
        for backend in seen {
            let at = segment_of(links, backend.port, backend.address);
            let is_fresh = self.unanswered.get(&backend.id).is_some_and(|since| now.duration_since(*since) < HOLD);
            if is_fresh && at.is_some_and(|at| mostly.contains(&at)) {
                checked.remove(&backend.id);
            }
        }
        checked
    }

    /// A line for each verdict, on every node: from here on it chooses by it. Those that are well are told together.
    fn tell(&mut self, table: &Table) {
        let mut well = 0;
        for verdict in table.verdicts() {
            let Some(backend) = table.backend_with_id(verdict.backend) else { continue };
            let before = self.told.insert(verdict.backend, verdict.health);
            if before == Some(verdict.health) {
                continue;
            }
            let (service, address, reason) = (&backend.settings.service, backend.settings.address, &verdict.reason);
            match verdict.health {
                Health::Unreachable => {
                    tracing::warn!(%service, backend = %address, reason, "a backend is unreachable: no new flows for it");
                }
                Health::Unhealthy => {
                    tracing::warn!(%service, backend = %address, reason, "a backend is unhealthy: no flows for it");
                }
                Health::Healthy if before.is_some() => {
                    tracing::info!(%service, backend = %address, "a backend is healthy again");
                }
                Health::Healthy => well += 1,
                Health::Unchecked => {}
            }
        }
        if well > 0 {
            tracing::info!(backends = well, "checked for the first time, and healthy");
        }
        self.told.retain(|id, told| {
            let Some(backend) = table.backend_with_id(*id) else { return false };
            let holds = table.verdict(backend).is_some();
            if !holds && *told == Health::Unreachable {
                let settings = &backend.settings;
                tracing::info!(service = %settings.service, backend = %settings.address, "a backend answers again");
            }
            holds
        });
    }
}
