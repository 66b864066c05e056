//! `lbctl`: the operator's command line. A pure client of the API; any node takes any command.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod connect;
mod exit;
mod output;
mod session;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            exit::complain(&format!("lbctl: starting: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(commands::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_silent() {
                exit::complain(&format!("lbctl: {failure}"));
            }
            failure.exit_code()
        }
    }
}
