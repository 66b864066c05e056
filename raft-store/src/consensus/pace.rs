//! When a leader sends Raft's heartbeats, and when a voter that does not hear one starts an election: at the pace of the
//! cluster's timing. openraft takes its times once, for the life of a process: its own timers are switched off, and the
//! times that it is given ([`limits`]) are limits alone, wide enough for any distance at which the cluster can work.

use std::{
    collections::BTreeSet,
    sync::{PoisonError, Weak},
    time::Duration,
};

use openraft::{Config, async_runtime::WatchReceiver as _};
use tokio::time::{Instant, sleep_until};

use super::node::{Consensus, Inner, Member};
use crate::table::{NodeId, Timing};

/// For a heartbeat and its answer: Raft works up to a round trip of so long.
const HEARTBEAT_LIMIT_MS: u64 = 500;
/// For a vote and its answer; it must be longer.
const VOTE_LIMIT_MS: u64 = 650;
/// For so long after it has heard the leader a voter elects no other one, but for one that takes over from a leader that
/// is gone; it must be longer again.
const LEADER_LEASE_MS: u64 = 700;
/// An election that comes to nothing is followed by one after twice the time, so often.
const DOUBLINGS: u32 = 3;

/// What openraft is told of time.
pub(super) fn limits(config: Config) -> Config {
    Config {
        heartbeat_interval: HEARTBEAT_LIMIT_MS,
        election_timeout_min: VOTE_LIMIT_MS,
        election_timeout_max: LEADER_LEASE_MS,
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
    let mut candidacy = Candidacy::default();
    loop {
        let next = {
            let Some(inner) = node.upgrade() else { return };
            let consensus = Consensus { inner };
            let Some(member) = consensus.inner.member.get() else { return };
            consensus.keep_pace(member, &mut candidacy).await
        };
        sleep_until(next).await;
    }
}

/// The elections that this node has started since it last heard a leader.
#[derive(Debug, Default)]
struct Candidacy {
    heard: Option<Instant>,
    elections: u32,
    next: Option<Instant>,
}

impl Candidacy {
    /// Whether an election is due, after a leader was heard at that moment. A sole voter waits for nobody.
    fn is_due(&mut self, heard: Instant, is_sole: bool, pace: Pace, now: Instant) -> bool {
        if self.heard != Some(heard) {
            *self = Self { heard: Some(heard), elections: 0, next: None };
        }
        let elections = self.elections;
        let due = is_sole && elections == 0 || now >= *self.next.get_or_insert_with(|| heard + pace.timeout(elections));
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
        let heard = *self.inner.heard_leader.lock().unwrap_or_else(PoisonError::into_inner);
        let voters: BTreeSet<NodeId> = metrics.membership_config.membership().voter_ids().collect();
        if voters.contains(&me) && candidacy.is_due(heard, voters.len() == 1, pace, now) {
            // Begun by asking whether it could be won: a node that comes back disturbs nobody.
            drop(member.raft.trigger().elect(true).await);
        }
        candidacy.next.unwrap_or(now).clamp(now + pace.heartbeat / 10, now + pace.heartbeat)
    }

    /// The leader was heard at this moment.
    pub(super) fn hears_leader(&self) {
        *self.inner.heard_leader.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
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
        let mut elections = |from: u64, to: u64, heard: Instant, sole: bool| {
            (from..to).filter(|ms| candidacy.is_due(heard, sole, pace, at(*ms))).count()
        };
        assert_eq!(elections(0, 150, start, false), 0, "a leader has been heard just now");
        assert_eq!(elections(150, 300, start, false), 1);
        let later = elections(300, 20_300, start, false);
        assert!((8..=20).contains(&later), "{later} in 20 s, where 67 to 133 would be due without a pause");
        assert_eq!(elections(20_300, 20_450, at(20_300), false), 0);
        assert_eq!(elections(20_450, 20_600, at(20_300), false), 1);
        assert_eq!(elections(20_600, 20_601, at(20_600), true), 1, "a sole voter waits for nobody");
    }

    #[test]
    fn openraft_takes_the_limits() {
        assert!(limits(Config::default()).validate().is_ok());
    }
}
