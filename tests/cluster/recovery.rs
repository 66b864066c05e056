//! What is left when a majority is lost for good, and tables that travel in files.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use lb_proto::v1::{self, cluster_service_client::ClusterServiceClient};
use lb_tests::{
    binaries,
    cluster::{SOON, form_one, wait_for_leader, wait_ready},
    files::copy,
    grpc,
    site::{HTTP_ADDRESS, PATIENCE, Plan, Site, VIP_TEXT},
    traffic::http_who,
    wait,
};

/// Two of three nodes are gone for good: the third becomes a new cluster, and the lost ones cannot come back.
pub(crate) fn a_survivor_goes_on_alone() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 2, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let before = site.nodes[2].lbctl_json(&["backend", "list", "--no-flows"])?;
    let old_id = site.nodes[2].lbctl_json(&["status"])?["cluster_id"].clone();
    for node in &mut site.nodes {
        node.kill()?;
    }
    let recover = |arguments: &[&str]| {
        let mut command = std::process::Command::new(binaries::directory()?.join("lbd"));
        anyhow::Ok(command.arg("recover").arg("--config").arg(site.nodes[2].config()).args(arguments).output()?)
    };
    let checked = |of: &[&str]| {
        let mut command = std::process::Command::new(binaries::directory()?.join("lbd"));
        anyhow::Ok(command.arg("store").args(of).arg("--config").arg(site.nodes[2].config()).output()?)
    };
    let check = checked(&["check"])?;
    ensure!(check.status.success() && check.stdout.starts_with(b"sound; last entry term"), "{check:?}");
    let shown: serde_json::Value = serde_json::from_slice(&checked(&["show", "--output", "json"])?.stdout)?;
    ensure!(shown["sound"] == true && shown["node"]["name"] == "lb3" && shown["starts"] == 1, "{shown:#}");
    // The service's user owns everything below its directory; root, who recovers, must not leave files that it cannot open.
    let data_dir = site.nodes[2].data_dir();
    let is_other = owned_by_another(&data_dir)?;
    let refused = recover(&[])?;
    let position = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    ensure!(position.contains("index"), "the log's position is not shown: {position}");
    ensure!(refused.status.code() == Some(64), "without the operator's word: {}", refused.status);
    let done = recover(&["--i-know-the-others-are-gone"])?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(done.status.success(), "{}: {}", done.status, String::from_utf8_lossy(&done.stderr));
    if let Some(user) = is_other {
        for file in files(&data_dir)? {
            ensure!(std::fs::metadata(&file)?.uid() == user, "{} is not the service's", file.display());
            // It is started by this one, which has no right to others' files then.
            std::os::unix::fs::chown(&file, Some(rustix::process::getuid().as_raw()), None)?;
        }
    }
    ensure!(text.contains("forgotten nodes  lb1, lb2") && text.contains("new cluster id"), "{text}");
    site.nodes[2].start()?;
    wait_for_leader(&site.nodes[2]);
    wait_ready(&site.nodes[2], 1);
    let survivor = &site.nodes[2];
    ensure!(survivor.lbctl_json(&["status"])?["cluster_id"] != old_id);
    // The rows' revisions are the old ones: nothing has changed in them.
    ensure!(
        survivor.lbctl_json(&["backend", "list", "--no-flows"])?["backends"] == before["backends"],
        "the table changed"
    );
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
    ensure!(site.nodes[0].lbctl_json(&["backend", "list", "--no-flows"])?["backends"] == before["backends"]);
    Ok(())
}

/// Gives a directory and all in it to a user who is not the caller's, where the caller may.
fn owned_by_another(dir: &Path) -> anyhow::Result<Option<u32>> {
    const USER: u32 = 65_534;
    for file in files(dir)? {
        if std::os::unix::fs::chown(&file, Some(USER), None).is_err() {
            return Ok(None);
        }
    }
    Ok(Some(USER))
}

/// A directory and all in it.
fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = vec![dir.to_owned()];
    let mut at = 0;
    while let Some(path) = found.get(at).cloned() {
        at += 1;
        if path.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                found.push(entry?.path());
            }
        }
    }
    Ok(found)
}

