//! `lbd`: one node of the load balancer.
//!
//! [`app`] puts the parts together. A command comes in by `api`, is agreed on by `lb_raft_store`, and goes
//! out by `control` to `lb_dataplane`; `ownership` says for which VIPs this node may answer. All that is done
//! by a child process, which `supervise` waits for.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod alarms;
mod api;
mod app;
mod bind;
mod check;
mod cli;
mod clock;
mod config;
mod connection;
mod control;
mod descriptors;
mod doctor;
mod events;
mod exit;
mod flow_key;
mod health;
mod link;
mod metrics;
mod ownership;
mod peers;
mod privilege;
mod raft;
mod recover;
mod store;
mod supervise;
mod task;
mod telemetry;
mod terminal;
mod traffic;
mod web;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{
    cli::{Cli, Command},
    config::ApiListener,
    exit::Exit,
    privilege::{Programs, User, UserError},
    supervise::Parent,
};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // --help and --version come this way too, and succeed. A closed pipe is no fault.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    // What it writes is for its own user; what others shall reach is opened by name.
    let _ = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let config = match config::load(&cli.config) {
        Ok(config) => config,
        Err(error) => {
            terminal::complain(&format!("lbd: bad configuration: {error}"));
            return Exit::Config.into();
        }
    };
    if cli.check {
        return check::run(&cli.config, &config);
    }
    // The working process finds all that its parent has given.
    let user = match user(&config, cli.working_child_of.is_none()) {
        Ok(user) => user,
        Err(error) => {
            terminal::complain(&format!("lbd: {error}"));
            return Exit::Config.into();
        }
    };
    if let Some(command) = &cli.command {
        // What they write is the daemon's.
        if let Some(user) = &user
            && let Err(error) = privilege::keep_nothing(Some(user))
        {
            terminal::complain(&format!("lbd: {error}"));
            return Exit::Unavailable.into();
        }
        let done = match command {
            Command::Recover { i_know_the_others_are_gone } => recover::run(&config, *i_know_the_others_are_gone),
            Command::Store(command) => store::run(&config, command),
        };
        return done.unwrap_or_else(|failure| {
            terminal::complain(&format!("lbd: {failure}"));
            failure.exit().into()
        });
    }
    let Some(parent) = cli.working_child_of else {
        return supervise::run(user.as_ref()).unwrap_or_else(|error| {
            terminal::complain(&format!("lbd: the working process does not start: {error}"));
            Exit::Software.into()
        });
    };
    let programs = if config.accelerates() { Programs::Accelerator } else { Programs::None };
    let became = user.as_ref().map_or(Ok(()), |user| privilege::become_user_with_what_is_used(user, programs));
    let confined = privilege::keep_what_is_used(programs);
    telemetry::start(cli.log_format);
    match (&user, became) {
        (Some(user), Ok(())) => tracing::info!(%user, "started by root, it goes on as this user"),
        (_, Ok(())) => {}
        (_, Err(error)) => {
            tracing::error!("{error}");
            return Exit::Unavailable.into();
        }
    }
    if let Err(error) = confined {
        tracing::warn!(%error, "this process may do more than it needs");
    }
    let Some(parent) = Parent::of_child(parent) else {
        tracing::error!("the process that started this one is gone");
        return Exit::Software.into();
    };
    parent.lock_memory();
    descriptors::raise_limit();
    match app::run(config, cli.config, parent) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure}");
            failure.exit().into()
        }
    }
}

/// As whom the processes go on when root has started them. What it needs is given to it.
fn user(config: &config::Config, is_first: bool) -> Result<Option<User>, UserError> {
    let user = User::to_become(config.user.as_deref())?;
    if let (Some(user), true) = (&user, is_first) {
        let sockets = config.api.iter().filter_map(|listener| match listener {
            ApiListener::Unix(path) => Some(path.as_path()),
            ApiListener::Tcp(_) => None,
        });
        user.own(&config.data_dir, &sockets.collect::<Vec<_>>())?;
    }
    Ok(user)
}
