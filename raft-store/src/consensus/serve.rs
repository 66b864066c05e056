//! Answers to the other nodes.

use std::{fmt, net::IpAddr, sync::PoisonError};

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use prost::Message as _;
use tokio::time::{Duration, Instant};
use uuid::Uuid;

use super::{
    in_flight::Attempt,
    message::{Answer, Description, Join, PeerReply, PeerRequest, Reach, Reached, RefusedKind, Request, Unreached},
    network::Lane,
    node::{Consensus, Member},
    propose::{ATTEMPT, ProposeError},
};
use crate::{
    codec::{DecodeError, feature_level, record},
    raft::{Snapshot, TypeConfig, records::required_vote},
    store::identity::Identity,
    table::{Body, Epoch, Role, decode_command, encode_reply},
};

/// Who has said something, as far as whoever carried it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Speaker {
    /// Any node: nobody has looked.
    Anybody,
    /// The node of that name.
    Node(String),
}

impl fmt::Display for Speaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anybody => f.write_str("anybody"),
            Self::Node(name) => f.write_str(name),
        }
    }
}

/// What a message of another node is answered.
#[derive(Debug)]
pub struct Served {
    /// The answer.
    pub message: Vec<u8>,
    /// It was refused: whoever sent it speaks for another one.
    pub is_of_impostor: bool,
}

/// For a command that a follower forwarded; the follower gives up earlier if its caller does.
const FORWARDED: Duration = Duration::from_secs(60);
/// More than a cluster has.
const MOST_REACHED: usize = 16;
/// For a node of a cluster that this one is to join.
const CALL_BACK: Duration = Duration::from_secs(1);

impl Consensus {
    /// Answers one message of another node. Bytes in, bytes out: the caller only carries them.
    pub async fn serve(&self, speaker: &Speaker, message: &[u8]) -> Served {
        let mut is_of_impostor = false;
        let answer = match PeerRequest::decode(message) {
            Ok(PeerRequest { cluster, from, to, request: Some(request) }) => {
                match self.check_speaker(speaker, from, &request) {
                    Ok(()) => self.answer(&cluster, from, to, request).await,
                    Err(problem) => {
                        is_of_impostor = true;
                        tracing::warn!(target: "audit", caller = %speaker, from, "refused: {problem}");
                        Answer::refused(RefusedKind::NotAddressee, problem)
                    }
                }
            }
            _ => Answer::refused(RefusedKind::Internal, "the message cannot be decoded: is the sender newer?"),
        };
        Served { message: PeerReply { answer: Some(answer) }.encode_to_vec(), is_of_impostor }
    }

    /// Whether whoever says something is who he says, and may say it.
    fn check_speaker(&self, speaker: &Speaker, from: u64, request: &Request) -> Result<(), String> {
        let Speaker::Node(name) = speaker else { return Ok(()) };
        let view = self.view();
        let table = &view.table;
        // Whoever waits to be added knows nobody yet.
        if self.inner.member.get().is_none() || table.cluster().is_nil() {
            return Ok(());
        }
        // What is asked before one belongs to the cluster says nothing for anybody.
        if matches!(request, Request::Describe(_) | Request::Standing(_) | Request::Join(_) | Request::Reach(_)) {
            return Ok(());
        }
        match table.node(from) {
            Some(node) if node.name.as_str() == name => {}
            Some(node) => return Err(format!("{name} says that it is {}", node.name)),
            // It may have been added by an entry that has not come here yet: whoever leads then brings it. Ids are indexes of
            // the log, so that one of that name which is known is an earlier one.
            None if from > view.applied
                && table.node_named(name).is_none_or(|known| known.id < from)
                && brings_the_log(request)
                && (!self.has_heard_leader() || self.leader().is_some_and(|(leader, _)| leader == from)) => {}
            // Removed: it is told so, and believed nothing.
            None if self.has_removed(from) => {}
            None => return Err(format!("{name} is not node {from}")),
        }
        if let Request::Propose(command) = request
            && let Ok(command) = decode_command(command)
        {
            let is_others = command.body.speaks_for().is_some_and(|of| of != from)
                || command.principal.as_ref().is_some_and(|principal| principal.node != from);
            let of_others = |(vip, epoch): &(IpAddr, Epoch)| {
                let owner = table.vip(*vip).and_then(|vip| vip.owner);
                owner.is_some_and(|owner| owner.epoch == *epoch && owner.node != from)
            };
            let releases_others = matches!(&command.body, Body::Released { grants } if grants.iter().any(of_others));
            if is_others || releases_others {
                return Err(format!("{name} speaks for another node"));
            }
            if command.body.is_of_leader() {
                return Err(format!("{name} sends what only the leader proposes"));
            }
        }
        Ok(())
    }

