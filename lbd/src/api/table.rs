//! `lb.v1.TableService`.

use std::{net::IpAddr, pin::Pin, time::Duration};

use futures::Stream;
use lb_proto::{
    tls::Role,
    v1::{self, table_service_server::TableService},
};
use lb_raft_store::table::{
    Applied, Attachment, Backend, Body, Cidr, Command, Effect, Mutation, Name, NodeId, Table as TableOfAll, Vip,
};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Context,
    context::{Call, Changed, refused},
    convert,
    guard::{Guard, Guarded},
    page::{Page, Paged},
    status, watch,
};

/// For a deleted VIP's owner to let go of it.
const LET_GO: Duration = Duration::from_secs(2);

/// Of all messages of an ApplyStream: a table's bounds, and as many changes of them.
const MOST_MUTATIONS: usize = 200_000;
/// What would change, in one answer.
const LONGEST_DRY_RUN: usize = 3 << 20;

type Answer<T> = Result<Response<T>, Status>;

pub(super) struct Table(pub(super) Context);

impl Table {
    /// Makes a change that a request asks for. What its names stand for is looked up here; where that fails, in the newest
    /// table, unless the request was answered before.
    async fn change(
        &self,
        call: &Call,
        request: &impl Guarded,
        mutation: impl Fn(&TableOfAll) -> Result<Mutation, Status>,
    ) -> Answer<v1::MutationResponse> {
        let guard = request.guard()?;
        let mutation = match mutation(&self.0.consensus.view().table) {
            Ok(mutation) => mutation,
            Err(_) => {
                let view = self.0.read(call).await?;
                if let Some(known) = self.0.known(&guard, &view.table)? {
                    return Ok(answer(&known));
                }
                mutation(&view.table)?
            }
        };
        Ok(answer(&self.0.mutate(call, &guard, vec![mutation]).await?))
    }

    /// The mutations of an Apply. An error names the one that is wrong.
    fn mutations(request: &v1::ApplyRequest, table: &TableOfAll) -> Result<Vec<Mutation>, Status> {
        let one = |(at, mutation)| convert::mutation(mutation, table).map_err(|error| status::of_mutation(at, error));
        request.mutations.iter().enumerate().map(one).collect()
    }

