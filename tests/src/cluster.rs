//! Real daemons: `lbd` on the nodes of a topology, configured by the real `lbctl`.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    binaries,
    manager::ServiceManager,
    netns::Namespace,
    pki::Pki,
    sys::{self, reference},
    topology::Host,
    wait,
};

/// For anything that a healthy cluster does at once.
pub const SOON: Duration = Duration::from_secs(15);

/// A node: its machine, its files, its process.
pub struct LbNode {
    /// Its name.
    pub name: String,
    /// Its cluster address.
    pub address: String,
    /// Its namespace.
    pub ns: Namespace,
    /// The daemon's program, beside this one.
    pub program: &'static str,
    /// Environment variables for its processes.
    pub environment: Vec<(String, String)>,
    /// Who starts it, if it is not started by the test itself.
    pub manager: Option<ServiceManager>,
    dir: PathBuf,
    child: Option<Child>,
    /// A thread of its dataplane that is halted.
    halted: Option<sys::Halted>,
    /// Where its data is, if that has a disk of its own. Unmounted after the processes are dead.
    disk: Option<sys::Mount>,
}

/// What a node's configuration says besides its names and paths.
pub struct NodeConfig<'a> {
    /// Its address on the network between the nodes.
    pub address: &'a str,
    /// Its `[dataplane]` interfaces; none for a witness.
    pub interfaces: &'a [&'a str],
    /// The engine, behind a slash the number of workers, and behind a plus the accelerator: "ring/3+xdp". Where no accelerator
    /// is named, that of the environment variable `LB_ACCELERATOR`.
    pub engine: &'a str,
    /// Whether it creates the cluster.
    pub bootstrap: bool,
}

/// An engine without its accelerator, and the accelerator; where it names none, that of the environment variable `LB_ACCELERATOR`.
pub(crate) fn accelerated(engine: &str) -> (&str, String) {
    match engine.split_once('+') {
        Some((engine, accelerator)) => (engine, accelerator.to_owned()),
        None => (engine, std::env::var("LB_ACCELERATOR").unwrap_or_else(|_| "off".to_owned())),
    }
}

impl LbNode {
    /// Writes the configuration; [`Self::start`] starts it.
    pub fn new(host: &Host, root: &TempDir, config: &NodeConfig<'_>) -> anyhow::Result<Self> {
        let dir = root.path().join(&host.name);
        fs::create_dir_all(&dir)?;
        let node = Self {
            name: host.name.clone(),
            address: format!("{}:7401", config.address),
            ns: host.ns.clone(),
            program: "lbd",
            environment: Vec::new(),
            manager: None,
            dir,
            child: None,
            halted: None,
            disk: None,
        };
        let (role, dataplane) = match config.interfaces {
            [] => ("witness", String::new()),
            names => {
                let (engine, accelerator) = accelerated(config.engine);
                let (engine, workers) = engine.split_once('/').unwrap_or((engine, "1"));
                if accelerator != "off" {
                    names.iter().try_for_each(|name| host.ns.enter(|| reference::keep_tags(name)))?;
                }
                let dataplane = format!(
                    "[dataplane]\ninterfaces = {names:?}\nengine = {engine:?}\naccelerator = {accelerator:?}\nworkers = {workers}\n"
                );
                ("lb", dataplane)
            }
        };
        let pki = Pki::below(root.path())?;
        let of_node = pki.issue("node", &node.name, &["--san", config.address])?;
        let text = format!(
            "[node]\nname = {:?}\nrole = {role:?}\ndata_dir = {:?}\nuser = \"root\"\n\
             [cluster]\nlisten = {:?}\nbootstrap = {}\n\
             [api]\nlisten = [\"unix:{}\", \"{}:7400\"]\n\
             [tls]\ncert = {:?}\nkey = {:?}\nca = {:?}\ncrl = {:?}\n{dataplane}",
            node.name,
            node.data_dir(),
            node.address,
            config.bootstrap,
            node.socket().display(),
            config.address,
            of_node.cert,
            of_node.key,
            of_node.ca,
            pki.crl(),
        );
        fs::write(node.config(), text)?;
        Ok(node)
    }