    async fn answer(&self, cluster: &[u8], from: u64, to: u64, request: Request) -> Answer {
        match request {
            Request::Describe(_) => return Answer::Description(self.describe()),
            Request::Join(join) => return self.join(&join).await,
            Request::Reach(reach) => return self.reach(&reach).await,
            _ => {}
        }
        let Some(member) = self.inner.member.get() else {
            return Answer::refused(
                RefusedKind::NotAMember,
                format!("{} waits to be added to a cluster", self.inner.settings.name),
            );
        };
        if let Request::Standing(of) = &request {
            return Answer::Standing(self.standing(member, cluster, of).await.into());
        }
        // It was removed while it was off, or this node was recovered as the only one that was left.
        let lost = member.identity.recovered_from.iter().any(|id| cluster == id.as_bytes());
        if lost || cluster == member.identity.cluster.as_bytes() && self.has_removed(from) {
            return Answer::refused(RefusedKind::Removed, removed(&format!("this node (node {from})")));
        }
        if let Err(message) = self.check_addressee(member, cluster, from, to) {
            return Answer::refused(RefusedKind::NotAddressee, message);
        }
        match self.answer_member(member, request).await {
            Ok(answer) => answer,
            Err(ServeError::Decode(error @ DecodeError::TooNew { .. })) => {
                self.stop(format!("the leader sent {error}"));
                Answer::refused(RefusedKind::Internal, error)
            }
            Err(error) => Answer::refused(RefusedKind::Internal, error),
        }
    }

