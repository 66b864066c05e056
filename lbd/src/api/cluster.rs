//! `lb.v1.ClusterService`.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use lb_proto::v1::{self, cluster_service_server::ClusterService};
use lb_raft_store::{
    View,
    table::{Body, Evidence, Name, NodeId, Rejection, Role, SettingsPatch, decode_saved, encode_saved, restore},
};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Context,
    context::{Call, Changed},
    convert,
    guard::{self, Guard, Guarded as _},
    settings, status,
};

/// Of a snapshot, in one message.
const CHUNK_LEN: usize = 256 << 10;
/// More than a full table takes.
const MAX_SNAPSHOT_LEN: usize = 64 << 20;
/// For a majority to confirm the table; after that the answer is what this node has.
const CONFIRM: Duration = Duration::from_secs(1);

type Answer<T> = Result<Response<T>, Status>;

pub(super) struct Cluster(pub(super) Context);

impl Cluster {
    fn node_id(view: &View, name: &str) -> Result<NodeId, Status> {
        let known = || convert::node_names(&view.table);
        let node = view.table.node_named(name);
        node.map(|node| node.id)
            .ok_or_else(|| status::not_found(&format!("there is no node {name:?}; there are: {}", known())))
    }

    /// What a request was answered that comes once more; or the node that it names.
    fn node_or_known(&self, guard: &Guard, view: &View, name: &str) -> Result<Result<NodeId, Changed>, Status> {
        match self.0.known(guard, &view.table)? {
            Some(known) => Ok(Err(known)),
            None => Self::node_id(view, name).map(Ok),
        }
    }

    async fn set_draining(&self, call: &Call, name: &str, guard: &Guard, draining: bool) -> Result<Changed, Status> {
        let view = self.0.read(call).await?;
        match self.node_or_known(guard, &view, name)? {
            Ok(node) => {
                let body = Body::SetDraining { node, draining };
                self.0.change(call, guard, body, &format!("{name} draining={draining}")).await
            }
            Err(known) => Ok(known),
        }
    }

    /// Changes settings as far as the cluster's feature level has commands for it: below level 2 all of them are written, and
    /// of two changes at once one is lost.
    async fn patch_settings(&self, call: &Call, guard: &Guard, patch: SettingsPatch) -> Result<Changed, Status> {
        let table = &self.0.read(call).await?.table;
        let settings = patch.of(table.settings());
        let body = match table.feature_level() {
            ..2 => Body::UpdateSettings(settings),
            2.. => Body::PatchSettings(patch),
        };
        self.0.change(call, guard, body, &format!("settings are {settings:?}")).await
    }

    /// Node changes are several entries; the revision is checked before they begin.
    async fn read_expecting(&self, call: &Call, guard: &Guard) -> Result<Arc<View>, Status> {
        let view = self.0.read(call).await?;
        let command = self.0.command(call, guard, Body::Mutate(Vec::new()));
        view.table.check_expected(&command).map_err(|rejection| status::rejected(&rejection))?;
        Ok(view)
    }
}

#[tonic::async_trait]
impl ClusterService for Cluster {
    async fn get_status(&self, request: Request<v1::GetStatusRequest>) -> Answer<v1::GetStatusResponse> {
        let call = Call::new("GetStatus", &request);
        let local = request.get_ref().local || self.0.consensus.status().node.is_none();
        let deadline = call.deadline.min(Instant::now() + CONFIRM);
        let confirmed = if local { None } else { self.0.consensus.read(deadline).await.ok() };
        let stale = !local && confirmed.is_none();
        let view = confirmed.unwrap_or_else(|| self.0.consensus.view());
        let mut overview = self.0.overview(&view, stale, request.get_ref().brief);
        if request.get_ref().with_versions {
            let mut versions = self.0.peers.versions(&view.table, self.0.consensus.status().node).await;
            for node in &mut overview.nodes {
                node.version = versions.remove(&node.name).unwrap_or_default();
            }
        }
        Ok(Response::new(overview))
    }

