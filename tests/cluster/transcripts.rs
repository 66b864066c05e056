//! Every command of `lbctl` as a person meets it: transcripts of sessions with a real cluster, in Markdown. The files of
//! `transcripts/` are run in order, each line that begins with `$ ` by a shell, and what is printed has to be what stands there.
//! With `SNAPSHOTS=overwrite` in the environment the files become what was printed.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use lb_tests::{
    binaries,
    cluster::wait_ready,
    site::{Plan, Site, VIP_TEXT},
};
use regex::Regex;
use snapbox::{Assert, Data, Redactions, assert::DEFAULT_ACTION_ENV, data::DataFormat};

/// What is another at each run, and the name by which it stands in a transcript. A group `redacted` is what is replaced.
const CHANGING: [(&str, &str); 6] = [
    ("[TIME]", r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?"),
    ("[ID]", r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"),
    ("[REVISION]", r#"[Rr]evision:? (?<redacted>\d+)"#),
    ("[REVISION]", r#""(version|revision)": "(?<redacted>\d+)""#),
    ("[AGE]", r"(?<redacted>\d+(\.\d+)?(ms|s|m|h)) ago"),
    ("[SERIAL]", r"\b[0-9a-f]{32}\b"),
];

pub(crate) fn every_command() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 2, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    for node in &site.nodes {
        wait_ready(node, 3);
    }
    // So that each run has the same owner.
    let node = &site.nodes[0];
    node.lbctl_ok(&["vip", "move", VIP_TEXT, "lb1"])?;
    node.lbctl_ok(&["wait", "owned", VIP_TEXT, "--by", "lb1"])?;
    let place = site.root.path().join("session");
    fs::create_dir(&place)?;
    let mut redactions = Redactions::new();
    redactions.insert("[ROOT]", site.root.path().to_owned())?;
    for (name, pattern) in CHANGING {
        redactions.insert(name, Regex::new(pattern)?)?;
    }
    let assert = Assert::new().action_env(DEFAULT_ACTION_ENV).normalize_paths(false).redact_with(redactions);

    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/transcripts"));
    let files: BTreeSet<_> =
        fs::read_dir(directory)?.map(|file| Ok(file?.path())).collect::<Result<_, std::io::Error>>()?;
    let mut transcripts = String::new();
    let mut wrong = String::new();
    for file in files {
        let expected = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let session = Session { place: &place, endpoint: format!("unix:{}", site.nodes[0].socket().display()) };
        let actual = session.replay(&expected)?;
        let expected = Data::read_from(&file, Some(DataFormat::Text));
        if let Err(difference) = assert.try_eq(Some(&file.display()), actual.into(), expected) {
            writeln!(wrong, "{difference}")?;
        }
        transcripts += &fs::read_to_string(file)?;
    }
    ensure!(wrong.is_empty(), "{wrong}");
    let missing: Vec<_> = commands("lbctl")?.into_iter().filter(|command| !transcripts.contains(command)).collect();
    ensure!(missing.is_empty(), "no transcript has {missing:?}");
    Ok(())
}

/// A person at a terminal.
struct Session<'a> {
    place: &'a Path,
    endpoint: String,
}

impl Session<'_> {
    /// A transcript with what is printed this time.
    fn replay(&self, transcript: &str) -> anyhow::Result<String> {
        let mut actual = String::new();
        let mut in_block = false;
        for line in transcript.lines() {
            let is_fence = line.starts_with("```");
            if is_fence {
                in_block = line == "```console";
            }
            if !in_block || is_fence {
                writeln!(actual, "{line}")?;
            } else if let Some(typed) = line.strip_prefix("$ ") {
                writeln!(actual, "{line}")?;
                actual += &self.type_in(typed)?;
            }
        }
        Ok(actual)
    }

    /// What is printed, and behind a question mark how it ended, if not well.
    fn type_in(&self, line: &str) -> anyhow::Result<String> {
        let programs = binaries::directory()?;
        let path = format!("{}:{}", programs.display(), std::env::var("PATH")?);
        let environment = [
            ("PATH", path.as_str()),
            ("LBCTL_ENDPOINT", &self.endpoint),
            ("COLUMNS", "80"),
            ("TERM", "dumb"),
            ("LC_ALL", "C.UTF-8"),
        ];
        let both = format!("exec 2>&1\n{line}");
        let mut shell = Command::new("bash");
        shell
            .args(["--norc", "-c", &both])
            .current_dir(self.place)
            .env_clear()
            .envs(environment)
            .env("HOME", self.place);
        let output = shell.stdin(Stdio::null()).output().context("bash")?;
        let mut printed = String::from_utf8(output.stdout).with_context(|| line.to_owned())?;
        if !printed.is_empty() && !printed.ends_with('\n') {
            printed.push('\n');
        }
        match output.status.code() {
            Some(0) => {}
            code => writeln!(printed, "? {}", code.map_or("killed".to_owned(), |code| code.to_string()))?,
        }
        Ok(printed)
    }
}

/// Every command under one, by its help.
fn commands(command: &str) -> anyhow::Result<Vec<String>> {
    let mut words = command.split(' ');
    let program = binaries::directory()?.join(words.next().unwrap_or_default());
    let help = Command::new(program).args(words).arg("--help").output()?;
    let help = String::from_utf8(help.stdout)?;
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let under: Vec<String> =
        names.filter(|name| !name.is_empty() && *name != "help").map(|name| format!("{command} {name}")).collect();
    if under.is_empty() {
        return Ok(vec![command.to_owned()]);
    }
    let deeper: Vec<Vec<String>> = under.iter().map(|command| commands(command)).collect::<Result<_, _>>()?;
    Ok(deeper.concat())
}