    async fn answer_member(&self, member: &Member, request: Request) -> Result<Answer, ServeError> {
        let raft = &member.raft;
        Ok(match request {
            Request::Append(record) => {
                let request: AppendEntriesRequest<TypeConfig> = record.try_into()?;
                let response = raft.append_entries(request).await.map_err(ServeError::raft)?;
                if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
                    self.hears_leader();
                }
                Answer::Append((&response).into())
            }
            Request::Vote(record) => {
                Answer::Ballot((&raft.vote(record.try_into()?).await.map_err(ServeError::raft)?).into())
            }
            Request::PreVote(record) => {
                Answer::Ballot((&raft.pre_vote(record.try_into()?).await.map_err(ServeError::raft)?).into())
            }
            Request::Transfer(record) => {
                let outcome = raft.handle_transfer_leader(record.try_into()?).await.map_err(ServeError::raft)?;
                outcome.map_err(ServeError::raft)?;
                Answer::Done(true)
            }
            Request::Snapshot(record) => {
                let meta = record.meta.ok_or(DecodeError::Field("snapshot.meta"))?.try_into()?;
                let snapshot = Snapshot { meta, snapshot: record.data };
                let response = raft.install_full_snapshot(required_vote(record.vote)?, snapshot).await;
                Answer::Snapshot(response.map_err(ServeError::raft)?.vote.into())
            }
            Request::Propose(command) => {
                // Whoever has forwarded it may be newer: that is no reason to stop.
                let command = match decode_command(&command) {
                    Err(error @ DecodeError::TooNew { .. }) => return Ok(Answer::refused(RefusedKind::TooNew, error)),
                    command => command?,
                };
                let level = self.view().table.feature_level();
                if !command.is_allowed_at(level) {
                    let error = ProposeError::TooNew { needed: command.needs_level(), level };
                    return Ok(Answer::refused(RefusedKind::TooNew, error));
                }
                if command.can_wait() && self.is_low_on_space() {
                    return Ok(Answer::refused(RefusedKind::NoSpace, format!(" of {}", member.identity.name)));
                }
                match self.write_as_leader(member, &command, Instant::now() + FORWARDED).await {
                    Attempt::Done(reply) => Answer::Proposed(encode_reply(&reply)),
                    Attempt::NotSent => self.not_leader(),
                    Attempt::Unknown => Answer::refused(RefusedKind::TimedOut, "no majority confirmed it in time"),
                }
            }
            Request::ReadIndex(_) => match self.read_index(Instant::now() + ATTEMPT).await {
                Some(index) => Answer::ReadIndex(index),
                None => self.not_leader(),
            },
            Request::AddNode(record) => self.add_node_as_leader(member, record).await,
            Request::RemoveNode(record) => self.remove_node_as_leader(member, record).await,
            Request::Removed(_) => {
                self.inner.doubts.send_modify(|doubts| *doubts += 1);
                Answer::Done(true)
            }
            Request::Fingerprint(index) => {
                let fingerprints = self.inner.store.machine.fingerprints().clone();
                let of_table = tokio::task::spawn_blocking(move || fingerprints.at(index)).await;
                Answer::Fingerprint(record::Fingerprint { of_table: of_table.ok().flatten().unwrap_or_default() })
            }
            Request::Describe(_) | Request::Join(_) | Request::Reach(_) | Request::Standing(_) => {
                Answer::refused(RefusedKind::Internal, "answered elsewhere")
            }
        })
    }

    pub(super) fn not_leader(&self) -> Answer {
        Answer::NotLeader(self.leader().map_or(0, |(leader, _)| leader))
    }

    /// Says once, for everyone who asks, why this node must not go on.
    pub(super) fn stop(&self, reason: String) {
        tracing::error!(%reason, "this node stops");
        self.inner.fatal.send_replace(Some(reason));
    }

    fn describe(&self) -> Description {
        let inner = &self.inner;
        let (cluster, node) = match inner.member.get() {
            Some(member) => (member.identity.cluster.as_bytes().to_vec(), member.identity.node),
            None => (Vec::new(), 0),
        };
        Description {
            name: inner.settings.name.to_string(),
            witness: inner.settings.role == Role::Witness,
            store: inner.store.uuid.as_bytes().to_vec(),
            cluster,
            node,
            feature_level: feature_level(),
            cluster_name: inner.settings.cluster_name.to_string(),
        }
    }

    /// Calls the nodes of a cluster that this one is to join.
    async fn reach(&self, reach: &Reach) -> Answer {
        if reach.nodes.len() > MOST_REACHED {
            return Answer::refused(RefusedKind::Internal, format!("a cluster has {MOST_REACHED} nodes at most"));
        }
        let call = async |node: &Reached| {
            let message = PeerRequest { request: Some(Request::Describe(true)), ..PeerRequest::default() };
            let called =
                self.inner.transport.call(&node.address, None, Lane::Bulk, message.encode_to_vec(), CALL_BACK).await;
            let reply = called.map_err(|error| format!("{}: {error}", node.name))?;
            match PeerReply::decode(&*reply).ok().and_then(|reply| reply.answer) {
                Some(Answer::Description(found)) if found.store == node.store => Ok(()),
                Some(Answer::Description(found)) => {
                    Err(format!("{}: at {} it finds {} instead", node.name, node.address, found.name))
                }
                _ => Err(format!("{}: what listens at {} is no lbd", node.name, node.address)),
            }
        };
        let called = futures::future::join_all(reach.nodes.iter().map(call)).await;
        Answer::Unreached(Unreached { reasons: called.into_iter().filter_map(Result::err).collect() })
    }

    /// Takes up the place that the leader gives it. Repeating it changes nothing.
    async fn join(&self, join: &Join) -> Answer {
        let inner = &self.inner;
        let _one_at_a_time = inner.joining.lock().await;
        let Ok(cluster) = Uuid::from_slice(&join.cluster) else {
            return Answer::refused(RefusedKind::Internal, "the cluster's id is no UUID");
        };
        if join.store != inner.store.uuid.as_bytes() {
            return Answer::refused(RefusedKind::NotAddressee, "the invitation is for another store");
        }
        let settings = &inner.settings;
        let identity = Identity {
            node: join.node,
            cluster,
            cluster_name: settings.cluster_name.to_string(),
            name: settings.name.to_string(),
            role: settings.role,
            recovered_from: Vec::new(),
        };
        if let Some(member) = inner.member.get() {
            return if member.identity == identity {
                Answer::Done(true)
            } else {
                Answer::refused(
                    RefusedKind::NotAddressee,
                    format!("it is node {} of cluster {} already", member.identity.node, member.identity.cluster),
                )
            };
        }
        let joined = match inner.store.adopt(&identity).await {
            Ok(()) => self.become_member(identity).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match joined {
            Ok(()) => {
                tracing::info!(node = join.node, %cluster, "joined the cluster");
                Answer::Done(true)
            }
            Err(error) => Answer::refused(RefusedKind::Internal, error),
        }
    }

    /// Whether a node was once in the table and is not any more. Ids are indexes of the log: a greater one may be of
    /// a node that this one has not heard of yet.
    fn has_removed(&self, id: u64) -> bool {
        let view = self.view();
        id != 0 && id <= view.applied && !view.table.cluster().is_nil() && view.table.node(id).is_none()
    }

    fn check_addressee(&self, member: &Member, cluster: &[u8], from: u64, to: u64) -> Result<(), String> {
        let identity = &member.identity;
        if cluster == identity.cluster.as_bytes() {
            return if to == identity.node {
                Ok(())
            } else {
                Err(format!("this is node {} ({}), not node {to}", identity.node, identity.name))
            };
        }
        let theirs = Uuid::from_slice(cluster).map_or("none".to_owned(), |id| id.to_string());
        if to == identity.node {
            // Reinstalled with bootstrap = true, most likely; or the caller is an old node, or a foreign one, and this is
            // the address of another one now. What it says stops nobody.
            let problem = format!(
                "node {from} takes this node for node {to} of cluster {theirs}, but its store belongs to cluster {}: \
                 was it reinstalled with bootstrap = true? Then empty data_dir, remove 'bootstrap', run 'lbctl node \
                 remove {} --force' and then 'lbctl node add' on a node of that cluster; else stop the other node, or \
                 correct its addresses",
                identity.cluster, identity.name
            );
            let mut mistaken = self.inner.mistaken.lock().unwrap_or_else(PoisonError::into_inner);
            *mistaken = Some((Instant::now(), problem));
        }
        Err(format!("this node belongs to cluster {}, not to {theirs}", identity.cluster))
    }
}

/// Whether it is how a node hears of entries that it does not have.
fn brings_the_log(request: &Request) -> bool {
    matches!(request, Request::Append(_) | Request::Snapshot(_) | Request::Vote(_) | Request::PreVote(_))
}

fn removed(whom: &str) -> String {
    format!(
        "{whom} was removed from the cluster. To add it again: empty its data_dir, start lbd without bootstrap and \
         run 'lbctl node add'"
    )
}

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("{0}")]
    Raft(String),
}

impl ServeError {
    fn raft(error: impl fmt::Display) -> Self {
        Self::Raft(error.to_string())
    }
}
