//! Certificates.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use lb_proto::tls;

use super::values;

/// Where what is issued goes, and for how long it is valid.
#[derive(Debug, Args)]
pub(crate) struct PkiTarget {
    /// How many days it is valid; 365 for nodes, 90 for others, if not given.
    #[arg(long, value_parser = values::number(1..=36500))]
    pub(crate) days: Option<u32>,
    /// The directory for NAME.pem, NAME.key and ca.pem; made if missing. If not given, the working directory, or that of the
    /// certificate that is renewed.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PkiCommand {
    /// Make the authority: once for a cluster.
    ///
    /// Example: lbctl pki init --cluster lb
    Init {
        /// The cluster's name, as in the nodes' cluster.name.
        #[arg(long, default_value = "lb")]
        cluster: String,
        /// How many days it is valid.
        #[arg(long, default_value = "3650", value_parser = values::number(1..=36500))]
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
    ///
    /// Example: lbctl pki renew /etc/lbd/tls/lb1.pem
    Renew {
        /// The certificate.
        cert: PathBuf,
        #[command(flatten)]
        target: PkiTarget,
    },
    /// Revoke certificates, and sign a new list of the revoked ones.
    ///
    /// Example: lbctl pki revoke alice, and then the list to all nodes (tls.crl)
    Revoke {
        /// Serial numbers, or names: all of a name's certificates.
        #[arg(required = true, value_name = "SERIAL|NAME")]
        what: Vec<String>,
    },
    /// What was issued.
    ///
    /// Example: lbctl pki list -o json
    List,
    /// Sign the list of revoked certificates anew: it is due every 30 days.
    ///
    /// Example: lbctl pki crl
    Crl,
}
