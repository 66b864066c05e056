//! `lb.v1.TableService`.

use std::{collections::HashMap, net::IpAddr, pin::Pin, time::Duration};

use futures::Stream;
use lb_proto::v1::{self, ask_request::Question, ask_response::Answer as Told, table_service_server::TableService};
use lb_raft_store::table::{Attachment, Backend, Cidr, Mutation, Name, Table as TableOfAll, Vip};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status};

use super::{
    Context,
    context::{Call, Changed},
    convert, status,
};

/// For a deleted VIP's owner to let go of it.
const LET_GO: Duration = Duration::from_secs(2);

type Answer<T> = Result<Response<T>, Status>;

pub(super) struct Table(pub(super) Context);

impl Table {
    async fn change(
        &self,
        call: &Call,
        request_id: &str,
        expected_revision: u64,
        mutation: Result<Mutation, Status>,
    ) -> Answer<v1::MutationResponse> {
        let changed = self.0.mutate(call, request_id, expected_revision, vec![mutation?]).await?;
        Ok(answer(&changed))
    }

    /// Says what a VIP that was changed does not do by itself.
    fn with_warnings(&self, answer: Response<v1::MutationResponse>, vip: &str) -> Response<v1::MutationResponse> {
        let view = self.0.consensus.view();
        let vip = vip.parse().ok().and_then(|address: IpAddr| view.table.vip(address.to_canonical()));
        answer.map(|answer| v1::MutationResponse {
            warnings: vip.map(|vip| warnings(vip, &view.table)).unwrap_or_default(),
            ..answer
        })
    }

    /// How many flows each backend has on all nodes, by their ids; and the nodes that did not say.
    async fn count_flows(&self, table: &TableOfAll) -> (HashMap<u64, u64>, Vec<String>) {
        let me = self.0.consensus.status().node;
        let heard = self.0.peers.ask(table, me, &Question::CountFlows(v1::CountFlows {})).await;
        let mut flows = HashMap::new();
        for Told::FlowCounts(counts) in heard.answers {
            for of in counts.backends {
                *flows.entry(of.backend).or_default() += of.flows;
            }
        }
        (flows, heard.silent)
    }

    /// A removed VIP is gone when its owner has let go of it; most callers want to hear that.
    async fn wait_until_gone(&self, vip: IpAddr, revision: u64, call: &Call) {
        let mut watcher = self.0.consensus.watch();
        let deadline = call.deadline.min(Instant::now() + LET_GO);
        let gone =
            watcher.wait_for(|view| view.applied >= revision && view.table.vip(vip).is_none_or(|vip| !vip.deleting));
        // It is marked, so it will go; who looks meanwhile sees `deleting`.
        drop(timeout_at(deadline, gone).await);
    }
}

fn answer(changed: &Changed) -> Response<v1::MutationResponse> {
    Response::new(v1::MutationResponse {
        revision: changed.revision,
        unchanged: changed.unchanged(),
        request_id: changed.request.as_str().to_owned(),
        warnings: Vec::new(),
    })
}

/// What a VIP does not do by itself.
fn warnings(vip: &Vip, table: &TableOfAll) -> Vec<String> {
    let address = vip.settings.address;
    if table.is_routed(vip) {
        return vec![format!(
            "{address} is on no segment of the nodes, so it is routed: nobody asks for it by ARP or neighbour discovery. The \
             routers need a route for it to an address of the node that owns it ('lbctl vip list'), or a routing protocol \
             there that announces it"
        )];
    }
    let Some(segment) = vip.settings.segment else { return Vec::new() };
    let is_there = |attachment: &Attachment| attachment.segment() == Some(segment);
    let nowhere = !table.nodes().any(|node| node.attachments.iter().any(is_there));
    let warning = || {
        format!(
            "no node has an address in {segment}, so nobody can own {address}: 'lbctl node list' shows their segments"
        )
    };
    nowhere.then(warning).into_iter().collect()
}

#[tonic::async_trait]
impl TableService for Table {
    async fn list_vips(&self, request: Request<v1::ListVipsRequest>) -> Answer<v1::ListVipsResponse> {
        let view = self.0.read(&Call::new("ListVips", &request)).await?;
        let vips = view.table.vips().map(|vip| self.0.vip(vip, &view.table)).collect();
        Ok(Response::new(v1::ListVipsResponse { vips, revision: view.table.revision() }))
    }

