//! `lbd.toml`: read whole, every fault reported with its key, before anything is opened or bound. A file a section.

mod api;
mod cluster;
mod dataplane;
mod metrics;
mod node;
mod reader;
mod tls;

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use lb_dataplane::Accelerate;
use lb_raft_store::table::{Name, Role};

pub(crate) use api::ApiListener;
pub(crate) use cluster::Cluster;
pub(crate) use dataplane::Dataplane;
pub(crate) use metrics::Metrics;
use reader::{Fault, Section};
pub(crate) use tls::Tls;

/// The default of `--config`.
pub(crate) const DEFAULT_PATH: &str = "/etc/lbd/lbd.toml";

/// A configuration without a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) name: Name,
    pub(crate) role: Role,
    pub(crate) data_dir: PathBuf,
    /// As whom it goes on when root has started it.
    pub(crate) user: Option<String>,
    pub(crate) cluster: Cluster,
    pub(crate) api: Vec<ApiListener>,
    pub(crate) tls: Tls,
    /// What monitoring gets, if anything.
    pub(crate) metrics: Option<Metrics>,
    /// Absent on a witness.
    pub(crate) dataplane: Option<Dataplane>,
}

impl Config {
    /// What is legal, and probably not what was meant.
    pub(crate) fn suspicions(&self) -> Vec<String> {
        let mut suspicions = Vec::new();
        let exists = self.data_dir.join("witness").exists();
        match (self.cluster.bootstrap, exists) {
            (true, true) => suspicions.push(
                "cluster.bootstrap: true, and data_dir holds a node's data already: it is ignored. Take the line out, so that \
                 a lost disk does not create a new cluster beside the old one"
                    .to_owned(),
            ),
            (true, false) => suspicions.push(
                "cluster.bootstrap: true, and data_dir is empty: the next start creates a NEW cluster. If this node is to join \
                 one, take the line out"
                    .to_owned(),
            ),
            _ => {}
        }
        let advertised = self.cluster.advertise.parse::<SocketAddr>();
        let is_loopback = advertised.as_ref().is_ok_and(|address| address.ip().is_loopback())
            || self.cluster.advertise.starts_with("localhost:");
        if is_loopback {
            suspicions.push(format!(
                "cluster.advertise: {} reaches no other machine: this node can only be a cluster of its own",
                self.cluster.advertise
            ));
        }
        let listens = |address: &SocketAddr| {
            self.cluster
                .listen
                .iter()
                .any(|l| l.port() == address.port() && (l.ip() == address.ip() || l.ip().is_unspecified()))
        };
        if let Ok(address) = &advertised
            && !listens(address)
        {
            suspicions.push(format!(
                "cluster.advertise: {address} is none of cluster.listen: right only behind a translation of addresses, which \
                 must carry UDP too"
            ));
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if let Some(dataplane) = &self.dataplane
            && !dataplane.busy_poll.is_zero()
            && dataplane.workers >= cores
        {
            suspicions.push(format!(
                "dataplane.busy_poll_us: {} of {cores} cores are for workers, which stay awake while frames come: nothing is left for \
                 the kernel's receiving and for lbd's other threads",
                dataplane.workers
            ));
        }
        suspicions
    }

    /// Whether this node has an accelerator, if it can.
    pub(crate) fn accelerates(&self) -> bool {
        self.dataplane.as_ref().is_some_and(|dataplane| dataplane.accelerator != Accelerate::Off)
    }

    /// The keys of which another value was read since the start and takes effect only with the next one.
    pub(crate) fn differences(&self, read: &Self) -> Vec<&'static str> {
        let engine = |config: &Self| config.dataplane.as_ref().map(|dataplane| dataplane.engine);
        let interfaces = |config: &Self| config.dataplane.as_ref().map(|dataplane| dataplane.interfaces.clone());
        let realtime = |config: &Self| config.dataplane.as_ref().map(|dataplane| dataplane.realtime);
        let busy_poll = |config: &Self| config.dataplane.as_ref().map(|dataplane| dataplane.busy_poll);
        let cpus = |config: &Self| config.dataplane.as_ref().map(|dataplane| dataplane.cpus.clone());
        let accelerator = |config: &Self| config.dataplane.as_ref().map(|dataplane| dataplane.accelerator);
        let flows = |config: &Self| config.dataplane.as_ref().map(|dataplane| dataplane.flows);
        let keys = [
            ("node.name", self.name != read.name),
            ("node.role", self.role != read.role),
            ("node.data_dir", self.data_dir != read.data_dir),
            ("node.user", self.user != read.user),
            ("cluster.name", self.cluster.name != read.cluster.name),
            ("cluster.listen", self.cluster.listen != read.cluster.listen),
            ("cluster.advertise", self.cluster.advertise != read.cluster.advertise),
            ("api.listen", self.api != read.api),
            ("tls", self.tls != read.tls),
            ("metrics", self.metrics != read.metrics),
            ("dataplane.interfaces", interfaces(self) != interfaces(read)),
            ("dataplane.engine", engine(self) != engine(read)),
            ("dataplane.realtime", realtime(self) != realtime(read)),
            ("dataplane.busy_poll_us", busy_poll(self) != busy_poll(read)),
            ("dataplane.cpus", cpus(self) != cpus(read)),
            ("dataplane.accelerator", accelerator(self) != accelerator(read)),
            ("dataplane.flows", flows(self) != flows(read)),
        ];
        keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{}: {source}{}", path.display(), hint(source))]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Toml { path: PathBuf, source: toml::de::Error },
    #[error("{}:{}", path.display(), faults.iter().map(|fault| format!("\n  {fault}")).collect::<String>())]
    Faults { path: PathBuf, faults: Vec<Fault> },
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => {
            ": --config names another file; lbd.toml(5) and deploy/config/lbd.example.toml show what stands in it"
        }
        _ => "",
    }
}

