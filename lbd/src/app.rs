//! The daemon's life: bind, open, serve, follow, and let go in the right order.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
};

use lb_dataplane::{Config as DataplaneConfig, Dataplane, Scheduling};
use lb_raft_store::{Consensus, Settings};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

use crate::{
    api::{Context, Listeners, bind_cluster, bind_tcp},
    config::Config,
    control::{
        Answered, Conflicts, Leave, PublishGrants, PublishNode, PublishTable, Retiring, reload, retire,
        run_leader_tasks,
    },
    exit::Failure,
    link,
    ownership::{self, Ownership},
    raft::TonicTransport,
    supervise::Parent,
};

/// Runs until SIGTERM or SIGINT, or until it must not go on.
pub(crate) fn run(config: Config, file: PathBuf, parent: Parent) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::System("starting the runtime", error))?;
    runtime.block_on(serve(Arc::new(config), file, parent))
}

async fn serve(config: Arc<Config>, file: PathBuf, parent: Parent) -> Result<(), Failure> {
    let waiting = |error| Failure::System("waiting for signals", error);
    let mut signals = Signals::new().map_err(waiting)?;
    let hangup = signal(SignalKind::hangup()).map_err(waiting)?;
    if config.insecure {
        tracing::warn!("tls.insecure = true: whoever reaches the TCP listeners controls this cluster");
    }
    // What can be refused is tried in this order: interfaces, addresses, the store (whose lock keeps a second
    // lbd from touching the first one's guard), the dataplane.
    let names = config.dataplane.as_ref().map(|dataplane| dataplane.interfaces.clone()).unwrap_or_default();
    let links = link::read(&names).await?;
    let cluster_listeners = config
        .cluster
        .listen
        .iter()
        .map(|address| bind_tcp("cluster.listen", *address))
        .collect::<Result<Vec<_>, _>>()?;
    let heartbeat_sockets =
        ownership::bind(&config.cluster.listen).map_err(|(address, source)| Failure::Heartbeat { address, source })?;
    let api_listeners = Listeners::bind(&config.api)?;
    let settings = Settings {
        cluster_name: config.cluster.name.clone(),
        name: config.name.clone(),
        role: config.role,
        address: config.cluster.advertise.clone(),
        data_dir: config.data_dir.clone(),
        bootstrap: config.cluster.bootstrap,
    };
    let consensus = Consensus::start(settings, Arc::new(TonicTransport::default())).await?;
    let dataplane = match &config.dataplane {
        None => None,
        Some(dataplane) => Some(Arc::new(Dataplane::start(&DataplaneConfig {
            ports: links.iter().map(link::Link::port_config).collect(),
            engine: dataplane.engine,
            workers: dataplane.workers,
            realtime: dataplane.realtime,
            flow_capacity: DataplaneConfig::DEFAULT_FLOW_CAPACITY,
        })?)),
    };
    if let Some(dataplane) = &dataplane {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if dataplane.worker_count() > cores {
            tracing::warn!(workers = dataplane.worker_count(), cores, "more workers than cores: they take turns");
        }
        if let refused @ Scheduling::Refused(_) = dataplane.scheduling() {
            tracing::warn!(scheduling = %refused, "dataplane.realtime has no effect");
        }
        match dataplane.engine_reason() {
            None => tracing::info!(engine = %dataplane.engine(), "the dataplane runs"),
            Some(reason) => {
                tracing::warn!(engine = %dataplane.engine(), reason, "the dataplane runs on its second choice")
            }
        }
    }
    let clock = dataplane.as_ref().map(|dataplane| dataplane.lease().clone()).unwrap_or_default();
    let ownership = Ownership::new(consensus.clone(), clock, heartbeat_sockets, parent);

    let in_force = Arc::new(AtomicU64::new(0));
    let (stop, stopping) = watch::channel(false);
    let mut servers = JoinSet::new();
    let serving = |error| Failure::System("serving", error);
    for listener in cluster_listeners {
        bind_cluster(listener, consensus.clone(), &stopping, &mut servers).map_err(serving)?;
    }
    let context = Context {
        config: config.clone(),
        consensus: consensus.clone(),
        ownership: ownership.clone(),
        dataplane: dataplane.clone(),
        in_force: in_force.clone(),
    };
    api_listeners.serve(&context, &stopping, &mut servers).map_err(serving)?;

    let mut followers = JoinSet::new();
    followers.spawn(ownership.clone().run());
    followers.spawn(ownership.clone().release_silent());
    let (links_as_they_are, links) = watch::channel(links);
    followers.spawn(link::follow(links_as_they_are));
    let publish_grants = PublishGrants {
        consensus: consensus.clone(),
        ownership: ownership.clone(),
        dataplane: dataplane.clone(),
        answered: Answered::default(),
    };
    followers.spawn(publish_grants.run());
    if let Some(dataplane) = dataplane.clone() {
        let (consensus, links) = (consensus.clone(), links.clone());
        followers.spawn(PublishTable { consensus, dataplane, links, in_force }.run());
    }
    let publish_node = PublishNode {
        consensus: consensus.clone(),
        dataplane: dataplane.clone(),
        links,
        config: config.clone(),
        heartbeat: Vec::new(),
        asked: None,
        conflicts: Conflicts::default(),
    };
    followers.spawn(publish_node.run());
    followers.spawn(run_leader_tasks(consensus.clone()));
    followers.spawn(reload(hangup, file, config.clone(), dataplane.clone()));

    announce_readiness(&config, &consensus);
    let outcome = wait_for_the_end(&mut signals, &consensus, dataplane.as_deref(), &mut followers).await;
    tracing::info!("stopping");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);

    let leave = match &outcome {
        Ok(()) => Leave::HandingOver,
        // It has no say any more, and may still get frames.
        Err(Failure::Removed(_)) => Leave::Forwarding,
        // What is broken is not to be relied on: the parent's obituary is quicker than a release that may not succeed.
        Err(_) => Leave::AtOnce,
    };
    if leave == Leave::HandingOver {
        consensus.hand_over_lead().await;
    }
    // Nothing may publish a table or give a lease back any more; then everything is let go of.
    followers.shutdown().await;
    let retiring = Retiring { consensus: consensus.clone(), ownership, dataplane: dataplane.clone(), leave };
    tokio::select! {
        () = retire(&retiring) => {}
        // A second signal: at once.
        () = signals.next() => {}
    }
    stop.send_replace(true);
    servers.shutdown().await;
    consensus.shutdown().await;
    if let Some(Err(error)) = dataplane.map(|dataplane| dataplane.stop()) {
        tracing::warn!(%error, "the guard was not removed");
    }
    outcome
}

