//! The main function of the suites that need namespaces (`harness = false`): builds the daemons, gains
//! the rights, and only then starts threads.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::{binaries, sys};

/// A test: its name and what it does.
pub type Test = (&'static str, fn() -> anyhow::Result<()>);

/// Runs a suite. One test at a time, unless asked otherwise: each runs several daemons.
pub fn main(tests: &[Test]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    if !arguments.list && !prepare() {
        return ExitCode::FAILURE;
    }
    let trials = tests
        .iter()
        .map(|&(name, test)| Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}")))))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Builds the daemons and gains the right to make namespaces, in this order and before any thread is
/// started. Whether that worked; if not, standard error says what to do.
pub fn prepare() -> bool {
    if let Err(error) = binaries::build() {
        eprintln!("{error}");
        return false;
    }
    // Hundreds of connections have both their ends in this process.
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, files) {
        eprintln!("raising the limit of open files: {error}");
        return false;
    }
    if let Err(error) = sys::gain_namespace_rights() {
        eprintln!("{error}");
        return false;
    }
    if let Err(error) = sys::private_mounts() {
        eprintln!("making a mount namespace: {error}");
        return false;
    }
    true
}
