//! What is published last, and the guard that goes with it: it keeps the node's kernel away from the VIPs of the table, and comes back
//! when somebody has taken it away.

use std::{
    fmt, io,
    net::IpAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    forward::{compile::Compiler, snapshot::Snapshot, spec::TableSpec},
    guard::{Guard, GuardError},
    io::PortConfig,
};

/// What was published last of how to forward.
pub(crate) struct Publisher {
    compiler: Compiler,
    pub(crate) spec: TableSpec,
    pub(crate) guard: Guard,
    /// `None` before the first table: what a crash left behind is in force until then.
    guarded: Option<Guarded>,
    /// So many looks at it in a row have failed.
    not_looked_at: u32,
}

/// How the guard fares, to be read without waiting for whoever publishes.
#[derive(Debug, Default)]
pub(crate) struct Guarding {
    /// How often it was put back.
    restored: AtomicU64,
    /// Why the last table's guard is not in place, and why what was in place is not any more.
    problems: Mutex<[Option<String>; 2]>,
}

/// The two problems.
const NOT_INSTALLED: usize = 0;
const NOT_KEPT: usize = 1;

/// From so many failed looks at the guard in a row on it counts as missing.
const BLIND_LOOKS: u32 = 3;

impl Guarding {
    /// How often it was put back.
    pub(crate) fn restored(&self) -> u64 {
        self.restored.load(Ordering::Relaxed)
    }

    /// Why it is not in place.
    pub(crate) fn problem(&self) -> Option<String> {
        lock(&self.problems).iter().flatten().next().cloned()
    }

    fn note(&self, problem: usize, outcome: Result<(), &dyn fmt::Display>) {
        lock(&self.problems)[problem] = outcome.err().map(|error| error.to_string());
    }
}

/// What the guard covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guarded {
    /// Their names and indexes: a hook goes with its interface, and is not there when that returns.
    interfaces: Vec<(String, u32)>,
    vips: Vec<IpAddr>,
}

impl Publisher {
    /// With a first table, which is not guarded: what a crash left behind is in force until the next one.
    pub(crate) fn new(compiler: Compiler, spec: TableSpec, guard: Guard) -> Self {
        Self { compiler, spec, guard, guarded: None, not_looked_at: 0 }
    }

    /// The next table.
    pub(crate) fn compile(&mut self, spec: &TableSpec, unseen_s: u32) -> Snapshot {
        self.spec.clone_from(spec);
        self.spec.timeouts.unseen_s = unseen_s;
        self.compiler.compile(&self.spec)
    }

    /// Has the guard cover the VIPs of a table before its first answer, and those of the one before until after the last one:
    /// a packet that finds neither would reach the kernel. What it shall cover then, if it covers more now.
    pub(crate) fn cover(
        &mut self,
        vips: Vec<IpAddr>,
        ports: &[PortConfig],
        fares: &Guarding,
    ) -> Result<Option<Guarded>, GuardError> {
        // An interface that is gone has no hook to guard, and must not keep the table from the others.
        let wanted = Guarded { interfaces: present(ports), vips };
        let mut both = wanted.clone();
        both.vips.extend(self.guarded.iter().flat_map(|guarded| &guarded.vips));
        both.vips.sort_unstable();
        both.vips.dedup();
        let installed = self.install(&both);
        fares.note(NOT_INSTALLED, installed.as_ref().copied().map_err(|error| error as _));
        installed?;
        Ok((both.vips.len() > wanted.vips.len()).then_some(wanted))
    }

    /// The interfaces as they are now. One that is gone, or another one than was published, waits until it is.
    pub(crate) fn open_ports(&self) -> Vec<PortConfig> {
        let ports = self.spec.ports.iter();
        let known = ports.map(|port| PortConfig { name: port.name.clone(), ifindex: port.ifindex, mtu: port.mtu });
        let known: Vec<PortConfig> = known.collect();
        let present = present(&known);
        let is_there = |port: &PortConfig| present.contains(&(port.name.clone(), port.ifindex));
        known
            .into_iter()
            .map(|port| PortConfig { ifindex: if is_there(&port) { port.ifindex } else { 0 }, ..port })
            .collect()
    }

    /// The same table again, for another number of workers.
    pub(crate) fn recompile(&mut self, workers: usize) -> Snapshot {
        self.compiler.set_workers(workers);
        self.compiler.compile(&self.spec)
    }

    pub(crate) fn install(&mut self, guarded: &Guarded) -> Result<(), GuardError> {
        if self.guarded.as_ref() != Some(guarded) {
            let names: Vec<String> = guarded.interfaces.iter().map(|(name, _)| name.clone()).collect();
            self.guard.install(&names, &guarded.vips)?;
            self.guarded = Some(guarded.clone());
        }
        Ok(())
    }

    /// Puts the guard back if somebody has changed it.
    pub(crate) fn keep_guard(&mut self, ports: &[PortConfig], fares: &Guarding) {
        let Some(guarded) = self.guarded.clone() else { return };
        match self.guard.is_intact() {
            Ok(true) => {
                self.not_looked_at = 0;
                return fares.note(NOT_KEPT, Ok(()));
            }
            Ok(false) => self.not_looked_at = 0,
            // Somebody changes the ruleset at this moment, which is an event of its own.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            // It passes, or it lasts.
            Err(error) => {
                self.not_looked_at += 1;
                if self.not_looked_at == BLIND_LOOKS {
                    tracing::error!(%error, "the nftables table 'netdev lbd' cannot be looked at");
                }
                if self.not_looked_at >= BLIND_LOOKS {
                    fares.note(NOT_KEPT, Err(&format!("the nftables guard cannot be looked at: {error}")));
                }
                return;
            }
        }
        self.guarded = None;
        let restored = self.install(&Guarded { interfaces: present(ports), ..guarded.clone() });
        match &restored {
            Ok(()) => {
                fares.restored.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    "the nftables table 'netdev lbd' was changed or removed by another program, and is put back"
                );
            }
            Err(error) => {
                self.guarded = Some(guarded);
                if fares.problem().is_none() {
                    tracing::error!(%error, "the nftables table 'netdev lbd' was changed or removed, and cannot be put back");
                }
            }
        }
        fares.note(NOT_KEPT, restored.as_ref().copied().map_err(|error| error as _));
    }
}

/// The interfaces that exist, and their indexes.
fn present(ports: &[PortConfig]) -> Vec<(String, u32)> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None);
    let Ok(socket) = socket else { return ports.iter().map(|port| (port.name.clone(), 0)).collect() };
    let index = |name: &str| rustix::net::netdevice::name_to_index(&socket, name).ok();
    ports.iter().filter_map(|port| Some((port.name.clone(), index(&port.name)?))).collect()
}

/// What a panic has left behind is as good as before: nothing is changed in several steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
