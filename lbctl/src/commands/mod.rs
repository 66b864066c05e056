//! One file a noun.

mod backend;
mod cluster;
mod explain;
mod node;
mod service;
mod snapshot;
mod status;
mod vip;

use std::{future::Future, time::Duration};

use clap::CommandFactory as _;
use lb_proto::v1;
use tonic::{Request, Response, transport::Channel};

use crate::{
    cli::{Cli, Command, Format, Global},
    connect::connect,
    exit::Failure,
    output::{self, Change},
};

/// A list of all backends is longer than what a request may be.
const MAX_ANSWER_LEN: usize = 64 << 20;
/// The server answers a little earlier than it must; what comes later is lost.
const GRACE: Duration = Duration::from_millis(500);

pub(crate) async fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "lbctl", &mut script);
            return output::print(&String::from_utf8_lossy(&script));
        }
        Command::Man { dir } => {
            let written = std::fs::create_dir_all(&dir).and_then(|()| clap_mangen::generate_to(Cli::command(), &dir));
            return written.map_err(|error| Failure::Usage(format!("{}: {error}", dir.display())));
        }
        _ => {}
    }
    let session = Session {
        channel: connect(&cli.global.endpoints).await?,
        request_id: cli.global.request_id.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
        global: cli.global,
    };
    match cli.command {
        Command::Status => status::status(&session).await,
        Command::Stats => status::stats(&session).await,
        Command::Explain(what) => explain::explain(&session, what).await,
        Command::Flows { vip, backend } => explain::flows(&session, vip, backend).await,
        Command::Node(command) => node::run(&session, command).await,
        Command::Cluster(command) => cluster::run(&session, command).await,
        Command::Snapshot(command) => snapshot::run(&session, command).await,
        Command::Vip(command) => vip::run(&session, command).await,
        Command::Service(command) => service::run(&session, command).await,
        Command::Backend(command) => backend::run(&session, command).await,
        Command::Completions { .. } | Command::Man { .. } => Ok(()),
    }
}

/// A connection and how to use it.
struct Session {
    channel: Channel,
    global: Global,
    request_id: String,
}

impl Session {
    fn format(&self) -> Format {
        self.global.output
    }

    /// Makes a call that changes nothing.
    async fn read<M, T, F>(&self, message: M, call: impl FnOnce(Request<M>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, tonic::Status>>,
    {
        self.call(message, None, call).await
    }

    /// Makes a call that changes something.
    async fn write<M, T, F>(&self, message: M, call: impl FnOnce(Request<M>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, tonic::Status>>,
    {
        self.call(message, Some(&self.request_id), call).await
    }

    async fn call<M, T, F>(
        &self,
        message: M,
        request_id: Option<&str>,
        call: impl FnOnce(Request<M>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, tonic::Status>>,
    {
        let timeout = self.global.timeout;
        let mut request = Request::new(message);
        request.set_timeout(timeout);
        match tokio::time::timeout(timeout + GRACE, call(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Failure::from_status(&status, request_id)),
            Err(_) => Err(Failure::Undecided {
                message: format!("no answer within {}", humantime::format_duration(timeout)),
                request_id: request_id.map(ToOwned::to_owned),
            }),
        }
    }

    /// Prints what a change of the table came to.
    fn changed(&self, what: String, response: v1::MutationResponse) -> Result<(), Failure> {
        let v1::MutationResponse { revision, unchanged, request_id } = response;
        output::change(self.format(), &Change { what, revision, unchanged, request_id })
    }
}

/// On the command line, "none" takes a value away.
fn none_is_empty(value: Option<String>) -> Option<String> {
    value.map(|text| if text == "none" { String::new() } else { text })
}
