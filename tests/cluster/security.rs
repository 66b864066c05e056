//! Who may speak, to whom, and what a stranger can do: real certificates of the real `lbctl pki`, and an attacker on the
//! network between the nodes who has all but the authority's key.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddrV4, TcpStream, UdpSocket},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lb_proto::{
    tls::Role,
    v1::{
        self, CallRequest, cluster_service_client::ClusterServiceClient, raft_service_client::RaftServiceClient,
        table_service_client::TableServiceClient,
    },
};
use lb_raft_store::table::{Body, Command, Evidence, Principal, encode_command};
use lb_tests::{
    cluster::{LbNode, SOON},
    grpc,
    observe::UdpStream,
    pki::{Files, Pki},
    site::{ECHO, Plan, Site, VIP, VIP_TEXT},
    wait,
};
use prost::Message as _;
use prost_reflect::{DescriptorPool, MethodDescriptor};
use serde_json::Value;
use tonic::{Code, Status};

use crate::{
    metrics::{LOOPBACK, get, series},
    overload::peak_mib,
    wrong_input::call,
};

fn api_of(node: &LbNode) -> String {
    node.address.replace(":7401", ":7400")
}

/// Runs something on a machine.
fn on<T: Send>(site: &Site, host: usize, run: impl AsyncFnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    site.node_hosts[host]
        .ns
        .enter(|| tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run()))
}

/// Who may call a method, as `docs/security.md` says.
fn documented(method: &MethodDescriptor) -> anyhow::Result<[bool; 4]> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md"))?;
    let name = format!("`{}/{}`", method.parent_service().full_name(), method.name());
    let row = text.lines().find(|line| line.contains(&name)).with_context(|| format!("{name} is in no table"))?;
    let cells: Vec<bool> = row.split('|').skip(2).take(4).map(|cell| cell.trim() == "yes").collect();
    cells.try_into().map_err(|_| anyhow::anyhow!("{row}"))
}

/// Every method, with a certificate of every role by TCP, and by the Unix socket.
pub(crate) fn each_method() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 0, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let pki = Pki::below(site.root.path())?;
    let (socket, address) = (site.nodes[0].socket(), api_of(&site.nodes[0]));
    let mut callers = Vec::new();
    for role in Role::ALL {
        callers.push((role, Arc::new(pki.issue(role.as_str(), "caller", &[])?.load()?)));
    }
    let (mut let_in, mut refused) = (0, 0);
    on(&site, 0, async || {
        let pool = DescriptorPool::decode(lb_proto::DESCRIPTORS)?;
        let unix = grpc::connect(socket).await?;
        let mut channels = Vec::new();
        for (role, credentials) in callers {
            channels.push((role, grpc::connect_by_tls(address.clone(), credentials).await?));
        }
        for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
            let name = method.full_name().to_owned();
            let may = documented(&method)?;
            for ((role, channel), may) in channels.iter().zip(may) {
                let answer = tokio::time::timeout(Duration::from_secs(1), call(channel, &method, Vec::new())).await;
                let code = answer.map(|answer| answer.map_or_else(|status| status.code(), |()| Code::Ok));
                // A stream that tells nothing yet has let its caller in.
                ensure!((code == Ok(Code::PermissionDenied)) != may, "{name} as {role}: {code:?}");
                let_in += usize::from(may);
                refused += usize::from(!may);
            }
            let answer = tokio::time::timeout(Duration::from_secs(1), call(&unix, &method, Vec::new())).await;
            ensure!(
                !matches!(&answer, Ok(Err(status)) if status.code() == Code::PermissionDenied),
                "{name}: {answer:?}"
            );
        }
        // What is for admins is so in a transaction, too.
        let settings = v1::ClusterSettings { heartbeat_ms: Some(30), ..v1::ClusterSettings::default() };
        let change = v1::mutation::Change::UpdateSettings(settings);
        let request = v1::ApplyRequest { mutations: vec![v1::Mutation { change: Some(change) }], ..Default::default() };
        let (_, operator) = channels.iter().find(|(role, _)| *role == Role::Operator).context("an operator")?;
        let mut client = TableServiceClient::new(operator.clone());
        let status = client.apply(request).await.err().context("an operator has changed a setting")?;
        ensure!(status.code() == Code::PermissionDenied && status.message().contains("mutations[0]"), "{status:?}");
        Ok(())
    })?;
    let log = site.nodes[0].log();
    for words in ["needs the role admin", "lb://lb/viewer/caller", "from=10.77.1.1:", "method=\"AddNode\""] {
        ensure!(log.contains(words), "{words:?} is not in the log:\n{log}");
    }
    println!("{let_in} calls let in, {refused} refused");
    Ok(())
}

