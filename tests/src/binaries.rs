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
    let mut command = of_workspace();
    if PLANTED.load(Ordering::Relaxed) {
        command.args(["--features", "lbd/planted-faults"]);
    }
    let status = command.status()?;
    if !status.success() {
        return Err(io::Error::other(format!("building lbd and lbctl: cargo ended with {status}")));
    }
    directory()
}

/// Always of the whole workspace: with some packages alone their dependencies have other features, and are built anew.
fn of_workspace() -> Command {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let mut command = cargo();
    command.args(["build", "--quiet", "--locked", "--manifest-path", root, "--workspace"]);
    command.args(["--bin", "lbd", "--bin", "lbctl"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    command
}

/// As from a shell. What cargo says of a package to the programs that it runs would be in the environment of build scripts; ring's
/// runs again when that has changed, and everything that rests on it is built anew: minutes.
fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_package)) {
        command.env_remove(name);
    }
    command
}

/// The `lbd` of an earlier commit, tag or branch, beside the present one: its name in [`directory`]. Built from a clone, so
/// that the tree stays as it is.
pub fn build_earlier(reference: &str) -> io::Result<&'static str> {
    const NAME: &str = "lbd-earlier";
    let clone = tempfile::tempdir()?;
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let git = |arguments: &[&str]| -> io::Result<()> {
        let status = Command::new("git").args(arguments).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("git {}: {status}", arguments.join(" ")))) }
    };
    let path = clone.path().to_string_lossy().into_owned();
    git(&["clone", "--quiet", "--shared", "--no-checkout", root, &path])?;
    git(&["-C", &path, "checkout", "--quiet", "--detach", reference])?;
    let target = directory()?.join("earlier");
    let mut command = cargo();
    command.args(["build", "--quiet", "--locked", "-p", "lbd", "--manifest-path"]);
    let status = command.arg(clone.path().join("Cargo.toml")).env("CARGO_TARGET_DIR", &target).status()?;
    if !status.success() {
        return Err(io::Error::other(format!("building lbd of {reference}: cargo ended with {status}")));
    }
    fs::copy(target.join("debug/lbd"), directory()?.join(NAME))?;
    Ok(NAME)
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
