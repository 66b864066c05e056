//! Planned moves, and the API as a stranger's client sees it.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::ensure;
use lb_tests::{
    cluster::wait_ready,
    observe::{ArpObserver, UdpStream, owners_in_turn},
    site::{ECHO, HTTP_ADDRESS, PATIENCE, Plan, Site, VIP, VIP_TEXT},
    traffic::HttpClient,
    wait,
};

/// `vip move`, `node drain` and SIGTERM: the old owner lets go before the new one speaks.
pub(crate) fn moves_and_stops() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 2, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let mut http = HttpClient::connect(&site.client.ns, HTTP_ADDRESS, PATIENCE)?;
    let who = http.who()?;
    let observed = Ipv4Addr::new(192, 168, 2, 254);
    for step in ["move", "drain", "stop"] {
        let owner = site.owner()?;
        let arps = ArpObserver::start(&site.router, "eth1", observed, VIP, Duration::from_millis(2))?;
        let stream = UdpStream::start(&site.client, SocketAddrV4::new(VIP, ECHO), Duration::from_millis(2))?;
        wait::until("answers come", PATIENCE, || stream.last_answer().is_some());
        let (from, other) = (site.nodes[owner].name.clone(), (owner + 1) % 3);
        match step {
            "move" => {
                let to = site.nodes[other].name.clone();
                site.nodes[owner].lbctl_ok(&["vip", "move", VIP_TEXT, &to])?;
                ensure!(site.nodes[owner].owner_of(VIP_TEXT)? == to);
                ensure!(site.nodes[owner].lbctl_ok(&["vip", "move", VIP_TEXT, &to])?.contains("unchanged"));
            }
            "drain" => {
                site.nodes[other].lbctl_ok(&["node", "drain", &from])?;
                ensure!(site.nodes[other].owner_of(VIP_TEXT)? != from);
                site.nodes[other].lbctl_ok(&["node", "undrain", &from])?;
            }
            _ => {
                let status = site.nodes[owner].terminate()?;
                ensure!(status.success(), "a graceful stop: {status}");
            }
        }
        wait::until("another node owns it", PATIENCE, || {
            site.nodes[other].owner_of(VIP_TEXT).is_ok_and(|name| !name.is_empty() && name != from)
        });
        ensure!(http.who()? == who, "{step}: the connection broke");
        let report = stream.finish();
        println!("{step}: {report:?}");
        let owners = owners_in_turn(&arps.finish()).map_err(anyhow::Error::msg)?;
        ensure!(owners.len() == 2, "{step}: owners in turn: {owners:?}");
        ensure!(report.lost == 0, "{step}: {report:?}");
    }
    let stopped = site.nodes.iter().position(|node| !node.is_running()).unwrap_or(0);
    site.nodes[stopped].start()?;
    wait_ready(&site.nodes[stopped], 3);
    Ok(())
}

/// Health, reflection, UNIMPLEMENTED, field errors with their details, `Apply`.
pub(crate) fn api_surface() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 0, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let socket = site.nodes[0].socket();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        use lb_proto::v1;
        use tonic_types::StatusExt as _;
        let channel = lb_tests::grpc::connect(socket).await?;
        let mut table = v1::table_service_client::TableServiceClient::new(channel.clone());
        let bad = v1::Backend { service: "web".into(), address: "nowhere".into(), ..v1::Backend::default() };
        let request = v1::CreateBackendRequest { backend: Some(bad), ..v1::CreateBackendRequest::default() };
        let status = table.create_backend(request).await.expect_err("an address is checked");
        ensure!(status.code() == tonic::Code::InvalidArgument, "{status}");
        let info = status.get_details_error_info();
        ensure!(info.is_some_and(|info| info.metadata.get("subject").is_some_and(|f| f == "address")), "{status}");
        let status = table.watch(v1::WatchRequest::default()).await.expect_err("Watch is not built");
        ensure!(status.code() == tonic::Code::Unimplemented, "{status}");

        // A thousand backends in one request, all or none.
        let create = |number: u32| v1::Mutation {
            change: Some(v1::mutation::Change::CreateBackend(v1::CreateBackendRequest {
                backend: Some(v1::Backend {
                    service: "web".into(),
                    address: Ipv4Addr::from(0x0a00_0001 + number).to_string(),
                    mac: "02:00:00:00:00:01".into(),
                    ..v1::Backend::default()
                }),
                ..v1::CreateBackendRequest::default()
            })),
        };
        let mut mutations: Vec<v1::Mutation> = (0..1000).map(create).collect();
        let broken =
            v1::ApplyRequest { mutations: [&mutations[..], &[v1::Mutation::default()]].concat(), ..Default::default() };
        ensure!(table.apply(broken).await.is_err());
        let list = table.list_backends(v1::ListBackendsRequest::default()).await?.into_inner();
        ensure!(list.backends.is_empty(), "a refused Apply left {} backends", list.backends.len());
        let begun = std::time::Instant::now();
        let whole = v1::ApplyRequest { mutations: std::mem::take(&mut mutations), ..Default::default() };
        let answer = table.apply(whole.clone()).await?.into_inner();
        println!("a thousand backends in {:?}", begun.elapsed());
        let guarded = v1::ApplyRequest { expected_revision: answer.revision - 1, ..whole };
        let status = table.apply(guarded).await.expect_err("the revision has moved");
        ensure!(status.code() == tonic::Code::FailedPrecondition, "{status}");

        let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
        let answer = health.check(tonic_health::pb::HealthCheckRequest::default()).await?.into_inner();
        ensure!(answer.status == 1, "{answer:?}");
        let services = lb_tests::grpc::reflected_services(channel).await?;
        for service in ["lb.v1.TableService", "lb.v1.ClusterService", "lb.v1.NodeService"] {
            ensure!(services.iter().any(|name| name == service), "{service} is not in {services:?}");
        }
        ensure!(!services.iter().any(|name| name.contains("Raft")), "{services:?}");
        Ok(())
    })
}
