//! SIGHUP: the configuration and the credentials are read again, and what can change under a running node does.

use std::{path::PathBuf, sync::Arc};

use lb_dataplane::{Dataplane, StartError};
use tokio::{signal::unix::Signal, sync::watch};

use crate::config::{self, Config};

/// Reads the file again whenever the signal comes. A file with a fault changes nothing.
pub(crate) async fn reload(
    mut hangup: Signal,
    file: PathBuf,
    started_with: Arc<Config>,
    dataplane: Option<Arc<Dataplane>>,
    credentials: watch::Sender<()>,
) {
    while hangup.recv().await.is_some() {
        credentials.send_replace(());
        let read = match config::load(&file) {
            Ok(read) => read,
            Err(error) => {
                tracing::error!(%error, "the configuration was not reloaded: nothing has changed");
                continue;
            }
        };
        let differences = started_with.differences(&read);
        if !differences.is_empty() {
            tracing::warn!(keys = differences.join(", "), "these keys have changed and need a restart");
        }
        match (&dataplane, &read.dataplane) {
            (Some(dataplane), Some(wanted)) if dataplane.worker_count() != wanted.workers => {
                set_workers(dataplane.clone(), wanted.workers).await;
            }
            _ => tracing::info!("the configuration was reloaded; the number of workers is the same"),
        }
    }
}

async fn set_workers(dataplane: Arc<Dataplane>, workers: usize) {
    let start = std::time::Instant::now();
    let outcome: Result<Result<usize, StartError>, _> =
        tokio::task::spawn_blocking(move || dataplane.set_workers(workers)).await;
    let took_ms = start.elapsed().as_millis() as u64;
    match outcome {
        Ok(Ok(moved_flows)) => tracing::info!(workers, moved_flows, took_ms, "the number of workers has changed"),
        Ok(Err(error)) => tracing::error!(%error, workers, "the number of workers stays as it was"),
        Err(error) => tracing::error!(%error, workers, "the number of workers was not changed"),
    }
}
