//! Service that would end without a word: a node that does not do its work gives its VIPs away and says why; what is wrong
//! stands in the log when it happens, and in `lbctl status` while it lasts; and nothing that lasts fills the log of others.

use std::{
    fs,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lb_proto::v1::{CallRequest, raft_service_client::RaftServiceClient};
use lb_tests::{
    cluster::{LbNode, SOON, form, wait_for_leader, wait_ready},
    faults::{Fault, Watch, measure, place_owner},
    grpc, nft,
    observe::ArpObserver,
    pki::Pki,
    site::{PATIENCE, Plan, Site, VIP, VIP_TEXT},
    topology::{Cut, Lane},
    wait,
};
use rustix::process::Signal;

fn site(nodes: u8) -> anyhow::Result<Site> {
    let mut site = Site::build(Plan { nodes, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    Ok(site)
}

/// What `lbctl status --check` complains of; nothing if it does not.
fn complaints(node: &LbNode) -> anyhow::Result<String> {
    let output = node.lbctl(&["--timeout", "3s", "status", "--check"])?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(0) => Ok(String::new()),
        Some(1) => Ok(text),
        code => anyhow::bail!("status --check ended with {code:?}: {text}"),
    }
}

fn complains_of(node: &LbNode, words: &str) {
    wait::until(&format!("{} complains of {words:?}", node.name), SOON, || {
        complaints(node).is_ok_and(|complaints| complaints.contains(words))
    });
}

fn is_well(node: &LbNode) {
    wait::until(&format!("all is well on {}", node.name), SOON, || complaints(node).is_ok_and(|c| c.is_empty()));
}

/// A worker's thread that hangs: the VIPs go to another node, the others see why, and the node is given VIPs again later.
pub(crate) fn a_halted_worker() -> anyhow::Result<()> {
    let mut site = site(3)?;
    let neighbor = site.add_neighbor()?;
    is_well(&site.nodes[0]);
    let owner = place_owner(&site, false)?;
    let (name, other) = (site.nodes[owner].name.clone(), (owner + 1) % 3);
    site.nodes[owner].halt_worker()?;
    complains_of(&site.nodes[other], &format!("{name} can own no VIP: worker 0 of the dataplane has stopped"));
    let list = site.nodes[other].lbctl_ok(&["node", "list"])?;
    ensure!(list.contains("unfit"), "{list}");
    ensure!(site.nodes[owner].log().contains("this node can own no VIP: worker 0"), "{}", site.nodes[owner].log());
    site.nodes[owner].unhalt_worker();
    wait_ready(&site.nodes[other], 3);
    is_well(&site.nodes[other]);
    let outcome = measure(&mut site, &neighbor, Fault::WorkerHalted, true)?;
    println!("worker halted: {:?}", outcome.gap);
    Ok(())
}

/// A guard that cannot be put in place, because other programs have taken all the room: the node lets its VIPs go, and says why,
/// until there is room again.
pub(crate) fn a_guard_that_is_refused() -> anyhow::Result<()> {
    const CROWD: &str = "crowd";
    let site = site(3)?;
    let owner = place_owner(&site, false)?;
    let (name, other) = (site.nodes[owner].name.clone(), (owner + 1) % 3);
    nft::crowd(&site.node_hosts[owner].ns, CROWD, "eth0")?;
    // What the guard covers changes.
    site.nodes[other].lbctl_ok(&["vip", "add", "192.168.2.88"])?;
    complains_of(&site.nodes[other], &format!("{name} can own no VIP: "));
    complains_of(&site.nodes[owner], "too many nftables chains");
    wait::until("its VIP has moved", SOON, || {
        site.nodes[other].owner_of(VIP_TEXT).is_ok_and(|now| !now.is_empty() && now != name)
    });
    nft::delete_table(&site.node_hosts[owner].ns, CROWD)?;
    wait_ready(&site.nodes[other], 3);
    is_well(&site.nodes[other]);
    is_well(&site.nodes[owner]);
    Ok(())
}

/// Heartbeats that a firewall keeps away from both nodes of two: nobody answers for the VIP, and everybody says so.
pub(crate) fn blocked_heartbeats() -> anyhow::Result<()> {
    let site = site(2)?;
    is_well(&site.nodes[0]);
    let owner = site.owner()?;
    for host in &site.node_hosts {
        host.block(Lane::Heartbeats, true)?;
    }
    for node in &site.nodes {
        complains_of(node, "no answer to heartbeats (UDP) from");
        wait::until("the VIP's state is not ok", SOON, || {
            node.lbctl_ok(&["vip", "list"]).is_ok_and(|list| !list.contains(" ok"))
        });
    }
    complains_of(&site.nodes[owner], "this node's lease has run out");
    ensure!(site.nodes[owner].log().contains("it answers for no VIP any more"), "{}", site.nodes[owner].log());
    let (entries, lines) = growth(&site, Duration::from_secs(5))?;
    ensure!(entries < 25, "{entries} entries and {lines} lines in five seconds");
    for host in &site.node_hosts {
        host.block(Lane::Heartbeats, false)?;
    }
    wait_ready(&site.nodes[0], 2);
    is_well(&site.nodes[0]);
    Ok(())
}

/// How many entries the log of the cluster gets meanwhile, and how many lines the logs of the nodes.
fn growth(site: &Site, span: Duration) -> anyhow::Result<(u64, usize)> {
    let applied = || {
        let all = site.nodes.iter().filter_map(|node| node.lbctl_json(&["status"]).ok()?["applied"].as_u64());
        all.max().context("a node that answers")
    };
    let lines = || site.nodes.iter().map(|node| node.log().lines().count()).sum::<usize>();
    let (entries_before, lines_before) = (applied()?, lines());
    wait::paced(Duration::from_millis(100), span, || {});
    Ok((applied()? - entries_before, lines() - lines_before))
}

/// Of an owner whose cable is cut the log says within a moment that the lease has run out, and not when the cable is back.
pub(crate) fn a_cut_cable_is_told_at_once() -> anyhow::Result<()> {
    let site = site(3)?;
    let owner = place_owner(&site, true)?;
    site.net.cut(&site.node_hosts[owner], "mgmt", Cut::Silent)?;
    wait::until("the lapse is in the log", Duration::from_secs(2), || {
        site.nodes[owner]
            .log()
            .contains("this node's lease has run out, because the others have not supported it in time (lb")
    });
    wait::until("and the lost majority", Duration::from_secs(4), || {
        site.nodes[owner].log().contains("no majority of the voters answers this node")
    });
    site.net.cut(&site.node_hosts[owner], "mgmt", Cut::None)?;
    wait_ready(&site.nodes[(owner + 1) % 3], 3);
    // The carrier on the VIPs' segment.
    site.net.plug(&site.node_hosts[owner], "eth0", false)?;
    wait::until("the carrier is missed", SOON, || site.nodes[owner].log().contains("the carrier is lost"));
    site.net.plug(&site.node_hosts[owner], "eth0", true)?;
    wait::until("and is back", SOON, || site.nodes[owner].log().contains("the carrier is back"));
    Ok(())
}

/// A node whose heartbeats are blocked, and one that starts with another address, make no endless entries and lines; the
/// latter says what differs, and one command mends it.
pub(crate) fn nothing_churns() -> anyhow::Result<()> {
    let mut site = site(3)?;
    is_well(&site.nodes[0]);
    let last = site.nodes.len() - 1;
    site.node_hosts[last].block(Lane::Heartbeats, true)?;
    complains_of(&site.nodes[0], "lb3 (10.77.1.3:7401)");
    let (entries, lines) = growth(&site, Duration::from_secs(10))?;
    println!("heartbeats blocked: {entries} entries and {lines} lines in 10 s");
    ensure!(entries <= 40 && lines <= 20, "{entries} entries and {lines} lines in ten seconds");
    site.node_hosts[last].block(Lane::Heartbeats, false)?;
    wait_ready(&site.nodes[0], 3);

    site.nodes[last].terminate()?;
    site.renumber(last)?;
    site.nodes[last].start()?;
    let address = site.nodes[last].address.clone();
    complains_of(&site.nodes[last], &format!("'lbctl node set lb3 --address {address}'"));
    let (entries, lines) = growth(&site, Duration::from_secs(10))?;
    println!("another address: {entries} entries and {lines} lines in 10 s");
    // Each attempt is a lease opened and a lease ended; the pauses between them grow.
    ensure!(entries <= 40 && lines <= 20, "{entries} entries and {lines} lines in ten seconds");
    let refused = site.nodes[0].lbctl(&["node", "set", "lb3", "--address", "10.77.1.2:7401"])?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1) && text.contains("lb2 answers at 10.77.1.2:7401, and not lb3"), "{text}");
    site.nodes[0].lbctl_ok(&["node", "set", "lb3", "--address", &address])?;
    wait_ready(&site.nodes[0], 3);
    // On the node itself its loopback answers; the others do not reach it there.
    let refused = site.nodes[last].lbctl(&["node", "set", "lb3", "--address", "127.0.0.1:7401"])?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1) && text.contains("does not reach it"), "{text}");
    for node in &site.nodes {
        is_well(node);
    }
    let list = site.nodes[0].lbctl_ok(&["node", "list"])?;
    ensure!(list.contains(&address), "{list}");
    Ok(())
}

