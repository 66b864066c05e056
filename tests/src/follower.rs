//! Follows a table by `Watch`, from whichever node answers, and checks that what it is told fits together: each change
//! begins where the one before has ended, so none is missing, repeated or out of order.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use lb_proto::v1::{
    Backend, ClusterSettings, Segment, Service, Vip, WatchRequest, WatchResponse, change::Row,
    table_service_client::TableServiceClient,
};

use crate::grpc;

/// Between two attempts to follow.
const AGAIN: Duration = Duration::from_millis(50);

/// What a table holds, as far as it was told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Model {
    /// The revision up to which it is known.
    pub revision: u64,
    settings: Option<ClusterSettings>,
    vips: BTreeMap<String, Vip>,
    services: BTreeMap<String, Service>,
    backends: BTreeMap<(String, String), Backend>,
    segments: BTreeMap<String, Segment>,
    /// The whole table is on its way.
    begins: bool,
}

impl Model {
    /// Takes a message, or says what does not fit.
    pub fn take(&mut self, message: WatchResponse) -> anyhow::Result<()> {
        if message.compacted && !self.begins {
            *self = Self { begins: true, ..Self::default() };
        }
        ensure!(self.begins == message.compacted, "the whole table is mixed with changes: {message:?}");
        let is_last = message.revision > 0;
        ensure!(!is_last || message.revision >= self.revision, "{} comes after {}", message.revision, self.revision);
        let is_bookmark = message.changes.is_empty();
        ensure!(is_bookmark || !is_last || message.revision > self.revision, "{} is repeated", message.revision);
        for change in message.changes {
            self.apply(change.row.context("an empty change")?).with_context(|| format!("after {}", self.revision))?;
        }
        if is_last {
            self.revision = message.revision;
            self.begins = false;
        }
        Ok(())
    }

    fn apply(&mut self, row: Row) -> anyhow::Result<()> {
        fn put<K: Ord + std::fmt::Debug, V: PartialEq + Clone + std::fmt::Debug>(
            rows: &mut BTreeMap<K, V>,
            key: impl Fn(&V) -> K,
            before: Option<V>,
            after: Option<V>,
        ) -> anyhow::Result<()> {
            let key = before.as_ref().or(after.as_ref()).map(key).context("a change of nothing")?;
            let known = match after {
                Some(after) => rows.insert(key, after),
                None => rows.remove(&key),
            };
            ensure!(known == before, "it was said to be {before:?}, and {known:?} is known");
            Ok(())
        }
        match row {
            Row::Settings(change) => {
                ensure!(change.before == self.settings, "settings were {:?}", self.settings);
                self.settings = change.after;
                Ok(())
            }
            Row::Vip(of) => put(&mut self.vips, |vip| vip.address.clone(), of.before, of.after),
            Row::Service(of) => put(&mut self.services, |service| service.name.clone(), of.before, of.after),
            Row::Backend(of) => {
                put(&mut self.backends, |of| (of.service.clone(), of.address.clone()), of.before, of.after)
            }
            Row::Segment(of) => put(&mut self.segments, |segment| segment.network.clone(), of.before, of.after),
        }
    }

    /// How many backends it knows.
    pub fn backends(&self) -> usize {
        self.backends.len()
    }

    /// Whether a node's lists say the same, but for what only that node knows.
    pub async fn compare(&self, client: &mut TableServiceClient<tonic::transport::Channel>) -> anyhow::Result<()> {
        let vips = client.list_vips(lb_proto::v1::ListVipsRequest::default()).await?.into_inner().vips;
        let vips = vips.into_iter().map(|vip| Vip { problem: String::new(), ..vip });
        let vips: BTreeMap<String, Vip> = vips.map(|vip| (vip.address.clone(), vip)).collect();
        ensure!(vips == self.vips, "VIPs are {vips:#?}, and known are {:#?}", self.vips);
        let services = client.list_services(lb_proto::v1::ListServicesRequest::default()).await?.into_inner().services;
        let services: BTreeMap<String, Service> = services.into_iter().map(|of| (of.name.clone(), of)).collect();
        ensure!(services == self.services, "services are {services:#?}, and known are {:#?}", self.services);
        let request = lb_proto::v1::ListBackendsRequest::default();
        let listed = client.list_backends(request).await?.into_inner();
        let (revision, backends) = (listed.revision, listed.backends);
        let backends = backends.into_iter().map(|backend| Backend { drain_ends_s: None, ..backend });
        let backends: BTreeMap<_, _> = backends.map(|of| ((of.service.clone(), of.address.clone()), of)).collect();
        // What was changed after what is known, or after the list was made, says nothing: others write meanwhile.
        let is_of_now = |backend: &Backend, known: Option<&Backend>| {
            backend.revision > self.revision || known.is_some_and(|known| known.revision > revision)
        };
        let other = backends.iter().find(|(key, backend)| {
            let known = self.backends.get(*key);
            known != Some(backend) && !is_of_now(backend, known)
        });
        let known = other.map(|(key, _)| self.backends.get(key));
        ensure!(other.is_none(), "a backend is {other:#?}, and known is {known:#?}");
        ensure!(backends.len() == self.backends.len(), "{} backends, {} known", backends.len(), self.backends.len());
        Ok(())
    }
}

