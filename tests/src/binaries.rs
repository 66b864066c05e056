//! The daemons under test: built from the present sources, with the profile of the test itself.

use std::{
    env, fs, io,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

static PLANTED: AtomicBool = AtomicBool::new(false);

/// From now on [`build`] builds an `lbd` in which faults can be planted.
pub fn plant_faults() {
    PLANTED.store(true, Ordering::Relaxed);
}

/// Builds `lbd` and `lbctl`; quick when they are up to date. Called before namespaces are entered,
/// because cargo may want the network. The directory that holds them.
pub fn build() -> io::Result<PathBuf> {
    let mut command = cargo();
    if PLANTED.load(Ordering::Relaxed) {
        command.args(["--features", "lbd/planted-faults"]);
    }
    let status = command.status()?;
    if !status.success() {
        return Err(io::Error::other(format!("building lbd and lbctl: cargo ended with {status}")));
    }
    directory()
}

/// Always both packages: with one alone their dependencies have other features, and are built anew.
fn cargo() -> Command {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--locked", "--manifest-path", root, "-p", "lbd", "-p", "lbctl"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    command
}

/// An `lbd` that knows one feature level more, beside the present one: its name in [`directory`].
pub fn build_next() -> io::Result<&'static str> {
    const NAME: &str = "lbd-next";
    let mut command = cargo();
    let status = command.args(["--offline", "--features", "lbd/next-feature-level"]).status()?;
    let directory = directory()?;
    fs::copy(directory.join("lbd"), directory.join(NAME))?;
    // The other one takes its place again.
    let again = cargo().arg("--offline").status()?;
    if status.success() && again.success() { Ok(NAME) } else { Err(io::Error::other("building lbd twice")) }
}

/// The profile's directory: this program is in it, or in its `deps`.
pub fn directory() -> io::Result<PathBuf> {
    let mut directory = env::current_exe()?;
    directory.pop();
    if directory.ends_with("deps") {
        directory.pop();
    }
    Ok(directory)
}
