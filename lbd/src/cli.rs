//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::config;

/// The daemon of a distributed Layer-4 load balancer (direct server return).
///
/// Runs in the foreground, logs to standard error, and tells systemd when it is ready. Exit codes: 0
/// stopped on request; 64 usage; 65 bad configuration; 69 an interface is absent, an address is in use or
/// a capability is missing; 70 a fault of its own; 74 the store is damaged, locked or not writable; 75 its disk is full.
///
/// SIGTERM hands the VIPs over and stops; SIGHUP reads the configuration again and takes up dataplane.workers.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Cli {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH, global = true)]
    pub(crate) config: PathBuf,

    /// Read the configuration, report every fault with its key, and what a start would refuse on this machine, and exit.
    #[arg(long)]
    pub(crate) check: bool,

    /// Set by lbd itself: this is the working process of the lbd with that process id.
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) working_child_of: Option<u32>,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// How to write the log. RUST_LOG sets what is logged (default: info).
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Offline, when all other voters are lost for good: makes this node a new cluster of its own.
    ///
    /// The VIPs, services, backends and settings stay; every other node is forgotten, and the cluster gets a
    /// new id and key, so that the lost nodes can never come back by themselves. If they are not lost, there
    /// will be two clusters that own the same VIPs: stop them first. The old store is kept in data_dir.
    ///
    /// Without the option it shows how far this node's log has come and changes nothing: of several survivors recover the
    /// one with the highest term and, of these, the highest index. As root it leaves files of the owner of data_dir. What
    /// was cut short is finished by the same command.
    Recover {
        /// What must be true.
        #[arg(long)]
        i_know_the_others_are_gone: bool,
    },
    /// Offline: looks at this node's store without changing it.
    #[command(subcommand)]
    Store(StoreCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Reads all of it and says in one line whether it is sound; ends with 74 if it is damaged.
    ///
    /// What a crash or a power cut has left is no damage: it is mended at the next start. Example:
    ///
    ///   lbd store check --config /etc/lbd/lbd.toml
    #[command(verbatim_doc_comment)]
    Check {
        /// As text, or as one JSON object for programs.
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Shows whose it is, its last entry and vote, its journal, its snapshots and sizes.
    ///
    /// Of several survivors recover the one whose last entry has the highest term and, of these, the highest index. Example:
    ///
    ///   lbd store show --output json | jq .last_entry
    #[command(verbatim_doc_comment)]
    Show {
        /// As text, or as one JSON object for programs.
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}
