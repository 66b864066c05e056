//! `lbctl explain`, `lbctl flows`.

use std::{fs::File, net::IpAddr, path::Path};

use lb_proto::v1;

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
        (Format::Table | Format::Wide, [one]) if !many => output::print(&one.summary()),
        (format, all) => output::list(format, "explanations", all),
    }
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
