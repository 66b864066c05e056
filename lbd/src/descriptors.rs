//! How many files and connections this process may have open (RLIMIT_NOFILE, getrlimit(2)).

use rustix::process::{Resource, getrlimit, setrlimit};

/// With all the room for connections taken, and the store's and the dataplane's own.
const ENOUGH: u64 = 8192;

/// Takes as many as this process is allowed to take by itself: many systems begin with 1024, which callers alone would use up.
pub(crate) fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
    if let Some(limit) = getrlimit(Resource::Nofile).current.filter(|limit| *limit < ENOUGH) {
        tracing::warn!(
            limit,
            "few files may be open (ulimit -n, LimitNOFILE=): fewer connections are taken; {ENOUGH} are enough"
        );
    }
}

/// As many as are wanted, or that part of what is allowed: what remains is for what must not fail.
pub(crate) fn at_most_a(part: u64, wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    wanted.min(usize::try_from(limit / part).unwrap_or(usize::MAX))
}
