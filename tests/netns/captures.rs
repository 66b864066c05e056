//! `lbctl capture`: what came, what went out and what was dropped, in a file that others read.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use lb_dataplane::packet;
use lb_tests::{
    binaries,
    cluster::LbNode,
    running::Running,
    site::{ECHO, PATIENCE, Plan, Site, VIP, VIP_TEXT},
    wait,
};
use pcap_file::pcapng::{Block, PcapNgReader, blocks::enhanced_packet::EnhancedPacketOption};

/// A port that no service takes.
const NO_SERVICE: u16 = 4444;

struct Frame {
    interface: String,
    comment: String,
    flags: u32,
    bytes: Vec<u8>,
}

fn frames_of(file: &[u8]) -> anyhow::Result<Vec<Frame>> {
    let mut reader = PcapNgReader::new(file)?;
    let mut frames = Vec::new();
    while let Some(block) = reader.next_block() {
        let Block::EnhancedPacket(packet) = block?.into_owned() else { continue };
        let interface = &reader.interfaces()[packet.interface_id as usize];
        let name = interface.options.iter().map(|option| format!("{option:?}")).collect::<String>();
        let (mut comment, mut flags) = (String::new(), 0);
        for option in packet.options {
            match option {
                EnhancedPacketOption::Comment(text) => comment = text.into_owned(),
                EnhancedPacketOption::Flags(word) => flags = word,
                _ => {}
            }
        }
        frames.push(Frame { interface: name, comment, flags, bytes: packet.data.into_owned() });
    }
    Ok(frames)
}

/// Begins, and returns when the node copies.
fn begin(node: &LbNode, arguments: &[&str]) -> anyhow::Result<Running> {
    let mut command = Command::new(binaries::directory()?.join("lbctl"));
    command.arg("--endpoint").arg(format!("unix:{}", node.socket().display())).arg("capture").args(arguments);
    let mut capture = Running::start(command.stderr(Stdio::piped()))?;
    let mut told = std::io::BufReader::new(capture.0.stderr.take().context("its words")?);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut told, &mut line)?;
    ensure!(line.contains("capturing"), "{line}");
    capture.0.stderr = Some(told.into_inner());
    Ok(capture)
}

pub(crate) fn as_a_file() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    site.configure()?;
    site.wait_resolved();
    let node = &site.nodes[0];
    let path = |name: &str| site.root.path().join(name);
    let (all, drops, other) = (path("all.pcapng"), path("drops.pcapng"), path("other.pcapng"));
    let text = |path: &std::path::Path| path.to_str().context("a path").map(str::to_owned);
    let mut captures = vec![
        begin(node, &["--vip", VIP_TEXT, "-w", &text(&all)?])?,
        begin(node, &["--drops", "--count", "1", "--vip", VIP_TEXT, "-w", &text(&drops)?])?,
        begin(node, &["--vip", "198.51.100.1", "-w", &text(&other)?])?,
        begin(node, &["--snaplen", "20", "-w", &text(&path("short.pcapng"))?])?,
    ];
    // No fifth one.
    let refused = node.lbctl(&["capture", "-w", &text(&path("fifth.pcapng"))?])?;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && told.contains("4 captures under way"), "{told}");
    ensure!(!path("fifth.pcapng").exists(), "a capture that was refused leaves a file");
    let payload = [0x5a; 777];
    site.client.ns.enter(|| -> anyhow::Result<()> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(&payload, SocketAddrV4::new(VIP, NO_SERVICE))?;
        socket.send_to(&payload, SocketAddrV4::new(VIP, ECHO))?;
        socket.recv_from(&mut [0; 2000])?;
        Ok(())
    })?;
    // The one that wanted one frame has ended by itself.
    let ended = captures.remove(1).wait()?;
    ensure!(ended.success(), "{ended}");
    let (mut came, mut went) = (None, None);
    wait::until("all that is to be captured is in the file", PATIENCE, || {
        let frames = fs::read(&all).ok().and_then(|file| frames_of(&file).ok()).unwrap_or_default();
        let of_flow = |frame: &&Frame| frame.bytes.ends_with(&payload) && frame.comment.starts_with("forwarded to ");
        came = frames.iter().filter(of_flow).find(|frame| frame.flags & 3 == 1).map(|frame| frame.bytes.clone());
        went = frames.iter().filter(of_flow).find(|frame| frame.flags & 3 == 2).map(|frame| frame.bytes.clone());
        let dropped = frames.iter().any(|frame| frame.comment == "dropped: no_service" && frame.flags & 3 == 1);
        came.is_some() && went.is_some() && dropped && frames.iter().all(|frame| frame.interface.contains("eth0"))
    });
    let (came, went) = (came.context("what came")?, went.context("what went")?);
    let from_ip = packet::ETHERNET_HEADER_LEN;
    ensure!(came[from_ip..] == went[from_ip..], "what went out is another packet");
    ensure!(packet::destination(&went) == Some(site.servers[0].mac), "it went elsewhere");
    let of_drops = frames_of(&fs::read(&drops)?)?;
    ensure!(of_drops.len() == 1 && of_drops[0].comment.starts_with("dropped: "), "{}", of_drops.len());
    ensure!(frames_of(&fs::read(&other)?)?.is_empty(), "frames of another address");
    let short = frames_of(&fs::read(path("short.pcapng"))?)?;
    ensure!(!short.is_empty() && short.iter().all(|frame| frame.bytes.len() <= 20));
    // Interrupted, they say how much it was; and there is room again.
    for capture in captures {
        let ended = capture.interrupt()?;
        ensure!(ended.success(), "{ended}");
    }
    let file = text(&path("again.pcapng"))?;
    let begin_again = || wait::until_some("there is room again", PATIENCE, || begin(node, &["-w", &file]).ok());
    drop(begin_again());
    // A node that ends, ends them too.
    let last = begin_again();
    site.nodes[0].terminate()?;
    last.wait()?;
    Ok(())
}
