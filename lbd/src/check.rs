//! `lbd --check`: says what a start would refuse on this machine, and what looks like a mistake.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{
    config::{ApiListener, Config},
    connection::Security,
    exit::Exit,
    link,
    privilege::User,
    terminal,
};

pub(crate) fn run(file: &Path, config: &Config) -> ExitCode {
    config.suspicions().iter().for_each(|suspicion| terminal::complain(&format!("warning: {suspicion}")));
    let interfaces = config.dataplane.as_ref().map(|dataplane| &*dataplane.interfaces).unwrap_or_default();
    let (passing, lasting): (Vec<_>, Vec<_>) =
        link::problems(interfaces).into_iter().partition(link::LinkError::is_of_the_moment);
    let passing = passing.iter().map(ToString::to_string).chain(absent(config));
    for problem in passing {
        terminal::complain(&format!("warning: on this machine, at this moment: {problem}"));
    }
    // Links that are no segments go before what can be mended by a file.
    let mut wrong: Vec<(Exit, String)> =
        lasting.iter().map(|problem| (Exit::Unavailable, problem.to_string())).collect();
    wrong.extend(files(config).into_iter().map(|problem| (Exit::Config, problem)));
    wrong.iter().for_each(|(_, problem)| terminal::complain(&format!("lbd: {problem}")));
    match wrong.into_iter().next() {
        Some((exit, _)) => exit.into(),
        None => {
            terminal::say(&format!("{}: ok", file.display()));
            ExitCode::SUCCESS
        }
    }
}

/// Addresses to listen at that this machine does not have.
fn absent(config: &Config) -> impl Iterator<Item = String> {
    let of_cluster = config.cluster.listen.iter().map(|address| ("cluster.listen", *address));
    let of_api = config.api.iter().filter_map(|listener| match listener {
        ApiListener::Tcp(address) => Some(("api.listen", *address)),
        ApiListener::Unix(_) => None,
    });
    // Any port will do: the one that is configured may be in use by the lbd that runs.
    let is_absent = |(_, address): &(&str, SocketAddr)| {
        let mut any_port = *address;
        any_port.set_port(0);
        let bound = TcpListener::bind(any_port);
        bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrNotAvailable)
    };
    let of_metrics = config.metrics.iter().map(|metrics| ("metrics.listen", metrics.listen));
    of_cluster
        .chain(of_api)
        .chain(of_metrics)
        .filter(is_absent)
        .map(|(key, address)| format!("{key}: no interface has the address {}", address.ip()))
}

/// What is wrong with the certificate and what belongs to it.
fn files(config: &Config) -> Vec<String> {
    let user = match User::to_become(config.user.as_deref()) {
        Ok(user) => user,
        Err(error) => return vec![error.to_string()],
    };
    let paths = config.tls.paths.as_ref();
    if let Err(error) = Security::load(paths, &config.cluster.name, &config.name) {
        return vec![format!("tls: {error}")];
    }
    // Root reads all; whom it becomes does not.
    let (Some(user), Some(paths)) = (user, paths) else { return Vec::new() };
    let files = [&paths.cert, &paths.key, &paths.ca].into_iter().chain(&paths.crl);
    let told = |path: &PathBuf| {
        let (name, path) = (user.name(), path.display());
        format!(
            "tls: {path} cannot be read by the user {name}, whom lbd becomes: chown {name} {path}, and let it into the directory"
        )
    };
    files.filter(|path| !user.may_read(path)).map(told).collect()
}
