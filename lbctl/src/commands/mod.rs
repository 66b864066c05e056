//! One file a noun.

mod backend;
mod capture;
mod cluster;
pub(crate) mod completions;
mod declared;
mod doctor;
mod drained;
mod enroll;
mod events;
mod explain;
mod import;
mod looking;
mod node;
mod pcap;
mod pki;
mod segment;
mod service;
mod snapshot;
mod stats;
mod status;
mod top;
mod vip;
mod wait;

use clap::CommandFactory as _;

use lb_proto::tls::Role;

use crate::{
    authority::Wanted,
    cli::{Cli, Command, NodeCommand},
    connect::connect,
    contexts,
    exit::{Failure, complain},
    session::Session,
};

pub(crate) async fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Completions { shell } => {
            return completions::print(shell);
        }
        Command::Man { dir } => {
            let written = std::fs::create_dir_all(&dir).and_then(|()| clap_mangen::generate_to(Cli::command(), &dir));
            written.map_err(|error| Failure::of_file(&dir, error))?;
            complain(&format!("the pages are in {0}: man {0}/lbctl.1", dir.display()));
            return Ok(());
        }
        Command::Import(what) => return import::run(cli.global.output, what),
        Command::Schema => return declared::schema(),
        Command::Pki { dir, command } => return pki::run(cli.global.output, &dir, command),
        Command::Node(NodeCommand::Token { name, listen, address, san, days, valid, dir }) => {
            let wanted = Wanted { role: Role::Node, name, names: san, days };
            return enroll::token(&dir, &wanted, listen, (address, valid)).await;
        }
        Command::Node(NodeCommand::Join { token, out }) => return enroll::join(&token, &out).await,
        _ => {}
    }
    let reach = contexts::reach(cli.global.said())?;
    let session = Session {
        channel: connect(&reach.targets, reach.shown()).await?,
        request_id: cli.global.request_id.clone().unwrap_or_else(|| uuid::Uuid::now_v7().to_string()),
        global: cli.global,
    };
    match cli.command {
        Command::Status { check } => status::status(&session, check).await,
        Command::Stats(what) => stats::run(&session, what).await,
        Command::Top => top::run(&session).await,
        Command::Doctor { local } => doctor::run(&session, local).await,
        Command::Explain(what) => explain::explain(&session, what).await,
        Command::Capture(what) => capture::run(&session, what).await,
        Command::Flows { vip, backend } => explain::flows(&session, vip, backend).await,
        Command::Events(filter) => events::run(&session, filter).await,
        Command::Node(command) => node::run(&session, command).await,
        Command::Cluster(command) => cluster::run(&session, command).await,
        Command::Get(object) => looking::get(&session, &object).await,
        Command::Describe(object) => looking::describe(&session, &object).await,
        Command::Watch(filter) => looking::watch(&session, filter).await,
        Command::Wait(what) => wait::run(&session, what).await,
        Command::Apply(what) => declared::apply(&session, what).await,
        Command::Diff(what) => declared::diff(&session, what).await,
        Command::Export => declared::export(&session).await,
        Command::Snapshot(command) => snapshot::run(&session, command).await,
        Command::Segment(command) => segment::run(&session, command).await,
        Command::Vip(command) => vip::run(&session, command).await,
        Command::Service(command) => service::run(&session, command).await,
        Command::Backend(command) => backend::run(&session, command).await,
        Command::Completions { .. }
        | Command::Import(_)
        | Command::Man { .. }
        | Command::Pki { .. }
        | Command::Schema => Ok(()),
    }
}
