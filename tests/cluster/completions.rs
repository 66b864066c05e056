//! Real shells complete the names that a cluster has.

use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use lb_tests::{
    binaries,
    site::{Plan, Site, VIP_TEXT},
};

/// What bash offers behind a line, by the script that `lbctl completions bash` prints.
fn offered(endpoint: &str, line: &str) -> anyhow::Result<Vec<String>> {
    let directory = binaries::directory()?;
    // As the shell does when the key is pressed: the words, which of them, and the one that is begun.
    let script = format!(
        "source <(lbctl completions bash); read -ra COMP_WORDS <<< '{line}'; [[ '{line}' == *' ' ]] && COMP_WORDS+=(''); \
         COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); COMP_TYPE=9; \
         _clap_complete_lbctl lbctl \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; \
         printf '%s\\n' \"${{COMPREPLY[@]}}\""
    );
    let path = format!("{}:{}", directory.display(), std::env::var("PATH")?);
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", &script]).env("PATH", path).env("LBCTL_ENDPOINT", endpoint).stdin(Stdio::null());
    let output = bash.output().context("bash")?;
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    // 'compopt' complains outside of a completion that the shell itself has begun.
    ensure!(complaints.lines().all(|line| line.contains("compopt")), "{line}: {complaints}");
    Ok(String::from_utf8(output.stdout)?.lines().map(|word| word.trim_end().to_owned()).collect())
}

pub(crate) fn live_names() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let endpoint = format!("unix:{}", site.nodes[0].socket().display());
    for (line, expected) in [
        ("lbctl get vip ", VIP_TEXT),
        ("lbctl vip remove ", VIP_TEXT),
        ("lbctl service set we", "web"),
        ("lbctl backend drain ", "echo"),
        ("lbctl backend drain web ", "192.168.3.5"),
        ("lbctl node drain l", "lb1"),
        ("lbctl vip add 192.168.2.7 --prefer ", "lb1"),
        ("lbctl cluster set fail", "failback="),
        ("lbctl wa", "watch"),
    ] {
        let words = offered(&endpoint, line)?;
        ensure!(words.iter().any(|word| word == expected), "{line}: {expected} is not in {words:?}");
    }
    let words = offered(&endpoint, "lbctl service set xy")?;
    ensure!(words.iter().all(|word| word != "web"), "{words:?}");
    // Where nobody answers, what is known without a cluster is offered still.
    let words = offered("unix:/nowhere/lbd.sock", "lbctl node dr")?;
    ensure!(words == ["drain"], "{words:?}");
    Ok(())
}
