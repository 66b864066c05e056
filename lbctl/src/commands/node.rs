//! `lbctl node`.

use lb_proto::v1::{self, cluster_service_client::ClusterServiceClient};

use super::{MAX_ANSWER_LEN, Session};
use crate::{
    cli::{NodeCommand, Role},
    exit::Failure,
    output::{self, Change, views},
};

pub(super) async fn run(session: &Session, command: NodeCommand) -> Result<(), Failure> {
    let mut client = ClusterServiceClient::new(session.channel.clone()).max_decoding_message_size(MAX_ANSWER_LEN);
    let change = |what: String, revision, unchanged| {
        output::change(session.format(), &Change { what, revision, unchanged, request_id: String::new() })
    };
    match command {
        NodeCommand::Add { name, address, role } => {
            let role = match role {
                Role::Lb => v1::Role::Lb,
                Role::Witness => v1::Role::Witness,
            };
            eprintln!("asking {address}, copying the table, making it a voter...");
            let what = format!("node {name} added, it votes");
            let request_id = session.request_id.clone();
            let request = v1::AddNodeRequest { name, address, role: role.into(), request_id, expected_revision: 0 };
            let added = session.write(request, |request| async move { client.add_node(request).await }).await?;
            change(what, added.revision, added.unchanged)
        }
        NodeCommand::Remove { name, force } => {
            let what = format!("node {name} removed");
            let request =
                v1::RemoveNodeRequest { name, force, request_id: session.request_id.clone(), expected_revision: 0 };
            let removed = session.write(request, |request| async move { client.remove_node(request).await }).await?;
            change(what, removed.revision, removed.unchanged)
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
        NodeCommand::List => {
            let request = v1::GetStatusRequest { local: false };
            let status = session.read(request, |request| async move { client.get_status(request).await }).await?;
            if status.stale {
                eprintln!("lbctl: warning: no majority confirmed this; it is what {} knew last", status.node);
            }
            let nodes: Vec<views::Node> = status.nodes.into_iter().map(Into::into).collect();
            output::list(session.format(), "nodes", &nodes)
        }
    }
}
