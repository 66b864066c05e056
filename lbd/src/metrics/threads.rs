//! How much of the processors the threads have used that forward and keep the lease (proc_pid_stat(5)).

use std::{fs, time::Duration};

/// Of those beginning so, each by its name.
const COUNTED: [&str; 2] = ["dataplane-", "heartbeat"];
/// The fields behind the name: the state is the third of all, the times in user and kernel mode are 14 and 15.
const USER: usize = 14 - 3;
/// What the kernel counts in for programs (USER_HZ), on all architectures that Rust knows.
const TICKS_A_SECOND: u64 = 100;

/// The threads, and the time that each has used.
pub(super) fn times() -> Vec<(String, Duration)> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let mut times: Vec<_> =
        tasks.filter_map(|task| time_of(&fs::read_to_string(task.path().join("stat")).ok()?)).collect();
    times.sort_unstable();
    times
}

fn time_of(stat: &str) -> Option<(String, Duration)> {
    // A name may hold spaces and parentheses.
    let (before, rest) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1;
    COUNTED.iter().any(|counted| name.starts_with(counted)).then_some(())?;
    let mut fields = rest.split_whitespace().skip(USER);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some((name.to_owned(), Duration::from_millis(ticks * 1000 / TICKS_A_SECOND)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_any_name() {
        let stat = "12 (dataplane-0) ) R 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1";
        assert_eq!(time_of(stat), Some(("dataplane-0) ".to_owned(), Duration::from_secs(3))));
        assert_eq!(time_of(&stat.replace("dataplane", "tokio")), None);
    }
}
