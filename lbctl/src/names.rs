//! The names that a shell completes: those that the cluster has just now. A shell waits for them, so they are asked for a moment at
//! most, and where nobody answers there are none.

use std::{future::Future, time::Duration};

use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use lb_proto::v1::{self, cluster_service_client::ClusterServiceClient, table_service_client::TableServiceClient};
use tonic::{Status, transport::Channel};

use crate::{
    connect::connect,
    contexts::{self, Said},
};

/// So long a person who has pressed the key does not wonder.
const PATIENCE: Duration = Duration::from_millis(800);
/// More are not looked through.
const MOST: u32 = 1000;

/// Those of the file.
pub(crate) fn clusters() -> ArgValueCandidates {
    ArgValueCandidates::new(|| contexts::names().into_iter().map(CompletionCandidate::new).collect())
}

pub(crate) fn vips() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        ask(|channel| async move {
            let request = v1::ListVipsRequest { page_size: MOST, ..v1::ListVipsRequest::default() };
            let answer = TableServiceClient::new(channel).list_vips(request).await?.into_inner();
            Ok(answer
                .vips
                .into_iter()
                .map(|vip| (vip.address, format!("owned by {}", or_nobody(&vip.owner))))
                .collect())
        })
    })
}

pub(crate) fn services() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        ask(|channel| async move {
            let request = v1::ListServicesRequest { page_size: MOST, ..v1::ListServicesRequest::default() };
            let answer = TableServiceClient::new(channel).list_services(request).await?.into_inner();
            Ok(answer.services.into_iter().map(|of| (of.name, format!("of VIP {}", of.vip))).collect())
        })
    })
}

/// Of all services: a shell does not say which one stands before.
pub(crate) fn backends() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        ask(|channel| async move {
            let request = v1::ListBackendsRequest { page_size: MOST, ..v1::ListBackendsRequest::default() };
            let answer = TableServiceClient::new(channel).list_backends(request).await?.into_inner();
            let mut all: Vec<(String, String)> =
                answer.backends.into_iter().map(|of| (of.address, "a backend".to_owned())).collect();
            all.sort();
            all.dedup();
            Ok(all)
        })
    })
}

pub(crate) fn nodes() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        ask(|channel| async move {
            let request = v1::GetStatusRequest { local: true, brief: true, ..Default::default() };
            let answer = ClusterServiceClient::new(channel).get_status(request).await?.into_inner();
            Ok(answer.nodes.into_iter().map(|node| (node.name, format!("at {}", node.address))).collect())
        })
    })
}

/// `KEY=`, with what it is now.
pub(crate) fn settings() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        ask(|channel| async move {
            let answer = ClusterServiceClient::new(channel).get_settings(v1::GetSettingsRequest {}).await?.into_inner();
            let settings = serde_json::to_value(answer.settings.unwrap_or_default()).unwrap_or_default();
            let all = settings.as_object().into_iter().flatten();
            // On the command line it is a time, such as 10m.
            let key = |name: &str| if name == "failback_s" { "failback".to_owned() } else { name.to_owned() };
            Ok(all.map(|(name, value)| (key(name) + "=", format!("now {value}"))).collect())
        })
    })
}

fn or_nobody(name: &str) -> &str {
    if name.is_empty() { "nobody" } else { name }
}

/// Names with what is said of each; none where nothing is heard in time. The endpoints are those of the environment: what stands
/// on the command line is not known here.
fn ask<F>(question: impl FnOnce(Channel) -> F) -> Vec<CompletionCandidate>
where
    F: Future<Output = Result<Vec<(String, String)>, Status>>,
{
    let file = |name: &str| std::env::var_os(name).map(std::path::PathBuf::from);
    let endpoints = std::env::var("LBCTL_ENDPOINT").unwrap_or_default();
    let said = Said {
        cluster: std::env::var("LBCTL_CLUSTER").ok(),
        endpoints: endpoints.split(',').filter_map(|text| text.parse().ok()).collect(),
        cert: file("LBCTL_CERT"),
        key: file("LBCTL_KEY"),
        ca: file("LBCTL_CA"),
    };
    let Ok(reach) = contexts::reach(said) else { return Vec::new() };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    // The clock belongs to the runtime.
    let asked = runtime.block_on(async {
        tokio::time::timeout(PATIENCE, async {
            question(connect(&reach.targets, reach.shown()).await.ok()?).await.ok()
        })
        .await
    });
    let names = asked.ok().flatten().unwrap_or_default();
    names.into_iter().map(|(name, said)| CompletionCandidate::new(name).help(Some(said.into()))).collect()
}