    async fn add_node(&self, request: Request<v1::AddNodeRequest>) -> Answer<v1::AddNodeResponse> {
        let call = Call::new("AddNode", &request);
        let request = request.get_ref();
        let name: Name = convert::parsed("name", &request.name)?;
        let role: Role = convert::role(request.role)?;
        let _ = convert::cluster_address("address", &request.address)?;
        let guard = request.guard()?;
        let before = self.read_expecting(&call, &guard).await?;
        if let Some(known) = self.0.known(&guard, &before.table)? {
            let id = before.table.node_named(name.as_str()).map_or(0, |node| node.id);
            return Ok(Response::new(v1::AddNodeResponse {
                id,
                revision: known.revision,
                unchanged: known.unchanged(),
            }));
        }
        let voted = |view: &View| {
            let node = view.table.node_named(name.as_str());
            node.is_some_and(|node| node.address == request.address && view.voters.contains(&node.id))
        };
        let unchanged = voted(&before);
        let consensus = &self.0.consensus;
        let added = consensus.add_node(&name, role, &request.address, call.deadline).await;
        added.map_err(|error| status::membership(&error))?;
        let view = self.0.read(&call).await?;
        let id = Self::node_id(&view, name.as_str())?;
        if !unchanged {
            call.audit(
                &format!("added {name} at {} as {role}", request.address),
                view.table.revision(),
                &guard.request,
            );
        }
        self.0.note(&call, &guard).await?;
        Ok(Response::new(v1::AddNodeResponse { id, revision: view.table.revision(), unchanged }))
    }

    async fn remove_node(&self, request: Request<v1::RemoveNodeRequest>) -> Answer<v1::RemoveNodeResponse> {
        let call = Call::new("RemoveNode", &request);
        let request = request.get_ref();
        let name: Name = convert::parsed("name", &request.name)?;
        let guard = request.guard()?;
        let view = self.read_expecting(&call, &guard).await?;
        if let Some(known) = self.0.known(&guard, &view.table)? {
            return Ok(Response::new(v1::RemoveNodeResponse {
                revision: known.revision,
                unchanged: known.unchanged(),
            }));
        }
        if view.table.node_named(name.as_str()).is_none() {
            let revision = self.0.note(&call, &guard).await?.revision;
            return Ok(Response::new(v1::RemoveNodeResponse { revision, unchanged: true }));
        }
        let removed = self.0.consensus.remove_node(&name, request.force, call.deadline).await;
        removed.map_err(|error| status::membership(&error))?;
        let revision = self.0.consensus.view().table.revision();
        call.audit(&format!("removed {name} (force={})", request.force), revision, &guard.request);
        self.0.note(&call, &guard).await?;
        Ok(Response::new(v1::RemoveNodeResponse { revision, unchanged: false }))
    }

    async fn drain_node(&self, request: Request<v1::DrainNodeRequest>) -> Answer<v1::DrainNodeResponse> {
        let call = Call::new("DrainNode", &request);
        let request = request.get_ref();
        let name = &request.name;
        let reply = self.set_draining(&call, name, &request.guard()?, true).await?;
        // Whoever repeats it late may name one that has gone.
        let Some(node) = self.0.consensus.view().table.node_named(name).map(|node| node.id) else {
            return Ok(Response::new(v1::DrainNodeResponse { revision: reply.revision, unchanged: reply.unchanged() }));
        };
        let leaving = |view: &View| view.table.vips_of(node).any(|vip| vip.intent.is_some() || vip.deleting);
        let mut watcher = self.0.consensus.watch();
        let settled = watcher.wait_for(|view| view.applied >= reply.revision && !leaving(view));
        let Ok(Ok(view)) = timeout_at(call.deadline, settled).await.map(|view| view.map(|view| view.clone())) else {
            return Err(status::timed_out(&format!("{name} is marked, and has not let go of all its VIPs yet")));
        };
        // Nobody else can own these: they stay, and the operator should know before pulling the plug.
        let kept: Vec<String> = view.table.vips_of(node).map(|vip| vip.settings.address.to_string()).collect();
        if !kept.is_empty() {
            return Err(status::rejected(&Rejection::precondition(
                "able_nodes",
                format!("{name} is marked and keeps {}: no other node is able to own them", kept.join(", ")),
            )));
        }
        Ok(Response::new(v1::DrainNodeResponse { revision: reply.revision, unchanged: reply.unchanged() }))
    }

    async fn undrain_node(&self, request: Request<v1::UndrainNodeRequest>) -> Answer<v1::UndrainNodeResponse> {
        let call = Call::new("UndrainNode", &request);
        let request = request.get_ref();
        let reply = self.set_draining(&call, &request.name, &request.guard()?, false).await?;
        Ok(Response::new(v1::UndrainNodeResponse { revision: reply.revision, unchanged: reply.unchanged() }))
    }

