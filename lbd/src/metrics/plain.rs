//! Prometheus' older text (exposition format 0.0.4), for who does not ask for OpenMetrics: there the description of a counter has
//! the name of its series.

use std::fmt::Write as _;

/// As HTTP names it.
pub(super) const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The same in that form.
pub(super) fn plain(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        let written = match words[..] {
            ["#", "EOF"] | ["#", "UNIT", ..] => Ok(()),
            ["#", "HELP", _, said] => {
                help = Some(said);
                Ok(())
            }
            ["#", "TYPE", name, kind] => {
                let series = if kind == "counter" { "_total" } else { "" };
                let said = help.take().unwrap_or_default();
                write!(text, "# HELP {name}{series} {said}\n# TYPE {name}{series} {kind}\n")
            }
            _ => writeln!(text, "{line}"),
        };
        // Into a string.
        let _ = written;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_described_by_their_series() {
        let openmetrics = "# HELP lbd_a What it is\n# TYPE lbd_a counter\nlbd_a_total{x=\"1 2\"} 3\n# HELP lbd_b_seconds B\n\
                           # TYPE lbd_b_seconds gauge\n# UNIT lbd_b_seconds seconds\nlbd_b_seconds 1.5\n# EOF\n";
        assert_eq!(
            plain(openmetrics),
            "# HELP lbd_a_total What it is\n# TYPE lbd_a_total counter\nlbd_a_total{x=\"1 2\"} 3\n# HELP lbd_b_seconds B\n\
             # TYPE lbd_b_seconds gauge\nlbd_b_seconds 1.5\n"
        );
    }
}
