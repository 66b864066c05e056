//! The system calls that have no safe form: namespaces, and packet sockets for captures. The only
//! unsafe code of this crate.

pub mod bpf;
pub mod reference;

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use socket2::{Domain, SockAddr, SockAddrStorage, SockFilter, Socket, Type};

/// A thread of another process that is halted, while the rest of that process goes on; it goes on when this is dropped.
/// (SIGSTOP would stop all of it.)
pub struct Halted {
    go_on: Option<std::sync::mpsc::Sender<()>>,
    tracer: Option<std::thread::JoinHandle<io::Result<()>>>,
}

impl Halted {
    /// Halts a thread by its id (ptrace(2)).
    pub fn thread(id: u32) -> io::Result<Self> {
        let (go_on, told) = std::sync::mpsc::channel::<()>();
        let (halted, is_halted) = std::sync::mpsc::channel();
        let id = id.cast_signed();
        // Only the thread that has seized another one can let it go.
        let tracer = std::thread::spawn(move || {
            let ask = |request: libc::c_uint| {
                // SAFETY: these requests read and write no memory of either process.
                let outcome = unsafe {
                    libc::ptrace(
                        request as _,
                        id,
                        std::ptr::null_mut::<libc::c_void>(),
                        std::ptr::null_mut::<libc::c_void>(),
                    )
                };
                if outcome == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
            };
            let begun = ask(libc::PTRACE_SEIZE).and_then(|()| ask(libc::PTRACE_INTERRUPT)).and_then(|()| {
                let mut status = 0;
                // SAFETY: the status is a number of ours.
                match unsafe { libc::waitpid(id, &raw mut status, libc::__WALL) } {
                    -1 => Err(io::Error::last_os_error()),
                    _ => Ok(()),
                }
            });
            let is_begun = begun.is_ok();
            drop(halted.send(begun));
            if !is_begun {
                return Ok(());
            }
            // An error means that the handle is dropped: the same.
            let _ = told.recv();
            ask(libc::PTRACE_DETACH)
        });
        is_halted.recv().map_err(|_| io::Error::other("the tracer has ended"))??;
        Ok(Self { go_on: Some(go_on), tracer: Some(tracer) })
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        self.go_on = None;
        // It may be dead by now.
        self.tracer.take().map(std::thread::JoinHandle::join);
    }
}

/// What is left on a file system for this process, in bytes.
pub fn free_bytes(path: &std::path::Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Why no namespaces can be made.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Neither with the rights of this process nor in a user namespace.
    #[error(
        "this user may not create user namespaces ({0}). Run as root, or allow them: sysctl \
         kernel.unprivileged_userns_clone=1 (Debian), user.max_user_namespaces=10000, \
         kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu)"
    )]
    Forbidden(io::Error),
    /// A step on the way.
    #[error("{0}: {1}")]
    Step(&'static str, io::Error),
}

/// Gives this process the right to make network namespaces: by what it has, or in a user namespace in
/// which it is root. Must be called before any thread is started. Rights are tried, not derived from the
/// user's id: root in a container may have fewer, an ordinary user with capabilities more.
pub fn gain_namespace_rights() -> Result<(), NamespaceError> {
    if may_unshare_net() {
        return Ok(());
    }
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    // SAFETY: no file descriptor table is unshared, so no other thread's descriptors are affected.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }
        .map_err(|error| NamespaceError::Forbidden(error.into()))?;
    let write = |path: &'static str, text: String| {
        fs::write(path, text).map_err(|error| match error.kind() {
            // AppArmor lets the namespace be made and forbids to use it.
            io::ErrorKind::PermissionDenied => NamespaceError::Forbidden(error),
            _ => NamespaceError::Step(path, error),
        })
    };
    // user_namespaces(7): without privileges outside, setgroups must be given up before gid_map is written.
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    if may_unshare_net() {
        Ok(())
    } else {
        Err(NamespaceError::Forbidden(io::Error::from(io::ErrorKind::PermissionDenied)))
    }
}

/// Moves this process into an empty network namespace: it needs no network of its own, and no thread may
/// be started to try it, because a process with two threads gets no user namespace.
fn may_unshare_net() -> bool {
    unshare_net().is_ok()
}