    /// Its lbd.toml.
    pub fn config(&self) -> PathBuf {
        self.dir.join("lbd.toml")
    }

    /// Its data_dir.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Its API's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("lbd.sock")
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Starts it and waits until it serves.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.spawn()?;
        wait::until_some(&format!("{} serves", self.name), SOON, || {
            if let Ok(Some(status)) = self.child.as_mut()?.try_wait() {
                panic!("{} ended with {status}:\n{}", self.name, self.log());
            }
            std::os::unix::net::UnixStream::connect(self.socket()).ok()
        });
        Ok(())
    }

    /// Starts it and does not wait.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.dir.join("log"))?;
        let program = binaries::directory()?.join(self.program);
        let mut command = self.ns.command(if self.manager.is_some() { Path::new("sh") } else { &program })?;
        if let Some(manager) = &self.manager {
            manager.starting(&program, &mut command)?;
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.arg("--config").arg(self.config()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn().context("starting lbd")?);
        Ok(())
    }

    /// Has it take up another number of workers, as `systemctl reload` does.
    pub fn set_workers(&self, workers: usize) -> anyhow::Result<()> {
        let text = fs::read_to_string(self.config())?;
        let (before, _) = text.rsplit_once("workers = ").context("a configuration without workers")?;
        fs::write(self.config(), format!("{before}workers = {workers}\n"))?;
        self.signal(Signal::HUP)?;
        wait::until(&format!("{workers} workers run"), SOON, || {
            let stats = self.stats().unwrap_or_default();
            stats["workers"].as_array().is_some_and(|running| running.len() == workers)
        });
        Ok(())
    }

    /// Gives its data a disk of its own, of so many bytes.
    pub fn give_disk(&mut self, bytes: u64) -> io::Result<()> {
        self.disk = Some(sys::Mount::tmpfs(&self.data_dir(), bytes)?);
        Ok(())
    }

    /// Empties its data directory; it will wait to be added.
    pub fn wipe(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.data_dir())? {
            let path = entry?.path();
            if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        let config = fs::read_to_string(self.config())?;
        fs::write(self.config(), config.replace("bootstrap = true", "bootstrap = false"))
    }

    /// SIGKILL for both of its processes, and waits for their death.
    pub fn kill(&mut self) -> io::Result<()> {
        self.unhalt_worker();
        let worker = self.worker();
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        if let Some(worker) = worker {
            // It dies with its parent; whoever reaps it does so in its own time.
            wait::until(&format!("the worker of {} is dead", self.name), SOON, || is_dead(worker));
        }
        Ok(())
    }

    /// SIGKILL for the working process alone; its parent tells the others.
    pub fn kill_worker(&mut self) -> anyhow::Result<()> {
        let worker = self.worker().with_context(|| format!("{} has no working process", self.name))?;
        Ok(sys::signal(worker, Signal::KILL)?)
    }

    /// Halts the first worker of its dataplane, while the rest of the process goes on.
    pub fn halt_worker(&mut self) -> anyhow::Result<()> {
        let threads = self.worker_threads()?;
        let first = threads.get("dataplane-0").with_context(|| format!("{} has no worker", self.name))?;
        let id = first.file_name().context("its id")?.to_string_lossy().parse()?;
        self.halted = Some(sys::Halted::thread(id)?);
        Ok(())
    }

    /// What /proc has of the workers of its dataplane, by their names.
    pub fn worker_threads(&self) -> anyhow::Result<BTreeMap<String, PathBuf>> {
        let process = self.worker().with_context(|| format!("{} has no working process", self.name))?;
        let mut threads = BTreeMap::new();
        for thread in fs::read_dir(format!("/proc/{process}/task"))? {
            let thread = thread?.path();
            let name = fs::read_to_string(thread.join("comm"))?.trim().to_owned();
            if name.starts_with("dataplane-") {
                threads.insert(name, thread);
            }
        }
        Ok(threads)
    }

    /// Lets it go on.
    pub fn unhalt_worker(&mut self) {
        self.halted = None;
    }

    /// Changes its configuration; the next start reads it.
    pub fn reconfigure(&self, before: &str, after: &str) -> anyhow::Result<()> {
        let text = fs::read_to_string(self.config())?;
        ensure!(text.contains(before), "{before:?} is not in {text}");
        Ok(fs::write(self.config(), text.replace(before, after))?)
    }

    /// Has it speak plain TCP from the next start on.
    pub fn without_tls(&self) -> anyhow::Result<()> {
        Ok(fs::write(self.config(), with_tls(&fs::read_to_string(self.config())?, "[tls]\ninsecure = true")?)?)
    }

    /// The process id of its parent.
    pub fn parent(&self) -> Option<u32> {
        Some(self.child.as_ref()?.id())
    }

    /// The process id of the working process.
    pub fn worker(&self) -> Option<u32> {
        let parent = self.child.as_ref()?.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// A signal to both of its processes.
    pub fn signal_both(&self, signal: Signal) -> io::Result<()> {
        if let Some(worker) = self.worker() {
            sys::signal(worker, signal)?;
        }
        self.signal(signal)
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait_for_end(SOON)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match &self.child {
            Some(child) => sys::signal(child.id(), signal),
            None => Ok(()),
        }
    }

    /// Waits until it ends by itself.
    pub fn wait_for_end(&mut self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        let Some(mut child) = self.child.take() else { bail!("{} does not run", self.name) };
        let log = self.dir.join("log");
        Ok(wait::until_some(&format!("{} ends (log: {})", self.name, log.display()), timeout, || {
            child.try_wait().ok().flatten()
        }))
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> io::Result<bool> {
        Ok(match &mut self.child {
            Some(child) => child.try_wait()?.is_some(),
            None => true,
        })
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Runs `lbctl` against this node.
    pub fn lbctl(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        lbctl(&self.socket(), arguments)
    }

    /// Runs `lbctl` and fails unless it succeeds. Its standard output.
    pub fn lbctl_ok(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.lbctl(arguments)?;
        if !output.status.success() {
            bail!(
                "lbctl {} on {}: {}: {}\nlog of {}:\n{}",
                arguments.join(" "),
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stderr),
                self.name,
                self.log()
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs `lbctl -o json`.
    pub fn lbctl_json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = self.lbctl_ok(&[&["-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| text)
    }

    /// The owner of a VIP as this node knows it; empty if there is none.
    pub fn owner_of(&self, vip: &str) -> anyhow::Result<String> {
        let vips = self.lbctl_json(&["vip", "list"])?;
        let row = vips["vips"].as_array().into_iter().flatten().find(|row| row["address"] == vip);
        Ok(row.and_then(|row| row["owner"].as_str()).unwrap_or_default().to_owned())
    }

    /// The dataplane's counters.
    pub fn stats(&self) -> anyhow::Result<Value> {
        self.lbctl_json(&["stats"])
    }

    /// How often a VIP has been given to a node, or to nobody; nothing where the node does not answer.
    pub fn epoch_of(&self, vip: &str) -> Option<u64> {
        let vips = self.lbctl_json(&["vip", "list"]).ok()?;
        vips["vips"].as_array()?.iter().find(|row| row["address"] == vip)?["epoch"].as_u64()
    }

    /// Its counters, and whether every frame that it received is in exactly one of those that tell how it ended.
    pub fn accounts(&self) -> anyhow::Result<(Value, bool)> {
        let stats = self.stats()?;
        let sum = |key: &str| stats[key].as_u64().unwrap_or(0);
        let dropped: u64 =
            stats["drops"].as_array().into_iter().flatten().filter_map(|row| row["packets"].as_u64()).sum();
        let ended = sum("forwarded") + sum("answered") + sum("held") + dropped;
        let is_whole = sum("received") == ended;
        Ok((stats, is_whole))
    }

    /// How many frames it dropped for a reason.
    pub fn drops(&self, reason: &str) -> anyhow::Result<u64> {
        let stats = self.stats()?;
        let row = stats["drops"].as_array().into_iter().flatten().find(|row| row["reason"] == reason);
        Ok(row.and_then(|row| row["packets"].as_u64()).unwrap_or(0))
    }

    /// Runs `lbctl` for a change, and waits until this node forwards by it.
    pub fn change(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let revision = self.lbctl_json(arguments)?["revision"].as_u64();
        wait::until(&format!("{arguments:?} is in force"), SOON, || {
            self.stats().is_ok_and(|stats| stats["table_revision"].as_u64() >= revision)
        });
        Ok(())
    }

    /// Waits until all backends' MAC addresses are known here.
    pub fn wait_resolved(&self, backends: usize) {
        wait::until(&format!("{} knows {backends} backends", self.name), SOON, || {
            let stats = self.stats().unwrap_or_default();
            let known = stats["backends"].as_array().into_iter().flatten().filter(|row| row["mac"] != "");
            known.count() >= backends
        });
    }
}

impl Drop for LbNode {
    fn drop(&mut self) {
        drop(self.kill());
        if std::thread::panicking() {
            eprintln!("--- log of {}:\n{}", self.name, self.log());
        }
    }
}

/// Runs `lbctl` against a socket.
pub fn lbctl(socket: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = std::process::Command::new(binaries::directory()?.join("lbctl"));
    command.arg("--endpoint").arg(format!("unix:{}", socket.display())).args(arguments);
    command.output().context("running lbctl")
}

/// A configuration with another `[tls]`.
pub fn with_tls(config: &str, tls: &str) -> anyhow::Result<String> {
    let (before, after) = config.split_once("[tls]").context("a configuration without TLS")?;
    let dataplane = after.split_once("[dataplane]").map(|(_, dataplane)| format!("[dataplane]{dataplane}"));
    Ok(format!("{before}{tls}\n{}", dataplane.unwrap_or_default()))
}

/// Starts the first node, then the others, and has them added.
pub fn form(nodes: &mut [LbNode]) -> anyhow::Result<()> {
    for node in nodes.iter_mut() {
        node.start()?;
    }
    let (first, others) = nodes.split_first().context("a cluster has a node")?;
    wait_for_leader(first);
    for node in others {
        first.lbctl_ok(&["node", "add", &node.name, &node.address])?;
    }
    wait_ready(first, nodes.len());
    Ok(())
}

/// Has a node that waits added by another one, again until it is.
pub fn form_one(by: &LbNode, node: &LbNode) -> anyhow::Result<()> {
    insist(|| by.lbctl(&["--timeout", "5s", "node", "add", &node.name, &node.address]))
}

/// Repeats a command until it succeeds: while the cluster finds itself it may be refused or time out.
pub fn insist(run: impl Fn() -> anyhow::Result<Output>) -> anyhow::Result<()> {
    let begun = std::time::Instant::now();
    loop {
        let output = run()?;
        if output.status.success() {
            return Ok(());
        }
        ensure!(begun.elapsed() < SOON, "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
}

/// Waits until a node knows a leader.
pub fn wait_for_leader(node: &LbNode) {
    wait::until(&format!("{} knows a leader", node.name), SOON, || {
        node.lbctl_json(&["status"]).is_ok_and(|status| status["leader"] != "" && status["stale"] == false)
    });
}

/// Waits until `count` nodes hold a lease and are on their segments.
pub fn wait_ready(node: &LbNode, count: usize) {
    let is_attached = |row: &Value| {
        let attachments = row["attachments"].as_array().cloned().unwrap_or_default();
        !attachments.is_empty() && attachments.iter().all(|attachment| attachment["isolated"] == false)
    };
    wait::until(&format!("{count} nodes hold a lease"), SOON, || {
        let status = node.lbctl_json(&["status"]).unwrap_or_default();
        let nodes = status["nodes"].as_array().into_iter().flatten();
        nodes.filter(|row| row["ready"] == true && is_attached(row)).count() >= count
    });
}

/// Whether a process is gone, or merely not reaped yet: the last of its threads closes its files.
fn is_dead(process: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else { return true };
    // The state follows the name, which stands in parentheses.
    let threads = fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count);
    threads <= 1 && stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
}
