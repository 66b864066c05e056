//! The command line.

mod backend;
mod check;
mod cluster;
mod declared;
mod looking;
mod pki;
mod service;
mod values;
mod vip;

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use backend::{BackendCommand, BackendName, BackendNames};
pub(crate) use check::Check;
pub(crate) use cluster::{ClusterCommand, NodeCommand, Role};
pub(crate) use declared::{Apply, Declared, Import, SnapshotCommand};
pub(crate) use looking::{Capture, EventFilter, Explain, Object, Stats, WaitFor, WatchFilter};
pub(crate) use pki::{PkiCommand, PkiTarget};
pub(crate) use service::{Affinity, OnAllDown, OnBackendDown, ServiceCommand, State};
pub(crate) use values::{Destination, Endpoint, Port, quoted};
pub(crate) use vip::{SegmentCommand, Unmatched, VipCommand};

use crate::{connect::Target, contexts::Said, names};

/// Of the file behind `--cluster`.
const CONTEXTS: &str = "\
Clusters by name: ~/.config/lbctl/config.toml, or the file that LBCTL_CONFIG names:

  default = \"lab\"

  [clusters.lab]
  endpoints = [\"10.77.1.1:7400\", \"10.77.1.2:7400\"]
  cert = \"/home/alice/.lbctl/alice.pem\"
  key  = \"/home/alice/.lbctl/alice.key\"
  ca   = \"/home/alice/.lbctl/ca.pem\"";

/// Operates a cluster of lbd load balancers.
///
/// Any node takes any command. Data goes to standard output, everything else to standard error. Exit
/// codes: 0 done, also when it was already so; 1 refused by the server; 2 usage; 3 no endpoint can be
/// reached, or a question is left without an answer; 4 no quorum or timed out: the change may or may not have happened, and a retry with the
/// printed request id applies it once; 5 done, but what was to be printed could not be.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, propagate_version = true, after_long_help = CONTEXTS)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Behind the options of the command itself.
const GLOBAL: &str = "Options of every command";

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// A node's API: unix:PATH, https://HOST:PORT or HOST:PORT, or http://HOST:PORT of a node without TLS. Repeat it to name
    /// several; the first that answers is used. This machine's, unix:/run/lbd/lbd.sock, if nothing is said.
    #[arg(long = "endpoint", global = true, help_heading = GLOBAL, value_name = "URL", env = "LBCTL_ENDPOINT", value_delimiter = ',')]
    pub(crate) endpoints: Vec<Target>,

    /// A cluster that ~/.config/lbctl/config.toml names, with its endpoints and certificates. Example: lbctl --cluster lab status
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "NAME", env = "LBCTL_CLUSTER", add = names::clusters())]
    pub(crate) cluster: Option<String>,

    /// The certificate to show at https endpoints, in PEM. Its URI says who calls: lb://CLUSTER/ROLE/NAME.
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FILE", env = "LBCTL_CERT")]
    pub(crate) cert: Option<PathBuf>,

    /// Its private key.
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FILE", env = "LBCTL_KEY")]
    pub(crate) key: Option<PathBuf>,

    /// The certificate of the cluster's authority.
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FILE", env = "LBCTL_CA")]
    pub(crate) ca: Option<PathBuf>,

    /// How to print data.
    #[arg(short, long, global = true, help_heading = GLOBAL, value_enum, default_value = "table")]
    pub(crate) output: Format,

    /// How long to wait for an answer, such as 500ms or 10s [default: 10s]. Of a command that waits for something, how long it does.
    #[arg(long, global = true, help_heading = GLOBAL, value_parser = values::timeout)]
    pub(crate) timeout: Option<Duration>,

    /// Makes a retry safe: the same id twice applies once. Chosen and printed where it matters, if not
    /// given.
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "ID")]
    pub(crate) request_id: Option<String>,
}

