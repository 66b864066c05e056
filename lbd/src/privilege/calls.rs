//! Which system calls the working process may make from its start on (seccomp(2)): what files, the network, io_uring, threads and
//! clocks need. It starts no program, traces no process, mounts nothing and loads nothing into the kernel but an accelerator, where it
//! has one; whoever has got it to
//! do what he wants cannot do so by itself either. What is not here is answered ENOSYS, as by
//! a kernel that does not have it: libraries then do without.

use std::{collections::BTreeMap, env::consts::ARCH};

use rustix::io::Errno;
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

macro_rules! calls {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

const ALLOWED: &[&[i64]] = &[
    // The process, its memory and its clocks.
    calls!(
        SYS_brk SYS_capget SYS_capset SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_exit SYS_exit_group
        SYS_futex SYS_futex_waitv SYS_get_robust_list SYS_getcpu SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups
        SYS_getitimer SYS_getpgid SYS_getpid SYS_getppid SYS_getrandom SYS_getresgid SYS_getresuid SYS_getrusage
        SYS_getsid SYS_gettid SYS_gettimeofday SYS_getuid SYS_madvise SYS_membarrier SYS_memfd_create SYS_mincore
        SYS_mlock SYS_mlock2 SYS_mlockall SYS_mmap SYS_mprotect SYS_mremap SYS_munlock SYS_munlockall SYS_munmap
        SYS_nanosleep SYS_prctl SYS_prlimit64 SYS_restart_syscall SYS_rseq SYS_rt_sigreturn SYS_sched_getaffinity
        SYS_sched_yield SYS_seccomp SYS_set_robust_list SYS_set_tid_address SYS_setitimer SYS_sysinfo
        SYS_timer_create SYS_timer_delete SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime
        SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime SYS_times SYS_umask SYS_uname
    ),
    // Files and pipes.
    calls!(
        SYS_chdir SYS_close SYS_close_range SYS_copy_file_range SYS_dup SYS_dup3 SYS_faccessat SYS_faccessat2
        SYS_fadvise64 SYS_fallocate SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_fcntl
        SYS_fdatasync SYS_fgetxattr SYS_flistxattr SYS_flock SYS_fremovexattr SYS_fsetxattr SYS_fstat SYS_fstatfs
        SYS_fsync SYS_ftruncate SYS_getcwd SYS_getdents64 SYS_getxattr SYS_inotify_add_watch SYS_inotify_init1
        SYS_inotify_rm_watch SYS_ioctl SYS_lgetxattr SYS_linkat SYS_listxattr SYS_llistxattr SYS_lremovexattr
        SYS_lseek SYS_lsetxattr SYS_mkdirat SYS_msync SYS_newfstatat SYS_openat SYS_openat2 SYS_pipe2 SYS_pread64
        SYS_preadv SYS_preadv2 SYS_pwrite64 SYS_pwritev SYS_pwritev2 SYS_read SYS_readlinkat SYS_readv
        SYS_removexattr SYS_renameat2 SYS_sendfile SYS_setxattr SYS_splice SYS_statfs SYS_statx SYS_symlinkat
        SYS_sync SYS_syncfs SYS_truncate SYS_unlinkat SYS_utimensat SYS_write SYS_writev
    ),
    // The network.
    calls!(
        SYS_accept SYS_accept4 SYS_bind SYS_connect SYS_getpeername SYS_getsockname SYS_getsockopt SYS_listen
        SYS_recvfrom SYS_recvmmsg SYS_recvmsg SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_setsockopt SYS_shutdown
        SYS_socket SYS_socketpair
    ),
    // Waiting, and io_uring(7).
    calls!(
        SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2 SYS_io_uring_enter
        SYS_io_uring_register SYS_io_uring_setup SYS_ppoll SYS_pselect6
    ),
    // Threads, their priorities, and signals.
    calls!(
        SYS_getpriority SYS_kill SYS_pidfd_open SYS_pidfd_send_signal SYS_rt_sigaction
        SYS_rt_sigpending SYS_rt_sigprocmask SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_sched_get_priority_max
        SYS_sched_get_priority_min SYS_sched_getattr SYS_sched_getparam SYS_sched_getscheduler SYS_sched_setaffinity
        SYS_sched_setattr SYS_sched_setparam SYS_sched_setscheduler SYS_setpriority SYS_sigaltstack SYS_signalfd4
        SYS_tgkill SYS_tkill SYS_wait4 SYS_waitid
    ),
];

/// What newer machines do by the calls above.
#[cfg(target_arch = "x86_64")]
const OLDER: &[i64] = calls!(
    SYS_access SYS_arch_prctl SYS_chmod SYS_chown SYS_creat SYS_dup2 SYS_epoll_create SYS_epoll_wait SYS_eventfd
    SYS_getdents SYS_getpgrp SYS_getrlimit SYS_inotify_init SYS_lchown SYS_link SYS_lstat SYS_mkdir SYS_open
    SYS_pause SYS_pipe SYS_poll SYS_readlink SYS_rename SYS_renameat SYS_rmdir SYS_select SYS_setrlimit SYS_signalfd
    SYS_stat SYS_symlink SYS_sync_file_range SYS_unlink SYS_utime SYS_utimes
);
/// renameat(2), by which rename(3) is made there, and sync_file_range(2), which libc does not name (asm-generic/unistd.h).
#[cfg(target_arch = "aarch64")]
const OLDER: &[i64] = &[38, 84];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const OLDER: &[i64] = &[];

/// Who has namespaces of his own has all capabilities in them, and more of the kernel before him.
const NAMESPACES: u64 = (libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS) as u64;

/// What the working process loads into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Programs {
    /// Nothing.
    None,
    /// The accelerator.
    Accelerator,
}

