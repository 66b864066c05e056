//! Why the guard is not in place, and what to do about it.

use std::io;

/// Why the guard is not in place.
#[derive(Debug, thiserror::Error)]
#[error("the nftables guard: {step}: {source}{hint}", hint = hint(source))]
pub struct GuardError {
    step: &'static str,
    source: io::Error,
}

impl GuardError {
    /// Whether a right is missing.
    pub fn is_permission(&self) -> bool {
        self.source.raw_os_error() == Some(libc::EPERM)
    }

    /// Whether this kernel, or the table that is there, knows no owners.
    pub(super) fn is_unsupported(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL))
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            " (lbd needs the capability CAP_NET_ADMIN: start it as root or by its systemd unit; or another process owns \
             the table 'netdev lbd': nft list table netdev lbd)"
        }
        Some(libc::EOPNOTSUPP | libc::ENOENT | libc::EPROTONOSUPPORT) => {
            " (the kernel needs nf_tables with the netdev family: modprobe nf_tables)"
        }
        Some(libc::E2BIG) => " (other programs have put too many nftables chains on an interface)",
        _ => "",
    }
}

/// Of this step.
pub(super) fn failed(step: &'static str) -> impl Fn(io::Error) -> GuardError {
    move |source| GuardError { step, source }
}