/// A VIP on an interface of a node, and the flow of what is wrong into `status`.
pub(crate) fn a_vip_on_an_interface() -> anyhow::Result<()> {
    let site = site(2)?;
    let owner = site.owner()?;
    let other = 1 - owner;
    site.node_hosts[other].add_address("eth0", &format!("{VIP_TEXT}/24"))?;
    complains_of(&site.nodes[other], &format!("VIP {VIP_TEXT} is configured on this node's interface eth0"));
    // It asks nobody in the VIP's name meanwhile.
    let observer = ArpObserver::start(&site.router, "eth1", Ipv4Addr::new(192, 168, 2, 254), VIP, PATIENCE)?;
    wait::paced(Duration::from_millis(50), Duration::from_millis(500), || {});
    let own = site.node_hosts[other].port("eth0").mac;
    let claims = observer.finish();
    ensure!(claims.iter().all(|(_, mac)| *mac != own), "the node speaks for a VIP that it does not own");
    Ok(())
}

/// A graceful stop hands over at once, and says how long that took and how long it went on forwarding.
pub(crate) fn a_graceful_stop_is_quick() -> anyhow::Result<()> {
    let mut site = site(3)?;
    let owner = place_owner(&site, true)?;
    ensure!(site.nodes[owner].terminate()?.success());
    let log = site.nodes[owner].log();
    let took = |line: &str| -> anyhow::Result<u64> {
        let line = log.lines().find(|l| l.contains(line)).with_context(|| format!("{line:?} is not in {log}"))?;
        let (_, rest) = line.split_once("took_ms=").context("took_ms")?;
        Ok(rest.split_whitespace().next().unwrap_or_default().parse()?)
    };
    let (handed_over, forwarded) =
        (took("the VIPs are handed over")?, took("late frames for them were forwarded until none came any more")?);
    println!("handed over in {handed_over} ms, forwarded late frames for {forwarded} ms");
    ensure!(handed_over <= 300, "handing over took {handed_over} ms");
    Ok(())
}