/// Follows the table until it is dropped, by one node after the other.
pub struct Follower {
    stop: Arc<AtomicBool>,
    model: Arc<Mutex<Model>>,
    wrong: Arc<Mutex<Option<String>>>,
    resumed: Arc<AtomicU64>,
    begun_anew: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<()>>,
    sockets: Vec<PathBuf>,
}

impl Follower {
    /// Begins.
    pub fn start(sockets: Vec<PathBuf>) -> anyhow::Result<Self> {
        let (stop, model, wrong) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Model>>::default(), Arc::default());
        let (resumed, begun_anew) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let run = Run {
            stop: stop.clone(),
            model: model.clone(),
            wrong: Arc::clone(&wrong),
            resumed: resumed.clone(),
            begun_anew: begun_anew.clone(),
            sockets: sockets.clone(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("follower".into()).spawn(move || runtime.block_on(run.follow()))?;
        Ok(Self { stop, model, wrong, resumed, begun_anew, thread: Some(thread), sockets })
    }

    /// What did not fit, if anything.
    pub fn wrong(&self) -> Option<String> {
        self.wrong.lock().ok()?.clone()
    }

    /// How often it went on by another connection, and how often it had to begin anew.
    pub fn interruptions(&self) -> (u64, u64) {
        (self.resumed.load(Ordering::Relaxed), self.begun_anew.load(Ordering::Relaxed))
    }

    /// What it knows now.
    pub fn model(&self) -> Model {
        self.model.lock().map(|model| model.clone()).unwrap_or_default()
    }

    /// Whether it knows what a node's lists say now.
    pub fn is_up_to_date(&self, node: usize) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut client = TableServiceClient::new(grpc::connect(self.sockets[node].clone()).await?);
            let model = self.model();
            ensure!(!model.begins, "the table is on its way");
            model.compare(&mut client).await
        })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

struct Run {
    stop: Arc<AtomicBool>,
    model: Arc<Mutex<Model>>,
    wrong: Arc<Mutex<Option<String>>>,
    resumed: Arc<AtomicU64>,
    begun_anew: Arc<AtomicU64>,
    sockets: Vec<PathBuf>,
}

impl Run {
    async fn follow(self) {
        let mut at = 0;
        while !self.stop.load(Ordering::Relaxed) {
            // What breaks is no fault: it goes on from where it was, by the next node.
            drop(self.follow_one(&self.sockets[at % self.sockets.len()]).await);
            at += 1;
            self.resumed.fetch_add(1, Ordering::Relaxed);
            if self.wrong.lock().is_ok_and(|wrong| wrong.is_some()) {
                return;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn follow_one(&self, socket: &std::path::Path) -> anyhow::Result<()> {
        let mut client = TableServiceClient::new(grpc::connect(socket.to_owned()).await?);
        let mut model = self.model.lock().map_err(|_| anyhow::anyhow!("a panic"))?.clone();
        // A table that has come in part is none.
        model.begins = false;
        let request = WatchRequest { from_revision: model.revision, kinds: Vec::new() };
        let mut messages = client.watch(request).await?.into_inner();
        while !self.stop.load(Ordering::Relaxed) {
            let Ok(message) = tokio::time::timeout(Duration::from_millis(200), messages.message()).await else {
                continue;
            };
            let Some(message) = message? else { return Ok(()) };
            if message.compacted && !model.begins && model.revision > 0 {
                self.begun_anew.fetch_add(1, Ordering::Relaxed);
            }
            let is_last = message.revision > 0;
            if let Err(error) = model.take(message) {
                *self.wrong.lock().map_err(|_| anyhow::anyhow!("a panic"))? = Some(format!("{error:#}"));
                return Ok(());
            }
            // What has come in part comes again.
            if is_last {
                *self.model.lock().map_err(|_| anyhow::anyhow!("a panic"))? = model.clone();
            }
        }
        Ok(())
    }
}
