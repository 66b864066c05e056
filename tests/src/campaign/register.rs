//! Registers in the replicated table, written and read by way of all nodes at random: every acknowledged write
//! is there, and reads are linearizable. A register is the MAC address of a backend that gets no traffic;
//! its value only grows and has one writer, so a read is right if and only if it lies between what was known
//! before it began and what had been begun before it ended: that is linearizability where it is known which write a read has seen
//! (Gibbons and Korach, Testing Shared Memories, SIAM J. Comput. 26(4), 1997).

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;
use fastrand::Rng;
use lb_proto::v1::{self, table_service_client::TableServiceClient};
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::grpc;

/// Registers that are written at the same time.
const COUNT: u64 = 4;
/// Between two writes or reads of one register.
const PACE: Duration = Duration::from_millis(15);
/// For one call: a node that is cut off answers nothing.
const CALL: Duration = Duration::from_millis(1500);
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// The service that holds them.
pub const SERVICE: &str = "registers";

/// The address of a register's backend.
pub fn address(register: u64) -> String {
    format!("172.16.0.{}", register + 1)
}

/// How many there are.
pub fn count() -> u64 {
    COUNT
}

/// A value as a MAC address: unicast, locally administered.
pub fn encode(value: u64) -> String {
    let [_, _, _, a, b, c, d, e] = value.to_be_bytes();
    format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
}

fn decode(mac: &str) -> Option<u64> {
    let hex: String = mac.split(':').skip(1).collect();
    u64::from_str_radix(&hex, 16).ok()
}

#[derive(Default)]
struct Register {
    /// The highest value that a write was begun with.
    begun: AtomicU64,
    /// The highest value that an answer has shown to be there.
    known: AtomicU64,
}

/// Running writers and readers.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<thread::JoinHandle<()>>,
}

struct Shared {
    registers: Vec<Register>,
    sockets: Vec<PathBuf>,
    stop: AtomicBool,
    writes: AtomicU64,
    reads: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

/// What they did.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// Acknowledged writes.
    pub writes: u64,
    /// Answered reads.
    pub reads: u64,
}

impl Load {
    /// Starts a writer and a reader for all registers; the service and its backends must exist.
    pub fn start(sockets: Vec<PathBuf>, seed: u64) -> anyhow::Result<Self> {
        let registers = (0..COUNT).map(|_| Register::default()).collect();
        let shared = Arc::new(Shared {
            registers,
            sockets,
            stop: AtomicBool::new(false),
            writes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            wrong: Mutex::default(),
        });
        let mut threads = Vec::new();
        for (role, writes) in [("writers", true), ("readers", false)] {
            let shared = shared.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            threads.push(thread::Builder::new().name(role.into()).spawn(move || {
                runtime.block_on(async {
                    let all = (0..COUNT).map(|register| {
                        let mut client = Client {
                            shared: shared.clone(),
                            register,
                            random: Rng::with_seed(seed ^ (register << 1) ^ u64::from(writes)),
                            channels: vec![None; shared.sockets.len()],
                        };
                        async move { if writes { client.write().await } else { client.read().await } }
                    });
                    futures::future::join_all(all).await;
                });
            })?);
        }
        Ok(Self { shared, threads })
    }

    /// What was wrong so far.
    pub fn wrong(&self) -> Option<String> {
        self.shared.wrong.lock().expect("clients do not panic").first().cloned()
    }

    /// Acknowledged writes so far.
    pub fn writes(&self) -> u64 {
        self.shared.writes.load(Ordering::Relaxed)
    }

    /// Stops; what was done.
    pub fn finish(mut self) -> Report {
        self.end();
        Report { writes: self.writes(), reads: self.shared.reads.load(Ordering::Relaxed) }
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

struct Client {
    shared: Arc<Shared>,
    register: u64,
    random: Rng,
    channels: Vec<Option<Channel>>,
}

impl Client {
    fn goes_on(&self) -> bool {
        !self.shared.stop.load(Ordering::Relaxed)
    }

    fn register(&self) -> &Register {
        &self.shared.registers[self.register as usize]
    }

    async fn write(&mut self) {
        let mut value = 0;
        while self.goes_on() {
            value += 1;
            self.register().begun.store(value, Ordering::SeqCst);
            let request = v1::UpdateBackendRequest {
                // The same for each attempt: it applies once.
                request_id: format!("register-{}-{value}", self.register),
                service: SERVICE.into(),
                address: address(self.register),
                mac: Some(encode(value)),
                ..v1::UpdateBackendRequest::default()
            };
            while self.goes_on() {
                let (request, node) = (request.clone(), self.any_node());
                let call = async { Ok::<_, anyhow::Error>(self.client(node).await?.update_backend(request).await?) };
                match timeout(CALL, call).await {
                    Ok(Ok(_)) => {
                        self.register().known.fetch_max(value, Ordering::SeqCst);
                        self.shared.writes.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    _ => self.channels[node] = None,
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            tokio::time::sleep(PACE).await;
        }
    }

    async fn read(&mut self) {
        while self.goes_on() {
            let node = self.any_node();
            let known = self.register().known.load(Ordering::SeqCst);
            let request = v1::GetBackendRequest {
                service: SERVICE.into(),
                address: address(self.register),
                ..Default::default()
            };
            let call = async { Ok::<_, anyhow::Error>(self.client(node).await?.get_backend(request).await?) };
            match timeout(CALL, call).await {
                Ok(Ok(answer)) => {
                    let value = answer.into_inner().backend.and_then(|backend| decode(&backend.mac));
                    let begun = self.register().begun.load(Ordering::SeqCst);
                    match value {
                        Some(value) if (known..=begun).contains(&value) => {
                            self.register().known.fetch_max(value, Ordering::SeqCst);
                            self.shared.reads.fetch_add(1, Ordering::Relaxed);
                        }
                        other => self.shared.wrong.lock().expect("clients do not panic").push(format!(
                            "register {}: node {node} answered {other:?}, and {known} was known before and {begun} begun",
                            self.register
                        )),
                    }
                }
                _ => self.channels[node] = None,
            }
            tokio::time::sleep(PACE).await;
        }
    }

    fn any_node(&mut self) -> usize {
        self.random.usize(..self.shared.sockets.len())
    }

    async fn client(&mut self, node: usize) -> anyhow::Result<TableServiceClient<Channel>> {
        if self.channels[node].is_none() {
            self.channels[node] = Some(grpc::connect(self.shared.sockets[node].clone()).await?);
        }
        let channel = self.channels[node].clone().context("connected")?;
        Ok(TableServiceClient::new(channel))
    }
}
