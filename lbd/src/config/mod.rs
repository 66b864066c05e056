//! `lbd.toml`: read whole, every fault reported with its key, before anything is opened or bound.

mod reader;

use std::{
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use lb_dataplane::{forward::steering::MAX_WORKERS, io::EngineKind};
use lb_raft_store::table::{Name, Role};

use self::reader::Section;

/// The default of `--config`.
pub(crate) const DEFAULT_PATH: &str = "/etc/lbd/lbd.toml";
const DEFAULT_SOCKET: &str = "/run/lbd/lbd.sock";

/// A configuration without a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) name: Name,
    pub(crate) role: Role,
    pub(crate) data_dir: PathBuf,
    pub(crate) cluster: Cluster,
    pub(crate) api: Vec<ApiListener>,
    /// TCP without TLS, on purpose.
    pub(crate) insecure: bool,
    /// Absent on a witness.
    pub(crate) dataplane: Option<Dataplane>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cluster {
    pub(crate) name: Name,
    /// Raft on the first; the others are for heartbeats.
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) advertise: String,
    pub(crate) bootstrap: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ApiListener {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl fmt::Display for ApiListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dataplane {
    pub(crate) interfaces: Vec<String>,
    /// `None` is "auto".
    pub(crate) engine: Option<EngineKind>,
    /// Threads that share the frames.
    pub(crate) workers: usize,
    /// Whether these go before all others on their cores.
    pub(crate) realtime: bool,
}

impl Config {
    /// The keys of which another value was read since the start and takes effect only with the next one.
    pub(crate) fn differences(&self, read: &Self) -> Vec<&'static str> {
        let engine = |config: &Self| config.dataplane.as_ref().map(|dataplane| dataplane.engine);
        let interfaces = |config: &Self| config.dataplane.as_ref().map(|dataplane| dataplane.interfaces.clone());
        let realtime = |config: &Self| config.dataplane.as_ref().map(|dataplane| dataplane.realtime);
        let keys = [
            ("node.name", self.name != read.name),
            ("node.role", self.role != read.role),
            ("node.data_dir", self.data_dir != read.data_dir),
            ("cluster.name", self.cluster.name != read.cluster.name),
            ("cluster.listen", self.cluster.listen != read.cluster.listen),
            ("cluster.advertise", self.cluster.advertise != read.cluster.advertise),
            ("api.listen", self.api != read.api),
            ("tls.insecure", self.insecure != read.insecure),
            ("dataplane.interfaces", interfaces(self) != interfaces(read)),
            ("dataplane.engine", engine(self) != engine(read)),
            ("dataplane.realtime", realtime(self) != realtime(read)),
        ];
        keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Toml { path: PathBuf, source: toml::de::Error },
    #[error("{}:{}", path.display(), faults.iter().map(|fault| format!("\n  {fault}")).collect::<String>())]
    Faults { path: PathBuf, faults: Vec<Fault> },
}

/// One fault and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) key: String,
    pub(crate) problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)
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
    let mut node = root.section("node");
    let name = node.required("name", |text| text.parse::<Name>().map_err(|error| error.to_string()));
    let role = node.optional("role", parse_role).unwrap_or_default();
    let data_dir = node.required("data_dir", absolute_path);

    let mut cluster = root.section("cluster");
    let cluster_name = cluster
        .optional("name", |text| text.parse::<Name>().map_err(|error| error.to_string()))
        .or_else(|| "lb".parse().ok());
    let listen = cluster.list("listen", socket_address);
    if listen.is_empty() && !cluster.has_fault("listen") {
        cluster.fault(
            "listen",
            "is required: the address at which the other nodes reach this one, such as \"10.77.1.1:7401\"",
        );
    }
    let advertise = cluster.optional("advertise", host_and_port);
    let bootstrap = cluster.flag("bootstrap");
    for (at, address) in listen.iter().enumerate() {
        if listen[..at].contains(address) {
            cluster.fault("listen", &format!("{address} is listed twice"));
        }
    }
    if advertise.is_none() && listen.first().is_some_and(|first| first.ip().is_unspecified()) {
        cluster
            .fault("advertise", "is required when listen is 0.0.0.0 or [::]: the address that other nodes can reach");
    }

    let mut api = root.section("api");
    let listen_given = api.contains("listen");
    let mut api_listen = api.list("listen", api_listener);
    if api_listen.is_empty() && listen_given && !api.has_fault("listen") {
        api.fault("listen", "is empty: nobody could reach this node; leave it out for the Unix socket");
    } else if api_listen.is_empty() {
        api_listen.push(ApiListener::Unix(DEFAULT_SOCKET.into()));
    }

    let mut tls = root.section("tls");
    for key in ["cert", "key", "ca"] {
        if tls.optional(key, |text| Ok(text.to_owned())).is_some() {
            tls.fault(key, "TLS is not supported yet: bind to loopback or the Unix socket, or set tls.insecure = true on a trusted network");
        }
    }
    let insecure = tls.flag("insecure");

    let dataplane_given = root.contains("dataplane");
    let mut dataplane = root.section("dataplane");
    let interfaces = dataplane.list("interfaces", interface_name);
    let engine = dataplane.optional("engine", parse_engine).flatten();
    let workers = dataplane.integer("workers", 1..=MAX_WORKERS).unwrap_or(1);
    let realtime = dataplane.flag("realtime");
    match role {
        Role::Lb if interfaces.is_empty() && !dataplane.has_fault("interfaces") => {
            dataplane.fault(
                "interfaces",
                "is required for role \"lb\": the interfaces on the segments of VIPs and backends, such as [\"eth0\"]",
            );
        }
        Role::Witness if dataplane_given => {
            dataplane.fault("interfaces", "a witness has no [dataplane]: it votes only");
        }
        _ => {}
    }
    for (at, name) in interfaces.iter().enumerate() {
        if interfaces[..at].contains(name) {
            dataplane
                .fault("interfaces", &format!("{name:?} is listed twice: each of its frames would be forwarded twice"));
        }
    }
    if interfaces.len() > lb_dataplane::forward::spec::MAX_PORTS {
        dataplane.fault("interfaces", "at most 64 are supported");
    }

    let mut health = root.section("health");
    if health.flag("allow_exec") {
        health.fault("allow_exec", "health checks are not supported yet");
    }
    if root.contains("metrics") {
        let mut metrics = root.section("metrics");
        let _ = metrics.optional("listen", |text| Ok(text.to_owned()));
        metrics.fault("listen", "metrics are not supported yet: leave [metrics] out ('lbctl status' and the API's GetStats have the counters)");
        root.take_faults(metrics);
    }

    if !insecure {
        let exposed = |address: &SocketAddr| !address.ip().is_loopback();
        let hint = "listens beyond loopback without TLS: set tls.insecure = true if the network is trusted";
        if let Some(address) = listen.iter().find(|address| exposed(address)) {
            cluster.fault("listen", &format!("{address} {hint}"));
        }
        let tcp = |listener: &ApiListener| match listener {
            ApiListener::Tcp(address) if exposed(address) => Some(*address),
            _ => None,
        };
        if let Some(address) = api_listen.iter().find_map(tcp) {
            api.fault("listen", &format!("{address} {hint}"));
        }
    }
    for section in [node, cluster, api, tls, dataplane, health] {
        root.take_faults(section);
    }
    let faults = root.finish();
    match (name, data_dir, cluster_name, listen.first()) {
        (Some(name), Some(data_dir), Some(cluster_name), Some(first)) if faults.is_empty() => Ok(Config {
            name,
            role,
            data_dir,
            cluster: Cluster {
                name: cluster_name,
                advertise: advertise.unwrap_or_else(|| first.to_string()),
                listen,
                bootstrap,
            },
            api: api_listen,
            insecure,
            dataplane: (role == Role::Lb).then_some(Dataplane { interfaces, engine, workers, realtime }),
        }),
        _ => Err(faults),
    }
}

