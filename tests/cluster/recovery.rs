//! What is left when a majority is lost for good, and tables that travel in files.

use anyhow::ensure;
use lb_tests::{
    binaries,
    cluster::{SOON, form_one, wait_for_leader, wait_ready},
    site::{HTTP_ADDRESS, PATIENCE, Plan, Site, VIP_TEXT},
    traffic::http_who,
    wait,
};

/// Two of three nodes are gone for good: the third becomes a new cluster, and the lost ones cannot come back.
pub(crate) fn a_survivor_goes_on_alone() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 2, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let before = site.nodes[2].lbctl_json(&["backend", "list"])?;
    let old_id = site.nodes[2].lbctl_json(&["status"])?["cluster_id"].clone();
    for node in &mut site.nodes {
        node.kill()?;
    }
    let recover = |arguments: &[&str]| {
        let mut command = std::process::Command::new(binaries::directory()?.join("lbd"));
        anyhow::Ok(command.arg("recover").arg("--config").arg(site.nodes[2].config()).args(arguments).output()?)
    };
    let refused = recover(&[])?;
    ensure!(refused.status.code() == Some(64), "without the operator's word: {}", refused.status);
    let done = recover(&["--i-know-the-others-are-gone"])?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(done.status.success(), "{}: {}", done.status, String::from_utf8_lossy(&done.stderr));
    ensure!(text.contains("forgotten nodes  lb1, lb2") && text.contains("new cluster id"), "{text}");
    site.nodes[2].start()?;
    wait_for_leader(&site.nodes[2]);
    wait_ready(&site.nodes[2], 1);
    let survivor = &site.nodes[2];
    ensure!(survivor.lbctl_json(&["status"])?["cluster_id"] != old_id);
    // The rows' revisions are the old ones: nothing has changed in them.
    ensure!(survivor.lbctl_json(&["backend", "list"])?["backends"] == before["backends"], "the table changed");
    survivor.lbctl_ok(&["vip", "add", "192.168.2.77"])?;
    wait::until("the VIP is served", SOON, || http_who(&site.client.ns, HTTP_ADDRESS, PATIENCE).is_ok());

    // The lost ones come back with their old data, even as a majority of the old cluster: they are told and end.
    site.nodes[0].start()?;
    site.nodes[1].spawn()?;
    for number in [0, 1] {
        let status = site.nodes[number].wait_for_end(SOON)?;
        ensure!(status.code() == Some(65), "lb{} ended with {status}", number + 1);
    }
    site.nodes[0].wipe()?;
    site.nodes[0].start()?;
    form_one(&site.nodes[2], &site.nodes[0])?;
    wait_ready(&site.nodes[2], 2);
    ensure!(site.nodes[0].lbctl_json(&["backend", "list"])?["backends"] == before["backends"]);
    Ok(())
}

/// A table is saved, changed beyond recognition, and restored.
pub(crate) fn a_snapshot_is_saved_and_restored() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 2, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let lb = &site.nodes[1];
    lb.lbctl_ok(&["vip", "set", VIP_TEXT, "--prefer", "lb3"])?;
    lb.lbctl_ok(&["cluster", "set", "failback=10m"])?;
    let file = site.root.path().join("table.snapshot");
    let path = file.display().to_string();
    let lists = || {
        let settled = |noun: &str| -> anyhow::Result<Vec<serde_json::Value>> {
            let list = lb.lbctl_json(&[noun, "list"])?;
            let mut rows = list[format!("{noun}s")].as_array().cloned().unwrap_or_default();
            for row in rows.iter_mut().filter_map(serde_json::Value::as_object_mut) {
                row.retain(|name, _| !["revision", "epoch", "owner", "id"].contains(&name.as_str()));
            }
            Ok(rows)
        };
        anyhow::Ok((settled("vip")?, settled("service")?, settled("backend")?, lb.lbctl_json(&["cluster", "show"])?))
    };
    let before = lists()?;
    ensure!(lb.lbctl_ok(&["snapshot", "save", &path])?.contains("snapshot saved"));
    ensure!(lb.lbctl_ok(&["snapshot", "restore", &path])?.contains("unchanged"));
    lb.lbctl_ok(&["service", "remove", "web", "--cascade"])?;
    lb.lbctl_ok(&["service", "add", "web", "--vip", VIP_TEXT, "--port", "81/tcp", "--table-size", "4093"])?;
    lb.lbctl_ok(&["backend", "set", "echo", "192.168.3.5", "--weight", "9"])?;
    lb.lbctl_ok(&["vip", "set", VIP_TEXT, "--prefer", "none"])?;
    lb.lbctl_ok(&["vip", "add", "192.168.2.99"])?;
    lb.lbctl_ok(&["cluster", "set", "failback=never"])?;
    ensure!(lists()? != before);
    ensure!(site.nodes[2].lbctl_ok(&["snapshot", "restore", &path])?.contains("table restored"));
    wait::until("the table is as it was", SOON, || lists().is_ok_and(|now| now == before));
    ensure!(http_who(&site.client.ns, HTTP_ADDRESS, PATIENCE).is_ok());
    let mut bytes = std::fs::read(&file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes)?;
    let damaged = lb.lbctl(&["snapshot", "restore", &path])?;
    ensure!(damaged.status.code() == Some(2), "{}", damaged.status);
    ensure!(String::from_utf8_lossy(&damaged.stderr).contains("its checksum does not match"));
    Ok(())
}
