//! Each fault at the start has its own message and its exit code.

use std::{fs, path::Path, process::Output};

use anyhow::{Context as _, ensure};
use lb_tests::{
    binaries,
    cluster::{LbNode, with_tls},
    pki::Pki,
    site::{Plan, Site},
};

/// Starts `lbd` on a configuration and waits for its end.
fn run(node: &LbNode, config: &str) -> anyhow::Result<Output> {
    let path = node.config().with_extension("other.toml");
    fs::write(&path, config)?;
    Ok(node.ns.command(binaries::directory()?.join("lbd"))?.arg("--config").arg(&path).output()?)
}

fn expect(what: &str, output: &Output, code: i32, words: &[&str]) -> anyhow::Result<()> {
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "{what}: {} instead of {code}: {text}", output.status);
    for word in words {
        ensure!(text.contains(word), "{what}: {word:?} is missing in: {text}");
    }
    Ok(())
}

pub(crate) fn startup_faults() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let node = &mut site.nodes[0];
    let sound = fs::read_to_string(node.config())?;
    // Its own addresses and directory, so that only the fault is one.
    let apart = sound
        .replace("10.77.1.1:7401", "10.77.1.1:7501")
        .replace("10.77.1.1:7400", "10.77.1.1:7500")
        .replace("lbd.sock", "other.sock")
        .replace("/data\"", "/other\"");

    let output = run(node, &apart.replace("[cluster]", "[cluster]\nlisten_on = 1"))?;
    expect("an unknown key", &output, 65, &["cluster.listen_on", "is not known here"])?;
    let output = run(node, &apart.replace("\"eth0\"", "\"eth7\""))?;
    expect("an absent interface", &output, 69, &["\"eth7\"", "this machine has", "eth0"])?;
    site.node_hosts[0].add_bridge("br7", "port7")?;
    let output = run(node, &apart.replace("\"eth0\"", "\"port7\""))?;
    expect("a port of a bridge", &output, 69, &["port7 is a port of br7", "list br7 instead"])?;
    let output = run(node, &apart.replace("10.77.1.1:7501", "10.77.1.1:7401"))?;
    expect("a port in use", &output, 69, &["cluster.listen", "10.77.1.1:7401", "lbd with process id"])?;
    let output = run(node, &apart.replace("10.77.1.1:7501", "10.99.1.1:7401"))?;
    expect("a foreign address", &output, 69, &["cluster.listen", "no interface of this machine has that address"])?;
    let output = run(node, &apart.replace("/other\"", "/data\""))?;
    expect("a second lbd on a data_dir", &output, 74, &["locked by another lbd (process"])?;
    let output = run(node, &with_tls(&apart, "")?)?;
    expect("no certificates", &output, 65, &["tls.cert: is required", "lbctl pki", "insecure = true"])?;
    let pki = Pki::below(site.root.path())?;
    let [own, other] = [("node", "lb1"), ("node", "lb7")].map(|(role, name)| pki.issue(role, name, &[]));
    let (own, other, viewer) = (own?, other?, pki.issue("viewer", "eve", &[])?);
    let shown = |cert: &Path, key: &Path, ca: &Path| {
        with_tls(&apart, &format!("[tls]\ncert = {cert:?}\nkey = {key:?}\nca = {ca:?}"))
    };
    let output = run(node, &shown(&own.cert, &other.key, &own.ca)?)?;
    expect("a key of another certificate", &output, 65, &["tls: ", "lb7.key", "it is not the key of", "lb1.pem"])?;
    let output = run(node, &shown(&other.cert, &other.key, &other.ca)?)?;
    expect(
        "another node's certificate",
        &output,
        65,
        &["it is for lb://lb/node/lb7, and this node is lb://lb/node/lb1"],
    )?;
    let output = run(node, &shown(&viewer.cert, &viewer.key, &viewer.ca)?)?;
    expect("a viewer's certificate", &output, 65, &["it is for lb://lb/viewer/eve"])?;
    let output = run(node, &shown(&own.cert, &own.key, &own.key)?)?;
    expect("a CA that is none", &output, 65, &["lb1.key", "there is no CERTIFICATE in it"])?;
    let output = run(node, &shown(Path::new("/nowhere.pem"), &own.key, &own.ca)?)?;
    expect("no certificate", &output, 65, &["/nowhere.pem", "No such file"])?;

    node.terminate()?;
    let data = node.data_dir();
    let output = run(node, &with_tls(&sound, "[tls]\ninsecure = true")?.replace("name = \"lb1\"", "name = \"lb9\""))?;
    expect("another node's store", &output, 65, &["node.name", "lb9", "lb1"])?;
    // A cut journal, a flipped byte in it, a missing one, a missing witness, a flipped witness.
    let segments =
        fs::read_dir(data.join("journal"))?.map(|file| Ok(file?.path())).collect::<std::io::Result<Vec<_>>>()?;
    let file = segments.into_iter().find(|path| path.file_name().is_some_and(|name| name.len() == 20));
    let file = file.context("the journal has no segment")?;
    let image = fs::read(&file)?;
    let used = image.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    fs::write(&file, &image[..used / 2])?;
    expect("a truncated store", &run(node, &sound)?, 74, &["is damaged", "lbctl node remove"])?;
    // A byte of the log: where the last entries are.
    let mut flipped = image.clone();
    let text = b"echo";
    let at = image.windows(text.len()).rposition(|window| window == text).unwrap_or(used / 2);
    flipped[at] ^= 0x20;
    fs::write(&file, &flipped)?;
    expect("a flipped byte", &run(node, &sound)?, 74, &["is damaged"])?;
    let mut check = node.ns.command(binaries::directory()?.join("lbd"))?;
    let checked = check.args(["store", "check", "--config"]).arg(node.config()).output()?;
    expect("a check of it", &checked, 74, &["is damaged"])?;
    fs::write(&file, &image)?;
    fs::rename(&file, data.join("gone"))?;
    expect("a missing segment", &run(node, &sound)?, 74, &["is damaged", "journal"])?;
    fs::rename(data.join("gone"), &file)?;
    fs::rename(data.join("witness"), data.join("gone"))?;
    expect("a missing witness", &run(node, &sound)?, 74, &["is damaged", "witness"])?;
    fs::rename(data.join("gone"), data.join("witness"))?;
    let witness = fs::read(data.join("witness"))?;
    let mut flipped = witness.clone();
    flipped[6] ^= 1;
    flipped[4096 + 6] ^= 1;
    fs::write(data.join("witness"), &flipped)?;
    expect("a flipped witness", &run(node, &sound)?, 74, &["is damaged"])?;
    fs::write(data.join("witness"), &witness)?;
    node.start()?;
    lb_tests::cluster::wait_for_leader(node);
    Ok(())
}

/// Without CAP_NET_RAW or CAP_NET_ADMIN the capability is named.
pub(crate) fn missing_capability() -> anyhow::Result<()> {
    let site = Site::build(Plan { nodes: 1, servers: 0, two_interfaces: false, engine: "ring" })?;
    let node = &site.nodes[0];
    for (capability, name) in [(13u32, "CAP_NET_RAW"), (12, "CAP_NET_ADMIN")] {
        let mut command = node.ns.command(binaries::directory()?.join("lbd"))?;
        command.arg("--config").arg(node.config());
        lb_tests::sys::without_capability(&mut command, capability);
        let output = command.output()?;
        expect(name, &output, 69, &[name])?;
    }
    Ok(())
}