fn announce_readiness(config: &Config, consensus: &Consensus) {
    let listens: Vec<String> = config.api.iter().map(ToString::to_string).collect();
    match consensus.status().node {
        Some(node) => tracing::info!(name = %config.name, node, api = listens.join(", "), "ready"),
        None => tracing::info!(
            api = listens.join(", "),
            "waiting to be added: run 'lbctl node add {} {}' on a node of the cluster",
            config.name,
            config.cluster.advertise
        ),
    }
    // Outside of systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

/// Returns on a signal, or with the reason why this node must not go on.
async fn wait_for_the_end(
    signals: &mut Signals,
    consensus: &Consensus,
    dataplane: Option<&Dataplane>,
    followers: &mut JoinSet<()>,
) -> Result<(), Failure> {
    let mut fatal = consensus.fatal();
    loop {
        tokio::select! {
            () = signals.next() => return Ok(()),
            // None of them ends by itself: without it this node would own VIPs and not follow the table.
            ended = followers.join_next() => {
                let reason = ended.and_then(Result::err).map_or_else(|| "it returned".to_owned(), |e| e.to_string());
                return Err(Failure::FollowerEnded(reason));
            }
            changed = fatal.wait_for(Option::is_some) => {
                let reason = changed.ok().and_then(|reason| reason.clone());
                return Err(Failure::Removed(reason.unwrap_or_default()));
            }
            () = tokio::time::sleep(std::time::Duration::from_millis(200)) => {
                if let Some(reason) = consensus.status().fatal {
                    return Err(Failure::StoreBroke(reason));
                }
                if dataplane.is_some_and(|dataplane| !dataplane.is_running()) {
                    return Err(Failure::WorkerEnded);
                }
            }
        }
    }
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
