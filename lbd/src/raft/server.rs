//! Answers to the other nodes.

use lb_proto::v1::{
    CallRequest, CallResponse,
    raft_service_server::{RaftService, RaftServiceServer},
};
use lb_raft_store::Consensus;
use tonic::{Request, Response, Status};

use super::MAX_MESSAGE_LEN;

pub(crate) struct RaftServer(Consensus);

impl RaftServer {
    pub(crate) fn service(consensus: Consensus) -> RaftServiceServer<Self> {
        RaftServiceServer::new(Self(consensus))
            .max_decoding_message_size(MAX_MESSAGE_LEN)
            .max_encoding_message_size(MAX_MESSAGE_LEN)
    }
}

#[tonic::async_trait]
impl RaftService for RaftServer {
    async fn call(&self, request: Request<CallRequest>) -> Result<Response<CallResponse>, Status> {
        let consensus = self.0.clone();
        // On a task of its own: a caller that hangs up must not cut a write to the log short.
        let answer = tokio::spawn(async move { consensus.serve(&request.into_inner().message).await });
        let message = answer.await.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(CallResponse { message }))
    }
}