/// What a table says that no attack may have changed.
fn told(node: &LbNode) -> anyhow::Result<(Value, Value, Value)> {
    let status = node.lbctl_json(&["status"])?;
    let services = node.lbctl_json(&["service", "list"])?;
    Ok((status["vip_owners"].clone(), status["nodes"].as_array().map(Vec::len).into(), services))
}

/// More than a node has descriptors for by default.
const HALF_OPEN: u32 = 10_000;
/// Of those of the API that one caller gets.
const CONNECTIONS_OF_ONE: u32 = 500;
/// Of unsigned datagrams.
const FLOOD: Duration = Duration::from_secs(1);

/// What the thread of the heartbeats has used of a processor.
fn heartbeat_time(node: &LbNode) -> anyhow::Result<Duration> {
    let worker = node.worker().context("the daemon does not run")?;
    for thread in fs::read_dir(format!("/proc/{worker}/task"))? {
        let thread = thread?.path();
        if fs::read_to_string(thread.join("comm"))?.trim() == "heartbeat" {
            let schedstat = fs::read_to_string(thread.join("schedstat"))?;
            let spent = schedstat.split(' ').next().and_then(|spent| spent.parse().ok());
            return Ok(Duration::from_nanos(spent.context("schedstat")?));
        }
    }
    anyhow::bail!("there is no thread of the heartbeats")
}

/// What a running node can do, and what others can read of it.
pub(crate) fn least_privilege() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 0, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let node = &site.nodes[0];
    let status = fs::read_to_string(format!("/proc/{}/status", node.worker().context("the daemon does not run")?))?;
    // Mode 2 is a filter (proc_pid_status(5)).
    ensure!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    // CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK and CAP_SYS_NICE (capabilities(7)).
    let used = 1 << 12 | 1 << 13 | 1 << 14 | 1 << 23;
    let of_parent = fs::read_to_string(format!("/proc/{}/status", node.parent().context("it does not run")?))?;
    for (status, allowed) in [(&status, used), (&of_parent, 0)] {
        for set in ["CapEff:", "CapPrm:", "CapInh:"] {
            let line = status.lines().find_map(|line| line.strip_prefix(set)).context("a set of capabilities")?;
            let has = u64::from_str_radix(line.trim(), 16)?;
            ensure!(has & !allowed == 0, "{set} {has:x}");
        }
    }
    let mode = |path: &Path| -> anyhow::Result<u32> { Ok(fs::metadata(path)?.permissions().mode() & 0o777) };
    ensure!(mode(&node.socket())? == 0o660 && mode(&node.data_dir())? == 0o700);
    let mut folders = vec![node.data_dir()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let of_others = mode(&path)? & 0o077;
            ensure!(of_others == 0, "{} is open to others", path.display());
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(())
}

