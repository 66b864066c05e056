//! A node's start: it opens its store, and takes up its place in its cluster or waits to be given one.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock, atomic::AtomicBool},
    time::Duration,
};

use openraft::{BasicNode, Config, Raft, SnapshotPolicy, async_runtime::WatchReceiver as _};
use tokio::{
    sync::{Mutex, watch},
    time::Instant,
};
use uuid::Uuid;

use super::{
    compare,
    in_flight::InFlight,
    network::{Peers, Transport},
    node::{Consensus, Inner, Lead, Member, Settings},
    older_copy, pace, space, standing,
};
use crate::{
    feed,
    store::{
        StoreError,
        disk::{Disk, Files},
        identity::Identity,
        open::Store,
    },
    table::{BOOTSTRAP_NODE, Body, Command, NewNode},
};

/// For the first entry of a cluster's log; it is tried again.
const FIRST_ENTRY: Duration = Duration::from_secs(1);

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store belongs to a node of another name or role.
    #[error(
        "{field} is {configured:?} in the configuration and {stored:?} in the store: data_dir belongs to another node"
    )]
    OtherNode {
        /// The configuration key.
        field: &'static str,
        /// What the configuration says.
        configured: String,
        /// What the store says.
        stored: String,
    },
    /// openraft does not start.
    #[error("the consensus engine does not start: {0}")]
    Raft(String),
}

impl Consensus {
    /// Opens the store and takes up the node's place in its cluster, if it has one.
    pub async fn start(settings: Settings, transport: Arc<dyn Transport>) -> Result<Self, StartError> {
        Self::start_on(settings, transport, Arc::new(Files)).await
    }

    /// The same on a disk that tests may put in between.
    pub(super) async fn start_on(
        settings: Settings,
        transport: Arc<dyn Transport>,
        disk: Arc<dyn Disk>,
    ) -> Result<Self, StartError> {
        let (publisher, watcher) = feed::channel();
        let store = Store::open_on(&settings.data_dir, publisher, disk)?;
        tracing::debug!(starts = store.starts, "the store is open");
        let identity = match store.identity.clone() {
            Some(identity) => {
                same_node(&settings, &identity)?;
                Some(identity)
            }
            None if settings.bootstrap => {
                let cluster = Uuid::new_v4();
                tracing::warn!(%cluster, node = %settings.name, "the store is empty and bootstrap is set: created a NEW cluster");
                let name = settings.name.to_string();
                let cluster_name = settings.cluster_name.to_string();
                let (role, recovered_from) = (settings.role, Vec::new());
                let identity = Identity { node: BOOTSTRAP_NODE, cluster, cluster_name, name, role, recovered_from };
                store.adopt(&identity).await.map_err(|e| StoreError::io("write", &settings.data_dir, e))?;
                Some(identity)
            }
            None => None,
        };
        let consensus = Self {
            inner: Arc::new(Inner {
                store_failure: Box::new(store.failure_probe()),
                settings,
                transport,
                store,
                member: OnceLock::new(),
                joining: Mutex::new(()),
                changing_membership: Mutex::new(()),
                fatal: watch::Sender::new(None),
                doubts: watch::Sender::default(),
                in_flight: InFlight::default(),
                low_on_space: AtomicBool::new(false),
                mistaken: std::sync::Mutex::default(),
                heard_leader: std::sync::Mutex::new((Instant::now(), false)),
                watcher,
                lead: watch::Sender::default(),
                joined: watch::Sender::new(false),
                is_newest: AtomicBool::new(false),
            }),
        };
        if let Some(identity) = identity {
            consensus.become_member(identity).await?;
        }
        Ok(consensus)
    }

