//! `lb.v1.NodeService`: this node's own.

use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
};

use futures::Stream;
use lb_dataplane::{
    Dataplane, Explanation, Kind, Outcome, Question,
    forward::{
        decide::Why,
        flow::{FlowEntry, FlowState},
        snapshot::Snapshot,
    },
    packet::{Protocol, Tuple},
};
use lb_proto::v1::{
    self, ask_request::Question as ToAll, ask_response::Answer as Told, node_service_server::NodeService,
};
use lb_raft_store::table::Table;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Context, capture, convert, events, status};
use crate::{control::claimant, doctor, peers::Heard, traffic};

type Answer<T> = Result<Response<T>, Status>;
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(super) struct Node(pub(super) Context);

#[tonic::async_trait]
impl NodeService for Node {
    async fn get_stats(&self, request: Request<v1::GetStatsRequest>) -> Answer<v1::GetStatsResponse> {
        if request.get_ref().all_nodes {
            let (view, me) = (self.0.consensus.view(), self.0.consensus.status().node);
            return Ok(Response::new(self.0.peers.traffic(&view.table, me).await));
        }
        let report = self.0.dataplane.as_ref().map(|dataplane| dataplane.report()).unwrap_or_default();
        let backend = |backend: lb_dataplane::BackendReport| v1::BackendCount {
            service: backend.service,
            address: backend.address.to_string(),
            mac: backend.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            packets: backend.packets,
            bytes: backend.bytes,
            new_flows: backend.new_flows,
        };
        let view = self.0.consensus.view();
        let conflict = |conflict: lb_dataplane::stats::Conflict| v1::Conflict {
            vip: conflict.vip.to_string(),
            mac: conflict.mac.to_string(),
            packets: conflict.count,
            claimant: claimant(&view.table, &report.backends, conflict.mac).to_string(),
        };
        let conflicts = report.conflicts.iter().copied().map(conflict).collect();
        let worker = |worker: &lb_dataplane::WorkerReport| v1::WorkerCount {
            received: worker.received,
            handed_over: worker.handed_off,
        };
        let counter = |(name, help, value): (&str, &str, u64)| v1::Counter {
            name: name.to_owned(),
            help: help.to_owned(),
            value,
        };
        let totals = &report.totals;
        Ok(Response::new(v1::GetStatsResponse {
            received: totals.received,
            forwarded: totals.forwarded,
            answered: totals.answered,
            held: totals.held,
            ring_full: totals.ring_full,
            originated: totals.originated,
            segmented: totals.segmented,
            flows_remembered: totals.flows_remembered,
            flows_not_remembered: totals.flows_not_remembered,
            counters: totals.iter().map(counter).collect(),
            drops: traffic::drops(&report),
            workers: report.workers.iter().map(worker).collect(),
            vips: report.vips.into_iter().map(traffic::vip).collect(),
            backends: report.backends.into_iter().map(backend).collect(),
            conflicts,
            table_revision: self.0.in_force.revision(),
            ..v1::GetStatsResponse::default()
        }))
    }

    type ListFlowsStream = Events<v1::ListFlowsResponse>;