/// Root starts it, and it becomes another user, to whom what it writes belongs; where there is no such user it stays who it is.
pub(crate) fn another_user() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine: "ring" })?;
    // Every machine has that one; a user namespace has it if it was mapped (user_namespaces(7)).
    const NOBODY: u32 = 65534;
    let is_there = fs::read_to_string("/proc/self/uid_map")?.split_whitespace().nth(2) != Some("1");
    let wanted = if is_there { NOBODY } else { 0 };
    let node = &site.nodes[0];
    node.reconfigure("user = \"root\"", "user = \"nobody\"")?;
    if is_there {
        let dir = node.config().parent().context("a directory")?.to_owned();
        fs::set_permissions(site.root.path(), fs::Permissions::from_mode(0o711))?;
        chown(&dir, Some(NOBODY), None)?;
        for entry in fs::read_dir(site.root.path().join("issued"))? {
            let issued = entry?.path();
            for file in fs::read_dir(&issued)? {
                chown(file?.path(), Some(NOBODY), None)?;
            }
            chown(issued, Some(NOBODY), None)?;
        }
        for dir in ["issued", "pki"].map(|name| site.root.path().join(name)) {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
        }
    }
    site.start()?;
    site.configure()?;
    let node = &site.nodes[0];
    for process in [node.worker(), node.parent()] {
        let process = process.context("it does not run")?;
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let user = status.lines().find_map(|line| line.strip_prefix("Uid:")).context("a user")?;
        ensure!(user.split_whitespace().all(|uid| uid == wanted.to_string()), "{user}");
    }
    ensure!(fs::metadata(node.data_dir())?.uid() == wanted);
    site.wait_resolved();
    let stream = UdpStream::start(&site.client, SocketAddrV4::new(VIP, ECHO), Duration::from_millis(5))?;
    wait::until("traffic flows", SOON, || stream.last_answer().is_some());
    let report = stream.finish();
    ensure!(report.lost == 0, "{report:?}");
    let ended = site.nodes[0].terminate()?;
    ensure!(ended.success(), "{ended}");
    // Somebody who is not there is told of, with what to do.
    site.nodes[0].reconfigure("user = \"nobody\"", "user = \"mallory\"")?;
    site.nodes[0].spawn()?;
    let ended = site.nodes[0].wait_for_end(SOON)?;
    ensure!(ended.code() == Some(65) && site.nodes[0].log().contains("useradd --system mallory"), "{ended}");
    Ok(())
}

/// A message of one node to another, with a command for the leader.
#[derive(prost::Message)]
struct PeerRequest {
    #[prost(bytes, tag = "1")]
    cluster: Vec<u8>,
    #[prost(uint64, tag = "2")]
    from: u64,
    #[prost(uint64, tag = "3")]
    to: u64,
    #[prost(bytes, tag = "9")]
    propose: Vec<u8>,
}

#[derive(prost::Message)]
struct PeerReply {
    #[prost(message, tag = "10")]
    refused: Option<Refused>,
}

#[derive(prost::Message)]
struct Refused {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// Somebody on the network between the nodes, with certificates of his own, one of a viewer, one that has expired, those of
/// nodes that are none, and at last one of a node. Traffic flows meanwhile.
pub(crate) fn strangers() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.nodes[0].reconfigure("[dataplane]", &format!("[metrics]\nlisten = {LOOPBACK:?}\n[dataplane]"))?;
    site.start()?;
    site.configure()?;
    let pki = Pki::below(site.root.path())?;
    let elsewhere = site.root.path().join("elsewhere");
    fs::create_dir_all(&elsewhere)?;
    let foreign = Pki::below(&elsewhere)?.issue("node", "lb2", &[])?;
    let of_other_cluster = {
        let root = site.root.path().join("other");
        fs::create_dir_all(&root)?;
        let other = Pki::of_cluster(&root, "other")?;
        other.issue("node", "lb2", &[])?
    };
    let (viewer, nobody) = (pki.issue("viewer", "eve", &[])?, pki.issue("node", "lb9", &[])?);
    let second = pki.issue_into("node", "lb2", &site.root.path().join("stolen"))?;
    let before = told(&site.nodes[0])?;
    // While voters were added, a lease may have run out for a moment.
    let begun = site.nodes[0].log().len();
    let stream = UdpStream::start(&site.client, SocketAddrV4::new(VIP, ECHO), Duration::from_millis(5))?;

