//! The command line.

mod check;
mod values;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum, value_parser};

pub(crate) use check::Check;
pub(crate) use values::{Destination, Endpoint, Port, quoted};

use lb_proto::{tls, v1};

use crate::{
    connect::{DEFAULT_ENDPOINT, Shown, Target},
    names,
};

/// Operates a cluster of lbd load balancers.
///
/// Any node takes any command. Data goes to standard output, everything else to standard error. Exit
/// codes: 0 done, also when it was already so; 1 refused by the server; 2 usage; 3 no endpoint can be
/// reached; 4 no quorum or timed out: the change may or may not have happened, and a retry with the
/// printed request id applies it once; 5 done, but what was to be printed could not be.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// A node's API: unix:PATH, https://HOST:PORT or HOST:PORT, or http://HOST:PORT of a node without TLS. Repeat it to name
    /// several; the first that answers is used.
    #[arg(
        long = "endpoint",
        global = true,
        value_name = "URL",
        env = "LBCTL_ENDPOINT",
        value_delimiter = ',',
        default_value = DEFAULT_ENDPOINT
    )]
    pub(crate) endpoints: Vec<Target>,

    /// The certificate to show at https endpoints, in PEM. Its URI says who calls: lb://CLUSTER/ROLE/NAME.
    #[arg(long, global = true, value_name = "FILE", env = "LBCTL_CERT")]
    pub(crate) cert: Option<PathBuf>,

    /// Its private key.
    #[arg(long, global = true, value_name = "FILE", env = "LBCTL_KEY")]
    pub(crate) key: Option<PathBuf>,

    /// The certificate of the cluster's authority.
    #[arg(long, global = true, value_name = "FILE", env = "LBCTL_CA")]
    pub(crate) ca: Option<PathBuf>,

    /// How to print data.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    pub(crate) output: Format,

    /// How long to wait for an answer, such as 500ms or 10s.
    #[arg(long, global = true, default_value = "10s", value_parser = values::timeout)]
    pub(crate) timeout: Duration,

    /// Makes a retry safe: the same id twice applies once. Chosen and printed where it matters, if not
    /// given.
    #[arg(long, global = true, value_name = "ID")]
    pub(crate) request_id: Option<String>,
}

