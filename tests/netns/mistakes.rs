//! What people and programs get wrong, and what they are told; and what looks wrong and is not.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::{Output, Stdio},
};

use anyhow::{Context as _, ensure};
use lb_tests::{
    binaries,
    cluster::LbNode,
    grpc,
    site::{PATIENCE, Plan, Site, VIP, VIP_TEXT},
    wait,
};

use crate::landings::{Landings, QUIET};

fn site() -> anyhow::Result<Site> {
    let mut site = Site::build(Plan { nodes: 1, servers: 2, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    // A new cluster agrees within a second on what all its nodes know; then this default holds.
    wait::until("the cluster knows all rules", PATIENCE, || {
        let settings = site.nodes[0].lbctl_ok(&["cluster", "show"]).unwrap_or_default();
        settings.lines().any(|line| line.starts_with("flow_fin_s") && line.ends_with(" 120"))
    });
    Ok(site)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The command fails so, and says this.
fn refused(node: &LbNode, arguments: &[&str], code: i32, words: &[&str]) -> anyhow::Result<()> {
    let output = node.lbctl(arguments)?;
    let (text, shown) = (said(&output), arguments.join(" "));
    let shown = &shown[..shown.len().min(80)];
    ensure!(output.status.code() == Some(code), "{shown}: {} and not {code}: {text}", output.status);
    for word in words {
        ensure!(text.contains(word), "{shown}: {word:?} is missing in: {text}");
    }
    ensure!(text.len() < 2000, "{shown}: the message has {} bytes", text.len());
    Ok(())
}

/// Mistakes on the command line, each with its message; and addresses that cannot be a VIP or a backend.
pub(crate) fn on_the_command_line() -> anyhow::Result<()> {
    let site = site()?;
    let node = &site.nodes[0];
    let long = "x".repeat(8000);
    let huge = "y".repeat(100_000);
    for (arguments, code, words) in [
        (&["node", "add", "lb5", "10.77.1.5"][..], 1, &["has no port", "HOST:PORT"][..]),
        (&["node", "add", "lb5", "fd00::5"], 1, &["without brackets"]),
        (&["service", "add", "s", "--vip", VIP_TEXT, "--port", "90-80/tcp"], 2, &["reversed: write 80-90"]),
        (&["service", "add", "s", "--vip", VIP_TEXT, "--port", "65536/tcp"], 2, &["65536 is no port"]),
        (&["service", "add", "s", "--vip", VIP_TEXT, "--port", "80/TCP"], 2, &["lower case: tcp"]),
        (&["explain", "192.168.1.9", "192.168.2.1:80/tcp"], 2, &["192.168.1.9 has no port"]),
        (&["explain", "192.168.1.9:1", "2001:db8::1:80/tcp"], 2, &["without brackets"]),
        (&["backend", "set", "web", "192.168.3.5", "--weight", "1001"], 2, &["1001"]),
        (&["cluster", "set", "failback=1500ms"], 1, &["failback", "whole seconds"]),
        (&["cluster", "set", "failback=200y"], 1, &["failback"]),
        (&["cluster", "set", "flow_fin_s=0"], 1, &["flow_fin_s", "1 and"]),
        (&["cluster", "set", "flow_fin_s=4294967296"], 1, &["flow_fin_s"]),
        (&["--timeout", "0s", "status"], 2, &["zero"]),
        (&["vip", "add", &long], 2, &[]),
        (&["service", "add", &long, "--vip", VIP_TEXT, "--port", "80/tcp"], 1, &["is not a name", "(8000 bytes)"]),
        (&["service", "add", &huge, "--vip", VIP_TEXT, "--port", "80/tcp"], 1, &["is not a name", "(100000 bytes)"]),
        (&["vip", "add", "192.168.2.99", "--prefer", &long], 1, &["prefer"]),
        (&["vip", "add", "192.168.2.99", "--segment", &long], 1, &["segment"]),
        (&["node", "drain", &long], 1, &[]),
        (&["vip", "add", "192.168.2.0"], 1, &["network address of 192.168.2.0/24"]),
        (&["vip", "add", "192.168.2.255"], 1, &["broadcast address of 192.168.2.0/24"]),
        (&["vip", "add", "10.77.1.1"], 1, &["lb1's cluster address"]),
        (&["vip", "add", "192.168.2.11"], 1, &["lb1's own address on eth0"]),
        (&["backend", "add", "web", "192.168.3.255"], 1, &["broadcast address of 192.168.3.0/24"]),
        (&["backend", "add", "web", "192.168.3.0"], 1, &["network address"]),
    ] {
        refused(node, arguments, code, words)?;
    }
    let routed = node.lbctl(&["vip", "add", "198.51.100.7"])?;
    ensure!(routed.status.success() && said(&routed).contains("it is routed"), "{}", said(&routed));
    let nowhere = node.lbctl(&["vip", "add", "192.168.2.77", "--segment", "10.99.0.0/16"])?;
    ensure!(nowhere.status.success() && said(&nowhere).contains("no node has an address in 10.99.0.0/16"));
    let json = node.lbctl_json(&["vip", "set", "198.51.100.7", "--unmatched", "reject"])?;
    ensure!(json["warnings"].as_array().is_some_and(|warnings| warnings.len() == 1), "{json}");
    let plain = node.lbctl(&["vip", "add", "192.168.2.78"])?;
    ensure!(plain.status.success() && said(&plain).is_empty(), "{}", said(&plain));
    // A file that is none, or not all of it, is told apart.
    let path = site.root.path().join("capture");
    fs::write(&path, "no capture")?;
    refused(node, &["explain", "--pcap", &path.to_string_lossy()], 2, &["neither a pcap nor a pcapng"])?;
    explained_for_the_node_itself(node)
}

/// The nodes' own addresses as clients.
fn explained_for_the_node_itself(node: &LbNode) -> anyhow::Result<()> {
    let text = node.lbctl_ok(&["explain", "192.168.2.11:4000", &format!("{VIP_TEXT}:80/tcp")])?;
    ensure!(text.contains("bad_source") && text.contains("no client of its VIPs"), "{text}");
    let json = node.lbctl_json(&["explain", "192.168.2.11:4000", &format!("{VIP_TEXT}:80/tcp")])?;
    ensure!(json["explanations"][0]["verdict"] == "bad_source", "{json}");
    Ok(())
}

/// Where the output goes nowhere: a broken pipe is no failure, and a change that could not be told is done.
pub(crate) fn output_that_fails() -> anyhow::Result<()> {
    let site = site()?;
    let node = &site.nodes[0];
    let lbctl = |arguments: &[&str], to: Stdio| -> anyhow::Result<Output> {
        let mut command = node.ns.command(binaries::directory()?.join("lbctl"))?;
        command.args(["--endpoint", &format!("unix:{}", node.socket().display())]).args(arguments);
        Ok(command.stdout(to).stderr(Stdio::piped()).spawn()?.wait_with_output()?)
    };
    let full = || -> anyhow::Result<Stdio> { Ok(fs::File::options().write(true).open("/dev/full")?.into()) };
    for format in ["table", "json"] {
        let vip = if format == "table" { "192.168.2.70" } else { "192.168.2.71" };
        let output = lbctl(&["-o", format, "vip", "add", vip], full()?)?;
        ensure!(output.status.code() == Some(5), "{}: {}", output.status, said(&output));
        ensure!(said(&output).contains("the change is done"), "{}", said(&output));
        ensure!(node.lbctl_ok(&["vip", "list"])?.contains(vip));
    }
    let output = lbctl(&["vip", "list"], full()?)?;
    ensure!(output.status.code() == Some(1) && !said(&output).contains("done"), "{}", said(&output));
    for arguments in [&["vip", "list"][..], &["vip", "add", "192.168.2.72"], &["--help"], &["completions", "bash"]] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let output = lbctl(arguments, writer.into())?;
        ensure!(output.status.success() && said(&output).is_empty(), "{arguments:?}: {}", said(&output));
    }
    Ok(())
}

/// A backend of weight 0 takes no new flows and keeps its own.
pub(crate) fn weight_zero() -> anyhow::Result<()> {
    let site = site()?;
    let node = &site.nodes[0];
    // No server listens there: an answer would make the client send errors, which land as well.
    node.lbctl_ok(&["service", "add", "quiet", "--vip", VIP_TEXT, "--port", &format!("{QUIET}/udp")])?;
    for server in &site.servers {
        node.lbctl_ok(&["backend", "add", "quiet", &server.address.to_string()])?;
    }
    node.wait_resolved(3 * site.servers.len());
    let landings = Landings::watch(&site)?;
    let path = site.path(VIP.into(), QUIET);
    let of = |port: u16| landings.of(&format!("a datagram from {port}"), &path.from_port(port).udp(b"whose"));
    let flows: Vec<u16> = (20_000..20_040).collect();
    let before = flows.iter().map(|port| of(*port)).collect::<anyhow::Result<Vec<usize>>>()?;
    ensure!(before.contains(&0) && before.contains(&1), "{before:?}");
    let first = site.servers[0].address.to_string();
    for weight in ["1000", "0"] {
        node.change(&["backend", "set", "quiet", &first, "--weight", weight])?;
    }
    let row = node.lbctl_json(&["backend", "list", "quiet"])?;
    let of_first = row["backends"].as_array().into_iter().flatten().find(|row| row["address"] == first);
    ensure!(of_first.is_some_and(|row| row["weight"] == 0), "{row}");
    let after = flows.iter().map(|port| of(*port)).collect::<anyhow::Result<Vec<usize>>>()?;
    ensure!(after == before, "known flows stay");
    for port in 30_000..30_040 {
        ensure!(of(port)? == 1, "a new flow went to a backend of weight 0");
    }
    node.change(&["backend", "set", "quiet", &first, "--weight", "1"])?;
    wait::until("it takes new flows again", PATIENCE, || (31_000..31_040).any(|port| of(port).is_ok_and(|at| at == 0)));
    Ok(())
}

/// A file that is no socket stays.
pub(crate) fn a_file_in_the_sockets_place() -> anyhow::Result<()> {
    let mut site = site()?;
    let node = &mut site.nodes[0];
    node.terminate()?;
    let keep = site.root.path().join("keep.txt");
    fs::write(&keep, "precious")?;
    let link = site.root.path().join("link");
    std::os::unix::fs::symlink(&keep, &link)?;
    let sound = fs::read_to_string(node.config())?;
    for path in [&keep, &link, &site.root.path().to_path_buf()] {
        let other = sound.replace(&*node.socket().to_string_lossy(), &path.to_string_lossy());
        ensure!(other != sound);
        let file = node.config().with_extension("other.toml");
        fs::write(&file, other)?;
        let output = node.ns.command(binaries::directory()?.join("lbd"))?.arg("--config").arg(&file).output()?;
        ensure!(output.status.code() == Some(69), "{}: {}", output.status, said(&output));
        ensure!(said(&output).contains("no socket"), "{}", said(&output));
    }
    ensure!(fs::read_to_string(&keep)? == "precious" && link.is_symlink());
    // And a socket that nobody serves any more is replaced.
    node.start()?;
    node.kill()?;
    ensure!(node.socket().exists());
    node.start()?;
    lb_tests::cluster::wait_for_leader(node);
    Ok(())
}

/// Programs of other people: a gRPC client that calls a Unix socket by its path, as Python's does, and one that asks for
/// the older reflection.
pub(crate) fn clients_of_others() -> anyhow::Result<()> {
    let site = site()?;
    let socket = site.nodes[0].socket();
    let path = socket.to_string_lossy().trim_start_matches('/').replace('/', "%2F");
    for authority in ["localhost", &path] {
        let answer = call(&socket, authority)?;
        let end = answer.iter().position(|frame| frame.kind == RST_STREAM);
        ensure!(end.is_none(), "{authority}: the stream was reset");
        let status = |frame: &Frame| frame.payload.windows(11).any(|part| part == b"grpc-status");
        // Compressed or not: with HEADERS at the start and at the end, and a message between them.
        let kinds: Vec<u8> =
            answer.iter().map(|frame| frame.kind).filter(|kind| [HEADERS, DATA].contains(kind)).collect();
        ensure!(kinds == [HEADERS, DATA, HEADERS] || answer.iter().any(status), "{authority}: {kinds:?}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let channel = grpc::connect(socket).await?;
        let (new, old) =
            (grpc::reflected_services(channel.clone()).await?, grpc::reflected_services_alpha(channel).await?);
        ensure!(new.contains(&"lb.v1.TableService".to_owned()) && old.contains(&"lb.v1.TableService".to_owned()));
        Ok(())
    })
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;

struct Frame {
    kind: u8,
    payload: Vec<u8>,
}

/// Calls GetStatus by hand: no library sends such an authority. What came of the stream.
fn call(socket: &Path, authority: &str) -> anyhow::Result<Vec<Frame>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let frame = |kind: u8, flags: u8, id: u32, payload: &[u8]| {
        let [_, len @ ..] = (payload.len() as u32).to_be_bytes();
        [&len[..], &[kind, flags], &id.to_be_bytes(), payload].concat()
    };
    let literal = |name: &str, value: &str| {
        [&[0x40, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
    };
    let block = [
        literal(":path", "/lb.v1.ClusterService/GetStatus"),
        literal(":authority", authority),
        // :method POST and :scheme http of the static table.
        vec![0x83, 0x86],
        literal("content-type", "application/grpc"),
        literal("te", "trailers"),
    ]
    .concat();
    let request = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, 0, &[]),
        // END_HEADERS; then an empty message, and the end of the stream.
        frame(HEADERS, 4, 1, &block),
        frame(DATA, 1, 1, &[0; 5]),
    ];
    stream.write_all(&request.concat())?;
    let mut frames = Vec::new();
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).context("the stream's end does not come")?;
        let [a, b, c, kind, flags, id @ ..] = header;
        let mut payload = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
        stream.read_exact(&mut payload)?;
        if u32::from_be_bytes(id) == 1 {
            frames.push(Frame { kind, payload });
            // END_STREAM.
            if kind == RST_STREAM || [HEADERS, DATA].contains(&kind) && flags & 1 != 0 {
                return Ok(frames);
            }
        }
    }
}