/// Nodes that have just started take over from one that stops: of hundreds of clients no one's answer is lost or late.
pub(crate) fn cold_nodes_take_over() -> anyhow::Result<()> {
    let mut site = site(3)?;
    let neighbor = site.add_neighbor()?;
    let owner = place_owner(&site, true)?;
    for other in (0..3).filter(|other| *other != owner) {
        ensure!(site.nodes[other].terminate()?.success());
        site.nodes[other].start()?;
        wait_ready(&site.nodes[owner], 3);
    }
    site.wait_resolved();
    let watch = Watch::start(&site, &neighbor)?;
    watch.go_on(Duration::from_millis(500));
    ensure!(site.nodes[owner].terminate()?.success());
    watch.go_on(Duration::from_millis(500));
    let seen = watch.finish()?;
    println!("{:?}", seen.crowd);
    ensure!(seen.lost() == 0 && seen.crowd.failed() == 0, "{} datagrams were lost; {:?}", seen.lost(), seen.crowd);
    Ok(())
}

/// systemd's watchdog ends a process that hangs by SIGABRT to the parent: it ends the child, and the others know at once.
pub(crate) fn the_watchdog_leaves_an_obituary() -> anyhow::Result<()> {
    let mut site = site(3)?;
    let neighbor = site.add_neighbor()?;
    let owner = place_owner(&site, false)?;
    let watch = Watch::start(&site, &neighbor)?;
    watch.go_on(Duration::from_millis(200));
    // The child hangs for good.
    if let Some(child) = site.nodes[owner].worker() {
        lb_tests::sys::signal(child, Signal::STOP)?;
    }
    site.nodes[owner].signal(Signal::ABORT)?;
    let status = site.nodes[owner].wait_for_end(SOON)?;
    ensure!(!status.success(), "{status}");
    let name = site.nodes[owner].name.clone();
    let other = &site.nodes[(owner + 1) % 3];
    wait::until("the VIP has moved", SOON, || other.owner_of(VIP_TEXT).is_ok_and(|now| !now.is_empty() && now != name));
    watch.go_on(Duration::from_millis(300));
    println!("watchdog: {:?}", watch.finish()?.gap());
    ensure!(site.nodes.iter().any(|node| node.log().contains("its process is dead")), "nobody got the obituary");
    Ok(())
}