    async fn get_vip(&self, request: Request<v1::GetVipRequest>) -> Answer<v1::GetVipResponse> {
        let view = self.0.read(&Call::new("GetVip", &request)).await?;
        let address = convert::address("address", &request.get_ref().address)?;
        let vip = view.table.vip(address).ok_or_else(|| status::not_found(&format!("there is no VIP {address}")))?;
        let vip = Some(self.0.vip(vip, &view.table));
        Ok(Response::new(v1::GetVipResponse { vip, revision: view.table.revision() }))
    }

    async fn create_vip(&self, request: Request<v1::CreateVipRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("CreateVip", &request);
        let request = request.get_ref();
        let mutation = convert::create_vip(request.vip.as_ref(), &self.0.read(&call).await?.table);
        let answer = self.change(&call, &request.request_id, request.expected_revision, mutation).await?;
        Ok(self.with_warnings(answer, request.vip.as_ref().map_or("", |vip| &vip.address)))
    }

    async fn update_vip(&self, request: Request<v1::UpdateVipRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("UpdateVip", &request);
        let request = request.get_ref();
        let mutation = convert::update_vip(request, &self.0.read(&call).await?.table);
        let answer = self.change(&call, &request.request_id, request.expected_revision, mutation).await?;
        Ok(self.with_warnings(answer, &request.address))
    }

    async fn delete_vip(&self, request: Request<v1::DeleteVipRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("DeleteVip", &request);
        let request = request.get_ref();
        let mutation = convert::delete_vip(request);
        let answer = self.change(&call, &request.request_id, request.expected_revision, mutation).await?;
        if let Ok(vip) = request.address.parse() {
            self.wait_until_gone(vip, answer.get_ref().revision, &call).await;
        }
        Ok(answer)
    }

    async fn list_services(&self, request: Request<v1::ListServicesRequest>) -> Answer<v1::ListServicesResponse> {
        let view = self.0.read(&Call::new("ListServices", &request)).await?;
        let vip = match request.get_ref().vip.as_str() {
            "" => None,
            text => Some(convert::address("vip", text)?),
        };
        let of_vip = view.table.services().filter(|service| vip.is_none_or(|vip| service.settings.vip == vip));
        let services = of_vip.map(convert::service).collect();
        Ok(Response::new(v1::ListServicesResponse { services, revision: view.table.revision() }))
    }

    async fn get_service(&self, request: Request<v1::GetServiceRequest>) -> Answer<v1::GetServiceResponse> {
        let view = self.0.read(&Call::new("GetService", &request)).await?;
        let name: Name = convert::parsed("name", &request.get_ref().name)?;
        let found = view.table.service(&name);
        let service = found.ok_or_else(|| status::not_found(&format!("there is no service {name}")))?;
        let service = Some(convert::service(service));
        Ok(Response::new(v1::GetServiceResponse { service, revision: view.table.revision() }))
    }

    async fn create_service(&self, request: Request<v1::CreateServiceRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("CreateService", &request);
        let request = request.get_ref();
        let mutation = convert::create_service(request.service.as_ref(), &self.0.read(&call).await?.table);
        self.change(&call, &request.request_id, request.expected_revision, mutation).await
    }

    async fn update_service(&self, request: Request<v1::UpdateServiceRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("UpdateService", &request);
        let request = request.get_ref();
        let mutation = convert::update_service(request);
        self.change(&call, &request.request_id, request.expected_revision, mutation).await
    }

    async fn delete_service(&self, request: Request<v1::DeleteServiceRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("DeleteService", &request);
        let request = request.get_ref();
        let mutation = convert::delete_service(request);
        self.change(&call, &request.request_id, request.expected_revision, mutation).await
    }

    async fn list_backends(&self, request: Request<v1::ListBackendsRequest>) -> Answer<v1::ListBackendsResponse> {
        let view = self.0.read(&Call::new("ListBackends", &request)).await?;
        let service: Option<Name> = match request.get_ref().service.as_str() {
            "" => None,
            text => Some(convert::parsed("service", text)?),
        };
        if let Some(name) = service.as_ref().filter(|name| view.table.service(name).is_none()) {
            return Err(status::not_found(&format!("there is no service {name}")));
        }
        let address = match request.get_ref().address.as_str() {
            "" => None,
            text => Some(convert::address("address", text)?),
        };
        let is_wanted = |backend: &&Backend| service.as_ref().is_none_or(|name| backend.settings.service == *name);
        let wanted: Vec<&Backend> = match (&service, address) {
            (_, Some(address)) => view.table.backends_with(address).filter(is_wanted).collect(),
            (Some(name), None) => view.table.backends_of(name).collect(),
            (None, None) => view.table.backends().collect(),
        };
        let (flows, silent_nodes) = match request.get_ref().with_flows {
            true => self.count_flows(&view.table).await,
            false => Default::default(),
        };
        let shown = |backend: &Backend| {
            let flows = request.get_ref().with_flows.then(|| flows.get(&backend.id).copied().unwrap_or(0));
            v1::Backend { flows, ..convert::backend(backend, &view.table) }
        };
        let backends = wanted.into_iter().map(shown).collect();
        Ok(Response::new(v1::ListBackendsResponse { backends, revision: view.table.revision(), silent_nodes }))
    }

