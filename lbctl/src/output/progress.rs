//! What slow work shows meanwhile: on standard error, where that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

/// A bar of `length` steps behind what is done.
pub(crate) fn bar(doing: &'static str, length: u64) -> ProgressBar {
    styled(ProgressBar::new(length), "{prefix} [{bar:30}] {msg}").with_prefix(doing)
}

/// The same of so many rows; few are done before anybody wonders.
pub(crate) fn of_rows(doing: &'static str, rows: usize) -> ProgressBar {
    const MANY: usize = 1000;
    if rows < MANY {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(u64::try_from(rows).unwrap_or(u64::MAX));
    let bar = styled(bar, "{prefix} [{bar:30}] {pos} of {len} rows, {elapsed}").with_prefix(doing);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    let bar = bar.with_finish(ProgressFinish::AndClear);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}
