//! The daemon's life: bind, open, serve, follow, and let go in the right order.

mod start;
mod stop;
mod tasks;
mod watchdog;

use std::{path::PathBuf, sync::Arc};

use lb_raft_store::{Consensus, Settings};
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};

use self::stop::Signals;
use crate::{
    alarms::Alarms,
    api::{Context, Listeners, serve_nodes},
    bind,
    config::{Config, Metrics},
    connection::{Refusals, Security},
    control::{InForce, Leave, Retiring, Takeovers, retire},
    doctor::{Doctor, Last},
    events::Events,
    exit::Failure,
    flow_key::FlowKey,
    link,
    metrics::{Collect, Flows},
    ownership::{Fitness, Ownership},
    peers::Peers,
    raft::{Channels, RaftServer, TonicTransport},
    supervise::Parent,
    web,
};

/// Where there is too much to do, callers wait for what the node owes to its clients (nice(2); of a thread, in Linux).
const AFTER_ALL_OTHERS: i32 = 10;

/// Runs until SIGTERM or SIGINT, or until it must not go on.
pub(crate) fn run(config: Config, file: PathBuf, parent: Parent) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::System("starting the runtime", error))?;
    // Callers have threads of their own.
    let of_callers = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("api")
        .on_thread_start(|| {
            // Refused or not: it goes on.
            let _ = rustix::process::nice(AFTER_ALL_OTHERS);
        })
        .enable_all()
        .build()
        .map_err(|error| Failure::System("starting the runtime", error))?;
    let ended = runtime.block_on(serve(Arc::new(config), file, parent, of_callers.handle()));
    of_callers.shutdown_background();
    ended
}

async fn serve(config: Arc<Config>, file: PathBuf, parent: Parent, of_callers: &Handle) -> Result<(), Failure> {
    let waiting = |error| Failure::System("waiting for signals", error);
    let mut signals = Signals::new().map_err(waiting)?;
    let hangup = signal(SignalKind::hangup()).map_err(waiting)?;
    let security = Security::load(config.tls.paths.as_ref(), &config.cluster.name, &config.name)?;
    if config.tls.insecure {
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
        .map(|address| bind::tcp("cluster.listen", *address))
        .collect::<Result<Vec<_>, _>>()?;
    let heartbeat_sockets = bind::heartbeats(&config.cluster.listen)?;
    let api_listeners = Listeners::bind(&config.api)?;
    let metrics_listener = config.metrics.map(|metrics| bind::tcp("metrics.listen", metrics.listen)).transpose()?;
    let settings = Settings {
        cluster_name: config.cluster.name.clone(),
        name: config.name.clone(),
        role: config.role,
        address: config.cluster.advertise.clone(),
        data_dir: config.data_dir.clone(),
        log_bytes: Settings::LOG_BYTES,
        bootstrap: config.cluster.bootstrap,
    };
    let refusals = Refusals::default();
    let channels = Arc::new(Channels::new(security.clone()));
    let consensus = Consensus::start(settings, Arc::new(TonicTransport(channels.clone()))).await?;
    let flow_key = FlowKey::load(&config.data_dir)?;
    let dataplane = start::dataplane(&config, &links, &parent)?;
    let clock = dataplane.as_ref().map(|dataplane| dataplane.lease().clone()).unwrap_or_default();
    let events = Events::default();
    let alarms = Alarms::new(events.clone());
    let fitness = Fitness::new(dataplane.as_ref().map(|dataplane| dataplane.progress().clone()));
    let known = (fitness, alarms.clone(), security.clone(), refusals.clone());
    let ownership = Ownership::new(consensus.clone(), clock, heartbeat_sockets, known, parent);

    let (in_force, takeovers) = (InForce::default(), Takeovers::default());
    let (end, stopping) = watch::channel(false);
    let mut servers = JoinSet::new();
    let serving = |error| Failure::System("serving", error);
    let doctor = Doctor {
        config: config.clone(),
        consensus: consensus.clone(),
        ownership: ownership.clone(),
        dataplane: dataplane.clone(),
        alarms: alarms.clone(),
        last: Last::default(),
    };
    let peers = Peers::new(channels, dataplane.clone(), flow_key.clone(), doctor.for_others());
    let of_nodes = RaftServer::service(consensus.clone(), peers.answers(), refusals.clone());
    let (watches, watched) = mpsc::unbounded_channel();
    serve_nodes(cluster_listeners, &security, &watches, (&of_nodes, &refusals), &stopping, &mut servers)
        .map_err(serving)?;
    let context = Context {
        config: config.clone(),
        consensus: consensus.clone(),
        ownership: ownership.clone(),
        dataplane: dataplane.clone(),
        in_force: in_force.clone(),
        alarms: alarms.clone(),
        events: events.clone(),
        peers: peers.clone(),
        refusals: refusals.clone(),
        doctor,
        stopping: stopping.clone(),
    };
    if let (Some(listener), Some(Metrics { listen, per_backend })) = (metrics_listener, config.metrics) {
        let collect = Collect {
            consensus: consensus.clone(),
            ownership: ownership.clone(),
            dataplane: dataplane.clone(),
            in_force: in_force.clone(),
            per_backend,
            takeovers: takeovers.clone(),
            alarms: alarms.clone(),
            events: events.clone(),
            security: security.clone(),
            refusals,
            heartbeats: config.cluster.listen.clone(),
            flows: Flows::default(),
        };
        // On loopback whoever is on this machine reads it as it is; elsewhere it shows a certificate.
        let secured = if listen.ip().is_loopback() { Security::Plain } else { security.clone() };
        web::serve(listener, secured, (context.clone(), collect), stopping.clone(), (&mut servers, of_callers))
            .map_err(serving)?;
    }
    api_listeners.serve(&context, &security, &stopping, (&mut servers, of_callers)).map_err(serving)?;

    let parts = tasks::Parts {
        config: config.clone(),
        file,
        hangup,
        consensus: consensus.clone(),
        ownership: ownership.clone(),
        dataplane: dataplane.clone(),
        links,
        flow_key,
        peers,
        in_force,
        takeovers,
        alarms,
        events,
        security,
        watched,
    };
    let mut followers =
        tasks::start(parts).map_err(|error| Failure::System("starting the thread for checks", error))?;

    start::announce_readiness(&config, &consensus);
    let outcome = stop::wait_for_the_end(&mut signals, &consensus, dataplane.as_deref(), &mut followers).await;
    tracing::info!("stopping");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);

    let leave = stop::leave(&outcome);
    match leave {
        Leave::HandingOver => consensus.hand_over_lead().await,
        Leave::Forwarding => {}
        Leave::AtOnce => dataplane.iter().for_each(|dataplane| dataplane.leave_accelerator()),
    }
    // Nothing may publish a table or give a lease back any more; then everything is let go of.
    followers.shutdown().await;
    let retiring = Retiring { consensus: consensus.clone(), ownership, dataplane: dataplane.clone(), leave };
    tokio::select! {
        () = retire(&retiring) => {}
        // A second signal: at once.
        () = signals.next() => {}
    }
    end.send_replace(true);
    servers.shutdown().await;
    consensus.shutdown().await;
    if let Some(Err(error)) = dataplane.map(|dataplane| dataplane.stop()) {
        tracing::warn!(%error, "the guard was not removed");
    }
    outcome
}
