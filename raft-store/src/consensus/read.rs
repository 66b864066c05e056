//! Linearizable reads: how far a table must be to be read now, and waiting until it is.

use std::sync::Arc;

use openraft::ReadPolicy;
use tokio::time::Instant;

use super::{
    message::{Answer, Request},
    network::Lane,
    node::Consensus,
    propose::{ATTEMPT, ProposeError, RETRY_PAUSE},
};
use crate::feed::View;

impl Consensus {
    /// The table as it is at some moment after this call: linearizable.
    pub async fn read(&self, deadline: Instant) -> Result<Arc<View>, ProposeError> {
        let member = self.inner.member.get().ok_or(ProposeError::NotAMember)?;
        while Instant::now() < deadline {
            let until = deadline.min(Instant::now() + ATTEMPT);
            let index = match self.leader() {
                Some((leader, _)) if leader == member.identity.node => self.read_index(until).await,
                Some((leader, address)) => {
                    let timeout = until.saturating_duration_since(Instant::now());
                    let request = Request::ReadIndex(true);
                    match member.peers.call(leader, &address, Lane::Urgent, request, timeout).await {
                        Ok(Answer::ReadIndex(index)) => Some(index),
                        _ => None,
                    }
                }
                None => None,
            };
            if let Some(index) = index {
                return self.applied(index, deadline).await.ok_or(ProposeError::TimedOut);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        Err(ProposeError::NoLeader)
    }

    /// The index up to which a table must be applied to be read now. Only the leader knows, and only
    /// when a majority confirms that it still is: never by its lease, which a hint election voids.
    pub async fn read_index(&self, until: Instant) -> Option<u64> {
        let member = self.inner.member.get()?;
        let read = member.raft.get_read_linearizer(ReadPolicy::ReadIndex);
        let linearizer = tokio::time::timeout_at(until, read).await.ok()?.ok()?;
        Some(linearizer.read_log_id().index())
    }

    /// Waits until the entry at `index` is applied here.
    pub async fn applied(&self, index: u64, deadline: Instant) -> Option<Arc<View>> {
        let mut watcher = self.watch();
        let view = tokio::time::timeout_at(deadline, watcher.wait_for(|view| view.applied >= index)).await;
        view.ok()?.ok().map(|view| view.clone())
    }
}