/// A data_dir that is put back from a backup has forgotten what its node has acknowledged: the leader knows it by that, and the
/// table by the number of its starts.
pub(crate) fn an_older_copy() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 2, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let backup = site.root.path().join("backup");
    let starts = |site: &Site| {
        let nodes = site.nodes[1].lbctl_json(&["node", "list"]).unwrap_or_default();
        let of = nodes["nodes"].as_array().into_iter().flatten().find(|node| node["name"] == "lb3").cloned();
        of.and_then(|node| node["starts"].as_u64()).unwrap_or_default()
    };
    let put_back = |site: &Site| -> anyhow::Result<()> {
        std::fs::remove_dir_all(site.nodes[2].data_dir())?;
        copy(&backup, &site.nodes[2].data_dir())
    };
    let is_refused = |site: &mut Site| -> anyhow::Result<()> {
        site.nodes[2].spawn()?;
        let status = site.nodes[2].wait_for_end(SOON)?;
        ensure!(status.code() == Some(74), "lb3 ended with {status}");
        let log = site.nodes[2].log();
        ensure!(log.contains("an older copy of this node's own store") && log.contains("lbctl node remove"), "{log}");
        Ok(())
    };
    wait::until("each start is in the table", SOON, || starts(&site) == 1);
    // Taken while the node runs, and put back without another start between: the leader knows what it has acknowledged.
    copy(&site.nodes[2].data_dir(), &backup)?;
    site.nodes[0].lbctl_ok(&["vip", "add", "192.168.2.77"])?;
    ensure!(site.nodes[2].lbctl_ok(&["vip", "list"])?.contains("192.168.2.77"), "lb3 does not have it");
    site.nodes[2].kill()?;
    let sound = site.root.path().join("sound");
    copy(&site.nodes[2].data_dir(), &sound)?;
    put_back(&site)?;
    is_refused(&mut site)?;
    // The leader has changed: the number of starts tells.
    std::fs::remove_dir_all(site.nodes[2].data_dir())?;
    copy(&sound, &site.nodes[2].data_dir())?;
    site.nodes[2].start()?;
    wait::until("the second start is in the table", SOON, || starts(&site) == 2);
    site.nodes[2].kill()?;
    put_back(&site)?;
    for number in [0, 1] {
        site.nodes[number].kill()?;
    }
    for number in [0, 1] {
        site.nodes[number].spawn()?;
    }
    wait_for_leader(&site.nodes[0]);
    is_refused(&mut site)
}

/// As earlier versions of `lbctl` saved it: so many bytes that name it, the server's own encoding, and the CRC-32 of both.
fn binary_snapshot(socket: PathBuf) -> anyhow::Result<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut bytes = b"lbtable\x01".to_vec();
    runtime.block_on(async {
        let mut client = ClusterServiceClient::new(grpc::connect(socket).await?);
        let mut parts = client.save_snapshot(v1::SaveSnapshotRequest {}).await?.into_inner();
        while let Some(part) = parts.message().await? {
            bytes.extend(part.chunk);
        }
        anyhow::Ok(())
    })?;
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    Ok(bytes)
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
            let mut list = vec![noun, "list"];
            list.extend((noun == "backend").then_some("--no-flows"));
            let list = lb.lbctl_json(&list)?;
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
    let otherwise = lists()?;
    ensure!(otherwise != before);
    let shown = lb.lbctl_ok(&["snapshot", "restore", "--dry-run", &path])?;
    ensure!(shown.contains("- vip 192.168.2.99\n") && shown.contains("table_size: 4093 -> 16381"), "{shown}");
    ensure!(shown.contains("failback_s: 0 -> 600") && shown.contains("change: nothing is done"), "{shown}");
    ensure!(lists()? == otherwise, "nothing is done");
    ensure!(site.nodes[2].lbctl_ok(&["snapshot", "restore", &path])?.contains(" restored: "));
    wait::until("the table is as it was", SOON, || lists().is_ok_and(|now| now == before));
    ensure!(http_who(&site.client.ns, HTTP_ADDRESS, PATIENCE).is_ok());
    // What was saved before snapshots were texts is restored as well.
    let old = site.root.path().join("old.snapshot");
    std::fs::write(&old, binary_snapshot(lb.socket())?)?;
    let old = old.display().to_string();
    lb.lbctl_ok(&["vip", "add", "192.168.2.99"])?;
    ensure!(lb.lbctl_ok(&["snapshot", "restore", &old])?.contains(" restored (revision "));
    wait::until("the table is as it was", SOON, || lists().is_ok_and(|now| now == before));
    // A link is followed, and - is standard output.
    let link = site.root.path().join("link");
    std::os::unix::fs::symlink("/proc/self/fd/1", &link)?;
    let [by_link, by_output] =
        [link.display().to_string(), "-".to_owned()].map(|to| lb.lbctl(&["snapshot", "save", &to]));
    let (by_link, by_output) = (by_link?, by_output?);
    ensure!(by_link.status.success() && by_output.status.success(), "{by_link:?}");
    ensure!(by_link.stdout == by_output.stdout && !by_output.stdout.is_empty(), "what comes by a link is another one");
    ensure!(link.is_symlink(), "the link was replaced");
    std::fs::write(link.with_extension("copy"), &by_link.stdout)?;
    let copy = link.with_extension("copy").display().to_string();
    ensure!(lb.lbctl_ok(&["snapshot", "restore", &copy])?.contains("unchanged"));
    // Two services have swapped their ports since.
    for (service, port) in [("web", "1000/tcp"), ("echo", "80/tcp"), ("web", "7/udp")] {
        lb.lbctl_ok(&["service", "set", service, "--port", port])?;
    }
    ensure!(lb.lbctl_ok(&["snapshot", "restore", &path])?.contains(" restored: "));
    wait::until("the table is as it was", SOON, || lists().is_ok_and(|now| now == before));
    let mut bytes = std::fs::read(&file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes)?;
    let damaged = lb.lbctl(&["snapshot", "restore", &path])?;
    ensure!(damaged.status.code() == Some(2), "{}", damaged.status);
    ensure!(String::from_utf8_lossy(&damaged.stderr).contains("its checksum does not match"));
    Ok(())
}
