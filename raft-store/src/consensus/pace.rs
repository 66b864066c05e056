//! When a leader sends Raft's heartbeats, and when a voter that does not hear one starts an election: at the pace of the
//! cluster's timing. openraft takes its times once, for the life of a process: its own timers are switched off, and the
//! times that it is given ([`limits`]) are limits alone, wide enough for any distance at which the cluster can work.

use std::{
    sync::{PoisonError, Weak},
    time::Duration,
};

use openraft::{Config, async_runtime::WatchReceiver as _};
use tokio::time::{Instant, sleep_until};

use super::node::{Consensus, Inner, Member};
use crate::{raft::Vote, table::Timing};

/// For a heartbeat and its answer: Raft works up to a round trip of so long.
const HEARTBEAT_LIMIT_MS: u64 = 500;
/// For a vote and its answer; it must be longer.
const VOTE_LIMIT_MS: u64 = 650;
/// For so long after it has heard the leader a voter elects no other one, but for one that takes over from a leader that
/// is gone; it must be longer again.
const LEADER_LEASE: Duration = Duration::from_millis(700);
/// An election that comes to nothing is followed by one after twice the time, so often.
const DOUBLINGS: u32 = 3;

/// What openraft is told of time.
pub(super) fn limits(config: Config) -> Config {
    Config {
        heartbeat_interval: HEARTBEAT_LIMIT_MS,
        election_timeout_min: VOTE_LIMIT_MS,
        election_timeout_max: LEADER_LEASE.as_millis() as u64,
        enable_heartbeat: false,
        enable_elect: false,
        ..config
    }
}

/// Raft's times under a timing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pace {
    /// Between two heartbeats of the leader.
    heartbeat: Duration,
    /// A voter that has not heard a leader for between so long and twice as long starts an election.
    election: Duration,
}

impl Pace {
    /// A quicker timing does not make a disk quicker, and none needs more than four times as long.
    fn new(timing: Timing) -> Self {
        let slower = timing.heartbeat_ms.div_ceil(Timing::DEFAULT.heartbeat_ms).clamp(1, 4);
        Self { heartbeat: Duration::from_millis(50) * slower, election: Duration::from_millis(150) * slower }
    }

    /// Until the next election, after so many; with a random part, so that not all voters start one at once.
    fn timeout(self, elections: u32) -> Duration {
        let span = self.election * (1 << elections.min(DOUBLINGS));
        span + span.mul_f64(fastrand::f64())
    }
}

/// Runs until the last handle to the node is dropped: it holds none itself.
pub(super) async fn run(node: Weak<Inner>) {
    let Some(mut lead) = node.upgrade().map(|inner| inner.lead.subscribe()) else { return };
    let mut candidacy = Candidacy::default();
    loop {
        let next = {
            let Some(inner) = node.upgrade() else { return };
            let consensus = Consensus { inner };
            let Some(member) = consensus.inner.member.get() else { return };
            consensus.keep_pace(member, &mut candidacy).await
        };
        // A new leader takes no write before a majority has answered a heartbeat: it sends one at once.
        tokio::select! {
            () = sleep_until(next) => {}
            changed = lead.changed() => if changed.is_err() { return },
        }
    }
}

/// When a leader was last heard, and what this node last voted for.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Heard {
    at: Instant,
    /// Within its lease: openraft starts no election before that has run out.
    leased: bool,
    vote: Vote,
}

/// The elections that this node has started since it last heard a leader, or voted.
#[derive(Debug, Default)]
struct Candidacy {
    heard: Option<Heard>,
    elections: u32,
    next: Option<Instant>,
}

impl Candidacy {
    /// Whether an election is due. A sole voter waits for nobody.
    fn is_due(&mut self, heard: Heard, is_sole: bool, pace: Pace, now: Instant) -> bool {
        if self.heard.is_none_or(|known| (known.at, known.vote) != (heard.at, heard.vote)) {
            // Whoever has voted gives the one that it voted for the time to win.
            let voted = self.heard.is_some_and(|known| known.vote != heard.vote);
            let timeout = pace.timeout(0);
            let from_lease = heard.leased.then(|| heard.at + LEADER_LEASE + timeout - pace.election);
            let from_vote = voted.then(|| now + timeout);
            let next = [Some(heard.at + timeout), from_lease, from_vote].into_iter().flatten().max();
            *self = Self { heard: Some(heard), elections: 0, next };
        }
        let due = is_sole && self.elections == 0 || self.next.is_none_or(|next| now >= next);
        if due {
            self.elections += 1;
            self.next = Some(now + pace.timeout(self.elections));
        }
        due
    }
}