/// On a disk that is nearly full, callers' writes are refused with the reason, while leases still enter the log.
pub(crate) fn little_space() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.nodes[0].give_disk(64 << 20)?;
    site.start()?;
    let filler = site.nodes[0].data_dir().join("filler");
    // Two megabytes stay, of a floor of three.
    let free = lb_tests::sys::free_bytes(&site.nodes[0].data_dir())?;
    fs::write(&filler, vec![0; usize::try_from(free - (2 << 20))?])?;
    complains_of(&site.nodes[0], "changes are refused until there is more");
    let refused = site.nodes[0].lbctl(&["vip", "add", "192.168.2.77"])?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        refused.status.code() == Some(1) && text.contains("too little space is left"),
        "{}: {text}",
        refused.status
    );
    // A new process opens a new lease.
    site.nodes[0].kill_worker()?;
    site.nodes[0].wait_for_end(SOON)?;
    site.nodes[0].start()?;
    wait_ready(&site.nodes[0], 1);
    fs::remove_file(&filler)?;
    wait::until("writes are taken again", SOON, || {
        site.nodes[0].lbctl(&["vip", "add", "192.168.2.77"]).is_ok_and(|output| output.status.success())
    });
    Ok(())
}

/// Of three nodes one is dead: another one that lives is not removed, because the two that are left would be one too few; and
/// a node that is off is fenced by an operator's word, one that lives is not.
pub(crate) fn a_majority_stays() -> anyhow::Result<()> {
    let mut site = site(3)?;
    site.nodes[2].kill()?;
    complains_of(&site.nodes[0], "lb3");
    let refused = |arguments: &[&str], words: &[&str]| -> anyhow::Result<()> {
        let output = site.nodes[0].lbctl(arguments)?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1), "{arguments:?}: {}: {text}", output.status);
        words.iter().try_for_each(|word| {
            ensure!(text.contains(word), "{arguments:?}: {word:?} is missing in {text}");
            Ok(())
        })
    };
    refused(&["node", "remove", "lb2"], &["lb3", "--force"])?;
    refused(&["node", "remove", "lb3"], &["--force"])?;
    refused(&["node", "fence", "lb2", "--i-know-it-is-off"], &["it answers heartbeats"])?;
    ensure!(site.nodes[0].lbctl(&["node", "fence", "lb3"])?.status.code() == Some(2));
    site.nodes[0].lbctl_ok(&["node", "fence", "lb3", "--i-know-it-is-off"])?;
    site.nodes[0].lbctl_ok(&["node", "remove", "lb3", "--force"])?;
    site.nodes[0].lbctl_ok(&["node", "remove", "lb2"])?;
    let nodes = site.nodes[0].lbctl_json(&["node", "list"])?;
    ensure!(nodes["nodes"].as_array().map(Vec::len) == Some(1), "{nodes}");
    site.nodes[0].lbctl_ok(&["vip", "add", "192.168.2.78"])?;
    Ok(())
}

