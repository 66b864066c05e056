//! A network namespace as a value: a host, a switch, a router.

use std::{fs, io, os::fd::OwnedFd, process::Command, sync::Arc};

use futures::TryStreamExt as _;
use rtnetlink::{Handle, LinkUnspec, new_connection, packet_route::link::LinkAttribute};

use crate::sys;

/// A network namespace. It vanishes with its last handle and the last process in it.
#[derive(Clone)]
pub struct Namespace {
    fd: Arc<OwnedFd>,
}

impl Namespace {
    /// An empty one, with loopback up.
    pub fn new() -> io::Result<Self> {
        let namespace = Self { fd: Arc::new(sys::new_network_namespace()?) };
        namespace.netlink(async |handle| {
            let lo = index_of(&handle, "lo").await?;
            handle.link().set(LinkUnspec::new_with_index(lo).up().build()).execute().await
        })?;
        Ok(namespace)
    }

    /// Runs `work` on a thread inside. Sockets made there stay inside and can be used from anywhere.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                sys::enter(&*self.fd).expect("entering a namespace of our own");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Frames that an interface has received, as its driver counts them.
    pub fn received(&self, interface: &str) -> Option<u64> {
        let text = self.enter(|| fs::read_to_string("/proc/thread-self/net/dev")).ok()?;
        let prefix = format!("{interface}:");
        let line = text.lines().find_map(|line| line.trim().strip_prefix(prefix.as_str()))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }

    /// Talks to the kernel about the links inside.
    pub fn netlink<T: Send>(
        &self,
        work: impl AsyncFnOnce(Handle) -> Result<T, rtnetlink::Error> + Send,
    ) -> io::Result<T> {
        self.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (connection, handle, _) = new_connection()?;
                let driver = tokio::spawn(connection);
                let result = work(handle).await.map_err(io::Error::other);
                driver.abort();
                result
            })
        })
    }

    /// Sets a sysctl of the network, such as `ipv4.ip_forward`. One that this kernel lacks is no error
    /// if `optional`.
    pub fn sysctl(&self, name: &str, value: &str, optional: bool) -> io::Result<()> {
        let path = format!("/proc/sys/net/{}", name.replace('.', "/"));
        let written = self.enter(|| fs::write(&path, value));
        match written {
            Err(error) if optional && error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), format!("{path}: {error}"))),
            Ok(()) => Ok(()),
        }
    }

    /// A command that will run inside and die with the thread that starts it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> io::Result<Command> {
        let mut command = Command::new(program);
        sys::in_namespace(&mut command, &self.fd)?;
        Ok(command)
    }

    /// The index of an interface inside.
    pub fn ifindex(&self, name: &str) -> io::Result<u32> {
        self.netlink(async |handle| index_of(&handle, name).await)
    }

    /// Takes an interface down or up.
    pub fn set_up(&self, name: &str, up: bool) -> io::Result<()> {
        self.netlink(async |handle| {
            let link = LinkUnspec::new_with_index(index_of(&handle, name).await?);
            let link = if up { link.up() } else { link.down() };
            handle.link().set(link.build()).execute().await
        })
    }

    /// Its raw descriptor, for netlink messages that name a namespace.
    pub fn fd_for_netlink(&self) -> i32 {
        sys::raw(&self.fd)
    }
}

/// The index of an interface.
pub(crate) async fn index_of(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await? {
        let named = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(n) if n == name);
        if link.attributes.iter().any(named) {
            return Ok(link.header.index);
        }
    }
    Err(rtnetlink::Error::InvalidNla(format!("there is no interface {name}")))
}
