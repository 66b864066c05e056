//! Who leads, taking the lead from a leader that is gone, and giving it away.

use std::time::Duration;

use openraft::{async_runtime::WatchReceiver as _, raft::TransferLeaderRequest};
use tokio::{sync::watch, time::Instant};

use super::{
    node::{Consensus, Lead, Member},
    propose::RETRY_PAUSE,
};
use crate::table::NodeId;

/// For another voter to take the lead that is offered to it.
const HAND_OVER: Duration = Duration::from_millis(500);

impl Consensus {
    /// The leader and its address, as far as this node knows.
    pub(super) fn leader(&self) -> Option<(NodeId, String)> {
        let member = self.inner.member.get()?;
        let metrics = member.raft.metrics().borrow_watched().clone();
        let leader = metrics.current_leader?;
        let of_membership = metrics.membership_config.get_node(&leader)?.addr.clone();
        Some((leader, member.peers.address_of(leader, &of_membership)))
    }

    /// Takes the lead from a leader that is gone, without waiting for its lease to run out: it is handed over
    /// as the leader itself would do it. The vote decides; a leader that is not gone merely loses the lead.
    pub async fn take_lead(&self, from: NodeId) {
        let Some(member) = self.inner.member.get() else { return };
        let metrics = member.raft.metrics().borrow_watched().clone();
        if metrics.current_leader != Some(from) {
            return;
        }
        // Its votes are marked as a transfer, which the other voters grant within the leader's lease too.
        let transfer = TransferLeaderRequest::new(metrics.vote, member.identity.node, None);
        if let Err(error) = member.raft.handle_transfer_leader(transfer).await {
            tracing::warn!(%error, "the lead cannot be taken");
        }
    }

    /// Gives the lead to another voter, if this node has it, so that a stop costs no election.
    pub async fn hand_over_lead(&self) {
        let Some(member) = self.inner.member.get() else { return };
        let (true, Some(successor)) = (self.is_leader(), self.successor(member)) else { return };
        if member.raft.trigger().transfer_leader(successor).await.is_err() {
            return;
        }
        let until = Instant::now() + HAND_OVER;
        while self.is_leader() && Instant::now() < until {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// The other voter that has acknowledged most of the log, and of those the one that was heard last: it lives,
    /// and an election takes it.
    pub(super) fn successor(&self, member: &Member) -> Option<NodeId> {
        let me = member.identity.node;
        let metrics = member.raft.metrics().borrow_watched().clone();
        let view = self.view();
        let others = view.voters.iter().copied().filter(|voter| *voter != me);
        others.max_by_key(|voter| {
            let matched = metrics.replication.as_ref().and_then(|nodes| nodes.get(voter).copied().flatten());
            let heard = metrics.heartbeat.as_ref().and_then(|nodes| nodes.get(voter).copied().flatten());
            (matched.map(|id| id.index()), heard.map(|at| *at))
        })
    }

    /// Who leads, as far as this node knows, and in which term.
    pub fn lead(&self) -> watch::Receiver<Lead> {
        self.inner.lead.subscribe()
    }
}
