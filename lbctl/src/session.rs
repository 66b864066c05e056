//! What every command has: a connection, and how calls are made on it.

use std::{future::Future, time::Duration};

use lb_proto::v1;
use tonic::{Request, Response, transport::Channel};

use crate::{
    cli::{Format, Global},
    exit::Failure,
    output::{self, Change},
};

/// A list of all backends is longer than what a request may be.
pub(crate) const MAX_ANSWER_LEN: usize = 64 << 20;
/// The server answers a little earlier than it must; what comes later is lost.
const GRACE: Duration = Duration::from_millis(500);

/// A connection and how to use it.
pub(crate) struct Session {
    pub(crate) channel: Channel,
    pub(crate) global: Global,
    pub(crate) request_id: String,
}

impl Session {
    pub(crate) fn format(&self) -> Format {
        self.global.output
    }

    /// Makes a call that changes nothing.
    pub(crate) async fn read<M, T, F>(&self, message: M, call: impl FnOnce(Request<M>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, tonic::Status>>,
    {
        self.call(message, None, call).await
    }

    /// Makes a call that changes something.
    pub(crate) async fn write<M, T, F>(&self, message: M, call: impl FnOnce(Request<M>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, tonic::Status>>,
    {
        self.call(message, Some(&self.request_id), call).await
    }

    async fn call<M, T, F>(
        &self,
        message: M,
        request_id: Option<&str>,
        call: impl FnOnce(Request<M>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, tonic::Status>>,
    {
        let timeout = self.global.timeout;
        let mut request = Request::new(message);
        request.set_timeout(timeout);
        match tokio::time::timeout(timeout + GRACE, call(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Failure::from_status(&status, request_id)),
            Err(_) => Err(Failure::Undecided {
                message: format!("no answer within {}", humantime::format_duration(timeout)),
                request_id: request_id.map(ToOwned::to_owned),
            }),
        }
    }

    /// Prints what a change of the table came to.
    pub(crate) fn changed(&self, what: String, response: v1::MutationResponse) -> Result<(), Failure> {
        let v1::MutationResponse { revision, unchanged, request_id, warnings } = response;
        output::change(self.format(), &Change { what, revision, unchanged, request_id, warnings })
    }
}

/// On the command line, "none" takes a value away.
pub(crate) fn none_is_empty(value: Option<String>) -> Option<String> {
    value.map(|text| if text == "none" { String::new() } else { text })
}
