//! Whether this node is still part of its cluster. Another node's word does not stop it: a foreign node that was given the
//! address of one of ours, or one with an old table, may say anything. It asks the nodes of its own table, and what
//! they answer is a read that a majority of the cluster has confirmed.

use std::{sync::Weak, time::Duration};

use tokio::time::Instant;

use super::{
    message::{Answer, Request, Standing, StandingAnswer},
    network::Lane,
    node::{Consensus, Inner, Member},
};
use crate::store::identity::Identity;

/// Between two rounds of questions.
const AGAIN: Duration = Duration::from_secs(1);
/// For an answer, and for the read behind it.
const ANSWER: Duration = Duration::from_secs(2);
const READ: Duration = Duration::from_secs(1);
/// Between two lines of the log about doubts that come to nothing.
const TELL_AGAIN: Duration = Duration::from_secs(10);

/// Runs until the last handle to the node is dropped: it holds none itself.
pub(super) async fn run(node: Weak<Inner>) {
    let Some(mut doubts) = node.upgrade().map(|inner| inner.doubts.subscribe()) else { return };
    let mut told = None;
    while doubts.changed().await.is_ok() {
        let Some(inner) = node.upgrade() else { return };
        Consensus { inner }.find_out(&mut told).await;
        tokio::time::sleep(AGAIN).await;
    }
}

impl Consensus {
    /// Asks the nodes of this node's own table.
    async fn find_out(&self, told: &mut Option<Instant>) {
        let Some(member) = self.inner.member.get() else { return };
        let me = member.identity.node;
        let view = self.view();
        for node in view.table.nodes().filter(|node| node.id != me) {
            let store = self.inner.store.uuid.as_bytes().to_vec();
            let question = Request::Standing(Standing { node: me, store, ..Standing::default() });
            let answer = member.peers.call(node.id, &node.address, Lane::Bulk, question, ANSWER).await;
            if matches!(answer, Ok(Answer::Standing(answer)) if answer == i32::from(StandingAnswer::Removed)) {
                let Identity { name, .. } = &member.identity;
                return self.stop(format!(
                    "this node ({name}) was removed from the cluster, as {} at {} confirms. To add it again: empty its \
                     data_dir, start lbd without bootstrap and run 'lbctl node add'",
                    node.name, node.address
                ));
            }
        }
        // Whoever says so may say it for ever.
        if told.is_none_or(|at| at.elapsed() >= TELL_AGAIN) {
            *told = Some(Instant::now());
            tracing::warn!(
                "another node says that this one was removed; no node of its own table confirms that, so it goes on"
            );
        }
    }

    /// Whether a node is part of this cluster, by a read that a majority confirms.
    pub(super) async fn standing(&self, member: &Member, cluster: &[u8], of: &Standing) -> StandingAnswer {
        // This node was recovered as the only one that was left of the asker's cluster.
        if member.identity.recovered_from.iter().any(|id| cluster == id.as_bytes()) {
            return StandingAnswer::Removed;
        }
        // A foreign node at the address of one of the asker's knows nothing of it.
        if cluster != member.identity.cluster.as_bytes() {
            return StandingAnswer::Unknown;
        }
        if of.starts > 0 {
            // Answered without a read: in a cluster that starts as a whole there is no majority yet.
            return if self.is_older_copy(member, of) { StandingAnswer::OlderCopy } else { StandingAnswer::Unknown };
        }
        let Ok(view) = self.read(Instant::now() + READ).await else { return StandingAnswer::Unknown };
        match view.table.node(of.node) {
            Some(node) if node.store.as_bytes() == of.store.as_slice() => StandingAnswer::Member,
            // Ids are indexes of the log, so one that is not there was removed.
            _ if of.node <= view.applied => StandingAnswer::Removed,
            _ => StandingAnswer::Unknown,
        }
    }
}
