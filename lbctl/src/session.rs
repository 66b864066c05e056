//! What every command has: a connection, and how calls are made on it.

use std::{future::Future, time::Duration};

use lb_proto::v1::{
    self, cluster_service_client::ClusterServiceClient, node_service_client::NodeServiceClient,
    table_service_client::TableServiceClient,
};
use tonic::{Request, Response, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{
    cli::{Format, Global},
    exit::{Failure, complain},
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

    /// Reads a list to its end, page by page.
    pub(crate) async fn read_all<M: PageOf>(&self, message: M) -> Result<M::Page, Failure> {
        self.read_pages(message).await.map_err(|(status, _)| Failure::from_status(&status, None))
    }

    /// The same; where no majority confirms it, as the node that is asked knew it last. An operator in trouble wants to see that.
    pub(crate) async fn read_known<M: PageOf>(&self, message: M) -> Result<M::Page, Failure> {
        let (status, mut message) = match self.read_pages(message).await {
            Ok(all) => return Ok(all),
            Err(refused) => refused,
        };
        if !is_without_majority(&status) || !message.take_what_is_known() {
            return Err(Failure::from_status(&status, None));
        }
        let said = status.message();
        complain(&format!("lbctl: warning: {said}. This is what the node that is asked knew last"));
        self.read_all(message).await
    }

    /// With what was asked for where it is not answered.
    async fn read_pages<M: PageOf>(&self, mut message: M) -> Result<M::Page, (tonic::Status, M)> {
        let mut all: Option<M::Page> = None;
        loop {
            let client = self.table();
            let mut page = match self.answer(message.clone(), |request| M::list(client, request)).await {
                Ok(page) => page,
                Err(status) => return Err((status, message)),
            };
            let more = message.go_on(&mut page);
            match &mut all {
                None => all = Some(page),
                Some(all) => M::append(all, page),
            }
            if let Some(all) = all.take_if(|_| !more) {
                return Ok(all);
            }
        }
    }

    /// What the cluster is; `brief`: without its VIPs.
    pub(crate) async fn status(&self, brief: bool) -> Result<v1::GetStatusResponse, Failure> {
        self.status_by(v1::GetStatusRequest { brief, ..v1::GetStatusRequest::default() }).await
    }

    /// As much of it as is asked for.
    pub(crate) async fn status_by(&self, request: v1::GetStatusRequest) -> Result<v1::GetStatusResponse, Failure> {
        let mut client = ClusterServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_LEN);
        self.read(request, |request| async move { client.get_status(request).await }).await
    }

    /// The calls of the table.
    pub(crate) fn table(&self) -> TableServiceClient<Channel> {
        TableServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_LEN)
    }

    /// The calls of the node that answers.
    pub(crate) fn node(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_LEN)
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
        self.answer(message, call).await.map_err(|status| Failure::from_status(&status, request_id))
    }

    /// Makes a call; what the server says, or that it has said nothing in time.
    pub(crate) async fn answer<M, T, F>(
        &self,
        message: M,
        call: impl FnOnce(Request<M>) -> F,
    ) -> Result<T, tonic::Status>
    where
        F: Future<Output = Result<Response<T>, tonic::Status>>,
    {
        let timeout = self.global.timeout();
        let mut request = Request::new(message);
        request.set_timeout(timeout);
        let late = || format!("no answer within {}", humantime::format_duration(timeout));
        let answer = tokio::time::timeout(timeout + GRACE, call(request)).await;
        answer.map_err(|_| tonic::Status::deadline_exceeded(late()))?.map(Response::into_inner)
    }

    /// Prints what a change of the table came to.
    pub(crate) fn changed(&self, what: String, response: v1::MutationResponse) -> Result<(), Failure> {
        output::change(self.format(), &change(what, response))
    }

    /// The same of a removal.
    pub(crate) fn removed(&self, what: String, response: v1::MutationResponse) -> Result<(), Failure> {
        output::change(self.format(), &Change { removes: true, ..change(what, response) })
    }
}

/// The server itself says that no leader confirms what it knows.
fn is_without_majority(status: &tonic::Status) -> bool {
    status.get_details_error_info().is_some_and(|info| info.reason == "NO_LEADER")
}

/// What a change of the table came to.
pub(crate) fn change(what: String, response: v1::MutationResponse) -> Change {
    let v1::MutationResponse { revision, unchanged, request_id, warnings, .. } = response;
    Change { what, revision, unchanged, request_id, warnings, ..Change::default() }
}

/// A request for a page of a list.
pub(crate) trait PageOf: Clone {
    type Page;
    /// Makes the call.
    fn list(
        client: TableServiceClient<Channel>,
        request: Request<Self>,
    ) -> impl Future<Output = Result<Response<Self::Page>, tonic::Status>>;
    /// Asks for the page after this one, if there is one. Whether there is.
    fn go_on(&mut self, page: &mut Self::Page) -> bool;
    /// Asks no longer for what a majority confirms. Whether it did before.
    fn take_what_is_known(&mut self) -> bool;
    /// Puts the rows of a page behind those before.
    fn append(all: &mut Self::Page, page: Self::Page);
}

macro_rules! paged {
    ($($request:ident => $response:ident of $rows:ident by $list:ident,)+) => {
        $(impl PageOf for v1::$request {
            type Page = v1::$response;

            async fn list(
                mut client: TableServiceClient<Channel>,
                request: Request<Self>,
            ) -> Result<Response<v1::$response>, tonic::Status> {
                client.$list(request).await
            }

            fn go_on(&mut self, page: &mut v1::$response) -> bool {
                self.page_token = std::mem::take(&mut page.next_page_token);
                // As new as the page before, whichever node answers.
                self.at_least_revision = page.revision;
                !self.page_token.is_empty()
            }

            fn take_what_is_known(&mut self) -> bool {
                std::mem::replace(&mut self.at_least_revision, 1) == 0
            }

            fn append(all: &mut v1::$response, page: v1::$response) {
                all.$rows.extend(page.$rows);
            }
        })+
    };
}

paged! {
    ListVipsRequest => ListVipsResponse of vips by list_vips,
    ListServicesRequest => ListServicesResponse of services by list_services,
    ListBackendsRequest => ListBackendsResponse of backends by list_backends,
    ListSegmentsRequest => ListSegmentsResponse of segments by list_segments,
}

/// On the command line, "none" takes a value away.
pub(crate) fn none_is_empty(value: Option<String>) -> Option<String> {
    value.map(|text| if text == "none" { String::new() } else { text })
}
