//! `lbctl explain`, `lbctl flows`.

use std::{fs::File, io::Read, net::IpAddr, path::Path};

use lb_proto::v1::{self, node_service_client::NodeServiceClient};
use pcap_file::{DataLink, PcapError, pcap::PcapReader};

use crate::{
    cli::{Destination, Explain, Format},
    exit::Failure,
    output::{self, Summary as _},
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
        explained.push(answer);
    }
    match (session.format(), explained.as_slice()) {
        (Format::Table, [one]) if !many => output::print(&one.summary()),
        (format, all) => output::list(format, "explanations", all),
    }
}

/// The frames of a capture in a file.
fn frames(path: &Path) -> Result<Vec<v1::ExplainRequest>, Failure> {
    let wrong = |problem: String| Failure::Usage(format!("{}: {problem}", path.display()));
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    let frames = frames_of(file).map_err(wrong)?;
    Ok(frames.into_iter().map(|frame| v1::ExplainRequest { frame, ..v1::ExplainRequest::default() }).collect())
}

/// The frames of a capture, or what is wrong with it.
fn frames_of(capture: impl Read) -> Result<Vec<Vec<u8>>, String> {
    let unreadable = |error: PcapError| format!("{error}; it must be a pcap file, as tcpdump -w writes it");
    let mut reader = PcapReader::new(capture).map_err(unreadable)?;
    let datalink = reader.header().datalink;
    if datalink != DataLink::ETHERNET {
        return Err(format!("its frames are {datalink:?}, not Ethernet: capture on an interface"));
    }
    let mut frames = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.map_err(unreadable)?;
        let (kept, whole) = (packet.data.len(), packet.orig_len as usize);
        if whole > kept {
            return Err(format!(
                "of frame {} only {kept} of {whole} bytes were captured, and nobody can say what would become of the \
                 whole: capture with tcpdump -s 0",
                frames.len() + 1
            ));
        }
        frames.push(packet.data.into_owned());
    }
    Ok(frames)
}

pub(super) async fn flows(session: &Session, vip: Option<IpAddr>, backend: Option<IpAddr>) -> Result<(), Failure> {
    let text = |address: Option<IpAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    let request = v1::ListFlowsRequest { vip: text(vip), backend: text(backend) };
    let mut client = NodeServiceClient::new(session.channel.clone()).max_decoding_message_size(MAX_ANSWER_LEN);
    let mut pieces = session.read(request, |request| async move { client.list_flows(request).await }).await?;
    let mut flows = Vec::new();
    while let Some(piece) = pieces.message().await.map_err(|status| Failure::from_status(&status, None))? {
        flows.extend(piece.flows);
    }
    output::list(session.format(), "flows", &flows)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A capture of two frames, as tcpdump writes it: pcap-savefile(5).
    fn capture() -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1] {
            bytes.extend(u32::to_le_bytes(word));
        }
        for frame in [[1u8; 60], [2; 60]] {
            for word in [1, 0, 60, 60] {
                bytes.extend(u32::to_le_bytes(word));
            }
            bytes.extend(frame);
        }
        bytes
    }

    /// What a capture holds is read or refused, whatever it is. For longer:
    /// `cargo bolero test -p lbctl commands::explain::tests::captures_are_read_or_refused`.
    #[test]
    fn captures_are_read_or_refused() {
        let sound = capture();
        assert_eq!(frames_of(&sound[..]), Ok(vec![vec![1; 60], vec![2; 60]]));
        bolero::check!().for_each(|input: &[u8]| {
            drop(frames_of(input));
            // And one in which some bytes are others.
            let mut changed = sound.clone();
            for change in input.chunks_exact(2) {
                let at = usize::from(change[0]) % changed.len();
                changed[at] = change[1];
            }
            drop(frames_of(&changed[..]));
        });
    }
}
