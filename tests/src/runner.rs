//! The main function of the suites that need namespaces (`harness = false`): builds the daemons, gains
//! the rights, and only then starts threads.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::{binaries, sys};

/// A rule and the test of it.
pub struct Test {
    name: &'static str,
    run: Run,
    needs: fn() -> Result<(), String>,
}

enum Run {
    Once(fn() -> anyhow::Result<()>),
    Each(&'static [&'static str], fn(&'static str) -> anyhow::Result<()>),
}

impl Test {
    /// A trial under the test's name.
    pub fn once(name: &'static str, test: fn() -> anyhow::Result<()>) -> Self {
        Self { name, run: Run::Once(test), needs: || Ok(()) }
    }

    /// A trial for each of the engines, with the engine's name in brackets.
    pub fn each(
        name: &'static str,
        engines: &'static [&'static str],
        test: fn(&'static str) -> anyhow::Result<()>,
    ) -> Self {
        Self { name, run: Run::Each(engines, test), needs: || Ok(()) }
    }

    /// Where this machine lacks what the test needs, its trials count as ignored and the reason is printed.
    #[must_use]
    pub fn needs(self, needs: fn() -> Result<(), String>) -> Self {
        Self { needs, ..self }
    }

    fn trials(self) -> Vec<Trial> {
        type Body = Box<dyn FnOnce() -> anyhow::Result<()> + Send>;
        let lacking = (self.needs)().err();
        let bodies: Vec<(String, Body, Option<String>)> = match self.run {
            Run::Once(test) => vec![(self.name.to_owned(), Box::new(test), lacking)],
            Run::Each(engines, test) => engines
                .iter()
                .map(|engine| {
                    // With an accelerator.
                    let program = if engine.contains('+') { sys::bpf::may_load().err() } else { None };
                    let body = Box::new(move || test(engine)) as Body;
                    (format!("{}[{engine}]", self.name), body, lacking.clone().or(program))
                })
                .collect(),
        };
        let failed = |error: anyhow::Error| Failed::from(format!("{error:#}"));
        let trial = |(name, body, lacking): (String, Body, Option<String>)| {
            if let Some(lacking) = &lacking {
                eprintln!("{name} is ignored: {lacking}");
            }
            Trial::test(name, move || body().map_err(failed)).with_ignored_flag(lacking.is_some())
        };
        bodies.into_iter().map(trial).collect()
    }
}

/// Runs a suite, as many tests at a time as there are cores for, unless asked otherwise. Tests with several daemons whose
/// answers are timed need more than one each.
pub fn main(cores_per_test: usize, tests: impl IntoIterator<Item = Test>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    arguments.test_threads.get_or_insert((cores / cores_per_test).max(1));
    if !arguments.list && !prepare() {
        return ExitCode::FAILURE;
    }
    let trials = tests.into_iter().flat_map(Test::trials).collect();
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