    async fn list_flows(
        &self,
        request: Request<v1::ListFlowsRequest>,
    ) -> Result<Response<Self::ListFlowsStream>, Status> {
        let v1::ListFlowsRequest { vip, backend } = request.into_inner();
        let (vip, backend) = (convert::optional("vip", &vip)?, convert::optional("backend", &backend)?);
        let dataplane = self.dataplane()?;
        // A client that reads slowly slows the search down, and nothing else.
        let (pieces, answers) = mpsc::channel(2);
        tokio::task::spawn_blocking(move || {
            let found = dataplane.flows(|snapshot, entries| {
                let flows: Vec<v1::Flow> =
                    entries.iter().filter_map(|entry| flow(snapshot, entry, vip, backend)).collect();
                flows.is_empty() || pieces.blocking_send(Ok(v1::ListFlowsResponse { flows })).is_ok()
            });
            if !found {
                // Nobody may listen any more.
                let _ = pieces.blocking_send(Err(worker_is_silent()));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Answer<v1::ExplainResponse> {
        let question = question(request.into_inner())?;
        let dataplane = self.dataplane()?;
        let explanation = tokio::task::spawn_blocking(move || dataplane.explain(question)).await;
        let explanation = explanation.ok().flatten().ok_or_else(worker_is_silent)?;
        let view = self.0.consensus.view();
        Ok(Response::new(explained(&explanation, &view.table, &self.0.config.name.to_string())))
    }

    type WatchEventsStream = Events<v1::WatchEventsResponse>;

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let events = events::follow(self.0.clone(), &request.into_inner())?;
        Ok(Response::new(Box::pin(events)))
    }

    type CaptureStream = Events<v1::CaptureResponse>;

    async fn capture(&self, request: Request<v1::CaptureRequest>) -> Result<Response<Self::CaptureStream>, Status> {
        let frames = capture::begin(&self.dataplane()?, self.0.stopping.clone(), &request.into_inner())?;
        Ok(Response::new(Box::pin(frames)))
    }

    async fn diagnose(&self, request: Request<v1::DiagnoseRequest>) -> Answer<v1::DiagnoseResponse> {
        let context = &self.0;
        let (view, status) = (context.consensus.view(), context.consensus.status());
        let found = if request.get_ref().local || status.node.is_none() {
            context.doctor.examine().await
        } else {
            let question = ToAll::Diagnosis(v1::DiagnosisQuestion {});
            let Heard { answers, silent } = context.peers.ask(&view.table, status.node, &question).await;
            let answers = answers.into_iter().filter_map(|(node, answer)| match answer {
                Told::Diagnosis(diagnosis) => Some((node, diagnosis)),
                _ => None,
            });
            let heard = context.ownership.heard();
            let is_heard = |id| status.node == Some(id) || heard.peers.get(&id).copied().unwrap_or(false);
            doctor::compare(answers.collect(), &silent, is_heard, &view.table)
        };
        let line = |of: &v1::Finding| format!("{} {}: {} ({})", of.id, of.object, of.explanation, of.mend);
        Ok(Response::new(v1::DiagnoseResponse { findings: found.iter().map(line).collect(), found }))
    }
}

impl Node {
    fn dataplane(&self) -> Result<Arc<Dataplane>, Status> {
        let none = || status::precondition("node", "this node is a witness: ask one that forwards");
        self.0.dataplane.clone().ok_or_else(none)
    }
}

fn worker_is_silent() -> Status {
    Status::unavailable("the dataplane's worker does not answer; its log says why")
}

/// A flow of the table, if the filters let it by.
fn flow(snapshot: &Snapshot, entry: &FlowEntry, vip: Option<IpAddr>, backend: Option<IpAddr>) -> Option<v1::Flow> {
    let of_vip = snapshot.vip_of(entry.vip).filter(|of| vip.is_none_or(|vip| of.address == vip))?;
    let known = snapshot.backend(entry.backend);
    let address = known.map(|known| known.address);
    if backend.is_some() && address != backend {
        return None;
    }
    let state = match entry.state {
        FlowState::HalfOpen => v1::FlowState::HalfOpen,
        FlowState::Open => v1::FlowState::Open,
        FlowState::Closing => v1::FlowState::Closing,
        FlowState::Reset => v1::FlowState::Reset,
        FlowState::Udp => v1::FlowState::Udp,
    };
    Some(v1::Flow {
        source: SocketAddr::new(entry.source, entry.source_port).to_string(),
        destination: SocketAddr::new(of_vip.address, entry.destination_port).to_string(),
        protocol: protocol(entry.protocol).into(),
        service: known.map(|known| snapshot.services[known.service as usize].name.clone()).unwrap_or_default(),
        backend: address.map(|address| address.to_string()).unwrap_or_default(),
        state: state.into(),
        idle_ms: entry.idle_ms,
    })
}

fn protocol(protocol: Protocol) -> v1::Protocol {
    match protocol {
        Protocol::Tcp => v1::Protocol::Tcp,
        Protocol::Udp => v1::Protocol::Udp,
    }
}

fn question(request: v1::ExplainRequest) -> Result<Question, Status> {
    if !request.frame.is_empty() {
        return Ok(Question::Frame(request.frame));
    }
    let end = |field: &str, text: &str| -> Result<SocketAddr, Status> {
        text.parse().map_err(|_| {
            status::invalid(field, format!("{text:?} is no IP:PORT, such as 192.0.2.1:80 or [2001:db8::1]:80"))
        })
    };
    let (source, destination) = (end("source", &request.source)?, end("destination", &request.destination)?);
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(status::invalid("source", "it is of another IP version than the destination".to_owned()));
    }
    let protocol = match request.protocol() {
        v1::Protocol::Tcp => Protocol::Tcp,
        v1::Protocol::Udp => Protocol::Udp,
        v1::Protocol::Unspecified => return Err(status::invalid("protocol", "it is tcp or udp".to_owned())),
    };
    Ok(Question::Flow(Tuple {
        source: source.ip().into(),
        destination: destination.ip().into(),
        source_port: source.port(),
        destination_port: destination.port(),
        protocol,
    }))
}

fn explained(explanation: &Explanation, table: &Table, node: &str) -> v1::ExplainResponse {
    let kind = match explanation.kind {
        Kind::Flow => "flow",
        Kind::Fragment => "fragment",
        Kind::IcmpError => "icmp_error",
        Kind::Echo => "echo",
        Kind::Arp => "arp",
        Kind::Neighbor => "neighbor",
        Kind::Other => "other",
    };
    let verdict = match explanation.outcome {
        Outcome::Forward | Outcome::Deliver => "forward",
        Outcome::Answer => "answer",
        Outcome::WithFirstFragment => "with_first_fragment",
        Outcome::Drop(reason) => reason.label(),
    };
    let of_vip = explanation.destination.filter(|_| explanation.is_vip);
    let owner = of_vip.and_then(|vip| table.vip(vip)?.owner).and_then(|owner| table.node(owner.node));
    let tuple = explanation.tuple.as_ref();
    let end = |address: IpAddr, port: u16| SocketAddr::new(address, port).to_string();
    let (chosen_by, table_entry) = match explanation.why {
        Some(Why::Known) => ("flow", 0),
        Some(Why::Maglev { entry }) => ("maglev", entry),
        None => ("", 0),
    };
    let text = |value: Option<String>| value.unwrap_or_default();
    v1::ExplainResponse {
        verdict: verdict.to_owned(),
        kind: kind.to_owned(),
        source: text(tuple.map(|tuple| end(tuple.source.into(), tuple.source_port))),
        destination: match tuple {
            Some(tuple) => end(tuple.destination.into(), tuple.destination_port),
            None => text(explanation.destination.map(|address| address.to_string())),
        },
        protocol: tuple.map_or(v1::Protocol::Unspecified, |tuple| protocol(tuple.protocol)).into(),
        vip: text(of_vip.map(|vip| vip.to_string())),
        owner: text(owner.map(|owner| owner.name.to_string())),
        answers: explanation.answers,
        service: explanation.service.clone().unwrap_or_default(),
        backend: text(explanation.backend.map(|backend| backend.to_string())),
        mac: text(explanation.mac.map(|mac| mac.to_string())),
        interface: explanation.interface.clone().unwrap_or_default(),
        chosen_by: chosen_by.to_owned(),
        table_entry,
        table_size: explanation.table_size.unwrap_or_default(),
        node: node.to_owned(),
    }
}
