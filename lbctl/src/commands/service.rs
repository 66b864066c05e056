//! `lbctl service`.

use lb_proto::v1::{self, table_service_client::TableServiceClient};

use crate::{
    cli::{Affinity, Port, ServiceCommand},
    exit::Failure,
    output,
    session::{MAX_ANSWER_LEN, Session},
};

pub(super) async fn run(session: &Session, command: ServiceCommand) -> Result<(), Failure> {
    let mut client = TableServiceClient::new(session.channel.clone()).max_decoding_message_size(MAX_ANSWER_LEN);
    let request_id = session.request_id.clone();
    match command {
        ServiceCommand::Add { name, vip, ports, affinity, table_size, check } => {
            let what = format!("service {name} added");
            let service = v1::Service {
                name,
                vip: vip.to_string(),
                ports: ranges(&ports),
                affinity: affinity.map_or(0, number),
                table_size: table_size.unwrap_or(0),
                check,
                revision: 0,
            };
            let request = v1::CreateServiceRequest { request_id, expected_revision: 0, service: Some(service) };
            let response =
                session.write(request, |request| async move { client.create_service(request).await }).await?;
            session.changed(what, response)
        }
        ServiceCommand::Set { name, ports, affinity } => {
            let what = format!("service {name} set");
            let request = v1::UpdateServiceRequest {
                request_id,
                expected_revision: 0,
                name,
                ports: ranges(&ports),
                affinity: affinity.map(number),
            };
            let response =
                session.write(request, |request| async move { client.update_service(request).await }).await?;
            session.changed(what, response)
        }
        ServiceCommand::Remove { name, cascade } => {
            let what = format!("service {name} removed");
            let request = v1::DeleteServiceRequest { request_id, expected_revision: 0, name, cascade };
            let response =
                session.write(request, |request| async move { client.delete_service(request).await }).await?;
            session.changed(what, response)
        }
        ServiceCommand::List => {
            let request = v1::ListServicesRequest { vip: String::new() };
            let response = session.read(request, |request| async move { client.list_services(request).await }).await?;
            output::list(session.format(), "services", &response.services)
        }
    }
}

fn ranges(ports: &[Port]) -> Vec<v1::PortRange> {
    ports.iter().map(|Port(range)| *range).collect()
}

fn number(affinity: Affinity) -> i32 {
    match affinity {
        Affinity::Flow => v1::Affinity::Flow.into(),
        Affinity::Source => v1::Affinity::Source.into(),
    }
}
