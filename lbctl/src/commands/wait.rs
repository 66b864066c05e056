//! `lbctl wait`: returns when something is so.

use std::time::Duration;

use lb_proto::{label, v1};
use tokio::time::Instant;

use super::drained;
use crate::{
    cli::WaitFor,
    exit::{Failure, complain},
    session::Session,
};

const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) async fn run(session: &Session, what: WaitFor) -> Result<(), Failure> {
    let within = session.global.timeout();
    let deadline = Instant::now() + within;
    if let WaitFor::Drained { service, ip } = &what {
        return drained::wait_for(session, service, *ip, within).await;
    }
    let mut told = String::new();
    loop {
        let Some(missing) = missing(session, &what).await? else { return Ok(()) };
        if Instant::now() + LOOK_EVERY > deadline {
            return Err(Failure::late(within, &missing));
        }
        if missing != told {
            complain(&format!("{missing}..."));
            told = missing;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What is not so yet.
async fn missing(session: &Session, what: &WaitFor) -> Result<Option<String>, Failure> {
    let mut table = session.table();
    match what {
        WaitFor::Drained { .. } => Ok(None),
        WaitFor::Owned { ip, by } => {
            let request = v1::GetVipRequest { address: ip.to_string(), ..v1::GetVipRequest::default() };
            let vip = session.read(request, |request| async move { table.get_vip(request).await }).await?;
            let owner = vip.vip.unwrap_or_default().owner;
            Ok(match by {
                _ if owner.is_empty() => Some(format!("vip {ip} has no owner")),
                Some(by) if *by != owner => Some(format!("vip {ip} is owned by {owner}")),
                _ => None,
            })
        }
        WaitFor::Healthy { service, ip } => {
            let mut client = table.clone();
            let request = v1::GetServiceRequest { name: service.clone(), ..v1::GetServiceRequest::default() };
            let of = session.read(request, |request| async move { client.get_service(request).await }).await?;
            let checks = of.service.and_then(|service| service.checks).unwrap_or_default().checks;
            let request = v1::ListBackendsRequest {
                service: service.clone(),
                address: ip.map(|ip| ip.to_string()).unwrap_or_default(),
                ..v1::ListBackendsRequest::default()
            };
            let backends = session.read_all(request).await?.backends;
            // Where nothing is asked, nothing speaks against it at best.
            let good = |of: &v1::Backend| {
                of.health() == v1::Health::Healthy || (checks.is_empty() && of.health() == v1::Health::Unchecked)
            };
            Ok(match backends.iter().find(|of| !good(of)) {
                None if backends.is_empty() => Some(match ip {
                    Some(ip) => format!("service {service} has no backend {ip}"),
                    None => format!("service {service} has no backend"),
                }),
                None => None,
                Some(of) => {
                    let why =
                        if of.health_reason.is_empty() { String::new() } else { format!(": {}", of.health_reason) };
                    Some(format!("backend {service} {} is {}{why}", of.address, label::<v1::Health>(of.health)))
                }
            })
        }
        WaitFor::Member { name } => {
            let status = session.status(true).await?;
            Ok(match status.nodes.into_iter().find(|node| node.name == *name) {
                None => Some(format!("there is no node {name}")),
                Some(node) if !node.voter => Some(format!("node {name} does not vote yet")),
                Some(node) if node.role() == v1::Role::Witness || node.ready => None,
                Some(node) if node.unfit.is_empty() => Some(format!("node {name} has no lease yet")),
                Some(node) => Some(format!("node {name} can own no VIP: {}", node.unfit)),
            })
        }
    }
}
