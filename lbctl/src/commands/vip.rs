//! `lbctl vip`.

use lb_proto::v1::{self, cluster_service_client::ClusterServiceClient};

use crate::{
    cli::{Unmatched, VipCommand},
    exit::Failure,
    output::{self, Change},
    session::{MAX_ANSWER_LEN, Session, none_is_empty},
};

pub(super) async fn run(session: &Session, command: VipCommand) -> Result<(), Failure> {
    let mut client = session.table();
    let request_id = session.request_id.clone();
    match command {
        VipCommand::Add { ip, prefer, segment, unmatched } => {
            let vip = v1::Vip {
                address: ip.to_string(),
                prefer: prefer.unwrap_or_default(),
                segment: segment.unwrap_or_default(),
                unmatched: unmatched.map_or(0, number),
                ..v1::Vip::default()
            };
            let request = v1::CreateVipRequest { request_id, expected_revision: 0, vip: Some(vip) };
            let response = session.write(request, |request| async move { client.create_vip(request).await }).await?;
            session.changed(format!("vip {ip} added"), response)
        }
        VipCommand::Set { ip, prefer, segment, unmatched } => {
            let request = v1::UpdateVipRequest {
                request_id,
                expected_revision: 0,
                address: ip.to_string(),
                prefer: none_is_empty(prefer),
                segment: none_is_empty(segment),
                unmatched: unmatched.map(number),
                update_mask: None,
            };
            let response = session.write(request, |request| async move { client.update_vip(request).await }).await?;
            session.changed(format!("vip {ip} set"), response)
        }
        VipCommand::Remove { ip, cascade } => {
            let request = v1::DeleteVipRequest { request_id, expected_revision: 0, address: ip.to_string(), cascade };
            let response = session.write(request, |request| async move { client.delete_vip(request).await }).await?;
            session.removed(format!("vip {ip} removed"), response)
        }
        VipCommand::Move { ip, node } => {
            let mut client =
                ClusterServiceClient::new(session.channel.clone()).max_decoding_message_size(MAX_ANSWER_LEN);
            let what = format!("vip {ip} moved to {node}");
            let request = v1::MoveVipRequest { request_id, address: ip.to_string(), node, expected_revision: 0 };
            let moved = session.write(request, |request| async move { client.move_vip(request).await }).await?;
            let change = Change { what, revision: moved.revision, unchanged: moved.unchanged, ..Change::default() };
            output::change(session.format(), &change)
        }
        VipCommand::Rebalance => {
            let mut client = ClusterServiceClient::new(session.channel.clone());
            let request = v1::RebalanceRequest { request_id: request_id.clone(), expected_revision: 0 };
            let done = session.write(request, |request| async move { client.rebalance(request).await }).await?;
            let what = "vips rebalanced".to_owned();
            let change =
                Change { what, revision: done.revision, unchanged: done.unchanged, request_id, ..Change::default() };
            output::change(session.format(), &change)
        }
        VipCommand::List => {
            let response = session.read_known(v1::ListVipsRequest::default()).await?;
            output::list(session.format(), "vips", &response.vips)
        }
    }
}

fn number(unmatched: Unmatched) -> i32 {
    match unmatched {
        Unmatched::Drop => v1::Unmatched::Drop.into(),
        Unmatched::Reject => v1::Unmatched::Reject.into(),
    }
}