    async fn apply_all(&self, call: &Call, request: &v1::ApplyRequest) -> Answer<v1::MutationResponse> {
        let guard = request.guard()?;
        let view = self.0.read(call).await?;
        if !request.dry_run
            && let Some(known) = self.0.known(&guard, &view.table)?
        {
            return Ok(answer(&known));
        }
        let mutations = Self::mutations(request, &view.table)?;
        if let Some(at) = mutations.iter().position(|mutation| matches!(mutation, Mutation::PatchSettings(_))) {
            call.needs(Role::Admin, &format!("mutations[{at}]: a change of the cluster's settings"))?;
        }
        if request.dry_run {
            let command = self.0.command(call, &guard, Body::Mutate(mutations));
            return dry_run(&view.table, view.applied + 1, &command, &guard);
        }
        Ok(answer(&self.0.mutate(call, &guard, mutations).await?))
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

/// What a command would change.
fn dry_run(table: &TableOfAll, index: u64, command: &Command, guard: &Guard) -> Answer<v1::MutationResponse> {
    let mut after = table.clone();
    let Applied { reply, touched } = after.apply(index, command);
    let effect = reply.result.map_err(|rejection| refused(guard, &rejection))?;
    let changes = watch::changes(table, &after, &touched);
    if changes.iter().map(prost::Message::encoded_len).sum::<usize>() > LONGEST_DRY_RUN {
        return Err(status::exhausted("mutations", "what would change does not fit into one answer: ask for fewer"));
    }
    Ok(Response::new(v1::MutationResponse {
        revision: table.revision(),
        unchanged: effect == Effect::Unchanged,
        request_id: guard.request.as_str().to_owned(),
        changes,
        ..v1::MutationResponse::default()
    }))
}

fn answer(changed: &Changed) -> Response<v1::MutationResponse> {
    Response::new(v1::MutationResponse {
        revision: changed.revision,
        unchanged: changed.unchanged(),
        request_id: changed.request.as_str().to_owned(),
        ..v1::MutationResponse::default()
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
    let stays = vip.settings.prefer.filter(|_| table.settings().failback_s == 0).and_then(|prefer| {
        let owner = vip.owner.map(|owner| owner.node).filter(|owner| *owner != prefer)?;
        let name = |id: NodeId| table.node(id).map(|node| node.name.to_string()).unwrap_or_default();
        let (owner, prefer) = (name(owner), name(prefer));
        Some(format!("{address} stays on {owner} while that is able: failback is never. 'lbctl vip move {address} {prefer}' moves it"))
    });
    let Some(segment) = vip.settings.segment else { return stays.into_iter().collect() };
    let is_there = |attachment: &Attachment| attachment.segment() == Some(segment);
    let nowhere = !table.nodes().any(|node| node.attachments.iter().any(is_there));
    let warning = || {
        format!(
            "no node has an address in {segment}, so nobody can own {address}: 'lbctl node list' shows their segments"
        )
    };
    nowhere.then(warning).into_iter().chain(stays).collect()
}

#[tonic::async_trait]
impl TableService for Table {
    async fn list_vips(&self, request: Request<v1::ListVipsRequest>) -> Answer<v1::ListVipsResponse> {
        let call = Call::new("ListVips", &request);
        let request = request.get_ref();
        let page = Page::new(request.page_size, &request.page_token)?;
        let after = page.after().map(|key| convert::address("page_token", key)).transpose()?;
        let view = self.0.read_at_least(&call, request.at_least_revision).await?;
        let table = &view.table;
        let owner = match request.owner.as_str() {
            "" => None,
            name => Some(convert::known_node("owner", name, table)?),
        };
        let is_owned = |vip: &&Vip| owner.is_none() || vip.owner.map(|owner| owner.node) == owner;
        let wanted = table.vips_after(after).filter(is_owned);
        let Paged { rows, next } =
            page.take(wanted.map(|vip| (vip.settings.address.to_string(), self.0.vip(vip, table))));
        Ok(Response::new(v1::ListVipsResponse { vips: rows, revision: table.revision(), next_page_token: next }))
    }

    async fn get_vip(&self, request: Request<v1::GetVipRequest>) -> Answer<v1::GetVipResponse> {
        let call = Call::new("GetVip", &request);
        let view = self.0.read_at_least(&call, request.get_ref().at_least_revision).await?;
        let address = convert::address("address", &request.get_ref().address)?;
        let vip = view.table.vip(address).ok_or_else(|| status::not_found(&format!("there is no VIP {address}")))?;
        let vip = Some(self.0.vip(vip, &view.table));
        Ok(Response::new(v1::GetVipResponse { vip, revision: view.table.revision() }))
    }

    async fn create_vip(&self, request: Request<v1::CreateVipRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("CreateVip", &request);
        let request = request.get_ref();
        let answer = self.change(&call, request, |table| convert::create_vip(request.vip.as_ref(), table)).await?;
        Ok(self.with_warnings(answer, request.vip.as_ref().map_or("", |vip| &vip.address)))
    }

    async fn update_vip(&self, request: Request<v1::UpdateVipRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("UpdateVip", &request);
        let request = request.get_ref();
        let answer = self.change(&call, request, |table| convert::update_vip(request, table)).await?;
        Ok(self.with_warnings(answer, &request.address))
    }

    async fn delete_vip(&self, request: Request<v1::DeleteVipRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("DeleteVip", &request);
        let request = request.get_ref();
        let answer = self.change(&call, request, |_| convert::delete_vip(request)).await?;
        if let Ok(vip) = request.address.parse() {
            self.wait_until_gone(vip, answer.get_ref().revision, &call).await;
        }
        Ok(answer)
    }

    async fn list_services(&self, request: Request<v1::ListServicesRequest>) -> Answer<v1::ListServicesResponse> {
        let call = Call::new("ListServices", &request);
        let request = request.get_ref();
        let page = Page::new(request.page_size, &request.page_token)?;
        let after = page.after().map(|key| convert::parsed("page_token", key)).transpose()?;
        let vip = convert::optional_address("vip", &request.vip)?;
        let view = self.0.read_at_least(&call, request.at_least_revision).await?;
        let table = &view.table;
        let wanted = table.services_after(after).filter(|of| vip.is_none_or(|vip| of.settings.vip == vip));
        let Paged { rows, next } =
            page.take(wanted.map(|service| (service.settings.name.to_string(), convert::service(service))));
        let revision = table.revision();
        Ok(Response::new(v1::ListServicesResponse { services: rows, revision, next_page_token: next }))
    }

    async fn get_service(&self, request: Request<v1::GetServiceRequest>) -> Answer<v1::GetServiceResponse> {
        let call = Call::new("GetService", &request);
        let view = self.0.read_at_least(&call, request.get_ref().at_least_revision).await?;
        let name: Name = convert::parsed("name", &request.get_ref().name)?;
        let found = view.table.service(&name);
        let service = found.ok_or_else(|| status::not_found(&format!("there is no service {name}")))?;
        let service = Some(convert::service(service));
        Ok(Response::new(v1::GetServiceResponse { service, revision: view.table.revision() }))
    }

    async fn create_service(&self, request: Request<v1::CreateServiceRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("CreateService", &request);
        let request = request.get_ref();
        // What nothing is said of stays as it is, where there is such a service: that is for the newest table to say.
        let view = self.0.read(&call).await?;
        self.change(&call, request, |_| convert::create_service(request.service.as_ref(), &view.table)).await
    }

    async fn update_service(&self, request: Request<v1::UpdateServiceRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("UpdateService", &request);
        let request = request.get_ref();
        self.change(&call, request, |table| convert::update_service(request, table)).await
    }

    async fn delete_service(&self, request: Request<v1::DeleteServiceRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("DeleteService", &request);
        let request = request.get_ref();
        self.change(&call, request, |_| convert::delete_service(request)).await
    }

    async fn list_backends(&self, request: Request<v1::ListBackendsRequest>) -> Answer<v1::ListBackendsResponse> {
        let call = Call::new("ListBackends", &request);
        let request = request.get_ref();
        let page = Page::new(request.page_size, &request.page_token)?;
        let after = page.after().map(convert::backend_key).transpose()?;
        let service: Option<Name> = convert::optional("service", &request.service)?;
        let address = convert::optional_address("address", &request.address)?;
        let vip = convert::optional_address("vip", &request.vip)?;
        let health = convert::healths(&request.health)?;
        let view = self.0.read_at_least(&call, request.at_least_revision).await?;
        let table = &view.table;
        if let Some(name) = service.as_ref().filter(|name| table.service(name).is_none()) {
            return Err(status::not_found(&format!("there is no service {name}")));
        }
        let (flows, silent_nodes) = match request.with_flows {
            true => self.0.peers.flows(table, self.0.consensus.status().node).await,
            false => Default::default(),
        };
        let is_of_vip = |of: &Name| vip.is_none() || table.service(of).map(|service| service.settings.vip) == vip;
        let is_wanted = |backend: &&Backend| {
            let settings = &backend.settings;
            service.as_ref().is_none_or(|name| settings.service == *name)
                && address.is_none_or(|address| settings.address == address)
                && is_of_vip(&settings.service)
                && (health.is_empty() || health.contains(&table.health(backend)))
        };
        let all: Box<dyn Iterator<Item = &Backend>> = match (&service, address) {
            // By the index; it is in the order of the keys, too.
            (_, Some(address)) => Box::new(
                table.backends_with(address).filter(|backend| after.as_ref().is_none_or(|key| backend.key() > *key)),
            ),
            (Some(name), None) => Box::new(
                table.backends_of(name).filter(|backend| after.as_ref().is_none_or(|key| backend.key() > *key)),
            ),
            (None, None) => Box::new(table.backends_after(after.as_ref())),
        };
        let row = |backend: &Backend| {
            let flows = request.with_flows.then(|| flows.get(&backend.id).copied().unwrap_or(0));
            let (service, address) = backend.key();
            (format!("{service}/{address}"), v1::Backend { flows, ..Context::backend(backend, table) })
        };
        let Paged { rows, next } = page.take(all.filter(is_wanted).map(row));
        let revision = table.revision();
        Ok(Response::new(v1::ListBackendsResponse { backends: rows, revision, silent_nodes, next_page_token: next }))
    }

    async fn get_backend(&self, request: Request<v1::GetBackendRequest>) -> Answer<v1::GetBackendResponse> {
        let call = Call::new("GetBackend", &request);
        let view = self.0.read_at_least(&call, request.get_ref().at_least_revision).await?;
        let service: Name = convert::parsed("service", &request.get_ref().service)?;
        let address = convert::address("address", &request.get_ref().address)?;
        let found = view.table.backend(&service, address);
        let backend = found.ok_or_else(|| status::not_found(&format!("service {service} has no backend {address}")))?;
        let backend = Some(Context::backend(backend, &view.table));
        Ok(Response::new(v1::GetBackendResponse { backend, revision: view.table.revision() }))
    }

    async fn create_backend(&self, request: Request<v1::CreateBackendRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("CreateBackend", &request);
        let request = request.get_ref();
        self.change(&call, request, |_| convert::create_backend(request.backend.as_ref())).await
    }

    async fn update_backend(&self, request: Request<v1::UpdateBackendRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("UpdateBackend", &request);
        let request = request.get_ref();
        self.change(&call, request, |_| convert::update_backend(request)).await
    }

    async fn delete_backend(&self, request: Request<v1::DeleteBackendRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("DeleteBackend", &request);
        let request = request.get_ref();
        self.change(&call, request, |_| convert::delete_backend(request)).await
    }

    async fn list_segments(&self, request: Request<v1::ListSegmentsRequest>) -> Answer<v1::ListSegmentsResponse> {
        let call = Call::new("ListSegments", &request);
        let request = request.get_ref();
        let page = Page::new(request.page_size, &request.page_token)?;
        let after: Option<Cidr> = page.after().map(|key| convert::parsed("page_token", key)).transpose()?;
        let view = self.0.read_at_least(&call, request.at_least_revision).await?;
        let table = &view.table;
        let wanted = table.segments().filter(|of| after.is_none_or(|after| of.settings.network > after));
        let Paged { rows, next } =
            page.take(wanted.map(|segment| (segment.settings.network.to_string(), convert::segment(segment, table))));
        let revision = table.revision();
        Ok(Response::new(v1::ListSegmentsResponse { segments: rows, revision, next_page_token: next }))
    }

    async fn get_segment(&self, request: Request<v1::GetSegmentRequest>) -> Answer<v1::GetSegmentResponse> {
        let call = Call::new("GetSegment", &request);
        let view = self.0.read_at_least(&call, request.get_ref().at_least_revision).await?;
        let network: Cidr = convert::parsed("network", &request.get_ref().network)?;
        let found = view.table.segment(&network);
        let segment = found.ok_or_else(|| status::not_found(&format!("there is no segment {network}")))?;
        let segment = Some(convert::segment(segment, &view.table));
        Ok(Response::new(v1::GetSegmentResponse { segment, revision: view.table.revision() }))
    }

    async fn create_segment(&self, request: Request<v1::CreateSegmentRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("CreateSegment", &request);
        let request = request.get_ref();
        self.change(&call, request, |_| convert::create_segment(request.segment.as_ref())).await
    }

    async fn update_segment(&self, request: Request<v1::UpdateSegmentRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("UpdateSegment", &request);
        let request = request.get_ref();
        self.change(&call, request, |_| convert::update_segment(request)).await
    }

    async fn delete_segment(&self, request: Request<v1::DeleteSegmentRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("DeleteSegment", &request);
        let request = request.get_ref();
        self.change(&call, request, |_| convert::delete_segment(request)).await
    }

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Answer<v1::MutationResponse> {
        let call = Call::new("Apply", &request);
        self.apply_all(&call, request.get_ref()).await
    }

    async fn apply_stream(&self, request: Request<Streaming<v1::ApplyRequest>>) -> Answer<v1::MutationResponse> {
        let call = Call::new("ApplyStream", &request);
        let mut stream = request.into_inner();
        let whole = async {
            let mut whole = stream.message().await?.unwrap_or_default();
            while let Some(more) = stream.message().await? {
                whole.mutations.extend(more.mutations);
                if whole.mutations.len() > MOST_MUTATIONS {
                    return Err(status::exhausted("mutations", format!("{MOST_MUTATIONS} at most are taken at once")));
                }
            }
            Ok(whole)
        };
        let whole = timeout_at(call.deadline, whole).await;
        let whole =
            whole.map_err(|_| status::timed_out("not all mutations have come in time: nothing is changed"))??;
        self.apply_all(&call, &whole).await
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let call = Call::new("Watch", &request);
        // A node that belongs to no cluster has nothing to tell.
        self.0.read(&call).await?;
        Ok(Response::new(Box::pin(watch::follow(
            self.0.consensus.watch(),
            self.0.stopping.clone(),
            request.get_ref(),
        )?)))
    }
}