impl Consensus {
    /// Does what is due. When to look again.
    async fn keep_pace(&self, member: &Member, candidacy: &mut Candidacy) -> Instant {
        let pace = Pace::new(self.view().table.timing());
        let now = Instant::now();
        let metrics = member.raft.metrics().borrow_watched().clone();
        let me = member.identity.node;
        if metrics.current_leader == Some(me) {
            // It hears itself; one that leads no more waits like the others.
            self.hears_leader();
            // An error means that the node stops.
            drop(member.raft.trigger().heartbeat().await);
            return now + pace.heartbeat;
        }
        let (at, leased) = *self.inner.heard_leader.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = Heard { at, leased, vote: metrics.vote };
        let is_sole = metrics.membership_config.membership().voter_ids().eq([me]);
        if candidacy.is_due(heard, is_sole, pace, now) {
            // Begun by asking whether it could be won: a node that comes back disturbs nobody. openraft knows whether this
            // node has a vote, in the last configuration or in one that may be in force yet.
            drop(member.raft.trigger().elect(true).await);
        }
        candidacy.next.unwrap_or(now).clamp(now + pace.heartbeat / 10, now + pace.heartbeat)
    }

    /// Whether a leader was heard so lately that nobody else would be elected.
    pub(super) fn has_heard_leader(&self) -> bool {
        let (at, is_true) = *self.inner.heard_leader.lock().unwrap_or_else(PoisonError::into_inner);
        is_true && at.elapsed() < Pace::new(self.view().table.timing()).election
    }

    /// The leader was heard at this moment.
    pub(super) fn hears_leader(&self) {
        *self.inner.heard_leader.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_follows_the_timing_within_limits() {
        let ms = |timing| {
            let Pace { heartbeat, election } = Pace::new(timing);
            (heartbeat.as_millis(), election.as_millis())
        };
        assert_eq!(ms(Timing::DEFAULT), (50, 150));
        assert_eq!(ms(Timing::FAST), (50, 150));
        assert_eq!(ms(Timing::RELAXED), (200, 600));
        assert_eq!(ms(Timing { heartbeat_ms: 2000, lease_ms: 8000, withdraw_ms: 9000 }), (200, 600));
    }

    #[test]
    fn elections_that_come_to_nothing_become_rarer_until_a_leader_is_heard() {
        let pace = Pace::new(Timing::DEFAULT);
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut candidacy = Candidacy::default();
        let heard = |at: Instant, leased, term| Heard { at, leased, vote: Vote::new(term, 1) };
        let mut elections = |from: u64, to: u64, heard: Heard, sole: bool| {
            (from..=to).filter(|ms| candidacy.is_due(heard, sole, pace, at(*ms))).count()
        };
        let started = heard(start, false, 1);
        assert_eq!(elections(0, 149, started, false), 0, "a leader may be there");
        assert_eq!(elections(150, 300, started, false), 1);
        let later = elections(301, 20_300, started, false);
        assert!((8..=20).contains(&later), "{later} in 20 s, where 67 to 133 would be due without a pause");
        let leader = heard(at(20_300), true, 1);
        assert_eq!(elections(20_300, 20_999, leader, false), 0, "its lease lasts");
        assert_eq!(elections(21_000, 21_150, leader, false), 1);
        let voted = heard(at(20_300), true, 2);
        assert_eq!(elections(21_200, 21_349, voted, false), 0, "it has voted for another one just now");
        assert_eq!(elections(21_350, 21_500, voted, false), 1);
        assert_eq!(elections(21_600, 21_600, heard(at(21_600), true, 2), true), 1, "a sole voter waits for nobody");
    }

    #[test]
    fn openraft_takes_the_limits() {
        assert!(limits(Config::default()).validate().is_ok());
    }
}
