//! The example of a client in Python, installed as a user would, into a directory beside the binaries.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context as _, ensure};

use crate::{binaries, files};

/// What it is made of, in the repository.
const PARTS: [&str; 2] = ["proto", "deploy/examples/python"];

/// Where it was installed, or why not.
static INSTALLED: OnceLock<Result<Client, String>> = OnceLock::new();

/// The installed client.
#[derive(Debug, Clone)]
pub struct Client {
    /// The interpreter that has it.
    pub python: PathBuf,
    /// Where it comes from, its own tests among it.
    pub sources: PathBuf,
}

/// A file of a package from PyPI, which is downloaded and not installed.
pub fn file_of(package: &str, file: &str) -> anyhow::Result<PathBuf> {
    let into = binaries::directory()?.join("python-packages").join(package);
    let path = into.join(file);
    if !path.exists() {
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"];
        let python = client()?.python;
        run(Command::new(python).args(pip).arg(&into).arg(package), "pip install, which needs PyPI")?;
    }
    Ok(path)
}

/// Whether this machine has Python with what installs packages.
pub fn is_there() -> Result<(), String> {
    let found = Command::new("python3").args(["-c", "import venv, ensurepip"]).stderr(Stdio::null()).status();
    match found {
        Ok(status) if status.success() => Ok(()),
        _ => Err("there is no python3 with venv (Debian: apt-get install python3-venv)".into()),
    }
}

/// Installs it, if there is Python. Before the process has namespaces of its own: from there no package can be had.
pub fn prepare() {
    if is_there().is_ok() {
        INSTALLED.get_or_init(|| install().map_err(|error| format!("{error:#}")));
    }
}

/// The client, or why it could not be installed.
pub fn client() -> anyhow::Result<Client> {
    let installed = INSTALLED.get().context("nobody has installed it")?;
    installed.clone().map_err(anyhow::Error::msg)
}

fn install() -> anyhow::Result<Client> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the repository")?;
    let mut hasher = DefaultHasher::new();
    for part in PARTS {
        hash(&repository.join(part), &mut hasher)?;
    }
    let root = binaries::directory()?.join("python-client").join(format!("{:016x}", hasher.finish()));
    let package = root.join("deploy/examples/python");
    let client = Client { python: root.join("venv/bin/python"), sources: package.clone() };
    let done = root.join("installed");
    if done.exists() {
        return Ok(client);
    }
    eprintln!("installing the Python client...");
    // What building leaves behind stays out of the repository.
    for part in PARTS {
        files::copy(&repository.join(part), &root.join(part))?;
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(root.join("venv")), "python3 -m venv")?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    run(
        Command::new(&client.python).args(install).arg(format!("{}[dev]", package.display())),
        "pip install, which needs PyPI",
    )?;
    fs::write(done, "")?;
    Ok(client)
}

/// Runs a command to its end; what it has printed.
pub fn run(command: &mut Command, what: &str) -> anyhow::Result<String> {
    let output = command.output().with_context(|| what.to_owned())?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{what}: {told}");
    Ok(told)
}

fn hash(path: &Path, hasher: &mut DefaultHasher) -> anyhow::Result<()> {
    if path.is_dir() {
        let mut entries: Vec<PathBuf> =
            fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        entries.sort();
        return entries.iter().try_for_each(|entry| hash(entry, hasher));
    }
    path.hash(hasher);
    fs::read(path)?.hash(hasher);
    Ok(())
}