/// Of a port of a bond and of files of TLS `--check` says what the start would say; of an interface or an address that is not there
/// yet it warns.
pub(crate) fn checked_as_started() -> anyhow::Result<()> {
    let site = Site::build(Plan { nodes: 1, servers: 0, two_interfaces: false, engine: "ring" })?;
    let node = &site.nodes[0];
    site.node_hosts[0].add_bridge("br7", "port7")?;
    let sound = fs::read_to_string(node.config())?;
    let check_with = |from: &str, to: &str| -> anyhow::Result<Output> {
        let file = node.config().with_extension("other.toml");
        ensure!(sound.contains(from), "{sound}");
        fs::write(&file, sound.replace(from, to))?;
        let mut command = node.ns.command(binaries::directory()?.join("lbd"))?;
        Ok(command.args(["--check", "--config"]).arg(&file).output()?)
    };
    let check = |interface: &str| check_with("\"eth0\"", &format!("{interface:?}"));
    ensure!(check("eth0")?.status.success());
    let port = check("port7")?;
    ensure!(port.status.code() == Some(69) && said(&port).contains("list br7 instead"), "{}", said(&port));
    let absent = check("eth9")?;
    ensure!(absent.status.success() && said(&absent).contains("there is no interface"), "{}", said(&absent));
    let elsewhere = check_with(&format!("listen = {:?}", node.address), "listen = \"10.99.1.1:7401\"")?;
    let told = said(&elsewhere);
    ensure!(elsewhere.status.success() && told.contains("no interface has the address 10.99.1.1"), "{told}");
    let keyless = check_with("lb1.key", "nobody.key")?;
    ensure!(
        keyless.status.code() == Some(65) && said(&keyless).contains("nobody.key: No such file"),
        "{}",
        said(&keyless)
    );
    let renamed = check_with("name = \"lb1\"", "name = \"lb2\"")?;
    ensure!(renamed.status.code() == Some(65) && said(&renamed).contains("and this node is"), "{}", said(&renamed));
    Ok(())
}

