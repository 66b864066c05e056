//! Nodes, and what holds for all of them.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Subcommand, ValueEnum};

use super::values;
use crate::names;

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Add a machine on which lbd runs and waits; returns when it votes, and a moment before it may own VIPs.
    ///
    /// Example: lbctl node add lb2 10.77.1.2:7401 && lbctl wait member lb2
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
    ///
    /// Example: lbctl node remove lb3; --force if it is off for good
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
    ///
    /// Example: lbctl node drain lb1, before its machine is restarted
    Drain {
        /// Its name.
        #[arg(add = names::nodes())]
        name: String,
    },
    /// Let a drained node own VIPs again.
    ///
    /// Example: lbctl node undrain lb1
    Undrain {
        /// Its name.
        #[arg(add = names::nodes())]
        name: String,
    },
    /// Change what is known of a node.
    ///
    /// Example: lbctl node set lb2 --address 10.77.2.2:7401
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
    ///
    /// Example: lbctl node list -o wide
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
        #[arg(long, default_value = "365", value_parser = values::number(1..=36500))]
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
    /// Prints the section "tls" for lbd.toml. Then start lbd, and add the node: lbctl node add NAME ADDR.
    /// Example: lbctl node join TOKEN --out /etc/lbd/tls
    Join {
        /// The token; "-" reads it from standard input, so that it stands in no list of processes.
        token: String,
        /// The directory for NAME.pem, NAME.key, ca.pem and crl.pem; made if missing.
        #[arg(long, value_name = "DIR", default_value = "/etc/lbd/tls")]
        out: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// All settings.
    ///
    /// Example: lbctl cluster show
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
    ///
    /// flow_tcp_s, flow_fin_s, flow_udp_s: after so many seconds of silence a flow is forgotten: of TCP, of TCP that has been
    /// closed, of UDP.
    ///
    /// Example: lbctl cluster set timing=relaxed failback=10m flow_tcp_s=3600
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
