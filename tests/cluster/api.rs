//! The API as provisioning systems use it.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, ensure};
use lb_proto::v1::{
    self, change::Row, cluster_service_client::ClusterServiceClient, mutation::Change,
    table_service_client::TableServiceClient,
};
use lb_tests::{
    cluster::LbNode,
    follower::Follower,
    grpc,
    pki::Pki,
    python,
    site::{PATIENCE, Plan, Site, VIP_TEXT},
    wait,
};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

type Client = TableServiceClient<Channel>;

async fn client(node: &LbNode) -> anyhow::Result<Client> {
    Ok(TableServiceClient::new(grpc::connect(node.socket()).await?))
}

fn run(test: impl AsyncFnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(test())
}

fn backend(service: &str, number: u32) -> v1::Backend {
    let address = Ipv4Addr::from(0x0a00_0001 + number).to_string();
    v1::Backend { service: service.into(), address, mac: "02:00:00:00:00:01".into(), ..Default::default() }
}

fn create(service: &str, number: u32) -> v1::Mutation {
    let request = v1::CreateBackendRequest { backend: Some(backend(service, number)), ..Default::default() };
    v1::Mutation { change: Some(Change::CreateBackend(request)) }
}

fn weigh(service: &str, number: u32, weight: u32) -> v1::UpdateBackendRequest {
    let v1::Backend { service, address, .. } = backend(service, number);
    v1::UpdateBackendRequest { service, address, weight: Some(weight), ..Default::default() }
}

/// What an error is about.
fn subject(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.and_then(|info| info.metadata.get("subject").cloned()).unwrap_or_default()
}