    async fn set_node_address(
        &self,
        request: Request<v1::SetNodeAddressRequest>,
    ) -> Answer<v1::SetNodeAddressResponse> {
        let call = Call::new("SetNodeAddress", &request);
        let request = request.get_ref();
        let address = convert::cluster_address("address", &request.address)?;
        let (guard, view) = (request.guard()?, self.0.read(&call).await?);
        let node = match self.node_or_known(&guard, &view, &request.name)? {
            Ok(node) => node,
            Err(known) => {
                let unchanged = known.unchanged();
                return Ok(Response::new(v1::SetNodeAddressResponse { revision: known.revision, unchanged }));
            }
        };
        self.0.consensus.check_address(node, &address).await.map_err(|error| status::membership(&error))?;
        let what = format!("{} is reached at {address}", request.name);
        let body = Body::SetNodeAddress { node, address };
        let reply = self.0.change(&call, &guard, body, &what).await?;
        Ok(Response::new(v1::SetNodeAddressResponse { revision: reply.revision, unchanged: reply.unchanged() }))
    }

    async fn fence_node(&self, request: Request<v1::FenceNodeRequest>) -> Answer<v1::FenceNodeResponse> {
        let call = Call::new("FenceNode", &request);
        let request = request.get_ref();
        let name = &request.name;
        if !request.i_know_it_is_off {
            return Err(status::invalid("i_know_it_is_off", "nobody but the caller can know that the machine is off"));
        }
        let (guard, view) = (request.guard()?, self.0.read(&call).await?);
        let node = match self.node_or_known(&guard, &view, name)? {
            Ok(node) => node,
            Err(known) => {
                let unchanged = known.unchanged();
                return Ok(Response::new(v1::FenceNodeResponse { revision: known.revision, unchanged }));
            }
        };
        let alive = self.0.ownership.heard().peers.get(&node).copied().unwrap_or(false);
        if alive || self.0.consensus.status().node == Some(node) {
            return Err(status::precondition(
                "name",
                &format!("{name} is not off: it answers heartbeats. 'lbctl node drain {name}' moves its VIPs"),
            ));
        }
        let Some(lease) = view.table.lease(node).map(|lease| lease.id) else {
            let revision = view.table.revision();
            return Ok(Response::new(v1::FenceNodeResponse { revision, unchanged: true }));
        };
        let what = format!("{name} is fenced: {} says that it is off", call.caller());
        let body = Body::Fence { node, lease, evidence: Evidence::Operator, heard: Vec::new() };
        let reply = self.0.change(&call, &guard, body, &what).await?;
        Ok(Response::new(v1::FenceNodeResponse { revision: reply.revision, unchanged: reply.unchanged() }))
    }

    async fn move_vip(&self, request: Request<v1::MoveVipRequest>) -> Answer<v1::MoveVipResponse> {
        let call = Call::new("MoveVip", &request);
        let request = request.get_ref();
        let vip = convert::address("address", &request.address)?;
        let (guard, view) = (request.guard()?, self.0.read(&call).await?);
        let (reply, to, is_repeated) = match self.node_or_known(&guard, &view, &request.node)? {
            Ok(to) => {
                let what = format!("{vip} moves to {}", request.node);
                (self.0.change(&call, &guard, Body::MoveIntent { vip, to }, &what).await?, Some(to), false)
            }
            Err(known) => (known, view.table.node_named(&request.node).map(|node| node.id), true),
        };
        let owner = |view: &View| view.table.vip(vip).and_then(|vip| vip.owner);
        // It is there; or, where that was asked before, it may have moved on since.
        let is_over = |view: &View| {
            let intent = view.table.vip(vip).and_then(|vip| vip.intent);
            (to.is_some() && owner(view).map(|owner| owner.node) == to)
                || (is_repeated && intent.is_none_or(|intent| Some(intent) != to))
        };
        let mut watcher = self.0.consensus.watch();
        let moved = watcher.wait_for(|view| view.applied >= reply.revision && is_over(view));
        match timeout_at(call.deadline, moved).await {
            Ok(Ok(view)) => Ok(Response::new(v1::MoveVipResponse {
                revision: view.table.revision(),
                unchanged: reply.unchanged(),
                epoch: owner(&view).map_or(0, |owner| owner.epoch.0),
            })),
            _ => {
                Err(status::timed_out(&format!("{vip} is asked to move to {}, and has not arrived yet", request.node)))
            }
        }
    }

