//! `lbd`: one node of the load balancer.
//!
//! [`app`] puts the parts together. A command comes in by `api`, is agreed on by `lb_raft_store`, and goes
//! out by `control` to `lb_dataplane`; `ownership` says for which VIPs this node may answer.
#![forbid(unsafe_code)]

mod api;
mod app;
mod cli;
mod config;
mod control;
mod exit;
mod link;
mod ownership;
mod raft;
mod telemetry;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{cli::Cli, exit::Exit};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // --help and --version come this way too, and succeed. A closed pipe is no fault.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    let config = match config::load(&cli.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("lbd: bad configuration: {error}");
            return Exit::Config.into();
        }
    };
    if cli.check {
        println!("{}: ok", cli.config.display());
        return ExitCode::SUCCESS;
    }
    telemetry::start(cli.log_format);
    match app::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure}");
            failure.exit().into()
        }
    }
}
