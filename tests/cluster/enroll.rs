//! A machine becomes a node by a token: no key is copied, and the token is good for that alone.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    process::{Child, Output, Stdio},
};

use anyhow::{Context as _, ensure};
use lb_tests::{
    binaries,
    cluster::{self, wait_for_leader, wait_ready, with_tls},
    site::{Plan, Site},
};

/// `lbctl` on a machine of the cluster.
fn lbctl(site: &Site, host: usize, arguments: &[&str]) -> anyhow::Result<std::process::Command> {
    let mut command = site.node_hosts[host].ns.command(binaries::directory()?.join("lbctl"))?;
    command.args(arguments);
    Ok(command)
}

/// A token, and the command that waits for whoever has it.
fn token(site: &Site, arguments: &[&str]) -> anyhow::Result<(String, Child)> {
    let pki = site.root.path().join("pki");
    let mut command = lbctl(site, 0, &["node", "token", "lb2", "--dir", pki.to_str().context("a path")?])?;
    let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
    Ok((line.trim().to_owned(), child))
}

fn end(mut child: Child) -> anyhow::Result<(Option<i32>, String)> {
    let mut told = String::new();
    child.stderr.take().context("its words")?.read_to_string(&mut told)?;
    Ok((child.wait()?.code(), told))
}

/// The last digit is another one.
fn falsified(text: &str) -> String {
    let (rest, last) = text.split_at(text.len() - 1);
    format!("{rest}{}", if last == "0" { "1" } else { "0" })
}

pub(crate) fn by_token() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 2, servers: 0, two_interfaces: false, engine: "ring" })?;
    // All that the second machine has is what it gets by the token.
    let out = site.root.path().join("joined");
    fs::remove_dir_all(site.root.path().join("issued/node-lb2"))?;
    let out_text = out.to_str().context("a path")?.to_owned();
    let join = |token: &str| -> anyhow::Result<(Option<i32>, String, String)> {
        let Output { status, stdout, stderr } =
            lbctl(&site, 1, &["node", "join", token, "--out", &out_text])?.output()?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok((status.code(), text(&stdout), text(&stderr)))
    };
    let (token_of_lb2, waiting) = token(&site, &["--listen", "10.77.1.1:7402", "--san", "10.77.1.2"])?;
    // Whoever says nothing keeps nobody out.
    let silent = site.node_hosts[1].ns.enter(|| -> anyhow::Result<Vec<TcpStream>> {
        (0..20).map(|_| Ok(TcpStream::connect("10.77.1.1:7402")?)).collect()
    })?;
    let (code, _, told) = join(&falsified(&token_of_lb2))?;
    ensure!(code == Some(1) && told.contains("the token is another one"), "{code:?}: {told}");
    let (before, secret) = token_of_lb2.rsplit_once('/').context("a token")?;
    for other in [format!("{}/{secret}", falsified(before)), token_of_lb2.replacen("lb2@", "lb1@", 1)] {
        let (code, _, told) = join(&other)?;
        ensure!(code == Some(3) && told.contains("somebody else answers there"), "{code:?}: {told}");
    }
    let (code, _, told) = join("lb2")?;
    ensure!(code == Some(2) && told.contains("it is no token"), "{code:?}: {told}");
    ensure!(!out.join("lb2.pem").exists(), "somebody has got a certificate");
    let (code, section, told) = join(&token_of_lb2)?;
    ensure!(code == Some(0) && told.contains("lb://lb/node/lb2"), "{code:?}: {told}");
    let mode = fs::metadata(out.join("lb2.key"))?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");
    let (code, told) = end(waiting)?;
    ensure!(code == Some(0) && told.contains("lb2 at 10.77.1.2") && told.contains("is refused"), "{code:?}: {told}");
    drop(silent);
    let (code, _, told) = join(&token_of_lb2)?;
    ensure!(code == Some(2) && told.contains("is there already"), "{code:?}: {told}");
    let all =
        ["lb2.pem", "lb2.key", "ca.pem", "crl.pem"].map(|name| (out.join(name), out.join(format!("kept-{name}"))));
    all.iter().try_for_each(|(file, kept)| fs::rename(file, kept))?;
    let (code, _, told) = join(&token_of_lb2)?;
    ensure!(code == Some(3) && told.contains("works once"), "a token works twice: {code:?}: {told}");
    all.iter().try_for_each(|(file, kept)| fs::rename(kept, file))?;
    // What was printed is what the configuration needs.
    let config = site.nodes[1].config();
    fs::write(&config, with_tls(&fs::read_to_string(&config)?, &section)?)?;
    for node in &mut site.nodes {
        node.start()?;
    }
    wait_for_leader(&site.nodes[0]);
    cluster::form_one(&site.nodes[0], &site.nodes[1])?;
    wait_ready(&site.nodes[0], 2);
    // One that nobody comes for.
    let (_, waiting) = token(&site, &["--listen", "10.77.1.1:0", "--valid", "50ms"])?;
    let (code, told) = end(waiting)?;
    ensure!(code == Some(1) && told.contains("nobody came with the token"), "{code:?}: {told}");
    Ok(())
}
