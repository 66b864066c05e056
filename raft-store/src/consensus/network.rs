//! openraft's network over a transport that carries bytes. Which wire they take, and who may speak on
//! it, is the daemon's business.

use std::{future::ready, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use openraft::{
    AnyError, BasicNode, OptionalSend,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};
use prost::Message as _;
use tokio::sync::watch;
use uuid::Uuid;

use super::message::{Answer, PeerReply, PeerRequest, Refused, RefusedKind, Request};
use crate::{
    codec::record,
    feed::Watcher,
    raft::{Snapshot, TypeConfig, Vote},
    table::NodeId,
};

/// A message that did not reach its addressee, or whose answer did not come back.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TransportError {
    /// Nobody is there: the message was certainly not delivered.
    #[error("{address} cannot be reached: {reason}")]
    Unreachable {
        /// Where it should have gone.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// It may have been delivered.
    #[error("no answer from {address}: {reason}")]
    NoAnswer {
        /// Where it went.
        address: String,
        /// What happened instead.
        reason: String,
    },
}

/// Messages that wait for each other share a lane; heartbeats must not wait for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Log entries, snapshots, everything else.
    Bulk,
    /// Raft's heartbeats and votes, reads.
    Urgent,
}

/// Carries a request to a peer and its answer back.
pub trait Transport: Send + Sync + 'static {
    /// Delivers `message` to the node at `address`, within `timeout`; to the one of that name, where the wire tells.
    fn call(
        &self,
        address: &str,
        name: Option<&str>,
        lane: Lane,
        message: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, TransportError>>;
}

/// The transport of a cluster of one node, which has nobody to talk to.
#[derive(Debug, Clone, Copy)]
pub struct Nobody;

impl Transport for Nobody {
    fn call(
        &self,
        address: &str,
        _: Option<&str>,
        _: Lane,
        _: Vec<u8>,
        _: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, TransportError>> {
        let reason = "this node has nobody to talk to".to_owned();
        Box::pin(ready(Err(TransportError::Unreachable { address: address.to_owned(), reason })))
    }
}

/// What a call to a peer can end in, besides its answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("{}", .0.message)]
    Refused(Refused),
    #[error("it answered something else than was asked")]
    Nonsense,
}

/// For entries to cross the network and a slow disk.
const APPEND: Duration = Duration::from_millis(1000);

/// This node's end of all its connections.
#[derive(Clone)]
pub(crate) struct Peers {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) cluster: Uuid,
    pub(crate) me: NodeId,
    /// Where nodes are, as the table says.
    pub(crate) table: Watcher,
    /// Counted up whenever another node says that this one is not part of the cluster any more.
    pub(crate) doubts: watch::Sender<u64>,
}

impl Peers {
    pub(crate) async fn call(
        &self,
        to: NodeId,
        address: &str,
        lane: Lane,
        request: Request,
        timeout: Duration,
    ) -> Result<Answer, CallError> {
        let message =
            PeerRequest { cluster: self.cluster.as_bytes().to_vec(), from: self.me, to, request: Some(request) };
        let name = self.table.borrow().table.node(to).map(|node| node.name.to_string());
        let reply = self.transport.call(address, name.as_deref(), lane, message.encode_to_vec(), timeout).await?;
        match PeerReply::decode(&*reply).ok().and_then(|reply| reply.answer) {
            None => Err(CallError::Nonsense),
            Some(Answer::Refused(refused)) => {
                if refused.kind() == RefusedKind::Removed {
                    // It was off when it was removed, and nobody could tell it then; or this is somebody else's address
                    // now. It finds out by a read of its own.
                    self.doubts.send_modify(|doubts| *doubts += 1);
                }
                Err(CallError::Refused(refused))
            }
            Some(answer) => Ok(answer),
        }
    }
}

impl Peers {
    /// Where a node is: as the table says, or before it is in the table as the membership does.
    pub(crate) fn address_of(&self, node: NodeId, of_membership: &str) -> String {
        let view = self.table.borrow();
        view.table.node(node).map_or_else(|| of_membership.to_owned(), |node| node.address.clone())
    }
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Connection;

    async fn new_client(&mut self, target: NodeId, node: &BasicNode) -> Connection {
        Connection { peers: self.clone(), target, address: node.addr.clone(), lane: Lane::Bulk }
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &BasicNode) -> Connection {
        Connection { lane: Lane::Urgent, ..self.new_client(target, node).await }
    }
}

/// One peer, as openraft sees it.
pub(crate) struct Connection {
    peers: Peers,
    target: NodeId,
    address: String,
    lane: Lane,
}

type RpcError = RPCError<TypeConfig>;

impl Connection {
    async fn call(&self, lane: Lane, request: Request, timeout: Duration) -> Result<Answer, RpcError> {
        let address = self.peers.address_of(self.target, &self.address);
        let answer = self.peers.call(self.target, &address, lane, request, timeout).await;
        answer.map_err(|error| match error {
            CallError::Transport(TransportError::Unreachable { .. }) => {
                RPCError::Unreachable(Unreachable::new(&AnyError::error(error)))
            }
            error => network_error(error),
        })
    }

    async fn ballot(&self, request: Request, timeout: Duration) -> Result<VoteResponse<TypeConfig>, RpcError> {
        match self.call(Lane::Urgent, request, timeout).await? {
            Answer::Ballot(record) => record.try_into().map_err(network_error),
            _ => Err(network_error(CallError::Nonsense)),
        }
    }
}

fn network_error(error: impl std::fmt::Display) -> RpcError {
    RPCError::Network(NetworkError::new(&AnyError::error(error)))
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = Vec<u8>;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        // openraft gives an append as long as a heartbeat may take; entries may take longer than that.
        let timeout = option.hard_ttl().max(APPEND);
        match self.call(self.lane, Request::Append((&request).into()), timeout).await? {
            Answer::Append(record) => record.try_into().map_err(network_error),
            _ => Err(network_error(CallError::Nonsense)),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.ballot(Request::Vote((&request).into()), option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.ballot(Request::PreVote((&request).into()), option.hard_ttl()).await
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        match self.call(Lane::Urgent, Request::Transfer((&request).into()), option.hard_ttl()).await? {
            Answer::Done(_) => Ok(Ok(())),
            _ => Err(network_error(CallError::Nonsense)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let failed = |error: &dyn std::fmt::Display| {
            StreamingError::Network(NetworkError::new(&AnyError::error(error.to_string())))
        };
        let request = Request::Snapshot(record::Snapshot {
            vote: Some(vote.into()),
            meta: Some((&snapshot.meta).into()),
            data: snapshot.snapshot,
        });
        let answer = tokio::select! {
            answer = self.call(Lane::Bulk, request, option.hard_ttl()) => answer,
            closed = cancel => return Err(closed.into()),
        };
        match answer.map_err(|error| failed(&error))? {
            Answer::Snapshot(vote) => Ok(SnapshotResponse::new(vote.into())),
            _ => Err(failed(&CallError::Nonsense)),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(20))))
    }
}