fn unshare_net() -> io::Result<()> {
    // SAFETY: as above; the network namespace alone is unshared, for the calling thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(Into::into)
}

/// A new network namespace; it lives as long as the descriptor or a process in it.
pub(crate) fn new_network_namespace() -> io::Result<OwnedFd> {
    let made = std::thread::spawn(|| {
        unshare_net()?;
        Ok(fs::File::open("/proc/thread-self/ns/net")?.into())
    });
    made.join().map_err(|_| io::Error::other("the thread that makes namespaces panicked"))?
}

/// Moves the calling thread into a network namespace.
pub(crate) fn enter(namespace: impl AsFd) -> io::Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).map_err(Into::into)
}

/// Has a command run in a network namespace, and die with the thread that starts it.
pub(crate) fn in_namespace(command: &mut Command, namespace: &OwnedFd) -> io::Result<()> {
    let namespace = namespace.try_clone()?;
    // SAFETY: between fork and exec only two system calls are made, both async-signal-safe; nothing is
    // allocated and no lock is taken.
    unsafe {
        command.pre_exec(move || {
            enter(&namespace)?;
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            Ok(())
        });
    }
    Ok(())
}

/// A packet socket that sees all frames of an interface, in both directions.
pub(crate) fn packet_socket(ifindex: u32) -> io::Result<Socket> {
    filtering_socket(ifindex, None)
}

/// The same for the frames of one EtherType alone: the kernel leaves out the others. Bound to the protocol instead it would
/// see only what the ingress hook has let pass.
pub(crate) fn filtering_socket(ifindex: u32, ethertype: Option<u16>) -> io::Result<Socket> {
    let socket = Socket::new_raw(Domain::PACKET, Type::RAW, None)?;
    socket.set_recv_buffer_size(32 << 20)?;
    // The first question has the kernel note the time from now on; there is no frame yet.
    let _ = received_at(&socket);
    if let Some(ethertype) = ethertype {
        let instruction = |code: u32, jf, k| SockFilter::new(code as u16, 0, jf, k);
        socket.attach_filter(&[
            instruction(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 12),
            instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, ethertype.into()),
            instruction(libc::BPF_RET | libc::BPF_K, 0, u32::MAX),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0),
        ])?;
    }
    socket.bind(&link_address(ifindex, libc::ETH_P_ALL as u16))?;
    Ok(socket)
}

/// A packet socket that only sends.
pub(crate) fn sending_socket(ifindex: u32) -> io::Result<Socket> {
    let socket = Socket::new_raw(Domain::PACKET, Type::RAW, None)?;
    socket.bind(&link_address(ifindex, 0))?;
    Ok(socket)
}

/// The address of an interface, for a packet socket that receives a protocol, or none.
pub fn link_address(ifindex: u32, protocol: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is a socket address, and zero is a value of it; it fits the storage.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = ifindex.cast_signed();
    // SAFETY: the storage holds a sockaddr_ll of that length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

/// Whether a received frame was sent by this machine, from the address that came with it.
pub(crate) fn is_outgoing(address: &SockAddr) -> bool {
    const PACKET_OUTGOING: u8 = 4;
    // SAFETY: a packet socket fills in a sockaddr_ll, and the storage is at least as large.
    let address = unsafe { &*address.as_ptr().cast::<libc::sockaddr_ll>() };
    address.sll_pkttype == PACKET_OUTGOING
}

/// Receives a frame. Its length, and whether it was sent by this machine.
pub fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
    // SAFETY: `u8` and `MaybeUninit<u8>` have the same layout, and only initialised bytes are written.
    let uninit = unsafe { &mut *(std::ptr::from_mut(buffer) as *mut [std::mem::MaybeUninit<u8>]) };
    let (len, address) = socket.recv_from(uninit)?;
    Ok((len, is_outgoing(&address)))
}

/// When the kernel took the frame that was received last from its device, before it waited in any queue.
pub(crate) fn received_at(socket: &Socket) -> io::Result<Instant> {
    /// linux/sockios.h: SIOCGSTAMPNS_OLD, with a struct timespec.
    const SIOCGSTAMPNS: libc::c_ulong = 0x8907;
    let mut stamp = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec to where the pointer points.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSTAMPNS as _, &raw mut stamp) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let since_epoch = Duration::new(stamp.tv_sec.cast_unsigned(), stamp.tv_nsec as u32);
    let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + since_epoch).unwrap_or_default();
    Instant::now().checked_sub(age).ok_or_else(|| io::Error::other("a frame from before the machine's start"))
}

