//! Crashes: acknowledged changes survive, and what was not acknowledged can be asked for again.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::ensure;
use lb_tests::{
    cluster::{SOON, lbctl, wait_for_leader},
    site::{HTTP_ADDRESS, PATIENCE, Plan, Site, VIP_TEXT},
    traffic::http_who,
    wait,
};

/// SIGKILL of all three at once, while backends are added on all three.
pub(crate) fn all_killed_during_writes() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 2, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    site.nodes[0].lbctl_ok(&["service", "add", "many", "--vip", VIP_TEXT, "--port", "9000/tcp"])?;
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    for round in 0..3u8 {
        let stop = Arc::new(AtomicBool::new(false));
        let before = acknowledged.lock().expect("writers do not panic").len();
        let writers: Vec<_> = (0..3u8)
            .map(|writer| {
                let socket = site.nodes[usize::from(writer)].socket();
                let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
                thread::spawn(move || {
                    for number in 0..=255u8 {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let address = format!("192.168.3.{number}");
                        let service = "many";
                        let mac = format!("02:00:00:{round:02x}:{writer:02x}:{number:02x}");
                        // Addresses far from the servers', one row of them for each writer and round.
                        let address = address.replace("192.168.3", &format!("172.16.{}", 16 * round + writer));
                        let arguments = ["--timeout", "2s", "backend", "add", service, &address, "--mac", &mac];
                        if lbctl(&socket, &arguments).is_ok_and(|output| output.status.success()) {
                            acknowledged.lock().expect("writers do not panic").push(address);
                        }
                    }
                })
            })
            .collect();
        wait::until("forty writes are acknowledged", SOON, || {
            acknowledged.lock().expect("writers do not panic").len() >= before + 40
        });
        for node in &site.nodes {
            node.signal(rustix::process::Signal::KILL)?;
        }
        stop.store(true, Ordering::Relaxed);
        for node in &mut site.nodes {
            node.kill()?;
        }
        for writer in writers {
            writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?;
        }
        for node in &mut site.nodes {
            node.start()?;
        }
        wait_for_leader(&site.nodes[0]);
        let list = site.nodes[0].lbctl_json(&["backend", "list", "many", "--no-flows"])?;
        let present: Vec<&str> =
            list["backends"].as_array().into_iter().flatten().filter_map(|row| row["address"].as_str()).collect();
        for address in acknowledged.lock().expect("writers do not panic").iter() {
            ensure!(present.contains(&address.as_str()), "{address} was acknowledged and is gone");
        }
        wait::until("the cluster serves without help", SOON, || {
            http_who(&site.client.ns, HTTP_ADDRESS, PATIENCE).is_ok()
        });
    }
    Ok(())
}

/// With two of three nodes dead a write is refused in time; with the request id it applies once.
pub(crate) fn quorum_loss() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    for node in &mut site.nodes[1..] {
        node.kill()?;
    }
    let add = |id: &'static str| ["--timeout", "2s", "--request-id", id, "vip", "add", "192.168.2.77"];
    let output = site.nodes[0].lbctl(&add("retry-me"))?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(4), "{}: {message}", output.status);
    ensure!(message.contains("--request-id retry-me"), "{message}");
    let status = site.nodes[0].lbctl_json(&["status"])?;
    ensure!(status["stale"] == true, "a status without a quorum says so: {status}");
    let list = site.nodes[0].lbctl(&["--timeout", "2s", "vip", "list", "-o", "name"])?;
    let told = String::from_utf8_lossy(&list.stderr).into_owned();
    ensure!(list.status.success() && list.stdout == format!("{VIP_TEXT}\n").as_bytes(), "{told}");
    ensure!(told.contains("there is no leader") && told.contains("knew last"), "{told}");
    wait::until("the survivor of a minority answers for no VIP", SOON, || {
        site.nodes[0].lbctl_json(&["status"]).is_ok_and(|status| status["lease_valid_ms"] == 0)
    });
    for node in &mut site.nodes[1..] {
        node.start()?;
    }
    wait_for_leader(&site.nodes[0]);
    site.nodes[0].lbctl_ok(&add("retry-me"))?;
    site.nodes[0].lbctl_ok(&["vip", "remove", "192.168.2.77"])?;
    // The id has been used: it is answered as before and nothing is done again.
    site.nodes[1].lbctl_ok(&add("retry-me"))?;
    ensure!(site.nodes[1].owner_of("192.168.2.77")?.is_empty(), "a retry was applied twice");
    let output = site.nodes[1].lbctl(&["--request-id", "retry-me", "vip", "add", "192.168.2.78"])?;
    ensure!(output.status.code() == Some(1), "another request under a used id was not refused");
    for node in &mut site.nodes {
        node.kill()?;
    }
    let output = site.nodes[0].lbctl(&["status"])?;
    ensure!(output.status.code() == Some(3), "with no node alive: {}", output.status);
    Ok(())
}
