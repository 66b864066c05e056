//! The last events of this node, in their order, and a line in the log for each.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;

use super::{
    event::{Event, Kind, News},
    told::Told,
};

/// So many are remembered.
const KEPT: usize = 4096;

/// What has happened on this node since it was started. Clones are handles to the same.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    ring: Arc<Mutex<Ring>>,
    /// The number of the last one.
    last: Arc<watch::Sender<u64>>,
}

#[derive(Debug)]
struct Ring {
    next: u64,
    /// How many there were of each kind.
    counts: BTreeMap<Kind, u64>,
    events: VecDeque<Arc<Event>>,
    told: Told,
}

impl Default for Events {
    fn default() -> Self {
        // Greater than any of the process before, which would have had to tell of one each microsecond; and a number that a
        // double holds.
        let first = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_micros() as u64);
        let counts = Kind::ALL.into_iter().map(|kind| (kind, 0)).collect();
        let ring = Ring { next: first, counts, events: VecDeque::new(), told: Told::default() };
        Self { ring: Arc::new(Mutex::new(ring)), last: Arc::new(watch::Sender::new(first - 1)) }
    }
}

impl Events {
    /// This has happened; the log has a line of it.
    pub(crate) fn tell(&self, news: News) {
        let times = {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            ring.told.times(&news.reason, Instant::now())
        };
        if let Some(times) = times {
            let repeated = if times > 1 { format!(" ({times} times)") } else { String::new() };
            match news.is_bad {
                true => tracing::warn!("{}{repeated}", news.reason),
                false => tracing::info!("{}{repeated}", news.reason),
            }
        }
        self.note(news);
    }

    /// This has happened, and whoever has seen it has written its line into the log.
    pub(crate) fn note(&self, news: News) {
        let number = {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            let number = ring.next;
            ring.next += 1;
            *ring.counts.entry(news.kind).or_default() += 1;
            if ring.events.len() == KEPT {
                ring.events.pop_front();
            }
            ring.events.push_back(Arc::new(Event { number, at: SystemTime::now(), news }));
            number
        };
        self.last.send_if_modified(|last| {
            let is_newer = number > *last;
            *last = number.max(*last);
            is_newer
        });
    }

    /// The events after a number, and whether some of them are forgotten.
    pub(crate) fn after(&self, number: u64) -> (Vec<Arc<Event>>, bool) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let first = ring.events.front().map_or(ring.next, |event| event.number);
        let from = ring.events.partition_point(|event| event.number <= number);
        (ring.events.range(from..).cloned().collect(), number != 0 && number.saturating_add(1) < first)
    }

    /// So many of them, the last one first.
    pub(crate) fn last(&self, count: usize) -> Vec<Arc<Event>> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.events.iter().rev().take(count).cloned().collect()
    }

    /// How many there were of each kind since the start.
    pub(crate) fn counts(&self) -> BTreeMap<Kind, u64> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).counts.clone()
    }

    /// Follows the number of the last one.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(reason: &str) -> News {
        News::of_node(Kind::Node, false, reason.to_owned())
    }

    #[test]
    fn events_are_numbered_and_what_is_forgotten_is_said_to_be() {
        let events = Events::default();
        assert_eq!(events.after(0), (Vec::new(), false));
        (0..3).for_each(|at| events.note(news(&at.to_string())));
        let (all, missed) = events.after(0);
        assert!(!missed && all.len() == 3 && all[2].number == all[0].number + 2);
        let (later, missed) = events.after(all[1].number);
        assert!(!missed && later == all[2..]);
        assert_eq!(*events.watch().borrow(), all[2].number);
        assert_eq!(events.last(2), [all[2].clone(), all[1].clone()]);
        assert!(events.after(all[0].number - 2).1, "of the process before");
        (0..KEPT).for_each(|at| events.note(news(&at.to_string())));
        let (kept, missed) = events.after(all[0].number);
        assert!(missed && kept.len() == KEPT);
    }
}
