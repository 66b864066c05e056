//! Answers to the other nodes.

use std::sync::Arc;

use futures::future::BoxFuture;
use lb_proto::v1::{
    AskRequest, AskResponse, CallRequest, CallResponse, ask_request, ask_response,
    raft_service_server::{RaftService, RaftServiceServer},
};
use lb_raft_store::{Consensus, Served, Speaker};
use tonic::{Request, Response, Status};

use super::MAX_MESSAGE_LEN;
use crate::connection::{Peer, Refusal, Refusals};

/// What this node answers to what others ask it by itself; `None` where it cannot.
pub(crate) type Answers =
    Arc<dyn Fn(ask_request::Question) -> BoxFuture<'static, Option<ask_response::Answer>> + Send + Sync>;

pub(crate) struct RaftServer {
    consensus: Consensus,
    answers: Answers,
    refusals: Refusals,
}

impl RaftServer {
    pub(crate) fn service(consensus: Consensus, answers: Answers, refusals: Refusals) -> RaftServiceServer<Self> {
        RaftServiceServer::new(Self { consensus, answers, refusals })
            .max_decoding_message_size(MAX_MESSAGE_LEN)
            .max_encoding_message_size(MAX_MESSAGE_LEN)
    }
}

#[tonic::async_trait]
impl RaftService for RaftServer {
    async fn call(&self, request: Request<CallRequest>) -> Result<Response<CallResponse>, Status> {
        let consensus = self.consensus.clone();
        let speaker = self.speaker(&request)?;
        // On a task of its own: a caller that hangs up must not cut a write to the log short.
        let answer = tokio::spawn(async move { consensus.serve(&speaker, &request.into_inner().message).await });
        let Served { message, is_of_impostor } = answer.await.map_err(|error| Status::internal(error.to_string()))?;
        if is_of_impostor {
            self.refusals.count(Refusal::Impostor);
        }
        Ok(Response::new(CallResponse { message }))
    }

    async fn ask(&self, request: Request<AskRequest>) -> Result<Response<AskResponse>, Status> {
        if let Speaker::Node(name) = self.speaker(&request)?
            && self.consensus.view().table.node_named(&name).is_none()
        {
            self.refusals.count(Refusal::Impostor);
            return Err(Status::permission_denied(format!("{name} is no node of this cluster")));
        }
        let question = request.into_inner().question;
        let question = question.ok_or_else(|| Status::unimplemented("this version does not know what is asked"))?;
        let answer = (self.answers)(question).await;
        let answer = answer.ok_or_else(|| Status::unavailable("the dataplane does not answer"))?;
        Ok(Response::new(AskResponse { answer: Some(answer) }))
    }
}

impl RaftServer {
    /// As whom the other end may speak.
    fn speaker<T>(&self, request: &Request<T>) -> Result<Speaker, Status> {
        let peer = request.extensions().get::<Peer>().ok_or_else(|| Status::internal("a connection of nobody"))?;
        match peer.node() {
            Ok(Some(name)) => Ok(Speaker::Node(name)),
            Ok(None) => Ok(Speaker::Anybody),
            Err(who) => {
                self.refusals.count(Refusal::NoNode);
                tracing::warn!(target: "audit", caller = %who, from = %peer, method = "RaftService", "refused: only nodes speak here");
                Err(Status::permission_denied(format!("only nodes speak here, and this is {who}")))
            }
        }
    }
}
