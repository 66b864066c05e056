//! `lbctl explain`, `lbctl flows`.

use std::{fs::File, net::IpAddr, path::Path};

use lb_proto::{label, v1};

use super::pcap;
use crate::{
    cli::{Destination, Endpoint, Explain, Format},
    exit::Failure,
    output::{self, Summary as _},
    session::Session,
};

pub(super) async fn explain(session: &Session, what: Explain) -> Result<(), Failure> {
    let questions = match (what.source, what.destination, &what.pcap) {
        (_, _, Some(file)) => frames(file)?,
        (Some(Endpoint(source)), Some(Destination(destination, protocol)), None) => vec![v1::ExplainRequest {
            source: source.to_string(),
            destination: destination.to_string(),
            protocol: protocol.into(),
            frame: Vec::new(),
        }],
        _ => return Err(Failure::Usage("name SRC:PORT and DST:PORT/PROTO, or --pcap FILE".to_owned())),
    };
    let many = what.pcap.is_some();
    let mut explained = Vec::with_capacity(questions.len());
    for question in questions {
        let mut client = session.node();
        let answer = session.read(question, |request| async move { client.explain(request).await }).await?;
        explained.push(answer);
    }
    match (session.format(), explained.as_slice()) {
        (Format::Table | Format::Wide, [one]) if !many => {
            output::print(&one.summary())?;
            if one.verdict == NO_BACKEND { unavailable(session, &one.service).await } else { Ok(()) }
        }
        (format, all) => output::list(format, "explanations", all),
    }
}

/// The verdict on a packet for which no backend can be chosen, as a transcript holds.
const NO_BACKEND: &str = "no_backend";

/// Why a service has no backend for a new flow.
async fn unavailable(session: &Session, service: &str) -> Result<(), Failure> {
    let request = v1::ListBackendsRequest { service: service.to_owned(), ..v1::ListBackendsRequest::default() };
    let backends = session.read_known(request).await?.backends;
    if backends.is_empty() {
        return output::print("because    the service has no backend\n");
    }
    let line = |of: &v1::Backend| {
        let (state, health) = (label::<v1::AdminState>(of.state), label::<v1::Health>(of.health));
        let why = if of.health_reason.is_empty() { String::new() } else { format!(": {}", of.health_reason) };
        format!("because    {} is {state}, weighs {} and is {health}{why}\n", of.address, of.weight())
    };
    output::print(&backends.iter().map(line).collect::<String>())
}

/// The frames of a capture in a file.
fn frames(path: &Path) -> Result<Vec<v1::ExplainRequest>, Failure> {
    let wrong = |problem: String| Failure::of_file(path, problem);
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    let frames = pcap::frames_of(file).map_err(wrong)?;
    Ok(frames.into_iter().map(|frame| v1::ExplainRequest { frame, ..v1::ExplainRequest::default() }).collect())
}

pub(super) async fn flows(session: &Session, vip: Option<IpAddr>, backend: Option<IpAddr>) -> Result<(), Failure> {
    let text = |address: Option<IpAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    let request = v1::ListFlowsRequest { vip: text(vip), backend: text(backend) };
    let mut client = session.node();
    let mut pieces = session.read(request, |request| async move { client.list_flows(request).await }).await?;
    let mut flows = Vec::new();
    while let Some(piece) = pieces.message().await.map_err(|status| Failure::from_status(&status, None))? {
        flows.extend(piece.flows);
    }
    output::list(session.format(), "flows", &flows)
}
