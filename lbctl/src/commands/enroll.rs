//! `lbctl node token` and `lbctl node join`: a certificate for a new machine. They need no cluster.

use std::{
    io::{self, BufRead as _},
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use tokio::net::TcpListener;

use crate::{
    authority::Wanted,
    enroll::{self, Joined, Served, Token},
    exit::{Failure, complain},
    output,
};

pub(super) async fn token(
    dir: &Path,
    wanted: &Wanted,
    listen: SocketAddr,
    (address, valid): (Option<String>, Duration),
) -> Result<(), Failure> {
    let listener = TcpListener::bind(listen).await;
    let listener = listener.map_err(|error| Failure::Usage(format!("--listen {listen}: {error}")))?;
    let bound = listener.local_addr().map_err(|error| Failure::Usage(format!("--listen {listen}: {error}")))?;
    if bound.ip().is_unspecified() && address.is_none() {
        return Err(Failure::Usage(format!(
            "--listen {listen}: say by --address HOST:PORT where the new machine finds this one"
        )));
    }
    let address = address.unwrap_or_else(|| bound.to_string());
    let until = humantime::format_duration(valid);
    let tell = |token: &Token| {
        output::print(&format!("{token}\n"))?;
        complain(&format!("on the machine of {}: lbctl node join TOKEN", wanted.name));
        complain(&format!("waiting for it at {listen} for {until}; the token works once"));
        Ok(())
    };
    match enroll::serve(dir, wanted, listener, (address, valid), tell).await? {
        Served::Issued(from) => {
            let name = &wanted.name;
            complain(&format!("{name} at {from} has its certificate. When lbd runs there: lbctl node add {name} ADDR"));
            Ok(())
        }
        Served::Expired => Err(Failure::Refused(format!(
            "nobody came with the token within {until}: it works no more; 'lbctl node token {}' makes another one",
            wanted.name
        ))),
    }
}

pub(super) async fn join(token: &str, out: &Path) -> Result<(), Failure> {
    let mut line = token.to_owned();
    if token == "-" {
        line.clear();
        io::stdin().lock().read_line(&mut line).map_err(|error| Failure::Usage(format!("standard input: {error}")))?;
    }
    let token: Token = line.parse().map_err(|problem: &str| Failure::Usage(problem.to_owned()))?;
    complain(&format!("asking {} for the certificate of {}...", token.address, token.name));
    let Joined { identity, paths } = enroll::join(&token, out).await?;
    complain(&format!(
        "this machine is {identity}. This is for /etc/lbd/lbd.toml, whose node.name is {:?}:",
        token.name
    ));
    let crl = paths.crl.map(|crl| format!("crl  = {crl:?}\n")).unwrap_or_default();
    let (cert, key, ca) = (paths.cert, paths.key, paths.ca);
    output::print(&format!("[tls]\ncert = {cert:?}\nkey  = {key:?}\nca   = {ca:?}\n{crl}"))?;
    complain(&format!("when lbd runs: lbctl node add {} ADDR, on a node of the cluster", token.name));
    Ok(())
}