    async fn rebalance(&self, request: Request<v1::RebalanceRequest>) -> Answer<v1::RebalanceResponse> {
        let call = Call::new("Rebalance", &request);
        let request = request.get_ref();
        let what = "VIPs are rebalanced";
        let reply = self.0.change(&call, &request.guard()?, Body::Rebalance, what).await?;
        let mut watcher = self.0.consensus.watch();
        let settled = watcher
            .wait_for(|view| view.applied >= reply.revision && view.table.vips().all(|vip| vip.intent.is_none()));
        if timeout_at(call.deadline, settled).await.is_err() {
            return Err(status::timed_out("VIPs were asked to move, and have not all arrived yet"));
        }
        Ok(Response::new(v1::RebalanceResponse { revision: reply.revision, unchanged: reply.unchanged() }))
    }

    async fn get_settings(&self, request: Request<v1::GetSettingsRequest>) -> Answer<v1::GetSettingsResponse> {
        let call = Call::new("GetSettings", &request);
        let view = self.0.read(&call).await?;
        let revision = view.table.revision();
        let settings = Some(settings::shown(&view.table.settings()));
        Ok(Response::new(v1::GetSettingsResponse { settings, revision }))
    }

    async fn update_settings(&self, request: Request<v1::UpdateSettingsRequest>) -> Answer<v1::UpdateSettingsResponse> {
        let call = Call::new("UpdateSettings", &request);
        let request = request.get_ref();
        let patch = settings::patch(request.settings.as_ref())?;
        let reply = self.patch_settings(&call, &request.guard()?, patch).await?;
        Ok(Response::new(v1::UpdateSettingsResponse { revision: reply.revision, unchanged: reply.unchanged() }))
    }

    type SaveSnapshotStream = Pin<Box<dyn Stream<Item = Result<v1::SaveSnapshotResponse, Status>> + Send>>;

    async fn save_snapshot(
        &self,
        request: Request<v1::SaveSnapshotRequest>,
    ) -> Result<Response<Self::SaveSnapshotStream>, Status> {
        let call = Call::new("SaveSnapshot", &request);
        let view = self.0.read(&call).await?;
        let bytes = encode_saved(&view.table);
        let chunks: Vec<_> =
            bytes.chunks(CHUNK_LEN).map(|chunk| Ok(v1::SaveSnapshotResponse { chunk: chunk.to_vec() })).collect();
        Ok(Response::new(Box::pin(futures::stream::iter(chunks))))
    }

    async fn restore_snapshot(
        &self,
        request: Request<Streaming<v1::RestoreSnapshotRequest>>,
    ) -> Answer<v1::RestoreSnapshotResponse> {
        let call = Call::new("RestoreSnapshot", &request);
        let mut stream = request.into_inner();
        let (mut bytes, mut request_id) = (Vec::new(), String::new());
        while let Some(message) = stream.message().await? {
            if request_id.is_empty() {
                request_id = message.request_id;
            }
            bytes.extend_from_slice(&message.chunk);
            if bytes.len() > MAX_SNAPSHOT_LEN {
                return Err(status::invalid(
                    "chunk",
                    format!("more than {MAX_SNAPSHOT_LEN} bytes: this is no snapshot"),
                ));
            }
        }
        let saved = decode_saved(&bytes).map_err(|error| status::invalid("chunk", error))?;
        let view = self.0.read(&call).await?;
        let settings = saved.settings();
        if let Some(body) = restore(&view.table, &saved) {
            // Worked out for this revision: whatever changes meanwhile has it refused.
            let guard = guard::of_snapshot(&request_id, view.table.revision(), &bytes)?;
            self.0.change(&call, &guard, body, "a snapshot is restored").await?;
        }
        // Before all nodes know settings among other changes, they are an entry of their own.
        if settings != view.table.settings() && view.table.feature_level() < 3 {
            let what = format!("settings are {settings:?}");
            self.0.change(&call, &guard::of_snapshot("", 0, &bytes)?, Body::UpdateSettings(settings), &what).await?;
        }
        let revision = self.0.read(&call).await?.table.revision();
        let unchanged = revision == view.table.revision();
        Ok(Response::new(v1::RestoreSnapshotResponse { revision, unchanged }))
    }
}