/// Sends a signal to a process.
pub fn signal(pid: u32, signal: rustix::process::Signal) -> io::Result<()> {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
    rustix::process::kill_process(pid, signal).map_err(Into::into)
}

/// Sends a signal to a group of processes, by that of its first one.
pub fn signal_group(pid: u32, signal: rustix::process::Signal) -> io::Result<()> {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
    rustix::process::kill_process_group(pid, signal).map_err(Into::into)
}

/// A mounted file system, unmounted when it is dropped. This process must have mounts of its own
/// ([`private_mounts`]).
#[derive(Debug)]
pub struct Mount(std::path::PathBuf);

impl Mount {
    /// A file system in memory, of so many bytes, in a directory that is made if it is missing.
    pub fn tmpfs(path: &std::path::Path, bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let options = std::ffi::CString::new(format!("size={bytes}"))?;
        rustix::mount::mount("tmpfs", path, "tmpfs", rustix::mount::MountFlags::empty(), options.as_c_str())?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // It goes with this process at the latest.
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Gives this process mounts of its own, which its children share. Must be called before any thread is started.
pub fn private_mounts() -> io::Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    // SAFETY: the file descriptor table stays shared; there is one thread, whose view of mounts alone changes.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).map_err(Into::into)
}

/// The raw descriptor of a namespace, for netlink.
pub(crate) fn raw(fd: &OwnedFd) -> i32 {
    fd.as_raw_fd()
}

/// Gives a command copies of these descriptors, from number 3 on.
pub(crate) fn give<'a>(command: &mut Command, descriptors: impl Iterator<Item = &'a OwnedFd>) -> io::Result<()> {
    // Where they stand meanwhile, none is in the way of another.
    let all = descriptors.map(|of| rustix::io::fcntl_dupfd_cloexec(of, 64)).collect::<Result<Vec<_>, _>>()?;
    // SAFETY: between fork and exec only dup2(2) is called, async-signal-safe, on open descriptors; nobody in the new process
    // goes by those numbers.
    unsafe {
        command.pre_exec(move || {
            for (number, descriptor) in (3..).zip(&all) {
                if libc::dup2(descriptor.as_raw_fd(), number) == -1 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    Ok(())
}

/// Has a command run without one capability, and unable to get it back.
pub fn without_capability(command: &mut Command, capability: u32) {
    // SAFETY: between fork and exec only one system call is made, async-signal-safe as all of them.
    unsafe {
        command.pre_exec(move || {
            // exec of root's program gives what the bounding set allows (capabilities(7)).
            match libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
}

/// sysfs as the calling thread's network namespace sees it. The thread gets a mount namespace of its own
/// and must end soon; the directory is empty for everybody else.
pub fn private_sysfs() -> io::Result<tempfile::TempDir> {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    // SAFETY: the file descriptor table stays shared; the calling thread's view of mounts alone changes.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    let dir = tempfile::tempdir()?;
    mount("sysfs", dir.path(), "sysfs", MountFlags::empty(), None)?;
    Ok(dir)
}

/// Whether this process may give a thread real-time priority (sched(7)): tried on a thread of its own.
pub fn may_be_realtime() -> io::Result<bool> {
    let tried = std::thread::spawn(|| {
        let lowest = libc::sched_param { sched_priority: 1 };
        // SAFETY: the parameters live for the call, and 0 is the calling thread.
        let outcome = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) };
        if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    });
    match tried.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes an Ethernet interface in the calling thread's namespace, whose cable is a file: what is written, behind a vnet
/// header, is received by it, and what it sends is read (tun(4)).
pub fn tap(name: &str) -> io::Result<fs::File> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let file = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    rustix::io::ioctl_fionbio(&file, true)?;
    // SAFETY: plain data for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(15)) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the request names an interface, and lives for the call.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, &raw mut request) };
    if outcome == 0 { Ok(file) } else { Err(io::Error::last_os_error()) }
}
