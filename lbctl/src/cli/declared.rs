//! Tables in files.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

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
    ///
    /// Example: lbctl snapshot restore /var/backups/lbd-table.yaml --dry-run
    Restore {
        /// The file, or "-" for standard input. Those of versions before this one are read, too.
        file: PathBuf,
        /// Show what would change, and change nothing.
        #[arg(long)]
        dry_run: bool,
    },
}
