//! `lbctl`: the operator's command line. A pure client of the API; any node takes any command.
#![forbid(unsafe_code)]

mod authority;
mod cli;
mod commands;
mod connect;
mod contexts;
mod declared;
mod enroll;
mod exit;
mod import;
mod names;
mod output;
mod session;

use std::process::ExitCode;

use clap::{
    CommandFactory as _, Parser as _,
    error::{ContextKind, ContextValue},
};

use crate::cli::Cli;

/// Of an argument that the parser does not take.
const LONGEST_QUOTE: usize = 200;

fn main() -> ExitCode {
    // Ends the program where a shell asks what may come next.
    clap_complete::CompleteEnv::with_factory(Cli::command).var(commands::completions::ASKED_BY).complete();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => shortened(error).exit(),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            exit::complain(&format!("lbctl: starting: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let is_json = cli.global.output == cli::Format::Json;
    match runtime.block_on(commands::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_silent() {
                let text = if is_json { failure.to_json() } else { format!("lbctl: {failure}") };
                exit::complain(&text);
            }
            failure.exit_code()
        }
    }
}

/// Quotes of a long argument only the beginning.
fn shortened(mut error: clap::Error) -> clap::Error {
    for kind in [ContextKind::InvalidValue, ContextKind::InvalidArg, ContextKind::InvalidSubcommand] {
        if let Some(ContextValue::String(text)) = error.get(kind).cloned()
            && let Some((at, _)) = text.char_indices().nth(LONGEST_QUOTE)
        {
            let cut = format!("{}... ({} bytes)", &text[..at], text.len());
            error.insert(kind, ContextValue::String(cut));
        }
    }
    error
}
