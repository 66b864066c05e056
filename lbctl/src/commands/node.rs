//! `lbctl node`.

use std::{convert::Infallible, time::Duration};

use lb_proto::v1::{self, cluster_service_client::ClusterServiceClient};

use crate::{
    cli::{NodeCommand, Role},
    exit::{Failure, complain},
    output::{self, Change},
    session::{MAX_ANSWER_LEN, Session},
};

pub(super) async fn run(session: &Session, command: NodeCommand) -> Result<(), Failure> {
    let mut client = ClusterServiceClient::new(session.channel.clone()).max_decoding_message_size(MAX_ANSWER_LEN);
    let change = |what: String, revision, unchanged| {
        output::change(session.format(), &Change { what, revision, unchanged, ..Change::default() })
    };
    match command {
        NodeCommand::Add { name, address, role } => {
            let role = match role {
                Role::Lb => v1::Role::Lb,
                Role::Witness => v1::Role::Witness,
            };
            complain(&format!("asking {address}..."));
            let what = format!("node {name} added, it votes");
            let request_id = session.request_id.clone();
            let progress = progress(session, name.clone(), address.clone());
            let request = v1::AddNodeRequest { name, address, role: role.into(), request_id, expected_revision: 0 };
            let adding = session.write(request, |request| async move { client.add_node(request).await });
            let added = tokio::select! {
                added = adding => added?,
                never = progress => match never {},
            };
            change(what, added.revision, added.unchanged)
        }
        NodeCommand::Remove { name, force } => {
            let what = format!("node {name} removed");
            let request =
                v1::RemoveNodeRequest { name, force, request_id: session.request_id.clone(), expected_revision: 0 };
            let removed = session.write(request, |request| async move { client.remove_node(request).await }).await?;
            let (revision, unchanged) = (removed.revision, removed.unchanged);
            output::change(session.format(), &Change { what, revision, unchanged, removes: true, ..Change::default() })
        }
        NodeCommand::Drain { name } => {
            let what = format!("node {name} drained");
            let request = v1::DrainNodeRequest { name, request_id: session.request_id.clone(), expected_revision: 0 };
            let drained = session.write(request, |request| async move { client.drain_node(request).await }).await?;
            change(what, drained.revision, drained.unchanged)
        }
        NodeCommand::Undrain { name } => {
            let what = format!("node {name} may own VIPs again");
            let request = v1::UndrainNodeRequest { name, request_id: session.request_id.clone(), expected_revision: 0 };
            let undrained = session.write(request, |request| async move { client.undrain_node(request).await }).await?;
            change(what, undrained.revision, undrained.unchanged)
        }
        NodeCommand::Set { name, address } => {
            let what = format!("node {name} is reached at {address}");
            let request_id = session.request_id.clone();
            let request = v1::SetNodeAddressRequest { request_id, name, address, expected_revision: 0 };
            let set = session.write(request, |request| async move { client.set_node_address(request).await }).await?;
            change(what, set.revision, set.unchanged)
        }
        NodeCommand::Fence { name, i_know_it_is_off } => {
            let what = format!("the lease of node {name} is ended");
            let request_id = session.request_id.clone();
            let request = v1::FenceNodeRequest { request_id, name, i_know_it_is_off, expected_revision: 0 };
            let fenced = session.write(request, |request| async move { client.fence_node(request).await }).await?;
            change(what, fenced.revision, fenced.unchanged)
        }
        // They need no cluster, and have been run before one was looked for.
        NodeCommand::Token { .. } | NodeCommand::Join { .. } => Ok(()),
        NodeCommand::List => {
            let request = v1::GetStatusRequest { brief: true, with_versions: true, local: false };
            let status = session.status_by(request).await?;
            if status.stale {
                complain(&format!("lbctl: warning: no majority confirmed this; it is what {} knew last", status.node));
            }
            output::list(session.format(), "nodes", &status.nodes)
        }
    }
}

/// Between two looks at a node that is being added.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Tells how far a node that is being added has come.
async fn progress(session: &Session, name: String, address: String) -> Infallible {
    let mut told = "";
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let mut client = ClusterServiceClient::new(session.channel.clone()).max_decoding_message_size(MAX_ANSWER_LEN);
        let Ok(status) =
            client.get_status(v1::GetStatusRequest { brief: true, ..v1::GetStatusRequest::default() }).await
        else {
            continue;
        };
        let stage =
            match status.into_inner().nodes.into_iter().find(|node| node.name == name && node.address == address) {
                None => "it is not known yet",
                Some(node) if !node.voter => "it is known; the table is copied to it",
                Some(node) if !node.ready => "it votes; it opens its lease",
                Some(_) => "it votes and may own VIPs",
            };
        if stage != told {
            complain(&format!("{stage}..."));
            told = stage;
        }
    }
}
