//! What is said to whoever starts `lbd` by hand. The print macros, which panic where nobody reads, are banned here.

use std::io::{self, Write as _};

/// On standard output.
pub(crate) fn say(line: &str) {
    // Whoever has closed it does not want to know.
    let _ = writeln!(io::stdout(), "{line}");
}

/// On standard error.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