/// Health, reflection, field errors with their details, `Apply`.
pub(crate) fn surface() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 0, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let socket = site.nodes[0].socket();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let channel = grpc::connect(socket).await?;
        let mut table = TableServiceClient::new(channel.clone());
        let bad = v1::Backend { service: "web".into(), address: "nowhere".into(), ..v1::Backend::default() };
        let request = v1::CreateBackendRequest { backend: Some(bad), ..v1::CreateBackendRequest::default() };
        let status = table.create_backend(request).await.expect_err("an address is checked");
        ensure!(status.code() == Code::InvalidArgument, "{status}");
        let info = status.get_details_error_info();
        ensure!(info.is_some_and(|info| info.metadata.get("subject").is_some_and(|f| f == "address")), "{status}");

        // A thousand backends in one request, all or none.
        let create = |number: u32| v1::Mutation {
            change: Some(Change::CreateBackend(v1::CreateBackendRequest {
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
        ensure!(status.code() == Code::FailedPrecondition, "{status}");

        let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
        let answer = health.check(tonic_health::pb::HealthCheckRequest::default()).await?.into_inner();
        ensure!(answer.status == 1, "{answer:?}");
        let services = grpc::reflected_services(channel).await?;
        for service in ["lb.v1.TableService", "lb.v1.ClusterService", "lb.v1.NodeService"] {
            ensure!(services.iter().any(|name| name == service), "{service} is not in {services:?}");
        }
        ensure!(!services.iter().any(|name| name.contains("Raft")), "{services:?}");
        Ok(())
    })
}

/// Revisions of objects and of the configuration, dry runs, errors that name their mutation, repeated requests.
pub(crate) fn writes() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 0, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    run(async || {
        let mut table = client(&site.nodes[1]).await?;
        let two = v1::ApplyRequest { mutations: vec![create("web", 0), create("web", 1)], ..Default::default() };
        let dry = table.apply(v1::ApplyRequest { dry_run: true, ..two.clone() }).await?.into_inner();
        let shown = |of: &v1::Change| match &of.row {
            Some(Row::Backend(of)) => of.before.is_none() && of.after.as_ref().is_some_and(|of| of.weight == Some(1)),
            _ => false,
        };
        ensure!(dry.changes.len() == 2 && dry.changes.iter().all(shown) && !dry.unchanged, "{dry:?}");
        ensure!(table.list_backends(v1::ListBackendsRequest::default()).await?.into_inner().backends.is_empty());
        let made = table.apply(two.clone()).await?.into_inner();
        let dry = table.apply(v1::ApplyRequest { dry_run: true, ..two }).await?.into_inner();
        ensure!(dry.changes.is_empty() && dry.unchanged, "{dry:?}");

        // Whoever changes one object is not disturbed by another's change, and sees one of its own.
        table.update_backend(weigh("web", 1, 7)).await?;
        let expecting = v1::UpdateBackendRequest { expected_revision: made.revision, ..weigh("web", 0, 3) };
        table.update_backend(expecting.clone()).await?;
        let stale = table.update_backend(v1::UpdateBackendRequest { weight: Some(4), ..expecting }).await;
        let stale = stale.expect_err("it has changed since");
        ensure!(stale.code() == Code::FailedPrecondition && subject(&stale) == "expected_revision", "{stale}");
        let all = v1::ApplyRequest {
            expected_revision: made.revision,
            mutations: vec![create("web", 2)],
            ..Default::default()
        };
        let stale = table.apply(all.clone()).await.expect_err("the configuration has changed since");
        ensure!(subject(&stale) == "expected_revision", "{stale}");
        let seen = table.list_vips(v1::ListVipsRequest::default()).await?.into_inner().revision;
        // Owners come and go, and nobody's configuration changes.
        site.nodes[0].lbctl_ok(&["vip", "move", VIP_TEXT, "lb2"])?;
        site.nodes[0].lbctl_ok(&["vip", "move", VIP_TEXT, "lb3"])?;
        table.apply(v1::ApplyRequest { expected_revision: seen, ..all }).await?;

        // Settings are part of it, and an error names the mutation and the field.
        let settings = v1::ClusterSettings { failback_s: Some(600), ..Default::default() };
        let with = |mutation| v1::ApplyRequest { mutations: vec![create("web", 3), mutation], ..Default::default() };
        let set = |settings| with(v1::Mutation { change: Some(Change::UpdateSettings(settings)) });
        table.apply(set(settings)).await?;
        ensure!(site.nodes[0].lbctl_ok(&["cluster", "show"])?.contains("10m"));
        let bad = v1::ClusterSettings { timing: Some("wrong".into()), ..Default::default() };
        for (request, field) in [
            (set(bad), "mutations[1].timing"),
            (with(create("nobody", 1)), "mutations[1].service"),
            (with(v1::Mutation::default()), "mutations[1].change"),
        ] {
            let refused = table.apply(request).await.expect_err(field);
            ensure!(
                subject(&refused) == field && refused.message().contains("mutations[1]"),
                "{refused}: {}",
                subject(&refused)
            );
        }

        // A request with an id is made once, also by another node, and also if what it named has gone.
        let id = uuid::Uuid::now_v7().to_string();
        let delete = |client: &mut Client| {
            let v1::Backend { service, address, .. } = backend("web", 1);
            let request = v1::DeleteBackendRequest { request_id: id.clone(), service, address, ..Default::default() };
            let mut client = client.clone();
            async move { client.delete_backend(request).await }
        };
        let first = delete(&mut table).await?.into_inner();
        table.apply(v1::ApplyRequest { mutations: vec![create("web", 1)], ..Default::default() }).await?;
        let again = delete(&mut client(&site.nodes[2]).await?).await?.into_inner();
        ensure!(again == first, "{again:?}, and first {first:?}");
        let kept =
            v1::GetBackendRequest { service: "web".into(), address: backend("web", 1).address, ..Default::default() };
        table.get_backend(kept).await.context("the new one is there")?;
        let other =
            v1::DeleteVipRequest { request_id: id.clone(), address: "192.168.2.99".into(), ..Default::default() };
        let refused = table.delete_vip(other).await.expect_err("the id was used");
        ensure!(subject(&refused) == "request_id", "{refused}");
        let made = v1::CreateVipRequest {
            vip: Some(v1::Vip { address: "192.168.2.77".into(), prefer: "lb2".into(), ..Default::default() }),
            request_id: uuid::Uuid::now_v7().to_string(),
            ..Default::default()
        };
        let first = table.create_vip(made.clone()).await?.into_inner();
        site.nodes[0].lbctl_ok(&["vip", "set", "192.168.2.77", "--prefer", "none"])?;
        // What has moved on since is not called back, and settings are not set again.
        let mut cluster = ClusterServiceClient::new(grpc::connect(site.nodes[0].socket()).await?);
        let id = || uuid::Uuid::now_v7().to_string();
        let there =
            v1::MoveVipRequest { request_id: id(), address: VIP_TEXT.into(), node: "lb1".into(), ..Default::default() };
        cluster.move_vip(there.clone()).await?;
        site.nodes[0].lbctl_ok(&["vip", "move", VIP_TEXT, "lb3"])?;
        cluster.move_vip(there).await?;
        ensure!(site.nodes[0].owner_of(VIP_TEXT)? == "lb3", "a late repetition has moved it");
        let settings = Some(v1::ClusterSettings { failback_s: Some(60), ..Default::default() });
        let set = v1::UpdateSettingsRequest { request_id: id(), settings, ..Default::default() };
        cluster.update_settings(set.clone()).await?;
        site.nodes[0].lbctl_ok(&["cluster", "set", "failback=never"])?;
        ensure!(!cluster.update_settings(set).await?.into_inner().unchanged, "as it was answered");
        ensure!(site.nodes[0].lbctl_ok(&["cluster", "show"])?.contains("never"));
        let gone = v1::RemoveNodeRequest { name: "lb2".into(), force: true, request_id: id(), ..Default::default() };
        cluster.remove_node(gone.clone()).await?;
        cluster.remove_node(gone).await?;
        let mut other = client(&site.nodes[0]).await?;
        let again = other.create_vip(made).await.context("what it prefers has gone, and it was answered before")?;
        ensure!(again.into_inner().revision == first.revision);
        Ok(())
    })
}