/// One machine is drained, taken out and put back in all services that it serves, in one transaction.
pub(crate) fn all_services() -> anyhow::Result<()> {
    let site = site()?;
    let node = &site.nodes[0];
    let (first, second) = (site.servers[0].address.to_string(), site.servers[1].address.to_string());
    let rows = |address: &str| {
        let list = node.lbctl_json(&["backend", "list"])?;
        let of = list["backends"].as_array().into_iter().flatten().filter(|row| row["address"] == address);
        anyhow::Ok(of.map(|row| (row["state"].clone(), row["revision"].clone())).collect::<Vec<_>>())
    };
    for (how, state) in [("drain", "drain"), ("disable", "down"), ("enable", "active")] {
        let done = node.lbctl_json(&["backend", how, "--all-services", &first])?;
        let expected = (serde_json::Value::from(state), done["revision"].clone());
        ensure!(rows(&first)? == [expected.clone(), expected], "{how}: {done}");
        ensure!(rows(&second)?.iter().all(|(state, _)| state == "active"));
        let again = node.lbctl_ok(&["backend", how, "--all-services", &first])?;
        ensure!(again.contains("echo, web") && again.contains("unchanged"), "{again}");
    }
    for (arguments, code, message) in [
        (
            &["--all-services", "192.168.3.99"][..],
            1,
            "no service has a backend 192.168.3.99: 'lbctl backend list' shows them",
        ),
        (&["web", &first, "--all-services", &first], 2, "cannot be used with"),
        (&["web"], 2, "required arguments were not provided"),
    ] {
        let output = node.lbctl(&[&["backend", "drain"], arguments].concat())?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(code) && told.contains(message), "{arguments:?}: {told}");
    }
    Ok(())
}