impl Global {
    /// For an answer.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(10))
    }

    /// Where to call, and as whom to show oneself.
    pub(crate) fn said(&self) -> Said {
        let Self { cluster, endpoints, cert, key, ca, .. } = self;
        let (cluster, endpoints) = (cluster.clone(), endpoints.clone());
        Said { cluster, endpoints, cert: cert.clone(), key: key.clone(), ca: ca.clone() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people, in 80 columns.
    Table,
    /// For people, with all columns.
    Wide,
    /// Of a list the names alone, one a line.
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

    /// For what is printed to stand in a file: YAML, unless JSON is asked for.
    pub(crate) fn of_file(self) -> Self {
        if self == Self::Json { Self::Json } else { Self::Yaml }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Nodes, leader, owners and engine at a glance; what is wrong comes first.
    ///
    /// Example: lbctl status --check && echo well
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
    ///
    /// Example: lbctl stats --rates
    Stats(Stats),
    /// The cluster as it works, live: VIPs, backends, nodes and drops, with their rates.
    ///
    /// Keys: 1 to 4 or Tab for the tables, arrows, s to have what has most first, / to filter, q to end. It needs a terminal. Example:
    /// lbctl top
    Top,
    /// What is wrong with this setup, and how to mend it: all nodes look for themselves, which takes two seconds and changes nothing.
    ///
    /// Ends with 1 if there is a warning or an error. Example: lbctl doctor -o json | jq -r '.found[].id'
    Doctor {
        /// Ask only the node that answers.
        #[arg(long)]
        local: bool,
    },
    /// Which VIP, owner, service and backend a packet gets, and why: as the node that is asked decides.
    ///
    /// Example: lbctl explain 198.51.100.9:40000 192.0.2.1:80/tcp
    Explain(Explain),
    /// The flows in the flow table of the node that is asked.
    ///
    /// Example: lbctl flows --vip 192.0.2.1
    Flows {
        /// Only flows to this VIP.
        #[arg(long, value_name = "IP", value_parser = values::address)]
        vip: Option<IpAddr>,
        /// Only flows that go to this backend.
        #[arg(long, value_name = "IP", value_parser = values::address)]
        backend: Option<IpAddr>,
    },
    /// Write what the node that is asked receives, sends and drops into a pcapng file, with what becomes of each frame as its comment.
    ///
    /// tcpdump on a node sees what comes and not what lbd sends. Of more than 5,000 frames a second some are left out, and their
    /// number is told. Needs the role admin. Example: lbctl capture --vip 192.0.2.1 --drops -w - | tshark -r - -T fields -e
    /// frame.number -e ip.src -e frame.comment
    Capture(Capture),
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
    /// Make the table what a file says, in one change
    ///
    /// The file is YAML or JSON: VIPs, services, backends, segments and settings by
    /// the API's field names, as 'lbctl export' prints them. What would change is
    /// shown first. A row of the file becomes exactly what it says: a field that is
    /// left out gets its default. Rows that the file does not have stay, unless
    /// --prune is given. Example, all of a web server's table:
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
    ///
    /// Example: lbctl schema > lbd-table.schema.json
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
    ///
    /// Example: lbctl man /usr/local/share/man/man1
    Man {
        /// The directory; made if missing.
        dir: PathBuf,
    },
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

    /// All that the API has, and by the names that it is shown by.
    #[test]
    fn kinds_are_those_of_the_api() {
        for (arguments, sound) in [
            ("lbctl events --kind vip --kind certificate", true),
            ("lbctl events --kind settings", false),
            ("lbctl watch --kind settings --kind vip", true),
            ("lbctl watch --kind lease", false),
        ] {
            assert_eq!(Cli::try_parse_from(arguments.split_whitespace()).is_ok(), sound, "{arguments}");
        }
        let refused = Cli::try_parse_from(["lbctl", "events", "--kind", "x"]).unwrap_err().to_string();
        assert!(
            refused.contains("node, vip, lease, leader, configuration, health, conflict, kernel, certificate"),
            "{refused}"
        );
    }

    /// What is printed for one command: how it is used, by an example.
    #[test]
    fn every_help_has_an_example() {
        fn leaves(command: &clap::Command, path: &str, without: &mut Vec<String>) {
            let mut below = command.get_subcommands().filter(|below| below.get_name() != "help").peekable();
            if below.peek().is_none() {
                let help =
                    command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
                if !help.contains("xample") {
                    without.push(path.to_owned());
                }
            }
            below.for_each(|below| leaves(below, &format!("{path} {}", below.get_name()), without));
        }
        let mut without = Vec::new();
        leaves(&Cli::command(), "lbctl", &mut without);
        assert!(without.is_empty(), "no example: {without:#?}");
    }
}
