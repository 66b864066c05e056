//! Having a command agreed on: by way of the leader, whoever that is, and again where nothing can have been done.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    in_flight::Attempt,
    message::{Answer, RefusedKind, Request},
    network::{CallError, Lane, TransportError},
    node::{Consensus, Member},
};
use crate::table::{Command, NodeId, Reply, decode_reply, encode_command};

/// Between two attempts at something that an election or a lost packet may have prevented.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// For one question to the leader, so that a dead one does not use up the whole deadline.
pub(super) const ATTEMPT: Duration = Duration::from_millis(1000);
/// For the answer of a leader that has lost the lead: it may be on its way.
const GRACE: Duration = Duration::from_millis(20);
/// Between two attempts of a leader that no majority has confirmed yet.
const FRESH_LEADER: Duration = Duration::from_millis(1);

/// Why a command was not applied, or may not have been.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// This node belongs to no cluster.
    #[error("this node waits to be added to a cluster: run 'lbctl node add' on a node of that cluster")]
    NotAMember,
    /// No leader could be found within the deadline: nothing was proposed.
    #[error("there is no leader: a majority of the cluster's nodes must be up and reach each other")]
    NoLeader,
    /// No answer came within the deadline: it may be applied yet.
    #[error("no majority confirmed it in time: it may or may not be applied yet")]
    TimedOut,
    /// Not all nodes know it yet.
    #[error(
        "it needs feature level {needed}, and the cluster is at {level}: run the newest version of lbd on every node, then \
         try again"
    )]
    TooNew {
        /// What it needs.
        needed: u32,
        /// What the cluster has agreed on.
        level: u32,
    },
    /// The leader does not take it.
    #[error("the leader does not take it: {0}")]
    Refused(String),
    /// Too little space is left for callers' writes, on this node or on the leader.
    #[error(
        "too little space is left on the file system of data_dir{on}: no change of a caller is taken, so that leases and \
         membership go on; free some space there"
    )]
    NoSpace {
        /// " of NODE", or nothing for this node.
        on: String,
    },
    /// This node's store is broken.
    #[error("this node's store cannot be written: {0}")]
    Broken(String),
}

impl Consensus {
    /// Has a command agreed on and applied, by way of the leader, whoever that is.
    pub async fn propose(&self, command: &Command, deadline: Instant) -> Result<Reply, ProposeError> {
        // Whoever does not know it must not get it into its log.
        let level = self.view().table.feature_level();
        if !command.is_allowed_at(level) {
            return Err(ProposeError::TooNew { needed: command.needs_level(), level });
        }
        if command.can_wait() && self.is_low_on_space() {
            return Err(ProposeError::NoSpace { on: String::new() });
        }
        let bytes = encode_command(command);
        // Repeating is safe: every command is a no-op the second time, or carries a request id. It is repeated only where
        // the leader is another one, or the way to it broke.
        let mut attempted = false;
        while Instant::now() < deadline {
            match self.propose_once(command, &bytes, deadline).await {
                Ok(Attempt::Done(reply)) => return Ok(reply),
                Ok(Attempt::NotSent) => {}
                Ok(Attempt::Unknown) => attempted = true,
                // An earlier attempt may have been taken: what the next leader says is no answer to that.
                Err(_) if attempted => {}
                Err(refused) => return Err(refused),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        Err(if attempted { ProposeError::TimedOut } else { ProposeError::NoLeader })
    }

    /// Whether callers' writes wait on this node, where it leads: others must catch up.
    pub fn hold_back(&self, held_back: bool) {
        self.inner.in_flight.hold_back(held_back);
    }

    async fn propose_once(
        &self,
        command: &Command,
        bytes: &[u8],
        until: Instant,
    ) -> Result<Attempt<Reply>, ProposeError> {
        let member = self.inner.member.get().ok_or(ProposeError::NotAMember)?;
        if let Some(failure) = (self.inner.store_failure)() {
            return Err(ProposeError::Broken(failure.reason));
        }
        let Some(leader) = self.leader() else { return Ok(Attempt::NotSent) };
        if leader.0 == member.identity.node {
            return Ok(self.write_as_leader(member, command, until).await);
        }
        let timeout = until.saturating_duration_since(Instant::now());
        let request = Request::Propose(bytes.to_vec());
        let answer = tokio::select! {
            answer = member.peers.call(leader.0, &leader.1, Lane::Bulk, request, timeout) => answer,
            () = self.leads_no_more(leader.0) => return Ok(Attempt::Unknown),
        };
        Ok(match answer {
            Ok(Answer::Proposed(reply)) => decode_reply(&reply).map_or(Attempt::Unknown, Attempt::Done),
            Ok(Answer::NotLeader(_)) | Err(CallError::Transport(TransportError::Unreachable { .. })) => {
                Attempt::NotSent
            }
            Err(CallError::Refused(refused)) if refused.kind() == RefusedKind::TooNew => {
                return Err(ProposeError::Refused(refused.message));
            }
            Err(CallError::Refused(refused)) if refused.kind() == RefusedKind::NoSpace => {
                return Err(ProposeError::NoSpace { on: refused.message });
            }
            _ => Attempt::Unknown,
        })
    }

    /// Returns when another node than this one leads, for a while: its answer may not come any more.
    async fn leads_no_more(&self, leader: NodeId) {
        let mut lead = self.lead();
        // An error means that the node stops.
        drop(lead.wait_for(|lead| lead.leader != Some(leader)).await);
        tokio::time::sleep(GRACE).await;
    }

    /// Writes on this node, if it is the leader.
    pub(super) async fn write_as_leader(&self, member: &Member, command: &Command, until: Instant) -> Attempt<Reply> {
        let mut waiting = self.inner.in_flight.write(&member.raft, command);
        let written = tokio::time::timeout_at(until, waiting.wait_for(Option::is_some));
        tokio::select! {
            written = written => match written {
                Ok(Ok(outcome)) => outcome.clone().unwrap_or(Attempt::Unknown),
                _ => Attempt::Unknown,
            },
            () = self.leads_no_more(member.identity.node) => Attempt::Unknown,
        }
    }

    /// Proposes as the leader of `term`, and not otherwise: for what only this leader has seen. Whether it was
    /// agreed on.
    pub async fn propose_in_term(&self, command: &Command, term: u64, deadline: Instant) -> bool {
        let Some(member) = self.inner.member.get() else { return false };
        while Instant::now() < deadline && self.leads_in(term) {
            match self.write_as_leader(member, command, deadline).await {
                Attempt::Done(_) => return true,
                // A fresh leader takes nothing until a majority has confirmed it.
                Attempt::NotSent => tokio::time::sleep(FRESH_LEADER).await,
                Attempt::Unknown => return false,
            }
        }
        false
    }

    fn leads_in(&self, term: u64) -> bool {
        let status = self.status();
        status.term == term && status.leader == status.node && status.node.is_some()
    }
}
