//! What single answers come to: so many good ones in a row, so many bad ones, and how often that may change. Pure.

use std::{collections::VecDeque, time::Duration};

use lb_raft_store::table::Rhythm;
use tokio::time::Instant;

use super::answer::Failure;

/// A backend that changes more often than this within [`WATCHED`] is held down.
const CHANGES: usize = 5;
const WATCHED: Duration = Duration::from_secs(60);
/// For so long the first time, and each time for twice as long.
const HELD: Duration = Duration::from_secs(10);
const HELD_AT_MOST: Duration = Duration::from_secs(300);
/// After so long without a change it begins anew.
const FORGIVEN: Duration = Duration::from_secs(600);

/// What one question has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// It was not answered yet.
    Unknown,
    Good,
    /// Why; `None` where the owner before has found it.
    Bad(Option<Failure>),
}

/// Hears the answers to one question.
#[derive(Debug)]
pub(super) struct Judge {
    rhythm: Rhythm,
    standing: Standing,
    /// Answers in a row that speak against the standing.
    against: u32,
    /// What is said in a row by a backend that is bad for another reason.
    other_reason: Option<(Failure, u32)>,
    changes: VecDeque<Instant>,
    holds: u32,
    held_until: Option<Instant>,
}

impl Judge {
    /// `standing`: what the one before has found.
    pub(super) fn new(rhythm: Rhythm, standing: Standing) -> Self {
        Self { rhythm, standing, against: 0, other_reason: None, changes: VecDeque::new(), holds: 0, held_until: None }
    }

    pub(super) fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Whether the standing is another one now. The first answer of all counts by itself; silence does not, because the first
    /// packet to a neighbour is the one that is lost.
    pub(super) fn hear(&mut self, answer: Result<(), Failure>, now: Instant) -> bool {
        let needed = match (&self.standing, &answer) {
            (Standing::Good, Ok(())) => {
                self.against = 0;
                return false;
            }
            (Standing::Bad(_), Err(failure)) => {
                self.against = 0;
                return self.hear_reason(failure.clone());
            }
            (Standing::Unknown, Ok(())) => 1,
            (Standing::Unknown, Err(failure)) if failure.is_said => 1,
            (Standing::Bad(_), Ok(())) => self.rhythm.rise,
            (Standing::Good | Standing::Unknown, Err(_)) => self.rhythm.fall,
        };
        self.against += 1;
        if self.against < needed || (answer.is_ok() && self.held_until.is_some_and(|until| now < until)) {
            return false;
        }
        (self.against, self.other_reason) = (0, None);
        let is_first = self.standing == Standing::Unknown;
        self.standing = match answer {
            Ok(()) => Standing::Good,
            Err(failure) => Standing::Bad(Some(failure)),
        };
        if !is_first {
            self.damp(now);
        }
        true
    }

    /// Whether it is bad for another reason by now: one that is given as often as it takes to be bad.
    fn hear_reason(&mut self, failure: Failure) -> bool {
        let Standing::Bad(present) = &mut self.standing else { return false };
        let is_same = |known: &Failure| known.reason.starts_with(&failure.reason);
        if present.as_ref().is_some_and(is_same) {
            self.other_reason = None;
            return false;
        }
        let before = self.other_reason.take().filter(|(other, _)| *other == failure).map_or(0, |(_, times)| times);
        if before + 1 < self.rhythm.fall {
            self.other_reason = Some((failure, before + 1));
            return false;
        }
        *present = Some(failure);
        true
    }

    /// Notes a change, and holds down what changes too often.
    fn damp(&mut self, now: Instant) {
        if self.changes.back().is_some_and(|last| now.duration_since(*last) >= FORGIVEN) {
            self.holds = 0;
        }
        self.changes.push_back(now);
        // One is kept, to know how long ago it was.
        while self.changes.len() > 1 && self.changes.front().is_some_and(|at| now.duration_since(*at) >= WATCHED) {
            self.changes.pop_front();
        }
        let changes = self.changes.len();
        if let Standing::Bad(Some(failure)) = &mut self.standing
            && changes > CHANGES
        {
            let held = (HELD * 2u32.saturating_pow(self.holds)).min(HELD_AT_MOST);
            self.holds += 1;
            self.held_until = Some(now + held);
            let reason = &mut failure.reason;
            *reason =
                format!("{reason}; it has changed {changes} times within a minute: held down for {} s", held.as_secs());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::check::answer::said;

    const RHYTHM: Rhythm = Rhythm { interval_ms: 1000, timeout_ms: 500, rise: 2, fall: 3, jitter_percent: 10 };

    fn bad() -> Result<(), Failure> {
        Err(said("status 503"))
    }

    #[test]
    fn the_first_answer_counts_alone_and_then_so_many_in_a_row() {
        let now = Instant::now();
        let mut judge = Judge::new(RHYTHM, Standing::Unknown);
        let mut hear = |answers: &[bool]| {
            answers.iter().map(|good| judge.hear(if *good { Ok(()) } else { bad() }, now)).collect::<Vec<_>>()
        };
        assert_eq!(hear(&[false, true, false, true, true]), [true, false, false, false, true]);
        assert_eq!(hear(&[false, false, true, false, false, false]), [false, false, false, false, false, true]);
        let mut silent = Judge::new(RHYTHM, Standing::Unknown);
        let silence = || Err(Failure { reason: "no answer within 500 ms".into(), is_said: false });
        assert_eq!([silence(), silence(), silence()].map(|answer| silent.hear(answer, now)), [false, false, true]);
        let mut other = Judge::new(RHYTHM, Standing::Bad(None));
        let refused = || Err(said("it refuses the connection"));
        let heard = [bad(), bad(), bad(), bad(), refused(), bad(), refused(), refused(), refused()];
        let told: Vec<bool> = heard.into_iter().map(|answer| other.hear(answer, now)).collect();
        assert_eq!(told, [false, false, true, false, false, false, false, false, true], "another reason, said thrice");
        let mut known = Judge::new(RHYTHM, Standing::Good);
        assert!(!known.hear(bad(), now), "the owner before has heard better of it");
    }

    #[test]
    fn what_changes_all_the_time_is_held_down_longer_each_time() {
        let mut now = Instant::now();
        let rhythm = Rhythm { rise: 1, fall: 1, ..RHYTHM };
        let mut judge = Judge::new(rhythm, Standing::Good);
        let mut held = Vec::new();
        for _ in 0..12 {
            now += Duration::from_secs(1);
            assert!(judge.hear(bad(), now));
            let since = now;
            now += Duration::from_secs(1);
            while !judge.hear(Ok(()), now) {
                now += Duration::from_secs(1);
            }
            held.push((now - since).as_secs());
        }
        assert_eq!(held[..4], [1, 1, 1, 10], "the seventh change within a minute");
        assert!(held.contains(&20) && held.iter().all(|held| *held <= 300), "{held:?}");
        let Standing::Bad(Some(failure)) = ({
            judge.hear(bad(), now);
            judge.standing().clone()
        }) else {
            panic!()
        };
        assert!(failure.reason.starts_with("status 503"));
        // Peace for long enough, and it begins anew.
        now += HELD_AT_MOST;
        while judge.standing() != &Standing::Good {
            now += Duration::from_secs(1);
            judge.hear(Ok(()), now);
        }
        now += FORGIVEN;
        assert!(judge.hear(bad(), now) && judge.hear(Ok(()), now));
    }
}