    let (peers, api) = (site.nodes[0].address.clone(), api_of(&site.nodes[0]));
    // In clear.
    for address in [&peers, &api] {
        let answer = site.node_hosts[1].ns.enter(|| -> anyhow::Result<Vec<u8>> {
            let mut plain = TcpStream::connect(address)?;
            plain.set_read_timeout(Some(SOON))?;
            plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
            let mut answer = Vec::new();
            drop(plain.read_to_end(&mut answer));
            Ok(answer)
        })?;
        // A TLS alert (RFC 8446 6), and no settings of HTTP/2.
        ensure!(answer.first().is_none_or(|first| *first == 0x15), "{address} answers in clear: {answer:02x?}");
    }
    // With certificates that the authority has not signed, or for another cluster: the handshake does not succeed.
    let expired = pki.expired("node", "lb2", &site.root.path().join("expired"))?;
    for (what, files) in
        [("another authority", &foreign), ("another cluster", &of_other_cluster), ("a time that is over", &expired)]
    {
        for address in [&peers, &api] {
            let answer = on(&site, 1, async || {
                let channel = grpc::connect_trusting(address.clone(), files.load_trusting_all()?).await?;
                let mut client = ClusterServiceClient::new(channel);
                Ok(client.get_status(v1::GetStatusRequest::default()).await?)
            });
            ensure!(answer.is_err(), "{what} was let in at {address}: {answer:?}");
        }
    }
    // The same way with a good one: it was the certificate that was refused.
    on(&site, 1, async || {
        let channel = grpc::connect_trusting(api.clone(), viewer.load_trusting_all()?).await?;
        Ok(ClusterServiceClient::new(channel).get_status(v1::GetStatusRequest::default()).await?)
    })?;
    // As somebody who is no node of this cluster; and as a node that speaks for another one.
    let status = site.nodes[0].lbctl_json(&["status"])?;
    let id = |name: &str| {
        let nodes = status["nodes"].as_array().into_iter().flatten();
        nodes.filter(|row| row["name"] == name).find_map(|row| row["id"].as_u64()).context("an id")
    };
    let cluster = status["cluster_id"].as_str().unwrap_or_default().replace('-', "");
    let cluster: Vec<u8> =
        (0..16).map(|at| u8::from_str_radix(&cluster[2 * at..2 * at + 2], 16)).collect::<Result<_, _>>()?;
    let (first_id, second_id, third_id) = (id("lb1")?, id("lb2")?, id("lb3")?);
    let fence = |node: u64| {
        let body = Body::Fence {
            node,
            lease: lb_raft_store::table::LeaseId(1),
            evidence: Evidence::OwnRelease,
            heard: Vec::new(),
        };
        encode_command(&body.into())
    };
    let obituary = |node: u64| {
        let evidence = Evidence::Obituary { nonce: 1 };
        let body = Body::Fence { node, lease: lb_raft_store::table::LeaseId(1), evidence, heard: Vec::new() };
        encode_command(&body.into())
    };
    let change = || encode_command(&Body::SetDraining { node: first_id, draining: true }.into());
    let by_another = || {
        let principal = Some(Principal { name: "lb://lb/admin/alice".into(), node: first_id });
        let body = Body::SetDraining { node: first_id, draining: true };
        encode_command(&Command { principal, ..body.into() })
    };
    let says = |from: u64, propose: Vec<u8>| {
        PeerRequest { cluster: cluster.clone(), from, to: first_id, propose }.encode_to_vec()
    };
    let ask = |files: &Files, message: Vec<u8>| -> anyhow::Result<Result<String, Status>> {
        let credentials = Arc::new(files.load()?);
        on(&site, 1, async || {
            let mut client = RaftServiceClient::new(grpc::connect_by_tls(peers.clone(), credentials).await?);
            let answer = client.call(CallRequest { message }).await;
            Ok(answer.map(|answer| {
                let reply = PeerReply::decode(&*answer.into_inner().message).unwrap_or_default();
                reply.refused.map_or_else(|| "not refused".to_owned(), |refused| refused.message)
            }))
        })
    };
    // More than the role may.
    let refused = on(&site, 1, async || {
        let channel = grpc::connect_by_tls(api.clone(), Arc::new(viewer.load()?)).await?;
        Ok(ClusterServiceClient::new(channel).rebalance(v1::RebalanceRequest::default()).await.err())
    })?;
    ensure!(refused.is_some_and(|refused| refused.code() == Code::PermissionDenied));
    let refused = ask(&viewer, says(second_id, fence(third_id)));
    ensure!(!matches!(refused, Ok(Ok(_))), "a viewer speaks as a node: {refused:?}");
    for (files, message, why) in [
        (&nobody, says(second_id, fence(second_id)), "lb9 says that it is lb2"),
        (&nobody, says(u64::MAX, change()), "lb9 is not node"),
        (&nobody, says(9_999_999, change()), "lb9 is not node"),
        (&second, says(third_id, fence(third_id)), "lb2 says that it is lb3"),
        (&second, says(second_id, fence(third_id)), "lb2 speaks for another node"),
        (&second, says(second_id, obituary(third_id)), "lb2 sends what only the leader proposes"),
        (&second, says(second_id, by_another()), "lb2 speaks for another node"),
    ] {
        match ask(files, message)? {
            Ok(message) => ensure!(message.contains(why), "{message:?} instead of {why:?}"),
            Err(status) => anyhow::bail!("{why}: {status:?}"),
        }
    }
    let resident = peak_mib(&site)?;
    // Half-open handshakes, more than an address may have, and each of them as slow as can be.
    let held = site.node_hosts[1].ns.enter(|| -> anyhow::Result<Vec<TcpStream>> {
        let mut held = Vec::new();
        for number in 0..HALF_OPEN {
            let mut slow = TcpStream::connect(if number % 2 == 0 { &peers } else { &api })?;
            // It may have been closed already.
            drop(slow.write_all(&[0x16]));
            held.push(slow);
        }
        Ok(held)
    })?;
    site.nodes[0].lbctl_ok(&["vip", "list"])?;
    let good = pki.issue("admin", "alice", &[])?;
    let mut arguments = good.arguments()?.to_vec();
    let url = format!("https://{api}");
    arguments.extend(["--endpoint", &url, "vip", "list"]);
    let mut others = site.node_hosts[2].ns.command(lb_tests::binaries::directory()?.join("lbctl"))?;
    let listed = others.args(&arguments).output()?;
    ensure!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    drop(held);
    // More connections than one gets, by somebody whom the authority knows: others come in, and what is too much is closed.
    let many = on(&site, 1, async || {
        let credentials = Arc::new(viewer.load()?);
        let (mut all, mut served) = (Vec::new(), 0);
        for _ in 0..CONNECTIONS_OF_ONE + 20 {
            if let Ok(channel) = grpc::connect_by_tls(api.clone(), credentials.clone()).await {
                let asked =
                    ClusterServiceClient::new(channel.clone()).get_settings(v1::GetSettingsRequest::default()).await;
                served += u32::from(asked.is_ok());
                all.push(channel);
            }
        }
        let listed = others.output()?;
        ensure!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        Ok(served)
    })?;
    // Where few files may be open it is fewer.
    ensure!((60..=CONNECTIONS_OF_ONE).contains(&many), "{many} connections of one caller are served");
    let grown = peak_mib(&site)? - resident;
    ensure!(grown < 128, "{grown} MiB more are resident");
    println!("{HALF_OPEN} half-open handshakes, {many} connections of one caller: {grown} MiB more");
    // A flood of datagrams at the heartbeats' port, of which none is signed.
    let before_flood = heartbeat_time(&site.nodes[0])?;
    let sent = site.node_hosts[1].ns.enter(|| -> anyhow::Result<u32> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(&peers)?;
        let (begun, mut sent) = (Instant::now(), 0);
        while begun.elapsed() < FLOOD {
            sent += u32::from(socket.send(&[0x5a; 120]).is_ok());
        }
        Ok(sent)
    })?;
    let used = heartbeat_time(&site.nodes[0])? - before_flood;
    let share = 100.0 * used.as_secs_f64() / FLOOD.as_secs_f64();
    println!("{sent} bad datagrams in {FLOOD:?}: the heartbeat's thread took {share:.1} % of a core");

    let report = stream.finish();
    ensure!(report.lost == 0, "{report:?}");
    ensure!(told(&site.nodes[0])? == before, "{:?}", told(&site.nodes[0])?);
    let log = site.nodes[0].log();
    ensure!(!log[begun..].contains("this node's lease has run out"), "{log}");
    for words in
        ["a connection was refused", "lb2 speaks for another node", "only nodes speak here", "lb://lb/viewer/eve"]
    {
        ensure!(log.contains(words), "{words:?} is not in the log");
    }
    let counted = series(&get(&site, 0, "/metrics")?.1)?;
    for reason in ["certificate", "no_node", "impostor", "role", "room"] {
        let name = format!("lbd_refused_total{{reason=\"{reason}\"}}");
        ensure!(counted.get(&name).is_some_and(|count| *count > 0.0), "{name}: {:?}", counted.get(&name));
    }
    let dropped = counted.get("lbd_heartbeat_datagrams_dropped_total").copied().unwrap_or_default();
    ensure!(dropped > f64::from(sent) / 2.0, "{dropped} of {sent} bad datagrams are counted");
    println!("strangers: {report:?}");
    Ok(())
}

