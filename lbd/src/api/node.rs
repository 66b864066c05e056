//! `lb.v1.NodeService`: this node's own.

use std::{pin::Pin, sync::atomic::Ordering};

use futures::Stream;
use lb_proto::v1::{self, node_service_server::NodeService};
use tonic::{Request, Response, Status};

use super::{Context, status};
use crate::control::claimant;

type Answer<T> = Result<Response<T>, Status>;
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(super) struct Node(pub(super) Context);

#[tonic::async_trait]
impl NodeService for Node {
    async fn get_stats(&self, _: Request<v1::GetStatsRequest>) -> Answer<v1::GetStatsResponse> {
        let report = self.0.dataplane.as_ref().map(|dataplane| dataplane.report()).unwrap_or_default();
        let drop = |(reason, packets): (lb_dataplane::forward::DropReason, u64)| v1::DropCount {
            reason: reason.label().into(),
            packets,
        };
        let vip = |(address, packets, bytes): (std::net::Ipv4Addr, u64, u64)| v1::VipCount {
            address: address.to_string(),
            packets,
            bytes,
        };
        let backend = |backend: lb_dataplane::BackendReport| v1::BackendCount {
            service: backend.service,
            address: backend.address.to_string(),
            mac: backend.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            packets: backend.packets,
            bytes: backend.bytes,
        };
        let view = self.0.consensus.view();
        let conflict = |conflict: lb_dataplane::Conflict| v1::Conflict {
            vip: conflict.vip.to_string(),
            mac: conflict.mac.to_string(),
            packets: conflict.count,
            claimant: claimant(&view.table, &report.backends, conflict.mac).to_string(),
        };
        let conflicts = report.conflicts.iter().copied().map(conflict).collect();
        Ok(Response::new(v1::GetStatsResponse {
            received: report.received,
            forwarded: report.forwarded,
            answered: report.answered,
            drops: report.drops.into_iter().map(drop).collect(),
            ring_full: report.ring_full,
            originated: report.originated,
            flows_remembered: report.flows_remembered,
            flows_not_remembered: report.flows_not_remembered,
            vips: report.vips.into_iter().map(vip).collect(),
            backends: report.backends.into_iter().map(backend).collect(),
            conflicts,
            table_revision: self.0.in_force.load(Ordering::Relaxed),
        }))
    }

    type ListFlowsStream = Events<v1::ListFlowsResponse>;

    async fn list_flows(&self, _: Request<v1::ListFlowsRequest>) -> Result<Response<Self::ListFlowsStream>, Status> {
        Err(status::not_built("ListFlows"))
    }

    async fn explain(&self, _: Request<v1::ExplainRequest>) -> Answer<v1::ExplainResponse> {
        Err(status::not_built("Explain"))
    }

    type WatchEventsStream = Events<v1::WatchEventsResponse>;

    async fn watch_events(
        &self,
        _: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        Err(status::not_built("WatchEvents"))
    }

    async fn diagnose(&self, _: Request<v1::DiagnoseRequest>) -> Answer<v1::DiagnoseResponse> {
        Err(status::not_built("Diagnose"))
    }
}
