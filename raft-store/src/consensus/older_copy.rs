//! Whether a node's store is an older copy of itself: a data_dir that was put back from a backup. Such a node has forgotten
//! votes and entries that it has acknowledged, and nothing in its store can tell.
//!
//! Two things are known of a node elsewhere. The leader knows what the node has acknowledged, for as long as it leads; and the
//! table says how often the node was started on its store, which counts that itself. A node asks before it takes part, of
//! whoever answers; and by a read that a majority has confirmed before it makes its own start known. What neither shows: a copy
//! of a time since the last start, put back when the leader has changed.

use std::{
    sync::{Weak, atomic::Ordering},
    time::Duration,
};

use openraft::{Raft, RaftLogReader as _, async_runtime::WatchReceiver as _, storage::RaftLogStorage as _};
use tokio::time::{Instant, sleep};

use super::{
    message::{Answer, Request, Standing, StandingAnswer},
    network::{Lane, Peers},
    node::{Consensus, Inner, Member},
};
use crate::{
    raft::{LogId, TypeConfig},
    store::{StoreError, state_machine::StateMachine},
};

/// For the others to answer before this node takes part; one that is off costs so much of a start.
const ANSWER: Duration = Duration::from_millis(250);
/// For a read, and between two attempts at one.
const READ: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(250);

/// Asks the other nodes, before this one takes part.
pub(super) async fn ask(inner: &Inner, peers: &Peers, raft: &Raft<TypeConfig, StateMachine>) -> Result<(), StoreError> {
    let last = inner.store.log.clone().get_log_state().await.ok().and_then(|state| state.last_log_id);
    let standing = Standing {
        node: peers.me,
        store: inner.store.uuid.as_bytes().to_vec(),
        starts: inner.store.starts,
        last: last.map(Into::into),
        vote: inner.store.log.clone().read_vote().await.ok().flatten().map(Into::into),
    };
    // Of openraft itself: its metrics are empty for a moment.
    let nodes = raft.with_raft_state(|state| state.membership_state.effective().clone()).await;
    let Ok(nodes) = nodes else { return Ok(()) };
    let others = nodes.nodes().filter(|(id, _)| **id != peers.me);
    let asked = others.map(async |(id, node)| {
        let question = Request::Standing(standing.clone());
        let answer = peers.call(*id, &node.addr, Lane::Bulk, question, ANSWER).await;
        let is_older = |answer: &Answer| {
            matches!(answer, Answer::Standing(answer) if *answer == i32::from(StandingAnswer::OlderCopy))
        };
        answer.is_ok_and(|answer| is_older(&answer)).then(|| node.addr.clone())
    });
    match futures::future::join_all(asked).await.into_iter().flatten().next() {
        Some(by) => {
            tracing::error!(by, "another node says that this store is an older copy");
            Err(inner.store.disown().await)
        }
        None => Ok(()),
    }
}

/// Finds out whether this start may be made known. Runs until the last handle to the node is dropped: it holds none itself.
pub(super) async fn run(node: Weak<Inner>) {
    loop {
        let Some(inner) = node.upgrade() else { return };
        let consensus = Consensus { inner };
        let Some(member) = consensus.inner.member.get() else { return };
        if let Ok(view) = consensus.read(Instant::now() + READ).await
            && let Some(known) = view.table.node(member.identity.node)
        {
            if known.starts >= consensus.inner.store.starts {
                consensus.inner.store.disown().await;
                return;
            }
            return consensus.inner.is_newest.store(true, Ordering::Relaxed);
        }
        drop(consensus);
        sleep(AGAIN).await;
    }
}

impl Consensus {
    /// What this node knows of one that has not taken part yet since it was started.
    pub(super) fn is_older_copy(&self, member: &Member, of: &Standing) -> bool {
        let known = self.view().table.node(of.node).cloned();
        let was_started =
            known.is_some_and(|known| known.store.as_bytes() == of.store.as_slice() && known.starts >= of.starts);
        let metrics = member.raft.metrics().borrow_watched().clone();
        let acknowledged = metrics.replication.and_then(|others| others.get(&of.node).cloned().flatten());
        // A leader that was replaced without hearing of it does not know what its successor has had taken back.
        let leads = of.vote.is_none_or(|vote| metrics.current_term >= vote.term);
        was_started || leads && acknowledged > of.last.map(LogId::from)
    }
}
