//! `lbctl explain`, `lbctl flows`.

use std::{fs::File, net::IpAddr, path::Path};

use lb_proto::v1::{self, node_service_client::NodeServiceClient};
use pcap_file::{DataLink, pcap::PcapReader};

use crate::{
    cli::{Destination, Explain, Format},
    exit::Failure,
    output::{self, views},
    session::{MAX_ANSWER_LEN, Session},
};

pub(super) async fn explain(session: &Session, what: Explain) -> Result<(), Failure> {
    let questions = match (what.source, what.destination, &what.pcap) {
        (_, _, Some(file)) => frames(file)?,
        (Some(source), Some(Destination(destination, protocol)), None) => vec![v1::ExplainRequest {
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
        let mut client = NodeServiceClient::new(session.channel.clone());
        let answer = session.read(question, |request| async move { client.explain(request).await }).await?;
        explained.push(views::Explanation::from(answer));
    }
    match (session.format(), explained.as_slice()) {
        (Format::Table, [one]) if !many => output::print(&one.summary()),
        (format, all) => output::list(format, "explanations", all),
    }
}

/// The frames of a capture.
fn frames(path: &Path) -> Result<Vec<v1::ExplainRequest>, Failure> {
    let wrong = |problem: String| Failure::Usage(format!("{}: {problem}", path.display()));
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    let unreadable = |error| wrong(format!("{error}; it must be a pcap file, as tcpdump -w writes it"));
    let mut reader = PcapReader::new(file).map_err(unreadable)?;
    if reader.header().datalink != DataLink::ETHERNET {
        return Err(wrong(format!(
            "its frames are {:?}, not Ethernet: capture on an interface",
            reader.header().datalink
        )));
    }
    let mut questions = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.map_err(unreadable)?;
        if (packet.orig_len as usize) > packet.data.len() {
            let (number, kept, whole) = (questions.len() + 1, packet.data.len(), packet.orig_len);
            return Err(wrong(format!(
                "of frame {number} only {kept} of {whole} bytes were captured, and nobody can say what would become of the \
                 whole: capture with tcpdump -s 0"
            )));
        }
        questions.push(v1::ExplainRequest { frame: packet.data.into_owned(), ..v1::ExplainRequest::default() });
    }
    Ok(questions)
}

pub(super) async fn flows(session: &Session, vip: Option<IpAddr>, backend: Option<IpAddr>) -> Result<(), Failure> {
    let text = |address: Option<IpAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    let request = v1::ListFlowsRequest { vip: text(vip), backend: text(backend) };
    let mut client = NodeServiceClient::new(session.channel.clone()).max_decoding_message_size(MAX_ANSWER_LEN);
    let mut pieces = session.read(request, |request| async move { client.list_flows(request).await }).await?;
    let mut flows = Vec::new();
    while let Some(piece) = pieces.message().await.map_err(|status| Failure::from_status(&status, None))? {
        flows.extend(piece.flows.into_iter().map(views::Flow::from));
    }
    output::list(session.format(), "flows", &flows)
}