/// Reads and checks a file.
pub(crate) fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let root: toml::Table = text.parse().map_err(|source| ConfigError::Toml { path: path.to_owned(), source })?;
    parse(root).map_err(|faults| ConfigError::Faults { path: path.to_owned(), faults })
}

fn parse(root: toml::Table) -> Result<Config, Vec<Fault>> {
    let mut root = Section::root(root);
    let (mut node, mut cluster, mut api, mut tls) =
        (root.section("node"), root.section("cluster"), root.section("api"), root.section("tls"));
    let node::Node { name, role, data_dir, user } = node::read(&mut node);
    let (listen, read_cluster) = cluster::read(&mut cluster);
    let listeners = api::read(&mut api, &listen);
    let tls_files = tls::read(&mut tls, &listeners);
    let dataplane_given = root.contains("dataplane");
    let mut dataplane_section = root.section("dataplane");
    let dataplane = dataplane::read(&mut dataplane_section, dataplane_given, role);
    let metrics_given = root.contains("metrics");
    let mut metrics_section = root.section("metrics");
    let tcp = listeners.iter().filter_map(|listener| match listener {
        ApiListener::Tcp(address) => Some(*address),
        ApiListener::Unix(_) => None,
    });
    let taken: Vec<SocketAddr> = listen.iter().copied().chain(tcp).collect();
    let metrics = metrics::read(&mut metrics_section, metrics_given, &taken);
    refuse_what_is_not_built(&mut root);
    for section in [node, cluster, api, tls, dataplane_section, metrics_section] {
        root.take_faults(section);
    }
    let faults = root.finish();
    match (name, data_dir, read_cluster) {
        (Some(name), Some(data_dir), Some(cluster)) if faults.is_empty() => {
            Ok(Config { name, role, data_dir, user, cluster, api: listeners, tls: tls_files, metrics, dataplane })
        }
        _ => Err(faults),
    }
}

fn refuse_what_is_not_built(root: &mut Section) {
    let mut health = root.section("health");
    if health.flag("allow_exec", false) {
        health.fault("allow_exec", "health checks are not supported yet");
    }
    root.take_faults(health);
}

#[cfg(test)]
mod tests;