/// No message stops a node: not that it was removed, nor that it is taken for another one.
pub(crate) fn no_message_stops_a_node() -> anyhow::Result<()> {
    let mut site = site(2)?;
    let status = site.nodes[0].lbctl_json(&["status"])?;
    let cluster: Vec<u8> = {
        let id = status["cluster_id"].as_str().unwrap_or_default().replace('-', "");
        (0..16).map(|at| u8::from_str_radix(&id[2 * at..2 * at + 2], 16)).collect::<Result<_, _>>()?
    };
    let id = |name: &str| -> anyhow::Result<u64> {
        let nodes = status["nodes"].as_array().into_iter().flatten();
        nodes.filter(|row| row["name"] == name).find_map(|row| row["id"].as_u64()).context("an id")
    };
    let (first, second) = (id("lb1")?, id("lb2")?);
    // PeerRequest: cluster = 1, from = 2, to = 3; read_index = 10, removed = 15.
    let request = |cluster: &[u8], from: u64, to: u64, question: u8| {
        let mut message = vec![0x0a, 16];
        message.extend_from_slice(cluster);
        for (tag, mut value) in [(0x10, from), (0x18, to)] {
            message.push(tag);
            while value >= 0x80 {
                message.push((value as u8) | 0x80);
                value >>= 7;
            }
            message.push(value as u8);
        }
        message.extend([question << 3, 1]);
        message
    };
    let messages = [request(&cluster, second, first, 15), request(&[7; 16], second, first, 10)];
    let address = site.nodes[0].address.clone();
    let second_node = Arc::new(Pki::below(site.root.path())?.issue("node", "lb2", &[])?.load()?);
    site.node_hosts[1].ns.enter(|| -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut client = RaftServiceClient::new(grpc::connect_by_tls(address, second_node).await?);
            for message in messages {
                client.call(CallRequest { message }).await?;
            }
            Ok(())
        })
    })?;
    complains_of(&site.nodes[0], "was it reinstalled with bootstrap = true?");
    wait::until("the word is not believed", SOON, || {
        site.nodes[0].log().contains("no node of its own table confirms that, so it goes on")
    });
    ensure!(!site.nodes[0].has_ended()?);
    site.nodes[0].lbctl_ok(&["vip", "add", "192.168.2.79"])?;
    Ok(())
}

/// A new node that cannot call the others back does not become a voter: the first one says an address that is its own alone.
pub(crate) fn a_node_that_cannot_call_back() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 2, servers: 0, two_interfaces: false, engine: "ring" })?;
    site.nodes[0].reconfigure("bootstrap = true", "bootstrap = true\nadvertise = \"127.0.0.1:7401\"")?;
    let check = std::process::Command::new(lb_tests::binaries::directory()?.join("lbd"))
        .arg("--check")
        .arg("--config")
        .arg(site.nodes[0].config())
        .output()?;
    let warned = String::from_utf8_lossy(&check.stderr).into_owned();
    ensure!(check.status.success() && warned.contains("reaches no other machine"), "{}: {warned}", check.status);
    for node in &mut site.nodes {
        node.start()?;
    }
    wait_for_leader(&site.nodes[0]);
    let refused = site.nodes[0].lbctl(&["node", "add", "lb2", "10.77.1.2:7401"])?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1) && text.contains("lb2 cannot reach the cluster: lb1"), "{text}");
    for (address, word) in
        [("10.77.1.2", "has no port"), ("fd00::2:7401", "brackets"), ("http://10.77.1.2:7401", "URL")]
    {
        let refused = site.nodes[0].lbctl(&["node", "add", "lb2", address])?;
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(1) && text.contains(word), "{address}: {text}");
    }
    let nodes = site.nodes[0].lbctl_json(&["node", "list"])?;
    ensure!(nodes["nodes"].as_array().map(Vec::len) == Some(1), "{nodes}");
    Ok(())
}

