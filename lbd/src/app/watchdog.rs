//! systemd's watchdog (sd_watchdog_enabled(3)): it is fed only while the workers, the heartbeat and the tasks that follow
//! the log all show themselves. When it starves, systemd tells the parent, which ends this process and sends the obituary.

use std::time::Duration;

use lb_dataplane::boottime_ns;

use crate::ownership::Fitness;

/// Runs until it is aborted.
pub(super) async fn feed(fitness: Fitness) {
    // Set for the parent, whose process id WATCHDOG_PID holds; this process feeds it (NotifyAccess=all).
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::os::unix::process::parent_id()));
    let timeout_us = number("WATCHDOG_USEC").filter(|timeout_us| *timeout_us >= 3 && is_ours);
    let Some(timeout) = timeout_us.map(Duration::from_micros) else { return std::future::pending().await };
    let mut feed = tokio::time::interval(timeout / 3);
    let mut hung = None;
    loop {
        feed.tick().await;
        let hangs = fitness.hangs(boottime_ns());
        match &hangs {
            None => drop(sd_notify::notify(&[sd_notify::NotifyState::Watchdog])),
            Some(part) if hung.is_none() => {
                tracing::error!("{part} has stopped: unless it goes on, the watchdog ends this process in {timeout:?}");
            }
            Some(_) => {}
        }
        hung = hangs;
    }
}