    /// Runs openraft for a node that has a place in a cluster.
    pub(super) async fn become_member(&self, identity: Identity) -> Result<(), StartError> {
        let failed = |error: &dyn std::fmt::Display| StartError::Raft(error.to_string());
        let inner = &self.inner;
        let config = pace::limits(Config {
            cluster_name: identity.cluster.to_string(),
            install_snapshot_timeout: 10_000,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(5000),
            max_in_snapshot_log_to_keep: 1000,
            enable_pre_vote: Some(true),
            // A restarted leader must win an election again; its log is never wound back.
            enable_leader_restore: Some(false),
            allow_log_reversion: Some(false),
            backoff: "20ms".into(),
            ..Config::default()
        });
        let config = config.validate().map_err(|e| failed(&e))?;
        let peers = Peers {
            transport: inner.transport.clone(),
            cluster: identity.cluster,
            me: identity.node,
            table: inner.watcher.clone(),
            doubts: inner.doubts.clone(),
        };
        let (log, machine) = (inner.store.log.clone(), inner.store.machine.clone());
        let raft =
            Raft::new(identity.node, Arc::new(config), peers.clone(), log, machine).await.map_err(|e| failed(&e))?;
        // Before it answers anybody.
        older_copy::ask(inner, &peers, &raft).await?;
        let bootstrap = identity.node == BOOTSTRAP_NODE;
        let cluster = identity.cluster;
        if bootstrap && !raft.is_initialized().await.map_err(|e| failed(&e))? {
            let node = BasicNode { addr: inner.settings.address.clone() };
            raft.initialize(BTreeMap::from([(BOOTSTRAP_NODE, node)])).await.map_err(|e| failed(&e))?;
        }
        let (mut metrics, publish) = (raft.metrics(), inner.lead.clone());
        tokio::spawn(async move {
            loop {
                // Cloned at once: holding the guard would hold up openraft.
                let now = metrics.borrow_watched().clone();
                let lead = Lead { leader: now.current_leader, term: now.current_term };
                publish.send_if_modified(|known| std::mem::replace(known, lead) != lead);
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        });
        if inner.member.set(Member { identity, peers, raft }).is_err() {
            return Err(failed(&"it runs already"));
        }
        if bootstrap && self.view().table.cluster().is_nil() {
            tokio::spawn(self.clone().create_cluster(cluster));
        }
        tokio::spawn(pace::run(Arc::downgrade(inner)));
        tokio::spawn(compare::run(Arc::downgrade(inner)));
        tokio::spawn(standing::run(Arc::downgrade(inner)));
        tokio::spawn(older_copy::run(Arc::downgrade(inner)));
        tokio::spawn(space::run(Arc::downgrade(inner)));
        inner.joined.send_replace(true);
        Ok(())
    }

    /// The first entry of the log. Proposed until it is applied: a crash may have come before it.
    async fn create_cluster(self, cluster: Uuid) {
        let settings = &self.inner.settings;
        let command = Command::from(Body::CreateCluster {
            cluster,
            cluster_name: settings.cluster_name.clone(),
            // The nodes have a key that is in no log.
            hash_seed: 0,
            heartbeat_key: new_key(),
            node: NewNode {
                name: settings.name.clone(),
                role: settings.role,
                address: settings.address.clone(),
                store: self.inner.store.uuid,
            },
        });
        // A second one is refused by the table.
        while self.view().table.cluster().is_nil() {
            if let Err(error) = self.propose(&command, Instant::now() + FIRST_ENTRY).await {
                tracing::warn!(%error, "the cluster's first entry is not agreed on yet");
            }
        }
    }
}

fn same_node(settings: &Settings, identity: &Identity) -> Result<(), StartError> {
    let other = |field, configured: String, stored: String| {
        if configured == stored { Ok(()) } else { Err(StartError::OtherNode { field, configured, stored }) }
    };
    other("cluster.name", settings.cluster_name.to_string(), identity.cluster_name.clone())?;
    other("node.name", settings.name.to_string(), identity.name.clone())?;
    other("node.role", settings.role.to_string(), identity.role.to_string())
}

/// 128 random bits: a version 4 UUID has 122, so two of them are mixed.
pub fn new_key() -> u128 {
    Uuid::new_v4().as_u128() ^ Uuid::new_v4().as_u128().rotate_left(64)
}