/// All nodes' certificates are renewed under load, once by files that do not fit.
pub(crate) fn certificates_are_replaced() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    site.configure()?;
    let pki = Pki::below(site.root.path())?;
    let before = told(&site.nodes[0])?;
    let stream = UdpStream::start(&site.client, SocketAddrV4::new(VIP, ECHO), Duration::from_millis(5))?;
    for (at, node) in site.nodes.iter().enumerate() {
        let [cert, key] = ["pem", "key"]
            .map(|extension| site.root.path().join(format!("issued/node-{0}/{0}.{extension}", node.name)));
        // A key of another certificate: told, and the pair before stays.
        let (sound, other) = (fs::read(&key)?, pki.issue_into("node", "x", &site.root.path().join("x"))?);
        fs::write(&key, fs::read(&other.key)?)?;
        node.signal(rustix::process::Signal::HUP)?;
        let complaint = "it is not the key of";
        wait::until("the pair that does not fit is told of", SOON, || {
            node.lbctl_json(&["status"]).is_ok_and(|status| status["warnings"].to_string().contains(complaint))
        });
        fs::write(&key, sound)?;
        pki.run(&["renew", cert.to_str().context("a path")?])?;
        node.signal(rustix::process::Signal::HUP)?;
        wait::until("the new certificate is taken up", SOON, || node.log().contains("the credentials were replaced"));
        wait::until("the complaint ends", SOON, || {
            node.lbctl_json(&["status"]).is_ok_and(|status| !status["warnings"].to_string().contains(complaint))
        });
        let address = format!("192.168.2.{}", 60 + at);
        node.lbctl_ok(&["vip", "add", &address])?;
        node.lbctl_ok(&["vip", "remove", &address])?;
    }
    // New connections are made by the new ones: a restarted node finds its way.
    site.nodes[2].kill()?;
    site.nodes[2].start()?;
    lb_tests::cluster::wait_ready(&site.nodes[0], 3);
    let report = stream.finish();
    let owner = before.0[0]["owner"].as_str().unwrap_or_default().to_owned();
    ensure!(owner == "lb3" || report.lost == 0, "{report:?}");
    println!("replaced: {report:?}");
    // Whoever is revoked is called no more, by connections that are there, too.
    pki.run(&["revoke", "lb3"])?;
    site.nodes[0].signal(rustix::process::Signal::HUP)?;
    let (log, called) = (|| site.nodes[0].log(), format!("from={}", site.nodes[2].address));
    wait::until("connections to a revoked node end", SOON, || {
        log().lines().any(|line| line.contains("is ended: the certificate was revoked") && line.ends_with(&called))
    });
    Ok(())
}

