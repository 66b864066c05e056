//! Waits until a drained backend has no flows any more, and shows how many there are meanwhile.

use std::{net::IpAddr, time::Duration};

use indicatif::ProgressBar;
use lb_proto::v1;

use crate::{exit::Failure, output::progress, session::Session};

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// `service`: empty for all of them.
pub(super) async fn wait(session: &Session, service: &str, address: IpAddr) -> Result<(), Failure> {
    let mut bar: Option<ProgressBar> = None;
    loop {
        let request = v1::ListBackendsRequest {
            service: service.to_owned(),
            address: address.to_string(),
            with_flows: true,
            ..v1::ListBackendsRequest::default()
        };
        let mut client = session.table();
        let answer = session.read(request, |request| async move { client.list_backends(request).await }).await?;
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
            bar.iter().for_each(ProgressBar::finish_and_clear);
            eprintln!("{told}");
            return Ok(());
        };
        let bar = bar.get_or_insert_with(|| progress::bar("draining", left));
        bar.set_position(bar.length().unwrap_or(left).saturating_sub(left));
        bar.set_message(format!(
            "{left} flows left, for {} at most",
            humantime::format_duration(Duration::from_secs(ends_s))
        ));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