    async fn get_backend(&self, request: Request<v1::GetBackendRequest>) -> Answer<v1::GetBackendResponse> {
        let view = self.0.read(&Call::new("GetBackend", &request)).await?;
        let service: Name = convert::parsed("service", &request.get_ref().service)?;
        let address = convert::address("address", &request.get_ref().address)?;
        let found = view.table.backend(&service, address);
        let backend = found.ok_or_else(|| status::not_found(&format!("service {service} has no backend {address}")))?;
        let backend = Some(convert::backend(backend, &view.table));
        Ok(Response::new(v1::GetBackendResponse { backend, revision: view.table.revision() }))
    }

    async fn create_backend(&self, request: Request<v1::CreateBackendRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("CreateBackend", &request);
        let request = request.get_ref();
        let mutation = convert::create_backend(request.backend.as_ref());
        self.change(&call, &request.request_id, request.expected_revision, mutation).await
    }

    async fn update_backend(&self, request: Request<v1::UpdateBackendRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("UpdateBackend", &request);
        let request = request.get_ref();
        let mutation = convert::update_backend(request);
        self.change(&call, &request.request_id, request.expected_revision, mutation).await
    }

    async fn delete_backend(&self, request: Request<v1::DeleteBackendRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("DeleteBackend", &request);
        let request = request.get_ref();
        let mutation = convert::delete_backend(request);
        self.change(&call, &request.request_id, request.expected_revision, mutation).await
    }

    async fn list_segments(&self, request: Request<v1::ListSegmentsRequest>) -> Answer<v1::ListSegmentsResponse> {
        let view = self.0.read(&Call::new("ListSegments", &request)).await?;
        let segments = view.table.segments().map(|segment| convert::segment(segment, &view.table)).collect();
        Ok(Response::new(v1::ListSegmentsResponse { segments, revision: view.table.revision() }))
    }

    async fn get_segment(&self, request: Request<v1::GetSegmentRequest>) -> Answer<v1::GetSegmentResponse> {
        let view = self.0.read(&Call::new("GetSegment", &request)).await?;
        let network: Cidr = convert::parsed("network", &request.get_ref().network)?;
        let found = view.table.segment(&network);
        let segment = found.ok_or_else(|| status::not_found(&format!("there is no segment {network}")))?;
        let segment = Some(convert::segment(segment, &view.table));
        Ok(Response::new(v1::GetSegmentResponse { segment, revision: view.table.revision() }))
    }

    async fn create_segment(&self, request: Request<v1::CreateSegmentRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("CreateSegment", &request);
        let request = request.get_ref();
        let mutation = convert::create_segment(request.segment.as_ref());
        self.change(&call, &request.request_id, request.expected_revision, mutation).await
    }

    async fn update_segment(&self, request: Request<v1::UpdateSegmentRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("UpdateSegment", &request);
        let request = request.get_ref();
        let mutation = convert::update_segment(request);
        self.change(&call, &request.request_id, request.expected_revision, mutation).await
    }

    async fn delete_segment(&self, request: Request<v1::DeleteSegmentRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("DeleteSegment", &request);
        let request = request.get_ref();
        let mutation = convert::delete_segment(request);
        self.change(&call, &request.request_id, request.expected_revision, mutation).await
    }

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("Apply", &request);
        let request = request.get_ref();
        if request.dry_run {
            return Err(status::not_built("dry_run"));
        }
        let table = &self.0.read(&call).await?.table;
        let mutations = request.mutations.iter().map(|mutation| convert::mutation(mutation, table));
        let mutations = mutations.collect::<Result<Vec<_>, _>>()?;
        let changed = self.0.mutate(&call, &request.request_id, request.expected_revision, mutations).await?;
        Ok(answer(&changed))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(status::not_built("Watch"))
    }
}
