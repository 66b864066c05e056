//! The main function of the suites that need namespaces (`harness = false`): builds the daemons, gains
//! the rights, and only then starts threads.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{binaries, sys};

/// A test: its name and what it does.
pub type Test = (&'static str, fn() -> anyhow::Result<()>);

/// Runs a suite. One test at a time, unless asked otherwise: each runs several daemons.
pub fn main(tests: &[Test]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    if !arguments.list {
        if let Err(error) = binaries::build() {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
        if let Err(error) = sys::gain_namespace_rights() {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    let trials = tests
        .iter()
        .map(|&(name, test)| Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}")))))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