impl Global {
    /// Whom to show oneself as.
    pub(crate) fn shown(&self) -> Shown<'_> {
        Shown { cert: self.cert.as_deref(), key: self.key.as_deref(), ca: self.ca.as_deref() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people, in 80 columns.
    Table,
    /// For people, with all columns.
    Wide,
    /// The names alone, one a line.
    Name,
    /// For programs; errors, too, on standard error.
    Json,
    /// The same as YAML.
    Yaml,
}

impl Format {
    /// Whether it is for programs: whole objects instead of lines.
    pub(crate) fn is_data(self) -> bool {
        matches!(self, Self::Json | Self::Yaml)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Nodes, leader, owners and engine at a glance; what is wrong comes first.
    Status {
        /// Exit with 1 when something is wrong: for scripts and monitoring.
        #[arg(long)]
        check: bool,
    },
    /// The machines of the cluster.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Settings of the whole cluster.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Virtual IP addresses.
    #[command(subcommand)]
    Vip(VipCommand),
    /// What is known of segments beside what the nodes find out.
    #[command(subcommand)]
    Segment(SegmentCommand),
    /// What is balanced on a VIP.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// The servers of a service.
    #[command(subcommand)]
    Backend(BackendCommand),
    /// The counters of the node that answers: frames, drops by reason, VIPs, backends.
    Stats,
    /// Which VIP, owner, service and backend a packet gets, and why: as the node that is asked decides.
    Explain(Explain),
    /// The flows in the flow table of the node that is asked.
    Flows {
        /// Only flows to this VIP.
        #[arg(long, value_name = "IP")]
        vip: Option<IpAddr>,
        /// Only flows that go to this backend.
        #[arg(long, value_name = "IP")]
        backend: Option<IpAddr>,
    },
    /// What has happened: owners, leases, leader, nodes, health, changes; with time and reason, as the asked node knows it.
    ///
    /// Example: lbctl events --follow --kind vip --kind lease. A line that begins with "!" is something to look after.
    Events(EventFilter),
    /// Show one object.
    ///
    /// Example: lbctl get backend web 192.0.2.11
    #[command(subcommand)]
    Get(Object),
    /// All about one object: its fields, what belongs to it, and what has happened to it last.
    ///
    /// Example: lbctl describe vip 192.0.2.1
    #[command(subcommand)]
    Describe(Object),
    /// Print each change of the table as it happens, until it is interrupted.
    ///
    /// Owners and health are among them. With '-o json' each line is a message with its revision, from which --from goes on
    /// without a gap. Example: lbctl watch --kind vip
    Watch(WatchFilter),
    /// Return when something is so: 0, or 4 if it is not within --timeout.
    ///
    /// Example: lbctl wait healthy web --timeout 1m
    #[command(subcommand)]
    Wait(WaitFor),
    /// Make the table what a file says, in one change.
    ///
    /// The file is YAML or JSON: VIPs, services, backends, segments and settings by the API's field names, as 'lbctl export'
    /// prints them. What would change is shown first. A row of the file becomes exactly what it says: a field that is left
    /// out gets its default. Rows that the file does not have stay, unless --prune is given. Example, all of a web server's
    /// table:
    ///
    ///   vips:
    ///     - address: 192.0.2.1
    ///   services:
    ///     - {name: web, vip: 192.0.2.1, ports: [{protocol: tcp, first: 80, last: 80}]}
    ///   backends:
    ///     - {service: web, address: 192.0.2.11}
    ///     - {service: web, address: 192.0.2.12, weight: 2}
    #[command(verbatim_doc_comment)]
    Apply(Apply),
    /// Show what 'lbctl apply' would change; exits with 1 if there is anything.
    ///
    /// Example: lbctl diff -f table.yaml && echo "all as it should be"
    Diff(Declared),
    /// Print the VIPs, services, backends, segments and settings as a file for 'lbctl apply'.
    ///
    /// In YAML, or in JSON with '-o json'. Example: lbctl export > table.yaml
    Export,
    /// Print a table for 'lbctl apply' made of another load balancer's configuration, and list what it cannot carry over.
    ///
    /// Needs no cluster. The table goes to standard output, the list to standard error, line by line with the reason.
    /// Example: lbctl import --keepalived /etc/keepalived/keepalived.conf > table.yaml
    Import(Import),
    /// Print the JSON schema of what 'lbctl apply' reads: for editors and for programs that write such files.
    Schema,
    /// Save the VIPs, services, backends and settings in a file, or make the cluster hold what a file says.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Certificates, for a cluster that has no other authority: who may be a node, and who may call what.
    ///
    /// Needs no cluster. First 'lbctl pki init', then 'lbctl pki issue node lb1 --san 10.77.1.1 --out DIR' for each node and
    /// 'lbctl pki issue admin alice' for each person or program.
    Pki {
        /// The authority's directory.
        #[arg(long, env = "LBCTL_PKI", default_value = "/etc/lbd/pki", global = true)]
        dir: PathBuf,
        /// What to do.
        #[command(subcommand)]
        command: PkiCommand,
    },
    /// Print a completion script for a shell. It completes the names of VIPs, services, backends, nodes and settings, too.
    ///
    /// Example: source <(lbctl completions bash), or lbctl completions fish > ~/.config/fish/completions/lbctl.fish. Names are
    /// asked of the endpoint in LBCTL_ENDPOINT.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a directory.
    Man {
        /// The directory; made if missing.
        dir: PathBuf,
    },
}

/// One object, by its name.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Object {
    /// A VIP.
    Vip {
        /// The address.
        #[arg(add = names::vips())]
        ip: IpAddr,
    },
    /// A service.
    Service {
        /// Its name.
        #[arg(add = names::services())]
        name: String,
    },
    /// A backend.
    Backend {
        /// The service.
        #[arg(add = names::services())]
        service: String,
        /// The backend's own address.
        #[arg(add = names::backends())]
        ip: IpAddr,
    },
    /// A segment.
    Segment {
        /// The network, such as 192.0.2.0/24.
        network: String,
    },
    /// A node.
    Node {
        /// Its name.
        #[arg(add = names::nodes())]
        name: String,
    },
}

/// Which changes.
#[derive(Debug, Args)]
pub(crate) struct WatchFilter {
    /// Begin with what has changed after this revision; 0 begins with the whole table. Only what comes from now on, if not given.
    #[arg(long, value_name = "REVISION")]
    pub(crate) from: Option<u64>,
    /// Only changes of this kind. Repeat it for several.
    #[arg(long = "kind", value_name = "KIND", value_enum)]
    pub(crate) kinds: Vec<RowKind>,
}

/// What a row of the table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RowKind {
    Vip,
    Service,
    Backend,
    Segment,
    Settings,
}

