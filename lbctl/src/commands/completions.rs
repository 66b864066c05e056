//! `lbctl completions`: a script by which a shell asks `lbctl` itself what may come next.

use clap_complete::env::Shells;

use crate::{exit::Failure, output};

/// The variable by which a shell's script says that it is asked what may come next, and which shell that is.
pub(crate) const ASKED_BY: &str = "LBCTL_COMPLETE";

pub(super) fn print(shell: clap_complete::Shell) -> Result<(), Failure> {
    let shells = Shells::builtins();
    let name = shell.to_string();
    let shell = shells.completer(&name).ok_or_else(|| Failure::Usage(format!("there is no script for {name}")))?;
    let mut script = Vec::new();
    // By its name and not by its path, so that the script outlives a move.
    shell.write_registration(ASKED_BY, "lbctl", "lbctl", "lbctl", &mut script)?;
    output::print(&String::from_utf8_lossy(&script))
}
