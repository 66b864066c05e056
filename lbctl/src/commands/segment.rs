//! `lbctl segment`.

use lb_proto::v1;

use crate::{cli::SegmentCommand, exit::Failure, output, session::Session};

pub(super) async fn run(session: &Session, command: SegmentCommand) -> Result<(), Failure> {
    let mut client = session.table();
    let request_id = session.request_id.clone();
    match command {
        SegmentCommand::Add { network, gateway } => {
            let what = format!("segment {network} added");
            let segment = v1::Segment { network, gateway: gateway.to_string(), ..v1::Segment::default() };
            let request = v1::CreateSegmentRequest { request_id, expected_revision: 0, segment: Some(segment) };
            let response =
                session.write(request, |request| async move { client.create_segment(request).await }).await?;
            session.changed(what, response)
        }
        SegmentCommand::Set { network, gateway } => {
            let what = format!("segment {network} set");
            let gateway = Some(gateway.to_string());
            let request = v1::UpdateSegmentRequest { request_id, network, gateway, ..Default::default() };
            let response =
                session.write(request, |request| async move { client.update_segment(request).await }).await?;
            session.changed(what, response)
        }
        SegmentCommand::Remove { network } => {
            let what = format!("segment {network} removed");
            let request = v1::DeleteSegmentRequest { request_id, expected_revision: 0, network };
            let response =
                session.write(request, |request| async move { client.delete_segment(request).await }).await?;
            session.removed(what, response)
        }
        SegmentCommand::List => {
            let response = session.read_known(v1::ListSegmentsRequest::default()).await?;
            output::list(session.format(), "segments", &response.segments)
        }
    }
}