/// Two settings at once, each acknowledged: both hold.
pub(crate) fn two_settings_at_once() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 2, servers: 0, two_interfaces: false, engine: "ring" })?;
    form(&mut site.nodes)?;
    wait::until("both nodes know the newest commands", SOON, || {
        site.nodes[0].lbctl_json(&["status"]).is_ok_and(|status| status["feature_level"] != 1)
    });
    for round in 1..=10 {
        let (failback, flow) = (format!("failback={round}m"), format!("flow_udp_s={}", 40 + round));
        std::thread::scope(|scope| {
            let one = scope.spawn(|| site.nodes[0].lbctl_ok(&["cluster", "set", &failback]));
            let other = scope.spawn(|| site.nodes[1].lbctl_ok(&["cluster", "set", &flow]));
            [one, other].into_iter().try_for_each(|set| set.join().map_err(|_| anyhow::anyhow!("panicked"))?.map(drop))
        })?;
        let settings = &site.nodes[0].lbctl_json(&["cluster", "show"])?["settings"];
        let both = settings["failback"] == format!("{round}m").as_str()
            && settings["flow_udp_s"] == (40 + round).to_string().as_str();
        ensure!(both, "{settings}");
    }
    Ok(())
}

/// Nodes that are far apart: what the timing does not bear is said, with the timing that does; setting it works over that
/// distance, and then nothing is missing.
pub(crate) fn nodes_far_apart() -> anyhow::Result<()> {
    let mut site = site(3)?;
    is_well(&site.nodes[0]);
    // Each frame passes two cables, and its answer two more.
    let lengthen = |host| site.net.lengthen(host, "mgmt", "nodes", Duration::from_millis(20));
    let distances = site.node_hosts.iter().map(lengthen).collect::<std::io::Result<Vec<_>>>()?;
    for node in &site.nodes {
        complains_of(node, "'lbctl cluster set timing=relaxed'");
    }
    let text = complaints(&site.nodes[0])?;
    ensure!(text.contains("longer than timing=default bears (25.0 ms)"), "{text}");
    let status = site.nodes[0].lbctl_json(&["status"])?;
    let leader = status["leader"].as_str().unwrap_or_default();
    let follower = site.nodes.iter().position(|node| node.name != leader).context("a follower")?;
    let set = Instant::now();
    site.nodes[follower].lbctl_ok(&["cluster", "set", "timing=relaxed"])?;
    println!("80 ms apart: the timing was set in {:?}", set.elapsed());
    wait_ready(&site.nodes[0], 3);
    for node in &site.nodes {
        is_well(node);
    }
    let rows = site.nodes[follower].lbctl_json(&["node", "list"])?;
    let of_others =
        rows["nodes"].as_array().into_iter().flatten().filter(|row| row["name"] != site.nodes[follower].name);
    let round_trips: Vec<u64> = of_others.filter_map(|row| row["round_trip_us"].as_u64()).collect();
    ensure!(round_trips.len() == 2 && round_trips.iter().all(|us| (80_000..100_000).contains(us)), "{rows}");
    let lapses =
        |site: &Site| site.nodes.iter().map(|node| node.log().matches("lease has run out").count()).sum::<usize>();
    let before = lapses(&site);
    let mut writes = Vec::new();
    for number in 0..20 {
        let write = Instant::now();
        site.nodes[number % 3].lbctl_ok(&["vip", "add", &format!("192.168.2.{}", 100 + number)])?;
        writes.push(write.elapsed());
    }
    let (entries, lines) = growth(&site, Duration::from_secs(5))?;
    writes.sort_unstable();
    println!("a write took {:?}, at most {:?}; {entries} entries and {lines} lines in 5 s", writes[10], writes[19]);
    ensure!(lapses(&site) == before && entries < 10, "{} leases ran out, {entries} entries", lapses(&site) - before);
    // An owner that dies is replaced.
    let owner = site.owner()?;
    let other = (owner + 1) % 3;
    let killed = Instant::now();
    site.nodes[owner].kill()?;
    let name = site.nodes[owner].name.clone();
    wait::until("the VIP has moved", SOON, || {
        site.nodes[other].owner_of(VIP_TEXT).is_ok_and(|now| !now.is_empty() && now != name)
    });
    println!("the VIP of a dead node had another owner after {:?}", killed.elapsed());
    drop(distances);
    Ok(())
}