impl From<RowKind> for v1::Kind {
    fn from(kind: RowKind) -> Self {
        match kind {
            RowKind::Vip => Self::Vip,
            RowKind::Service => Self::Service,
            RowKind::Backend => Self::Backend,
            RowKind::Segment => Self::Segment,
            RowKind::Settings => Self::Settings,
        }
    }
}

/// What is waited for.
#[derive(Debug, Subcommand)]
pub(crate) enum WaitFor {
    /// A drained backend has no flows any more.
    Drained {
        /// The service.
        #[arg(add = names::services())]
        service: String,
        /// The backend's own address.
        #[arg(add = names::backends())]
        ip: IpAddr,
    },
    /// A VIP has an owner.
    Owned {
        /// The address.
        #[arg(add = names::vips())]
        ip: IpAddr,
        /// It is this node.
        #[arg(long, value_name = "NODE")]
        #[arg(add = names::nodes())]
        by: Option<String>,
    },
    /// All backends of a service, or one, are found healthy; where nothing is checked, nothing speaks against them.
    Healthy {
        /// The service.
        #[arg(add = names::services())]
        service: String,
        /// The backend's own address.
        #[arg(add = names::backends())]
        ip: Option<IpAddr>,
    },
    /// A node is a member of the cluster: it votes, and may own VIPs.
    Member {
        /// Its name.
        #[arg(add = names::nodes())]
        name: String,
    },
}

/// A file that says what a table shall be.
#[derive(Debug, Args)]
pub(crate) struct Declared {
    /// The file; "-" for standard input.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Remove the rows that the file does not have, of the kinds that it lists: without 'backends:' all backends stay, with an
    /// empty 'backends: []' none does.
    #[arg(long)]
    pub(crate) prune: bool,
}

/// A configuration of something else.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("from").required(true))]
pub(crate) struct Import {
    /// A configuration of keepalived (keepalived.conf(5)); "-" for standard input.
    #[arg(long, value_name = "FILE", group = "from")]
    pub(crate) keepalived: Option<PathBuf>,
    /// Rules as 'ipvsadm -Sn' saves them (ipvsadm(8)); "-" for standard input.
    #[arg(long, value_name = "FILE", group = "from")]
    pub(crate) ipvsadm: Option<PathBuf>,
}

