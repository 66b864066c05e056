//! The log: to standard error, as text or JSON. To systemd's journal each line has its priority (sd-daemon(3)), and no time of its
//! own.

use std::{
    env,
    io::{self, IsTerminal as _, Write},
    os::fd::AsFd,
};

use rustix::fs::fstat;
use tracing::{Level, Metadata};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::cli::LogFormat;

/// openraft logs each lost message as an error; what matters of it shows in our own lines. What RUST_LOG says comes behind it, so
/// that `lbd=debug` is more of that and no less of the others.
const DEFAULT: &str = "info,openraft=off,sled=warn";

pub(crate) fn start(format: LogFormat) {
    let registry = tracing_subscriber::registry().with(filter(&env::var("RUST_LOG").unwrap_or_default()));
    let is_journal = env::var("JOURNAL_STREAM").is_ok_and(|named| is_stream(&named, io::stderr().as_fd()));
    let output = Output { has_priorities: is_journal };
    let layer = tracing_subscriber::fmt::layer().with_writer(output).with_target(false);
    match (format, is_journal) {
        (LogFormat::Text, false) => registry.with(layer.with_ansi(io::stderr().is_terminal())).init(),
        (LogFormat::Text, true) => registry.with(layer.with_ansi(false).without_time()).init(),
        (LogFormat::Json, _) => registry.with(layer.json().with_target(true)).init(),
    }
}

fn filter(wanted: &str) -> EnvFilter {
    EnvFilter::builder().parse_lossy(format!("{DEFAULT},{wanted}"))
}

/// Whether a descriptor is what `JOURNAL_STREAM` names: DEVICE:INODE (systemd.exec(5)).
fn is_stream(named: &str, descriptor: impl AsFd) -> bool {
    fstat(descriptor).is_ok_and(|found| named == format!("{}:{}", found.st_dev, found.st_ino))
}

/// Standard error.
#[derive(Clone, Copy)]
struct Output {
    has_priorities: bool,
}

/// A line to it.
struct Line {
    prefix: &'static str,
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { prefix: "" }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line {
        Line { prefix: if self.has_priorities { priority(*meta.level()) } else { "" } }
    }
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // In one piece, so that lines of several threads do not mix.
        io::stderr().lock().write_all(&[self.prefix.as_bytes(), line].concat())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// As syslog(3) numbers them.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        Level::DEBUG | Level::TRACE => "<7>",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_more_and_raft_does_not_flood() {
        let shown = |wanted: &str| filter(wanted).to_string();
        for (wanted, parts) in [
            ("", &["info", "openraft=off", "sled=warn"][..]),
            ("lbd=debug", &["lbd=debug", "info", "openraft=off"]),
            ("debug", &["debug", "openraft=off"]),
            ("openraft=info", &["openraft=info", "info"]),
            ("lbd=nonsense", &["info", "openraft=off"]),
        ] {
            let all = shown(wanted);
            let all: Vec<&str> = all.split(',').collect();
            assert!(parts.iter().all(|part| all.contains(part)), "{wanted}: {all:?}");
        }
    }

    #[test]
    fn the_journal_is_known_by_its_stream() {
        let file = tempfile::tempfile().unwrap();
        let found = fstat(&file).unwrap();
        assert!(is_stream(&format!("{}:{}", found.st_dev, found.st_ino), &file));
        assert!(!is_stream("8:1", &file) && !is_stream("", &file));
    }
}
