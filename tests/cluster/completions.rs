//! Real shells complete the names that a cluster has, when somebody presses the key.

use std::{ffi::OsString, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use lb_tests::{
    binaries,
    site::{Plan, Site, VIP_TEXT},
    terminal::Terminal,
};

/// A shell without anybody's settings, and how it is told to complete what `lbctl` takes, as `docs/lbctl.md` says.
struct Shell {
    line: &'static str,
    setup: &'static str,
}

const SHELLS: [Shell; 3] = [
    Shell { line: "bash --norc --noprofile -i", setup: "source <(lbctl completions bash)" },
    Shell { line: "zsh -f -i", setup: "autoload -U compinit; compinit -u -D; source <(lbctl completions zsh)" },
    Shell { line: "fish --no-config -i", setup: "lbctl completions fish | source" },
];

/// What is typed before the key is pressed, and a word that comes.
const TYPED: [(&str, &str); 10] = [
    ("lbctl get vip 1", VIP_TEXT),
    ("lbctl vip remove 2", "2001:db8:2::7"),
    ("lbctl service set we", "web"),
    ("lbctl backend drain ec", "echo"),
    ("lbctl backend drain web 1", "192.168.3.5"),
    ("lbctl node drain l", "lb1"),
    ("lbctl vip add 192.168.2.7 --prefer l", "lb1"),
    ("lbctl cluster set failb", "failback="),
    ("lbctl expl", "explain"),
    ("lbctl wait own", "owned"),
];

pub(crate) fn shells_are_there() -> Result<(), String> {
    let is_missing = |shell: &&str| Command::new(shell).arg("--version").output().is_err();
    let missing: Vec<&str> = ["bash", "zsh", "fish"].iter().filter(|shell| is_missing(shell)).copied().collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("Debian: apt-get install {}", missing.join(" "))) }
}

pub(crate) fn live_names() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 1, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    site.nodes[0].lbctl_ok(&["vip", "add", "2001:db8:2::7"])?;
    let endpoint = format!("unix:{}", site.nodes[0].socket().display());
    for shell in SHELLS {
        let mut terminal = start(&shell, &endpoint)?;
        for (typed, word) in TYPED {
            complete(&mut terminal, typed, word).with_context(|| format!("{}: {typed}", shell.line))?;
        }
        // Where nothing fits, the line stays as it is.
        terminal.type_in("\u{15}lbctl service set xy\t#end")?;
        let drawn = terminal.until(&["#end"])?;
        ensure!(!drawn.contains("web"), "{}: {drawn:?}", shell.line);
        // And where nobody answers, what is known without a cluster is offered still.
        let mut terminal = start(&shell, "unix:/nowhere/lbd.sock")?;
        terminal.type_in("lbctl node dr\t")?;
        terminal.until(&["drain"]).with_context(|| format!("{}: without a cluster", shell.line))?;
    }
    Ok(())
}

/// Types a line, in place of the one before, and presses the key; a person who gets no answer presses it again.
fn complete(terminal: &mut Terminal, typed: &str, word: &str) -> std::io::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(4);
    for _ in 0..2 {
        terminal.type_in(&format!("\u{15}{typed}\t"))?;
        if terminal.until_within(&[word], PATIENCE).is_ok() {
            return Ok(());
        }
    }
    terminal.type_in(&format!("\u{15}{typed}\t"))?;
    terminal.until(&[word]).map(drop)
}

fn start(shell: &Shell, endpoint: &str) -> anyhow::Result<Terminal> {
    let path = format!("{}:{}", binaries::directory()?.display(), std::env::var("PATH")?);
    let environment: [(&str, OsString); 2] = [("PATH", path.into()), ("LBCTL_ENDPOINT", endpoint.into())];
    let mut terminal = Terminal::start(shell.line, &environment)?;
    terminal.type_in(&format!("{}; echo rea'dy'\n", shell.setup))?;
    terminal.until(&["ready"]).with_context(|| shell.line.to_owned())?;
    Ok(terminal)
}