/// Lists of more than a message, filters, reads that are as new as was asked for.
pub(crate) fn reads() -> anyhow::Result<()> {
    const MANY: u32 = 12_000;
    let mut site = Site::build(Plan { nodes: 2, servers: 0, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    run(async || {
        let (mut table, mut other) = (client(&site.nodes[0]).await?, client(&site.nodes[1]).await?);
        let messages: Vec<v1::ApplyRequest> = (0..MANY)
            .collect::<Vec<_>>()
            .chunks(3000)
            .map(|part| v1::ApplyRequest {
                mutations: part.iter().map(|at| create("web", *at)).collect(),
                ..Default::default()
            })
            .collect();
        let count = messages.len();
        let made = table.apply_stream(futures::stream::iter(messages)).await?.into_inner();
        ensure!(count == 4 && !made.unchanged);
        // As new as the change, by a node that need not ask another one.
        let request =
            v1::ListBackendsRequest { at_least_revision: made.revision, page_size: 5000, ..Default::default() };
        let (mut token, mut seen, mut pages) = (String::new(), Vec::new(), 0);
        loop {
            let page = other
                .list_backends(v1::ListBackendsRequest { page_token: token, ..request.clone() })
                .await?
                .into_inner();
            seen.extend(page.backends.into_iter().map(|backend| backend.address));
            pages += 1;
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        let distinct: std::collections::BTreeSet<&String> = seen.iter().collect();
        ensure!(
            (pages, seen.len(), distinct.len()) == (3, MANY as usize, MANY as usize),
            "{pages} pages of {}",
            seen.len()
        );
        let whole = table.list_backends(v1::ListBackendsRequest::default()).await?.into_inner();
        ensure!(whole.backends.len() == 10_000 && !whole.next_page_token.is_empty(), "{}", whole.backends.len());
        let listed = site.nodes[0].lbctl_json(&["backend", "list", "web", "--no-flows"])?;
        ensure!(listed["backends"].as_array().is_some_and(|all| all.len() == MANY as usize), "lbctl reads to the end");
        for (request, expected) in [
            (v1::ListBackendsRequest { address: "10.0.0.9".into(), ..Default::default() }, 1),
            (v1::ListBackendsRequest { vip: "192.168.2.9".into(), ..Default::default() }, 0),
            (v1::ListBackendsRequest { health: vec![v1::Health::Unhealthy.into()], ..Default::default() }, 0),
            (v1::ListBackendsRequest { service: "echo".into(), vip: VIP_TEXT.into(), ..Default::default() }, 0),
            (v1::ListBackendsRequest { vip: VIP_TEXT.into(), page_size: 7, ..Default::default() }, 7),
        ] {
            let found = table.list_backends(request.clone()).await?.into_inner().backends.len();
            ensure!(found == expected, "{found} of {expected} for {request:?}");
        }
        let wrong = v1::ListBackendsRequest { page_token: "ff".into(), ..Default::default() };
        let refused = table.list_backends(wrong).await.expect_err("no token");
        ensure!(refused.code() == Code::InvalidArgument && subject(&refused) == "page_token", "{refused}");
        let mut late = tonic::Request::new(v1::GetVipRequest { address: VIP_TEXT.into(), at_least_revision: u64::MAX });
        late.set_timeout(Duration::from_millis(300));
        let refused = table.get_vip(late).await.expect_err("that has not come");
        ensure!(refused.code() == Code::DeadlineExceeded, "{refused}");
        Ok(())
    })
}

/// Whoever does not read is told so, and from where to go on; a change that is larger than all the rest is told all the same.
pub(crate) fn slow_watcher() -> anyhow::Result<()> {
    const ROWS: u32 = 9000;
    let mut site = Site::build(Plan { nodes: 1, servers: 0, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    run(async || {
        let mut table = client(&site.nodes[0]).await?;
        let messages = |of: &dyn Fn(u32) -> v1::Mutation| {
            let part =
                |from: u32| v1::ApplyRequest { mutations: (from..from + 3000).map(of).collect(), ..Default::default() };
            futures::stream::iter((0..ROWS).step_by(3000).map(part).collect::<Vec<_>>())
        };
        table.apply_stream(messages(&|number| create("web", number))).await?;
        let now = table.list_segments(v1::ListSegmentsRequest::default()).await?.into_inner().revision;
        let request = v1::WatchRequest { from_revision: now, kinds: Vec::new() };
        let mut slow = client(&site.nodes[0]).await?.watch(request.clone()).await?.into_inner();
        // It follows, and then it does not read any more.
        table.update_backend(weigh("web", 0, 9)).await?;
        let mut last = slow.message().await?.context("the watch has ended")?.revision;
        ensure!(last > now, "{last}");
        let weighed =
            |weight| move |number| v1::Mutation { change: Some(Change::UpdateBackend(weigh("web", number, weight))) };
        table.apply_stream(messages(&weighed(2))).await?;
        let mut prompt = client(&site.nodes[0]).await?.watch(request).await?.into_inner();
        let mut told = 0;
        while told < ROWS as usize {
            let message = tokio::time::timeout(PATIENCE, prompt.message()).await.context("it is told nothing")?;
            told += message?.context("the watch has ended")?.changes.len();
        }
        // More than a connection holds by itself: it stands still in the middle of one of them, and misses others.
        for weight in 3..9 {
            table.apply_stream(messages(&weighed(weight))).await?;
        }
        let ended = loop {
            match tokio::time::timeout(PATIENCE, slow.message()).await.context("it is told nothing")? {
                Ok(Some(message)) => {
                    ensure!(!message.changes.is_empty(), "it has kept up");
                    last = last.max(message.revision);
                }
                Ok(None) => anyhow::bail!("it has ended without a word"),
                Err(status) => break status,
            }
        };
        let info = ended.get_details_error_info().context("no details")?;
        ensure!(ended.code() == Code::ResourceExhausted && info.reason == "TOO_SLOW", "{ended}");
        ensure!(info.metadata.get("resume_from") == Some(&last.to_string()), "{last}: {info:?}");
        Ok(())
    })
}

/// Whoever follows the table is told each change in order: from the beginning, over a restart of the node that tells, and
/// another leader.
pub(crate) fn watched() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 0, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let socket = site.nodes[0].socket();
    let follower = Follower::start(vec![socket])?;
    run(async || {
        let mut table = client(&site.nodes[1]).await?;
        // A thousand, one by one, watched as they arrive.
        for number in 0..1000 {
            let request = v1::CreateBackendRequest { backend: Some(backend("web", number)), ..Default::default() };
            table.create_backend(request).await?;
        }
        Ok(())
    })?;
    let all = |count: usize| wait::until("all have arrived", PATIENCE, || follower.model().backends() == count);
    all(1000);
    site.nodes[0].kill()?;
    site.nodes[0].start()?;
    run(async || {
        let mut table = client(&site.nodes[1]).await?;
        let mutations = (1000..2000).map(|number| create("web", number)).collect();
        table.apply(v1::ApplyRequest { mutations, ..Default::default() }).await?;
        // Only of some kinds, from now on: others' changes move the revision alone.
        let now = table.list_segments(v1::ListSegmentsRequest::default()).await?.into_inner().revision;
        let request = v1::WatchRequest { from_revision: now, kinds: vec![v1::Kind::Vip.into()] };
        let mut messages = client(&site.nodes[2]).await?.watch(request).await?.into_inner();
        table.update_backend(weigh("web", 5, 9)).await?;
        site.nodes[1].lbctl_ok(&["vip", "add", "192.168.2.44"])?;
        let first = messages.message().await?.context("the watch has ended")?;
        let is_it = matches!(&first.changes[..], [v1::Change { row: Some(Row::Vip(of)) }] if of.after.as_ref().is_some_and(|vip| vip.address == "192.168.2.44"));
        ensure!(is_it && first.revision > now && !first.compacted, "{first:?}");
        // What nobody knows any more comes whole; what is not known yet is waited for.
        let mut messages =
            table.watch(v1::WatchRequest { from_revision: 1, kinds: vec![v1::Kind::Vip.into()] }).await?.into_inner();
        let first = messages.message().await?.context("the watch has ended")?;
        ensure!(first.revision > 1, "{first:?}");
        Ok(())
    })?;
    all(2000);
    wait::until_ok(PATIENCE, || follower.is_up_to_date(0))?;
    let (connections, begun_anew) = follower.interruptions();
    ensure!(follower.wrong().is_none() && connections > 0, "{:?}", follower.wrong());
    ensure!(begun_anew == 0, "it had to begin anew");
    Ok(())
}

/// The example of a client, with the published packages, over the Unix socket and by TCP of several nodes.
pub(crate) fn python_client() -> anyhow::Result<()> {
    let client = python::client()?;
    let mut types = std::process::Command::new(&client.python);
    python::run(types.args(["-m", "mypy"]).current_dir(&client.sources), "mypy")?;
    let mut site = Site::build(Plan { nodes: 2, servers: 0, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let unix = format!("unix:{}", site.nodes[0].socket().display());
    let files = Pki::below(site.root.path())?.issue("operator", "provisioning", &[])?;
    let files = [files.cert, files.key, files.ca].map(|path| path.display().to_string()).join(" ");
    for (endpoints, files) in [(unix, ""), ("10.77.1.2:7400 10.77.1.1:7400".to_owned(), &*files)] {
        let mut tests = site.node_hosts[1].ns.command(&client.python)?;
        tests.env("LB_CREDENTIALS", files);
        tests
            .args(["-m", "unittest", "discover", "-s"])
            .arg(client.sources.join("tests"))
            .env("LB_ENDPOINTS", &endpoints);
        let told = python::run(&mut tests, &format!("the tests by {endpoints}"))?;
        let figures = told.lines().find(|line| line.contains("1000 backends")).unwrap_or_default();
        println!("{endpoints}: {figures}");
    }
    Ok(())
}
