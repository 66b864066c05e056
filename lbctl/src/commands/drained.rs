//! Waits until a drained backend has no flows any more, and shows how many there are meanwhile.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use indicatif::ProgressBar;
use lb_proto::v1;

use crate::{
    exit::{Failure, complain},
    output::progress,
    session::Session,
};

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Between two lines where there is no terminal for a bar.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// No longer than that.
pub(super) async fn wait_for(
    session: &Session,
    service: &str,
    address: IpAddr,
    within: Duration,
) -> Result<(), Failure> {
    let drained = tokio::time::timeout(within, wait(session, service, address)).await;
    let which = if service.is_empty() { address.to_string() } else { format!("{service} {address}") };
    drained.unwrap_or_else(|_| Err(Failure::late(within, &format!("backend {which} still has flows"))))
}

/// `service`: empty for all of them.
pub(super) async fn wait(session: &Session, service: &str, address: IpAddr) -> Result<(), Failure> {
    // It clears itself when it is dropped, however this ends.
    let mut bar: Option<ProgressBar> = None;
    let (mut told, mut is_known): (Option<Instant>, bool) = (None, false);
    loop {
        let request = v1::ListBackendsRequest {
            service: service.to_owned(),
            address: address.to_string(),
            with_flows: true,
            ..v1::ListBackendsRequest::default()
        };
        let mut client = session.table();
        let answer = session.read(request, |request| async move { client.list_backends(request).await }).await?;
        if answer.backends.is_empty() {
            if is_known {
                drop(bar);
                eprintln!("{address} is no backend any more");
                return Ok(());
            }
            let of =
                if service.is_empty() { "no service has the".to_owned() } else { format!("service {service} has no") };
            return Err(Failure::Refused(format!("{of} backend {address}: 'lbctl backend list' shows them")));
        }
        is_known = true;
        if let Some(active) = answer.backends.iter().find(|backend| backend.state() == v1::AdminState::Active) {
            let service = &active.service;
            return Err(Failure::Refused(format!(
                "backend {service} {address} is not drained, and takes new flows: 'lbctl backend drain {service} {address}'"
            )));
        }
        let draining = answer.backends.iter().filter(|backend| backend.drain_ends_s.is_some());
        let left: u64 = draining.clone().filter_map(|backend| backend.flows).sum();
        let ends_s = draining.filter_map(|backend| backend.drain_ends_s).max();
        let Some(ends_s) = ends_s.filter(|_| left > 0) else {
            let told = match answer.silent_nodes.as_slice() {
                [] => format!("{address} has no flows any more"),
                silent => {
                    format!("{address} has no flows any more on the nodes that answer; not on {}", silent.join(", "))
                }
            };
            drop(bar);
            eprintln!("{told}");
            return Ok(());
        };
        let bar = bar.get_or_insert_with(|| progress::bar("draining", left));
        bar.set_position(bar.length().unwrap_or(left).saturating_sub(left));
        let most = humantime::format_duration(Duration::from_secs(ends_s));
        bar.set_message(format!("{left} flows left, for {most} at most"));
        if bar.is_hidden() && told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            complain(&format!("{left} flows left, for {most} at most..."));
            told = Some(Instant::now());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