/// What shall be done with it.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    #[command(flatten)]
    pub(crate) what: Declared,
    /// Do not ask. Nobody is asked either where the input is no terminal.
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Show what would change, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Which events.
#[derive(Debug, Args)]
pub(crate) struct EventFilter {
    /// Do not end: print each as it comes.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Begin with the event of this number. Numbers are the asked node's own.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) from: Option<u64>,
    /// Only events of this kind. Repeat it for several.
    #[arg(long = "kind", value_name = "KIND", value_enum)]
    pub(crate) kinds: Vec<EventKind>,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EventKind {
    Node,
    Vip,
    Lease,
    Leader,
    Configuration,
    Health,
    Conflict,
    Kernel,
    Certificate,
}

impl From<EventKind> for v1::EventKind {
    fn from(kind: EventKind) -> Self {
        match kind {
            EventKind::Node => Self::Node,
            EventKind::Vip => Self::Vip,
            EventKind::Lease => Self::Lease,
            EventKind::Leader => Self::Leader,
            EventKind::Configuration => Self::Configuration,
            EventKind::Health => Self::Health,
            EventKind::Conflict => Self::Conflict,
            EventKind::Kernel => Self::Kernel,
            EventKind::Certificate => Self::Certificate,
        }
    }
}

/// A packet, or many.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The client, such as 192.0.2.9:40000 or `[2001:db8::9]:40000`.
    #[arg(value_name = "SRC:PORT", required_unless_present = "pcap", requires = "destination")]
    pub(crate) source: Option<Endpoint>,
    /// The service, such as 192.0.2.1:80/tcp or `[2001:db8::1]:53/udp`.
    #[arg(value_name = "DST:PORT/PROTO")]
    pub(crate) destination: Option<Destination>,
    /// The frames of a capture (pcap or pcapng, of Ethernet): the node judges them, nothing is sent.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["source", "destination"])]
    pub(crate) pcap: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Add a machine on which lbd runs and waits; returns when it votes.
    Add {
        /// Its node.name.
        name: String,
        /// Its cluster address, HOST:PORT.
        address: String,
        /// Its node.role.
        #[arg(long, value_enum, default_value = "lb")]
        role: Role,
    },
    /// Drain a node, take its vote and forget it.
    Remove {
        /// Its name.
        #[arg(add = names::nodes())]
        name: String,
        /// It is dead and will not come back: its lease is ended by your word, and it is not waited for. Where it is not
        /// dead, two nodes answer for its VIPs for a moment.
        #[arg(long)]
        force: bool,
    },
    /// Move all VIPs off a node; it keeps voting.
    Drain {
        /// Its name.
        #[arg(add = names::nodes())]
        name: String,
    },
    /// Let a drained node own VIPs again.
    Undrain {
        /// Its name.
        #[arg(add = names::nodes())]
        name: String,
    },
    /// Change what is known of a node.
    Set {
        /// Its name.
        #[arg(add = names::nodes())]
        name: String,
        /// Its cluster address from now on, HOST:PORT; it must run there already.
        #[arg(long)]
        address: String,
    },
    /// End the lease of a node that is off, so that its VIPs move although the others cannot tell that it is dead.
    ///
    /// Example: lbctl node fence lb2 --i-know-it-is-off. If the machine is not off, two nodes answer for its VIPs: cut its
    /// power first. Refused for a node that answers heartbeats.
    Fence {
        /// Its name.
        #[arg(add = names::nodes())]
        name: String,
        /// What must be true.
        #[arg(long, required = true)]
        i_know_it_is_off: bool,
    },
    /// All nodes.
    List,
    /// Print a token by which a new machine gets its certificate, and wait until it has come for it.
    ///
    /// Runs where the authority is ('lbctl pki'); needs no cluster. The token works once, for ten minutes and for that name
    /// alone. Example: lbctl node token lb4 --listen 10.77.1.9:7402, and on the new machine: lbctl node join TOKEN.
    Token {
        /// Its node.name.
        name: String,
        /// An address of this machine that the new one reaches.
        #[arg(long, value_name = "IP:PORT")]
        listen: SocketAddr,
        /// What the new machine calls it, HOST:PORT, if that is another one.
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
        /// An address or a DNS name at which clients of other makes reach the node. Repeat it for several.
        #[arg(long, value_name = "IP|DNS")]
        san: Vec<String>,
        /// How many days the certificate is valid.
        #[arg(long, default_value = "365", value_parser = value_parser!(u32).range(1..=36500))]
        days: u32,
        /// For how long the token works, such as 10m.
        #[arg(long, default_value = "10m", value_parser = humantime::parse_duration, value_name = "DURATION")]
        valid: Duration,
        /// The authority's directory.
        #[arg(long, env = "LBCTL_PKI", default_value = "/etc/lbd/pki")]
        dir: PathBuf,
    },
    /// On a new machine: make a key, and get a certificate for it by a token of 'lbctl node token'.
    ///
    /// Prints the section [tls] for lbd.toml. Then start lbd, and add the node: lbctl node add NAME ADDR.
    Join {
        /// The token; "-" reads it from standard input, so that it stands in no list of processes.
        token: String,
        /// The directory for NAME.pem, NAME.key, ca.pem and crl.pem; made if missing.
        #[arg(long, value_name = "DIR", default_value = "/etc/lbd")]
        out: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Write a snapshot: YAML with a checksum. It holds no keys, no certificates and no ids.
    ///
    /// Example: lbctl snapshot save /var/backups/lbd-table.yaml
    Save {
        /// The file, or "-" for standard output. A regular file is replaced whole; links are followed; a device or a pipe is
        /// written to.
        file: PathBuf,
    },
    /// Make the VIPs, services, backends and settings those of a snapshot; what it does not hold is removed.
    /// Nodes stay as they are.
    Restore {
        /// The file, or "-" for standard input. Those of versions before this one are read, too.
        file: PathBuf,
        /// Show what would change, and change nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Where what is issued goes, and for how long it is valid.
#[derive(Debug, Args)]
pub(crate) struct PkiTarget {
    /// How many days it is valid; 365 for nodes, 90 for others, if not given.
    #[arg(long, value_parser = value_parser!(u32).range(1..=36500))]
    pub(crate) days: Option<u32>,
    /// The directory for NAME.pem, NAME.key and ca.pem; made if missing. The working directory if not given.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PkiCommand {
    /// Make the authority: once for a cluster.
    Init {
        /// The cluster's name, as in the nodes' cluster.name.
        #[arg(long, default_value = "lb")]
        cluster: String,
        /// How many days it is valid.
        #[arg(long, default_value = "3650", value_parser = value_parser!(u32).range(1..=36500))]
        days: u32,
    },
    /// Issue a certificate and its key.
    ///
    /// For example: lbctl pki issue node lb1 --san 10.77.1.1 --out /root/lb1
    Issue {
        /// What its holder may do: node, viewer (reads), operator (changes VIPs, services and backends, drains, moves) or admin.
        #[arg(value_parser = values::role)]
        role: tls::Role,
        /// The node's node.name, or who it is.
        name: String,
        /// An address or a DNS name at which clients of other makes reach the node. Repeat it for several.
        #[arg(long, value_name = "IP|DNS")]
        san: Vec<String>,
        #[command(flatten)]
        target: PkiTarget,
        /// A certificate request (PKCS #10): its key stays where it was made.
        #[arg(long, value_name = "FILE")]
        csr: Option<PathBuf>,
    },
    /// Issue a certificate anew, with a new key, beside the old one. A running node takes it up within 5 seconds.
    Renew {
        /// The certificate.
        cert: PathBuf,
        #[command(flatten)]
        target: PkiTarget,
    },
    /// Revoke certificates, and sign a new list of the revoked ones.
    Revoke {
        /// Serial numbers, or names: all of a name's certificates.
        #[arg(required = true, value_name = "SERIAL|NAME")]
        what: Vec<String>,
    },
    /// What was issued.
    List,
    /// Sign the list of revoked certificates anew: it is due every 30 days.
    Crl,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// All settings.
    Show,
    /// Change settings.
    ///
    /// timing: how fast a silent node is noticed: default (takeover in about 0.16 s), relaxed (four times
    /// slower, for busy machines and stretched networks), fast (four times faster, for dedicated machines
    /// with real-time priority). heartbeat_ms, lease_ms, withdraw_ms: the same one by one; withdraw_ms must
    /// exceed lease_ms by the clocks' drift.
    ///
    /// on_quorum_loss: what owners do when no majority can be reached: release (they fall silent, so that there
    /// are never two) or hold (they go on answering, until somebody else claims the VIP). failback: when a VIP
    /// goes back to the node that it prefers: never, or after that node has been able for a time such as 10m.
    Set {
        /// KEY=VALUE.
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = key_and_value, add = names::settings())]
        settings: Vec<(String, String)>,
    },
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it is not of the form KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Forwards and votes.
    Lb,
    /// Votes only.
    Witness,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Unmatched {
    /// Dropped and counted.
    Drop,
    /// Refused: the sender is told by a reset or an ICMP error.
    Reject,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VipCommand {
    /// Add a VIP.
    Add {
        /// The address.
        ip: IpAddr,
        /// The node that should own it while it is able to.
        #[arg(long, value_name = "NODE")]
        #[arg(add = names::nodes())]
        prefer: Option<String>,
        /// The network whose nodes answer for it, where that is not simply the one it is in.
        #[arg(long, value_name = "CIDR")]
        segment: Option<String>,
        /// What becomes of packets that no service takes.
        #[arg(long, value_enum)]
        unmatched: Option<Unmatched>,
    },
    /// Change a VIP.
    #[command(group = ArgGroup::new("what").required(true).multiple(true))]
    Set {
        /// The address.
        #[arg(add = names::vips())]
        ip: IpAddr,
        /// The node that should own it, or "none".
        #[arg(group = "what", long, value_name = "NODE")]
        #[arg(add = names::nodes())]
        prefer: Option<String>,
        /// The network whose nodes answer for it, or "none".
        #[arg(group = "what", long, value_name = "CIDR")]
        segment: Option<String>,
        /// What becomes of packets that no service takes.
        #[arg(group = "what", long, value_enum)]
        unmatched: Option<Unmatched>,
    },
    /// Remove a VIP.
    Remove {
        /// The address.
        #[arg(add = names::vips())]
        ip: IpAddr,
        /// With its services and their backends.
        #[arg(long)]
        cascade: bool,
    },
    /// Move a VIP to a node; returns when it is there.
    Move {
        /// The address.
        #[arg(add = names::vips())]
        ip: IpAddr,
        /// The node.
        #[arg(add = names::nodes())]
        node: String,
    },
    /// Spread the VIPs evenly over the nodes that can own them, without a loss; preferred nodes keep theirs.
    Rebalance,
    /// All VIPs and their owners.
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SegmentCommand {
    /// Say more of a segment than the nodes find out themselves.
    ///
    /// Example: lbctl segment add 192.0.2.0/24 --gateway 192.0.2.254. All nodes there ask the gateway for its address five
    /// times a second. A node that alone does not hear it is cut off: its VIPs move to one that does.
    Add {
        /// The network, such as 192.0.2.0/24.
        #[arg(value_name = "CIDR")]
        network: String,
        /// A router there.
        #[arg(long, value_name = "IP")]
        gateway: IpAddr,
    },
    /// Change what is said of a segment.
    Set {
        /// The network.
        #[arg(value_name = "CIDR")]
        network: String,
        /// A router there.
        #[arg(long, value_name = "IP")]
        gateway: IpAddr,
    },
    /// Say nothing of a segment any more.
    Remove {
        /// The network.
        #[arg(value_name = "CIDR")]
        network: String,
    },
    /// All segments of which something was said, and the nodes that do not hear their gateways.
    List,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Affinity {
    /// Each flow is placed by itself.
    Flow,
    /// All flows of a source address go to one backend.
    Source,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Add a service.
    Add {
        /// Its name.
        name: String,
        /// The VIP it is on.
        #[arg(long, value_name = "IP")]
        #[arg(add = names::vips())]
        vip: IpAddr,
        /// Its ports: 80/tcp, 5000-5999/udp or any/tcp. Repeat it for several.
        #[arg(long = "port", value_name = "PORT/PROTO", required = true)]
        ports: Vec<Port>,
        /// What ties a client to a backend.
        #[arg(long, value_enum)]
        affinity: Option<Affinity>,
        /// Entries of its Maglev table: 4093, 16381, 65537 or 655373. About a hundred times the number
        /// of backends; fixed for good.
        #[arg(long, value_name = "SIZE", value_parser = value_parser!(u32).range(1..))]
        table_size: Option<u32>,
        #[command(flatten)]
        options: ServiceOptions,
    },
    /// Change a service.
    Set {
        /// Its name.
        #[arg(add = names::services())]
        name: String,
        /// All its ports from now on.
        #[arg(long = "port", value_name = "PORT/PROTO")]
        ports: Vec<Port>,
        /// What ties a client to a backend.
        #[arg(long, value_enum)]
        affinity: Option<Affinity>,
        #[command(flatten)]
        options: ServiceOptions,
    },
    /// Remove a service.
    Remove {
        /// Its name.
        #[arg(add = names::services())]
        name: String,
        /// With its backends.
        #[arg(long)]
        cascade: bool,
    },
    /// All services.
    List,
}

/// What can be said of a service and changed.
#[derive(Debug, Args)]
pub(crate) struct ServiceOptions {
    /// What the owner of the VIP asks each backend.
    #[arg(long = "check", value_name = "CHECK", help = check::HELP)]
    pub(crate) checks: Vec<Check>,
    /// From one question to the next. 1s unless said.
    #[arg(long, value_name = "TIME", value_parser = values::milliseconds)]
    pub(crate) check_interval: Option<u32>,
    /// For so long an answer is waited for. 500ms unless said.
    #[arg(long, value_name = "TIME", value_parser = values::milliseconds)]
    pub(crate) check_timeout: Option<u32>,
    /// Intervals are longer or shorter by up to so many percent. 10 unless said.
    #[arg(long, value_name = "PERCENT", value_parser = value_parser!(u32).range(1..=50))]
    pub(crate) check_jitter: Option<u32>,
    /// So many good answers in a row make a backend healthy. 2 unless said.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(crate) rise: Option<u32>,
    /// So many bad ones make it unhealthy. 3 unless said.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(crate) fall: Option<u32>,
    /// A drained backend keeps its flows for so long. 5m unless said.
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    pub(crate) drain_timeout: Option<u32>,
    /// A backend that begins to take flows takes an eighth of its share at first, and all of it after so long. 0s, at once,
    /// unless said.
    #[arg(long, value_name = "TIME", value_parser = values::seconds_or_none)]
    pub(crate) slow_start: Option<u32>,
    /// With fewer backends of tier 1 that take new flows than this, those of tier 2 take them, too. 1 unless said.
    #[arg(long, value_name = "N")]
    pub(crate) min_healthy: Option<u32>,
    /// What becomes of new flows where nothing good was found of any backend. drop unless said.
    #[arg(long, value_enum)]
    pub(crate) on_all_down: Option<OnAllDown>,
    /// What becomes of the TCP flows that a backend had when it is down. reselect unless said.
    #[arg(long, value_enum)]
    pub(crate) on_backend_down: Option<OnBackendDown>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnBackendDown {
    /// They go to another backend, which does not know them and resets them itself.
    Reselect,
    /// The owner of the VIP resets them.
    Reset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnAllDown {
    /// They are dropped.
    Drop,
    /// All active backends take them.
    FailOpen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum State {
    /// It takes flows.
    Active,
    /// It keeps the flows it has and takes no new ones.
    Drain,
    /// It takes nothing.
    Down,
}

/// What can be said of a backend.
#[derive(Debug, Args)]
pub(crate) struct BackendOptions {
    /// Its share of new flows, 0 to 1000; with 0 it takes none and keeps those it has. 1 unless said.
    #[arg(long, value_parser = value_parser!(u32).range(0..=1000))]
    pub(crate) weight: Option<u32>,
    /// Its MAC address, where it shall not be resolved by ARP or neighbour discovery; "none" to resolve it.
    #[arg(long)]
    pub(crate) mac: Option<String>,
    /// What it takes.
    #[arg(long, value_enum)]
    pub(crate) state: Option<State>,
    /// 2: it takes new flows only while too few of tier 1 do, see --min-healthy of the service. 1 unless said.
    #[arg(long, value_parser = value_parser!(u32).range(1..=2))]
    pub(crate) tier: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BackendCommand {
    /// Add a backend to a service.
    Add {
        /// The service.
        #[arg(add = names::services())]
        service: String,
        /// The backend's own address.
        ip: IpAddr,
        #[command(flatten)]
        options: BackendOptions,
    },
    /// Change a backend.
    Set {
        /// The service.
        #[arg(add = names::services())]
        service: String,
        /// The backend's own address.
        #[arg(add = names::backends())]
        ip: IpAddr,
        #[command(flatten)]
        options: BackendOptions,
    },
    /// Let a backend keep the flows it has and give it no new ones.
    Drain {
        #[command(flatten)]
        names: BackendNames,
        /// Return when it has no flows any more.
        #[arg(long)]
        wait: bool,
    },
    /// Let a backend take flows again.
    Enable(BackendNames),
    /// Give a backend nothing; its flows are placed anew.
    Disable(BackendNames),
    /// Remove a backend.
    Remove(BackendName),
    /// The backends of a service, or all.
    List {
        /// The service.
        #[arg(add = names::services())]
        service: Option<String>,
        /// Do not ask the nodes how many flows each backend has: quicker, also where a node does not answer.
        #[arg(long)]
        no_flows: bool,
    },
}

/// A backend of one service, or of all.
#[derive(Debug, Args)]
pub(crate) struct BackendNames {
    /// The service.
    #[arg(required_unless_present = "all_services")]
    #[arg(add = names::services())]
    pub(crate) service: Option<String>,
    /// The backend's own address.
    #[arg(required_unless_present = "all_services")]
    #[arg(add = names::backends())]
    pub(crate) ip: Option<IpAddr>,
    /// The machine with this address, in all services that it serves: all of them change at once, or none.
    #[arg(long, value_name = "IP", conflicts_with_all = ["service", "ip"])]
    #[arg(add = names::backends())]
    pub(crate) all_services: Option<IpAddr>,
}

#[derive(Debug, Args)]
pub(crate) struct BackendName {
    /// The service.
    #[arg(add = names::services())]
    pub(crate) service: String,
    /// The backend's own address.
    #[arg(add = names::backends())]
    pub(crate) ip: IpAddr,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn numbers_have_their_ends() {
        let parses = |arguments: &str| Cli::try_parse_from(arguments.split_whitespace()).is_ok();
        for (weight, sound) in
            [("0", true), ("1", true), ("1000", true), ("1001", false), ("-1", false), ("1.5", false)]
        {
            for command in ["add", "set"] {
                let arguments = format!("lbctl backend {command} web 192.0.2.1 --weight={weight}");
                assert_eq!(parses(&arguments), sound, "{arguments}");
            }
        }
        for (size, sound) in [("0", false), ("4093", true), ("655373", true), ("4294967296", false)] {
            let arguments = format!("lbctl service add web --vip 192.0.2.1 --port 80/tcp --table-size={size}");
            assert_eq!(parses(&arguments), sound, "{arguments}");
        }
    }
}
