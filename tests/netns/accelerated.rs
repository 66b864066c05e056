//! A node with an accelerator: it forwards what is known, and nobody notices.

use std::thread;

use anyhow::{Context as _, ensure};
use lb_tests::{
    cluster::SOON,
    site::{HTTP_ADDRESSES, PATIENCE, Plan, Site, VIP},
    sys::reference,
    traffic::HttpClient,
    wait,
};
use serde_json::Value;

const ACCELERATED: Plan = Plan { nodes: 1, servers: 2, two_interfaces: false, engine: "ring+xdp" };
const BULK: usize = 3_000_000;

/// A site whose client sends whole checksums, as one on another machine does.
fn site(plan: Plan) -> anyhow::Result<Site> {
    let mut site = Site::build(plan)?;
    site.client.ns.enter(|| reference::complete_checksums("eth0"))?;
    site.start_both()?;
    Ok(site)
}

fn status(site: &Site) -> anyhow::Result<Value> {
    let status = site.nodes[0].lbctl_json(&["status"])?;
    Ok(status["dataplane"]["accelerator"].clone())
}

fn forwarded(site: &Site) -> anyhow::Result<u64> {
    let status = status(site)?;
    status["forwarded"].as_u64().with_context(|| format!("no accelerator: {status}"))
}

pub(crate) fn forwards_what_is_known() -> anyhow::Result<()> {
    for two_interfaces in [false, true] {
        let site = site(Plan { two_interfaces, ..ACCELERATED })?;
        let before = status(&site)?;
        let interfaces = before["interfaces"].as_array().context("interfaces")?;
        ensure!(interfaces.len() == 1 + usize::from(two_interfaces), "{before}");
        ensure!(interfaces.iter().all(|of| of["mode"] == "generic" && of["reason"] != ""), "{before}");
        let mut earlier = 0;
        for address in HTTP_ADDRESSES {
            let mut http = HttpClient::connect(&site.client.ns, address, PATIENCE)?;
            let backend = http.who()?;
            ensure!(http.upload(BULK)? == format!("{backend} {BULK}"));
            ensure!(http.get("/bytes/100000")?.len() == 100_000);
            let now = forwarded(&site)?;
            ensure!(now > earlier + 1000, "{now} frames of {address} were accelerated, {earlier} before");
            earlier = now;
        }
        // They are counted where all others are.
        wait::until("all frames are accounted for", SOON, || {
            let accounts = site.nodes[0].accounts();
            accounts.is_ok_and(|(stats, is_whole)| {
                let vips = stats["vips"].as_array().map(Vec::as_slice).unwrap_or_default();
                is_whole && vips.iter().all(|vip| vip["bytes"].as_u64() > Some(BULK as u64))
            })
        });
        let text = site.nodes[0].lbctl_ok(&["status"])?;
        ensure!(text.contains("xdp       eth0 generic ("), "{text}");
    }
    Ok(())
}

pub(crate) fn goes_on_after_a_crash() -> anyhow::Result<()> {
    let mut site = site(ACCELERATED)?;
    let mut http = HttpClient::connect(&site.client.ns, HTTP_ADDRESSES[0], PATIENCE)?;
    let backend = http.who()?;
    ensure!(http.upload(BULK)? == format!("{backend} {BULK}"));
    ensure!(forwarded(&site)? > 1000);
    for both in [false, true] {
        if both {
            site.nodes[0].kill()?;
        } else {
            site.nodes[0].kill_worker()?;
            site.nodes[0].wait_for_end(SOON)?;
        }
        site.nodes[0].start()?;
        ensure!(http.upload(BULK)? == format!("{backend} {BULK}"), "the connection has lost its backend");
        wait::until("it is accelerated again", SOON, || {
            http.upload(BULK).is_ok() && forwarded(&site).is_ok_and(|forwarded| forwarded > 1000)
        });
    }
    Ok(())
}

pub(crate) fn is_switched_under_connections() -> anyhow::Result<()> {
    let mut site = site(ACCELERATED)?;
    let mut http = HttpClient::connect(&site.client.ns, HTTP_ADDRESSES[0], PATIENCE)?;
    let backend = http.who()?;
    for (before, after, works) in [("\"xdp\"", "\"off\"", false), ("\"off\"", "\"auto\"", true)] {
        ensure!(http.upload(BULK)? == format!("{backend} {BULK}"));
        site.nodes[0].reconfigure(&format!("accelerator = {before}"), &format!("accelerator = {after}"))?;
        site.nodes[0].terminate()?;
        site.nodes[0].start()?;
        ensure!(http.upload(BULK)? == format!("{backend} {BULK}"));
        ensure!(forwarded(&site).is_ok() == works, "{after}");
    }
    Ok(())
}

/// While somebody captures, everything is shown.
pub(crate) fn is_quiet_during_captures() -> anyhow::Result<()> {
    let site = site(ACCELERATED)?;
    let mut http = HttpClient::connect(&site.client.ns, HTTP_ADDRESSES[0], PATIENCE)?;
    http.upload(BULK)?;
    ensure!(forwarded(&site)? > 1000);
    let captured = thread::scope(|scope| {
        let capture = scope.spawn(|| {
            let file = site.root.path().join("captured.pcapng").display().to_string();
            site.nodes[0].lbctl(&["capture", "--vip", &VIP.to_string(), "--count", "500", "--write", &file])
        });
        while !capture.is_finished() {
            http.upload(BULK)?;
        }
        capture.join().map_err(|_| anyhow::anyhow!("the capture panicked"))?
    })?;
    ensure!(captured.status.success(), "{}", String::from_utf8_lossy(&captured.stderr));
    let status = status(&site)?;
    let stale = status["passed"].as_array().into_iter().flatten().find(|passed| passed["reason"] == "stale");
    ensure!(stale.is_some_and(|passed| passed["frames"].as_u64() >= Some(500)), "{status}");
    Ok(())
}
