//! `deploy/backend/lb-backend`: what it sets makes a backend, and undo puts everything back.

use std::{fs, net::Ipv4Addr, path::Path};

use anyhow::ensure;
use lb_tests::{
    site::{ECHO, HTTP, HTTP_ADDRESS, PATIENCE, Plan, Site, VIP, VIP_TEXT},
    topology::Host,
    traffic::{Backend, http_who},
};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/backend/lb-backend");

fn run(host: &Host, etc: &Path, arguments: &[&str]) -> anyhow::Result<std::process::Output> {
    let mut command = host.ns.command(SCRIPT)?;
    // A systemctl of our own that does nothing: the machine's is not to be touched.
    let path = format!("{}:{}", etc.display(), std::env::var("PATH").unwrap_or_default());
    command.args(arguments).env("LB_BACKEND_ETC", etc).env("LB_BACKEND_BIN", etc.join("bin")).env("PATH", path);
    Ok(command.output()?)
}

fn state(host: &Host) -> String {
    let files = ["all/arp_ignore", "all/arp_announce", "all/rp_filter", "lo/rp_filter", "eth0/rp_filter"];
    let read = |file: &&str| fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{file}")).unwrap_or_default();
    host.ns.enter(|| files.iter().map(read).collect())
}

pub(crate) fn add_and_undo() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let host = site.net.host("web2")?;
    site.net.attach(&host, "eth0", "lan", &["192.168.3.6/24"])?;
    host.default_route(Ipv4Addr::new(192, 168, 3, 1))?;
    host.enable_ipv6()?;
    host.ns.sysctl("ipv4.conf.eth0.rp_filter", "1", false)?;
    host.ns.sysctl("ipv4.conf.all.arp_ignore", "2", false)?;
    let before = state(&host);
    let etc = tempfile::tempdir()?;
    let stub = etc.path().join("systemctl");
    fs::write(&stub, "#!/bin/sh\n")?;
    fs::set_permissions(&stub, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;

    for wrong in ["999.1.1.1", "2001:db8::zz", "1:2:3", "2001:db8::1/64"] {
        let refused = run(&host, etc.path(), &["add", VIP_TEXT, wrong])?;
        ensure!(!refused.status.success() && state(&host) == before, "{wrong} changed something");
    }
    let added = run(&host, etc.path(), &["add", VIP_TEXT, "2001:db8:2::1"])?;
    ensure!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    ensure!(
        etc.path().join("bin/lb-backend").exists() && etc.path().join("systemd/system/lb-backend.service").exists()
    );
    let addresses = || -> anyhow::Result<String> {
        let output = host.ns.command("ip")?.args(["-br", "addr", "show", "dev", "lo"]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    ensure!(addresses()?.contains("2001:db8:2::1/128"), "{}", addresses()?);
    let _serves = Backend::serve(&host.ns, "web2", VIP, HTTP, ECHO)?;
    let (lb, first) = (&site.nodes[0], site.servers[0].address.to_string());
    lb.lbctl_ok(&["backend", "add", "web", "192.168.3.6"])?;
    lb.wait_resolved(3);
    lb.change(&["backend", "disable", "web", &first])?;
    ensure!(http_who(&site.client.ns, HTTP_ADDRESS, PATIENCE)? == "web2");

    spellings(&host, etc.path(), &addresses)?;
    let undone = run(&host, etc.path(), &["undo"])?;
    ensure!(undone.status.success(), "{}", String::from_utf8_lossy(&undone.stderr));
    ensure!(state(&host) == before, "undo left {} instead of {before}", state(&host));
    ensure!(!addresses()?.contains("2001:db8:2::1"), "undo left {}", addresses()?);
    let left: Vec<_> = fs::read_dir(etc.path())?.flatten().filter(|entry| entry.path().is_file()).collect();
    ensure!(left.len() == 1, "undo left files: {left:?}");
    Ok(())
}

/// An address has many spellings and is one; what is no address is told and keeps nothing away.
fn spellings(host: &Host, etc: &Path, addresses: &dyn Fn() -> anyhow::Result<String>) -> anyhow::Result<()> {
    let done = |arguments: &[&str]| -> anyhow::Result<String> {
        let output = run(host, etc, arguments)?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{arguments:?}: {text}");
        Ok(text)
    };
    let kept = etc.join("lb-backend.vips");
    for (added, removed) in
        [("FD02::77", "fd02::77"), ("fd02:0:0:0:0:0:0:77", "FD02::0077"), ("2001:DB8::192.0.2.1", "2001:db8::c000:201")]
    {
        done(&["add", added])?;
        done(&["add", removed])?;
        let lines = fs::read_to_string(&kept)?;
        ensure!(lines.lines().count() == 3, "{added} and {removed} are one: {lines}");
        done(&["remove", removed])?;
        done(&["boot"])?;
        ensure!(
            !addresses()?.to_lowercase().contains("fd02:") && !addresses()?.contains(":c000:201"),
            "{added} is back"
        );
    }
    let before = fs::read_to_string(&kept)?;
    fs::write(&kept, format!("\n# by hand\nfd02::99   # a comment\nnonsense\n\n999.1.1.1\n{before}"))?;
    let said = done(&["boot"])?;
    for wrong in ["line 4: 'nonsense'", "line 6: '999.1.1.1'"] {
        ensure!(said.contains(wrong), "{wrong} is missing in: {said}");
    }
    ensure!(addresses()?.contains("fd02::99/128") && addresses()?.contains("2001:db8:2::1/128"), "{}", addresses()?);
    done(&["remove", "FD02:0::99"])?;
    ensure!(!addresses()?.contains("fd02::99"));
    let refused = run(host, etc, &["remove", "nonsense"])?;
    ensure!(!refused.status.success());
    Ok(())
}
