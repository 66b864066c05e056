//! What a page shows, made anew as it changes: once for all pages, and not at all while none is open.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lb_proto::{rates::Rates, v1};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::state;
use crate::api::Context;

/// Counters are read so often.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// Where nothing happens, it is said so often that this is so.
const SHOW_EVERY: Duration = Duration::from_secs(1);
/// Not oftener, however much changes.
const AT_MOST_EVERY: Duration = Duration::from_millis(200);

/// Pages that can be open: fewer than there are connections, so that monitoring has some.
const PAGES: usize = 40;

/// What is shown now. Clones are handles to the same.
#[derive(Clone)]
pub(super) struct Live {
    /// As JSON; nothing before it is made for the first time.
    shown: Arc<watch::Sender<Option<Arc<str>>>>,
    wanted: Arc<Notify>,
    counted: Arc<Mutex<Counted>>,
    places: Arc<Semaphore>,
}

/// What the nodes have counted, and how fast that grows.
#[derive(Default)]
struct Counted {
    last: Option<(Instant, Arc<v1::GetStatsResponse>)>,
    rates: Option<Arc<Rates>>,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            shown: Arc::new(watch::Sender::new(None)),
            wanted: Arc::default(),
            counted: Arc::default(),
            places: Arc::new(Semaphore::new(PAGES)),
        }
    }
}

impl Live {
    /// Follows it, with a place that is given back when it is dropped. Nothing where all are taken.
    pub(super) fn follow(&self) -> Option<(watch::Receiver<Option<Arc<str>>>, OwnedSemaphorePermit)> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        let follower = self.shown.subscribe();
        self.wanted.notify_waiters();
        Some((follower, place))
    }

    /// Makes it while somebody follows. Runs until it is aborted.
    pub(super) async fn run(self, context: Context) {
        tokio::join!(self.count(&context), self.show(&context));
    }

    /// Until somebody follows.
    async fn wait(&self) {
        loop {
            let wanted = self.wanted.notified();
            if self.shown.receiver_count() > 0 {
                return;
            }
            // Whoever comes later does not begin with what is old.
            self.shown.send_replace(None);
            *self.counted.lock().unwrap_or_else(PoisonError::into_inner) = Counted::default();
            wanted.await;
        }
    }

    /// A node that is silent keeps this waiting, and not the page.
    async fn count(&self, context: &Context) {
        loop {
            self.wait().await;
            let asked = Instant::now();
            let (view, me) = (context.consensus.view(), context.consensus.status().node);
            let stats = Arc::new(context.peers.traffic(&view.table, me).await);
            self.note(asked, stats);
            sleep_until(asked + COUNT_EVERY).await;
        }
    }

    fn note(&self, asked: Instant, stats: Arc<v1::GetStatsResponse>) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let last = counted.last.replace((asked, stats.clone()));
        let rates = last.and_then(|(at, before)| Rates::between(&before, &stats, asked - at));
        counted.rates = rates.map(Arc::new);
    }

    async fn show(&self, context: &Context) {
        let (mut table, mut lead) = (context.consensus.watch(), context.consensus.lead());
        let mut events = context.events.watch();
        loop {
            self.wait().await;
            let began = Instant::now();
            table.mark_unchanged();
            lead.mark_unchanged();
            events.mark_unchanged();
            let (stats, rates) = {
                let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
                (counted.last.as_ref().map(|(_, stats)| stats.clone()), counted.rates.clone())
            };
            let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
            let shown = state::of(context, at_ms, stats.as_deref(), rates.as_deref());
            match serde_json::to_string(&shown) {
                Ok(text) => drop(self.shown.send_replace(Some(text.into()))),
                Err(error) => tracing::error!(%error, "the page's state cannot be written"),
            }
            sleep(AT_MOST_EVERY).await;
            let changed = async {
                tokio::select! {
                    _ = table.changed() => {}
                    _ = lead.changed() => {}
                    _ = events.changed() => {}
                }
            };
            let _ = timeout_at(began + SHOW_EVERY, changed).await;
        }
    }
}