/// A caller whose certificate is revoked is nobody, on connections that he has, too; a node that was removed is none.
pub(crate) fn revocation() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 0, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let pki = Pki::below(site.root.path())?;
    let files = pki.issue("admin", "mallory", &[])?;
    let credentials = Arc::new(files.load()?);
    let (address, node) = (api_of(&site.nodes[0]), &site.nodes[0]);
    on(&site, 0, async || {
        let channel = grpc::connect_by_tls(address.clone(), credentials.clone()).await?;
        let mut client = ClusterServiceClient::new(channel.clone());
        client.get_status(v1::GetStatusRequest::default()).await?;
        let mut followed = TableServiceClient::new(channel).watch(v1::WatchRequest::default()).await?.into_inner();
        followed.message().await?.context("the table as it is")?;
        pki.run(&["revoke", "mallory"])?;
        node.signal(rustix::process::Signal::HUP)?;
        wait::until("the list is taken up", SOON, || node.log().contains("the credentials were replaced"));
        client.get_status(v1::GetStatusRequest::default()).await.err().context("he is let in")?;
        // What he follows ends with the connection.
        let ended = async {
            while followed.message().await?.is_some() {}
            anyhow::Ok(())
        };
        let ended = tokio::time::timeout(SOON, ended).await.context("he follows the table yet")?;
        ensure!(ended.is_err(), "it has ended as if all were said");
        ensure!(node.log().contains("a connection is ended: the certificate was revoked"), "{}", node.log());
        let again = grpc::connect_by_tls(address, credentials).await;
        let again = match again {
            Ok(channel) => ClusterServiceClient::new(channel).get_status(v1::GetStatusRequest::default()).await.is_ok(),
            Err(_) => false,
        };
        ensure!(!again, "a new connection is made with it");
        Ok(())
    })?;
    // By TCP, lbctl says what it needs and what is wrong.
    let url = format!("https://{}", api_of(node));
    let lbctl = |arguments: &[&str]| -> anyhow::Result<(Option<i32>, String)> {
        let mut command = site.node_hosts[0].ns.command(lb_tests::binaries::directory()?.join("lbctl"))?;
        let output = command.args(["--endpoint", &url]).args(arguments).output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let (code, told) = lbctl(&["status"])?;
    ensure!(code == Some(2) && told.contains("--cert, --key and --ca"), "{code:?}: {told}");
    let good = pki.issue("viewer", "bob", &[])?;
    let shown = good.arguments()?;
    ensure!(lbctl(&[&shown[..], &["vip", "list"]].concat())?.0 == Some(0));
    let (code, told) = lbctl(&[&shown[..], &["vip", "add", VIP_TEXT]].concat())?;
    ensure!(code == Some(1) && told.contains("needs the role operator"), "{code:?}: {told}");
    let (code, told) = lbctl(&[&files.arguments()?[..], &["vip", "list"]].concat())?;
    ensure!(code != Some(0), "{told}");
    // Each change stands in the log with what was before.
    node.lbctl_ok(&["vip", "add", VIP_TEXT])?;
    node.lbctl_ok(&["vip", "set", VIP_TEXT, "--prefer", "lb1"])?;
    for words in [format!("vip {VIP_TEXT} added"), format!("vip {VIP_TEXT}: prefer \"\" -> lb1")] {
        wait::until("the change stands in the log", SOON, || node.log().contains(&words));
    }
    Ok(())
}
