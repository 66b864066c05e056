//! `lbctl service`.

use lb_proto::v1;

use crate::{
    cli::{Affinity, Check, OnAllDown, OnBackendDown, Port, ServiceCommand},
    exit::Failure,
    output,
    session::Session,
};

pub(super) async fn run(session: &Session, command: ServiceCommand) -> Result<(), Failure> {
    let mut client = session.table();
    let request_id = session.request_id.clone();
    match command {
        ServiceCommand::Add { name, vip, ports, affinity, table_size, options } => {
            let what = format!("service {name} added");
            let service = v1::Service {
                name,
                vip: vip.to_string(),
                ports: ranges(&ports),
                affinity: affinity.map_or(0, number),
                table_size: table_size.unwrap_or(0),
                checks: check_list(&options.checks)?,
                check_interval_ms: options.check_interval.unwrap_or(0),
                check_timeout_ms: options.check_timeout.unwrap_or(0),
                check_jitter_percent: options.check_jitter.unwrap_or(0),
                rise: options.rise.unwrap_or(0),
                fall: options.fall.unwrap_or(0),
                drain_timeout_s: options.drain_timeout.unwrap_or(0),
                slow_start_s: options.slow_start.unwrap_or(0),
                min_healthy: options.min_healthy.unwrap_or(0),
                on_all_down: options.on_all_down.map_or(0, on_all_down),
                on_backend_down: options.on_backend_down.map_or(0, on_backend_down),
                ..v1::Service::default()
            };
            let request = v1::CreateServiceRequest { request_id, expected_revision: 0, service: Some(service) };
            let response =
                session.write(request, |request| async move { client.create_service(request).await }).await?;
            session.changed(what, response)
        }
        ServiceCommand::Set { name, ports, affinity, options } => {
            let what = format!("service {name} set");
            let nothing = v1::UpdateServiceRequest { request_id, name, ..v1::UpdateServiceRequest::default() };
            let request = v1::UpdateServiceRequest {
                ports: ranges(&ports),
                affinity: affinity.map(number),
                min_healthy: options.min_healthy,
                on_all_down: options.on_all_down.map(on_all_down),
                checks: check_list(&options.checks)?,
                check_interval_ms: options.check_interval,
                check_timeout_ms: options.check_timeout,
                check_jitter_percent: options.check_jitter,
                rise: options.rise,
                fall: options.fall,
                drain_timeout_s: options.drain_timeout,
                slow_start_s: options.slow_start,
                on_backend_down: options.on_backend_down.map(on_backend_down),
                ..nothing.clone()
            };
            if request == nothing {
                return Err(Failure::Usage(
                    "nothing to change: say --port, --affinity, --check or another setting ('lbctl service set --help')"
                        .to_owned(),
                ));
            }
            let response =
                session.write(request, |request| async move { client.update_service(request).await }).await?;
            session.changed(what, response)
        }
        ServiceCommand::Remove { name, cascade } => {
            let what = format!("service {name} removed");
            let request = v1::DeleteServiceRequest { request_id, expected_revision: 0, name, cascade };
            let response =
                session.write(request, |request| async move { client.delete_service(request).await }).await?;
            session.removed(what, response)
        }
        ServiceCommand::List => {
            let response = session.read_known(v1::ListServicesRequest::default()).await?;
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

/// `None` where nothing is said.
fn check_list(checks: &[Check]) -> Result<Option<v1::CheckList>, Failure> {
    let some: Vec<v1::Check> = checks.iter().filter_map(|check| check.0.clone()).collect();
    match (checks.len(), some.len()) {
        (0, _) => Ok(None),
        (_, 0) => Ok(Some(v1::CheckList::default())),
        (all, some) if all > some => Err(Failure::Usage("--check none stands alone".to_owned())),
        _ => Ok(Some(v1::CheckList { checks: some })),
    }
}

fn on_backend_down(what: OnBackendDown) -> i32 {
    match what {
        OnBackendDown::Reselect => v1::OnBackendDown::Reselect.into(),
        OnBackendDown::Reset => v1::OnBackendDown::Reset.into(),
    }
}

fn on_all_down(what: OnAllDown) -> i32 {
    match what {
        OnAllDown::Drop => v1::OnAllDown::Drop.into(),
        OnAllDown::FailOpen => v1::OnAllDown::FailOpen.into(),
    }
}