fn parse_role(text: &str) -> Result<Role, String> {
    match text {
        "lb" => Ok(Role::Lb),
        "witness" => Ok(Role::Witness),
        _ => Err(format!("{text:?} is neither \"lb\" nor \"witness\"")),
    }
}

fn parse_engine(text: &str) -> Result<Option<EngineKind>, String> {
    match text {
        "auto" => Ok(None),
        "ring" => Ok(Some(EngineKind::Ring)),
        "mmsg" => Ok(Some(EngineKind::Mmsg)),
        "multishot" => Ok(Some(EngineKind::Multishot)),
        _ => Err(format!("{text:?} is none of \"auto\", \"ring\", \"multishot\", \"mmsg\"")),
    }
}

fn absolute_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(format!("{text:?} is not an absolute path")) }
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an address and port such as \"10.77.1.1:7401\""))
}

fn host_and_port(text: &str) -> Result<String, String> {
    let sound = |(host, port): (&str, &str)| {
        let unspecified = ["0.0.0.0", "[::]"].contains(&host);
        !host.is_empty() && !unspecified && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    if text.rsplit_once(':').is_some_and(sound) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not HOST:PORT, as other nodes can reach it"))
    }
}

fn api_listener(text: &str) -> Result<ApiListener, String> {
    match text.strip_prefix("unix:") {
        // sockaddr_un has room for 107 bytes and a zero.
        Some(path) if path.len() > 107 => Err(format!("{path:?} is too long for a socket: at most 107 bytes")),
        Some(path) => Ok(ApiListener::Unix(absolute_path(path)?)),
        None => socket_address(text).map(ApiListener::Tcp).map_err(|_| {
            format!("{text:?} is neither \"unix:/PATH\" nor an address and port such as \"10.77.1.1:7400\"")
        }),
    }
}

fn interface_name(text: &str) -> Result<String, String> {
    // IFNAMSIZ is 16 with the zero.
    if (1..=15).contains(&text.len()) && !text.contains(['/', ' ']) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not the name of an interface"))
    }
}

#[cfg(test)]
mod tests;
