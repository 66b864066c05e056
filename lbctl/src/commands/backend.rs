//! `lbctl backend`.

use std::net::IpAddr;

use lb_proto::v1;

use super::drained;
use crate::{
    cli::{BackendCommand, BackendName, BackendNames, State},
    exit::Failure,
    output,
    session::{Session, none_is_empty},
};

pub(super) async fn run(session: &Session, command: BackendCommand) -> Result<(), Failure> {
    let mut client = session.table();
    let request_id = session.request_id.clone();
    match command {
        BackendCommand::Add { service, ip, options } => {
            let what = format!("backend {ip} added to {service}");
            let backend = v1::Backend {
                service,
                address: ip.to_string(),
                weight: options.weight,
                mac: none_is_empty(options.mac).unwrap_or_default(),
                state: options.state.map_or(0, number),
                tier: options.tier.unwrap_or(0),
                ..v1::Backend::default()
            };
            let request = v1::CreateBackendRequest { request_id, expected_revision: 0, backend: Some(backend) };
            let response =
                session.write(request, |request| async move { client.create_backend(request).await }).await?;
            session.changed(what, response)
        }
        BackendCommand::Set { service, ip, options } => {
            let nothing = update(session, &BackendName { service, ip });
            let request = v1::UpdateBackendRequest {
                weight: options.weight,
                mac: none_is_empty(options.mac),
                state: options.state.map(number),
                tier: options.tier,
                ..nothing.clone()
            };
            if request == nothing {
                return Err(Failure::Usage("nothing to change: say --weight, --mac, --state or --tier".to_owned()));
            }
            set(session, request, "set").await
        }
        BackendCommand::Drain { names, wait } => {
            let (service, address) = (names.service.clone().unwrap_or_default(), names.all_services.or(names.ip));
            set_state(session, names, State::Drain, "draining").await?;
            match address.filter(|_| wait) {
                Some(address) => match session.global.timeout {
                    Some(within) => drained::wait_for(session, &service, address, within).await,
                    None => drained::wait(session, &service, address).await,
                },
                None => Ok(()),
            }
        }
        BackendCommand::Enable(names) => set_state(session, names, State::Active, "enabled").await,
        BackendCommand::Disable(names) => set_state(session, names, State::Down, "disabled").await,
        BackendCommand::Remove(BackendName { service, ip }) => {
            let what = format!("backend {ip} removed from {service}");
            let mut of_service = client.clone();
            let get = v1::GetServiceRequest { name: service.clone(), ..v1::GetServiceRequest::default() };
            let request =
                v1::DeleteBackendRequest { request_id, expected_revision: 0, service, address: ip.to_string() };
            let response =
                session.write(request, |request| async move { client.delete_backend(request).await }).await?;
            if response.unchanged {
                // That there is none is as good as removed, unless its service was misspelt.
                session.read(get, |request| async move { of_service.get_service(request).await }).await?;
            }
            session.removed(what, response)
        }
        BackendCommand::List { service, no_flows } => {
            let request = v1::ListBackendsRequest {
                service: service.unwrap_or_default(),
                with_flows: !no_flows,
                ..v1::ListBackendsRequest::default()
            };
            let response = session.read_known(request).await?;
            for silent in &response.silent_nodes {
                eprintln!("the flows of a node are not counted: {silent}");
            }
            output::list(session.format(), "backends", &response.backends)
        }
    }
}

async fn set_state(session: &Session, names: BackendNames, state: State, done: &str) -> Result<(), Failure> {
    let state = Some(number(state));
    match names {
        BackendNames { all_services: Some(ip), .. } => set_state_of_all(session, ip, state, done).await,
        BackendNames { service: Some(service), ip: Some(ip), .. } => {
            let request = v1::UpdateBackendRequest { state, ..update(session, &BackendName { service, ip }) };
            set(session, request, done).await
        }
        _ => Err(Failure::Usage("name a service and a backend, or --all-services IP".to_owned())),
    }
}

/// One machine in all its services, in one transaction.
async fn set_state_of_all(session: &Session, ip: IpAddr, state: Option<i32>, done: &str) -> Result<(), Failure> {
    let mut client = session.table();
    let request = v1::ListBackendsRequest { address: ip.to_string(), ..v1::ListBackendsRequest::default() };
    let mut lister = client.clone();
    let of = session.read(request, |request| async move { lister.list_backends(request).await }).await?.backends;
    if of.is_empty() {
        return Err(Failure::Refused(format!("no service has a backend {ip}: 'lbctl backend list' shows them")));
    }
    let services: Vec<String> = of.iter().map(|backend| backend.service.clone()).collect();
    let change = |service: String| {
        let address = ip.to_string();
        let update = v1::UpdateBackendRequest { service, address, state, ..v1::UpdateBackendRequest::default() };
        v1::Mutation { change: Some(v1::mutation::Change::UpdateBackend(update)) }
    };
    let what = format!("backend {ip} of {} {done}", services.join(", "));
    let mutations = services.into_iter().map(change).collect();
    let request_id = session.request_id.clone();
    let request = v1::ApplyRequest { request_id, mutations, ..v1::ApplyRequest::default() };
    let response = session.write(request, |request| async move { client.apply(request).await }).await?;
    session.changed(what, response)
}

async fn set(session: &Session, request: v1::UpdateBackendRequest, done: &str) -> Result<(), Failure> {
    let mut client = session.table();
    let what = format!("backend {} of {} {done}", request.address, request.service);
    let response = session.write(request, |request| async move { client.update_backend(request).await }).await?;
    session.changed(what, response)
}

/// An update that changes nothing yet.
fn update(session: &Session, name: &BackendName) -> v1::UpdateBackendRequest {
    v1::UpdateBackendRequest {
        request_id: session.request_id.clone(),
        service: name.service.clone(),
        address: name.ip.to_string(),
        ..v1::UpdateBackendRequest::default()
    }
}

fn number(state: State) -> i32 {
    match state {
        State::Active => v1::AdminState::Active.into(),
        State::Drain => v1::AdminState::Drain.into(),
        State::Down => v1::AdminState::Down.into(),
    }
}
