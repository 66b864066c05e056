//! What is shown: the cluster's state, and how fast its counters grow.

use std::time::Duration;

use lb_proto::{rates::Rates, v1};
use tokio::time::{Instant, sleep_until};

use super::super::stats;
use crate::{exit::Failure, session::Session};

/// Between two looks.
pub(super) const EVERY: Duration = Duration::from_secs(1);
/// Of more backends these are shown.
const BACKENDS: u32 = 1000;

pub(super) struct Data {
    pub(super) status: v1::GetStatusResponse,
    pub(super) backends: Vec<v1::Backend>,
    pub(super) stats: v1::GetStatsResponse,
    /// Nothing before the second look, and while nodes come and go.
    pub(super) rates: Option<Rates>,
    at: Instant,
}

/// Reads it at some moment.
pub(super) async fn read(session: &Session, at: Instant) -> Result<Data, Failure> {
    sleep_until(at).await;
    let at = Instant::now();
    let stats = stats::read(session, true).await?;
    let status = session.status(false).await?;
    let mut client = session.table();
    let request = v1::ListBackendsRequest { page_size: BACKENDS, ..v1::ListBackendsRequest::default() };
    let backends = session.read(request, |request| async move { client.list_backends(request).await }).await?.backends;
    Ok(Data { status, backends, stats, rates: None, at })
}

impl Data {
    /// With what has changed since the look before.
    pub(super) fn behind(self, before: Option<&Self>) -> Self {
        let rates = before.and_then(|before| Rates::between(&before.stats, &self.stats, self.at - before.at));
        Self { rates, ..self }
    }

    #[cfg(test)]
    pub(super) fn sample(status: v1::GetStatusResponse, stats: v1::GetStatsResponse) -> Self {
        Self { status, stats, backends: Vec::new(), rates: None, at: Instant::now() }
    }

    #[cfg(test)]
    pub(super) fn later(self) -> Self {
        Self { at: self.at + EVERY, ..self }
    }
}
