//! Every write is made once: by many clients that ask again, of any node, until they are answered, while leaders are killed. The
//! long form is `LB_WRITES=10000`.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use lb_proto::v1::{self, table_service_client::TableServiceClient};
use lb_tests::{
    grpc,
    site::{PATIENCE, Plan, Site},
    wait,
};
use tonic::{Code, Status, transport::Channel};

const CLIENTS: u64 = 50;
const SERVICE: &str = "web";

/// Between two kills of the leader.
const CALM: Duration = Duration::from_millis(2500);

/// What a client has asked for last, and was answered.
#[derive(Clone, Debug)]
enum Asked {
    Create(v1::CreateBackendRequest),
    Update(v1::UpdateBackendRequest),
    Delete(v1::DeleteBackendRequest),
}

struct Caller {
    number: u64,
    sockets: Arc<Vec<PathBuf>>,
    channels: BTreeMap<usize, TableServiceClient<Channel>>,
    random: fastrand::Rng,
    retries: Arc<AtomicU64>,
}

impl Caller {
    fn address(&self, row: u64) -> String {
        std::net::Ipv4Addr::from(0x0a01_0000 + (self.number * 16 + row) as u32).to_string()
    }

    /// By any node, until it is answered.
    async fn ask(&mut self, asked: &Asked) -> Result<v1::MutationResponse, Status> {
        loop {
            let at = self.random.usize(..self.sockets.len());
            match self.ask_once(at, asked).await {
                Ok(answer) => return Ok(answer),
                Err(status)
                    if [
                        Code::Unavailable,
                        Code::DeadlineExceeded,
                        Code::Unknown,
                        Code::Cancelled,
                        Code::Internal,
                        Code::ResourceExhausted,
                    ]
                    .contains(&status.code()) =>
                {
                    self.channels.remove(&at);
                    self.retries.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(status) => return Err(status),
            }
        }
    }

    async fn ask_once(&mut self, at: usize, asked: &Asked) -> Result<v1::MutationResponse, Status> {
        fn within<T>(message: T) -> tonic::Request<T> {
            let mut request = tonic::Request::new(message);
            request.set_timeout(Duration::from_millis(400));
            request
        }
        if !self.channels.contains_key(&at) {
            let channel = grpc::connect(self.sockets[at].clone()).await;
            let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
            self.channels.insert(at, TableServiceClient::new(channel));
        }
        let client = self.channels.get_mut(&at).ok_or_else(|| Status::unavailable("no channel"))?;
        let answer = match asked.clone() {
            Asked::Create(request) => client.create_backend(within(request)).await,
            Asked::Update(request) => client.update_backend(within(request)).await,
            Asked::Delete(request) => client.delete_backend(within(request)).await,
        };
        answer.map(tonic::Response::into_inner)
    }

    fn create(&self, row: u64, weight: u32) -> Asked {
        Asked::Create(v1::CreateBackendRequest {
            request_id: uuid::Uuid::now_v7().to_string(),
            backend: Some(v1::Backend {
                service: SERVICE.into(),
                address: self.address(row),
                mac: "02:00:00:00:00:01".into(),
                weight: Some(weight),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    /// So many writes to rows of its own, each of which must do what it does to what was there before: one that is lost, or made
    /// twice, is seen by the next.
    async fn run(mut self, writes: u64) -> anyhow::Result<BTreeMap<String, u32>> {
        const ROWS: u64 = 8;
        let mut rows: BTreeMap<u64, u32> = BTreeMap::new();
        let mut deleted: Vec<(Asked, v1::MutationResponse)> = Vec::new();
        for count in 0..writes {
            let row = self.random.u64(..ROWS);
            let weight = 1 + (count % 1000) as u32;
            let asked = match (rows.get(&row), self.random.u64(..3)) {
                (None, _) => self.create(row, weight),
                (Some(_), 0) => Asked::Delete(v1::DeleteBackendRequest {
                    request_id: uuid::Uuid::now_v7().to_string(),
                    service: SERVICE.into(),
                    address: self.address(row),
                    ..Default::default()
                }),
                (Some(_), _) => Asked::Update(v1::UpdateBackendRequest {
                    request_id: uuid::Uuid::now_v7().to_string(),
                    service: SERVICE.into(),
                    address: self.address(row),
                    weight: Some(weight),
                    ..Default::default()
                }),
            };
            let answer = self.ask(&asked).await.with_context(|| format!("{asked:?}"))?;
            let before = rows.get(&row).copied();
            let should_change = !matches!(asked, Asked::Update(_)) || before != Some(weight);
            ensure!(answer.unchanged != should_change, "{asked:?} with {before:?} before: {answer:?}");
            match &asked {
                Asked::Delete(_) => {
                    rows.remove(&row);
                    deleted.push((asked, answer));
                }
                _ => drop(rows.insert(row, weight)),
            }
            // A deletion that is repeated late, when the row is there again, deletes nothing.
            if count % 16 == 15
                && let Some((late, first)) = deleted.get(self.random.usize(..deleted.len().max(1))).cloned()
            {
                let again = self.ask(&late).await.with_context(|| format!("again {late:?}"))?;
                ensure!(again == first, "{late:?} again: {again:?}, and first {first:?}");
            }
        }
        Ok(rows.into_iter().map(|(row, weight)| (self.address(row), weight)).collect())
    }
}

/// No write is lost, and none is made twice.
pub(crate) fn each_write() -> anyhow::Result<()> {
    let wanted = std::env::var("LB_WRITES").ok().map(|text| text.parse::<u64>()).transpose().context("LB_WRITES")?;
    let writes = wanted.unwrap_or(2000) / CLIENTS;
    let mut site = Site::build(Plan { nodes: 3, servers: 0, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let sockets = Arc::new(site.nodes.iter().map(lb_tests::cluster::LbNode::socket).collect::<Vec<_>>());
    let (done, retries) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let outcome = Arc::<Mutex<Option<anyhow::Result<BTreeMap<String, u32>>>>>::default();
    let callers = {
        let (done, retries, outcome, sockets) = (done.clone(), retries.clone(), outcome.clone(), sockets.clone());
        std::thread::Builder::new().name("callers".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let all = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
                runtime.block_on(async {
                    let mut tasks = tokio::task::JoinSet::new();
                    for number in 0..CLIENTS {
                        let random = fastrand::Rng::with_seed(number);
                        let (sockets, retries) = (sockets.clone(), retries.clone());
                        let caller = Caller { number, sockets, channels: BTreeMap::new(), random, retries };
                        tasks.spawn(caller.run(writes));
                    }
                    let mut rows = BTreeMap::new();
                    while let Some(ended) = tasks.join_next().await {
                        rows.extend(ended??);
                    }
                    Ok(rows)
                })
            });
            if let Ok(mut outcome) = outcome.lock() {
                *outcome = Some(all);
            }
            done.store(true, Ordering::Relaxed);
        })?
    };
    let mut kills = 0;
    while !done.load(Ordering::Relaxed) {
        let leader = wait::until_some("there is a leader", PATIENCE, || {
            let status = site.nodes.iter().find_map(|node| node.lbctl_json(&["--timeout", "1s", "status"]).ok())?;
            let name = status["leader"].as_str().unwrap_or_default().to_owned();
            site.nodes.iter().position(|node| node.name == name)
        });
        site.nodes[leader].kill()?;
        site.nodes[leader].start()?;
        kills += 1;
        let calm = std::time::Instant::now();
        wait::until("there is calm, or an end", PATIENCE, || calm.elapsed() > CALM || done.load(Ordering::Relaxed));
    }
    callers.join().map_err(|_| anyhow::anyhow!("the callers panicked"))?;
    let expected = outcome.lock().map_err(|_| anyhow::anyhow!("a panic"))?.take().context("no outcome")??;
    let list = site.nodes[0].lbctl_json(&["backend", "list", SERVICE, "--no-flows"])?;
    let rows = list["backends"].as_array().context("no backends")?;
    let found = rows.iter().map(|row| {
        (row["address"].as_str().unwrap_or_default().to_owned(), row["weight"].as_u64().unwrap_or_default() as u32)
    });
    ensure!(found.collect::<BTreeMap<_, _>>() == expected, "the table is not what the answers say");
    println!(
        "{} writes of {CLIENTS} clients, {} repetitions, {kills} leaders killed: none lost, none made twice",
        writes * CLIENTS,
        retries.load(Ordering::Relaxed)
    );
    Ok(())
}