/// The commands of bpf(2) that the accelerator needs (linux/bpf.h, enum bpf_cmd): to make a map, to set and to remove an element, to
/// load a program, to put it on an interface, in the place of another one, and to take it off.
const OF_ACCELERATOR: [u64; 7] = [0, 2, 3, 5, 28, 29, 34];

/// For this thread, and those that it starts from now on.
pub(super) fn filter(programs: Programs) -> Result<(), Error> {
    let all = ALLOWED.iter().copied().chain([OLDER]).flatten();
    let mut rules: BTreeMap<i64, _> = all.map(|number| (*number, Vec::new())).collect();
    // Threads, and no namespaces: of clone(2) the flags are looked at. Those of clone3(2) are behind a pointer, so that libc
    // does without it.
    let is_in_the_same = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(NAMESPACES), 0)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![is_in_the_same])?]);
    if programs == Programs::Accelerator {
        let is = |command| {
            let same = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, command)?;
            SeccompRule::new(vec![same])
        };
        rules.insert(libc::SYS_bpf, OF_ACCELERATOR.into_iter().map(is).collect::<Result<_, _>>()?);
    }
    let refused = SeccompAction::Errno(Errno::NOSYS.raw_os_error().cast_unsigned());
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, ARCH.try_into()?)?;
    apply_filter(&BpfProgram::try_from(filter)?)
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command, thread};

    use super::*;

    #[test]
    fn no_program_is_started_and_all_else_goes_on() {
        // The filter is for this thread alone.
        let filtered = thread::spawn(|| {
            filter(Programs::None).unwrap();
            let started = Command::new("/bin/true").status().map_err(|error| error.raw_os_error());
            let unmounted = rustix::mount::unmount("/no/such/place", rustix::mount::UnmountFlags::DETACH);
            let read = fs::read_to_string("/proc/self/status").is_ok();
            let threads = thread::spawn(|| 1).join().unwrap();
            (started, unmounted, read, threads)
        });
        let (started, unmounted, read, threads) = filtered.join().unwrap();
        assert_eq!(started.map(|_| ()), Err(Some(Errno::NOSYS.raw_os_error())));
        assert_eq!(unmounted, Err(Errno::NOSYS));
        assert!(read && threads == 1);
        assert!(Command::new("/bin/true").status().unwrap().success(), "other threads are as before");
    }
}
