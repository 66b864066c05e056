//! The guard: the node's own kernel must not answer, accept, forward, redirect or reset anything for a
//! VIP, whatever `ip_forward` says and even if somebody has put the VIP on the node's loopback. An
//! nftables table of our own at the ingress of each interface, behind the packet sockets' tap, drops
//! packets to the VIPs, and ARP requests and neighbour solicitations for them. It stays when the process crashes, is
//! replaced at the next start, and is removed at a graceful stop.
//!
//! Others change the ruleset too: `nft flush ruleset` is what a restart of Debian's nftables service does. Where the kernel
//! lets a table have an owner and outlive it (flags `owner` and `persist`, Linux 6.9), the table is that of a netlink
//! socket which the process that waits for this one holds, and nobody else changes it. On every kernel [`Keeper`] hears
//! of changes, looks each second, and puts back what is missing.
//!
//! Written over netlink in one transaction, so there is no moment with half a table.

mod error;
mod keeper;
mod messages;
mod netlink;
mod rules;

use std::{collections::BTreeSet, io, net::IpAddr, os::fd::OwnedFd};

use netlink_packet_netfilter::nftables::TableFlags;

pub use self::error::GuardError;
pub(crate) use self::keeper::Keeper;
use self::{
    netlink::{Contents, Netlink},
    rules::{Batch, OWNED, octets},
};

const NO_OWNER: TableFlags = TableFlags::empty();

/// Whose the guard's table is.
#[derive(Debug)]
pub enum Ownership {
    /// Of this socket, and of whoever else holds it: another process that outlives this one, which has got it from
    /// [`open_socket`].
    Of(OwnedFd),
    /// Of this process.
    Own,
    /// Nobody's, as on kernels before Linux 6.9: whoever changes the ruleset may take it away, and it is put back.
    Nobody,
}

impl Clone for Ownership {
    /// Of another descriptor of the same socket; where there is none to be had, of this process.
    fn clone(&self) -> Self {
        match self {
            Self::Of(socket) => socket.try_clone().map_or(Self::Own, Self::Of),
            Self::Own => Self::Own,
            Self::Nobody => Self::Nobody,
        }
    }
}

/// A socket that can own the guard's table.
pub fn open_socket() -> Result<OwnedFd, GuardError> {
    Netlink::open()
}

/// What the guard covers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    interfaces: Vec<String>,
    vips: Vec<IpAddr>,
}

impl Wanted {
    /// As they stand in the sets.
    fn addresses(&self) -> BTreeSet<Vec<u8>> {
        self.vips.iter().map(octets).collect()
    }
}

/// The guard of this network namespace.
pub struct Guard {
    netlink: Netlink,
    flags: TableFlags,
    /// `None` until it was first put in place.
    wanted: Option<Wanted>,
    /// What the kernel said after that; `None` until it has been read in whole.
    installed: Option<Contents>,
    /// The generation of the ruleset when all was last as it should be.
    generation: Option<u32>,
}

impl Guard {
    /// Makes sure that there is a table, and that we may change it; what a crash left behind stays in force.
    pub fn keep(ownership: Ownership) -> Result<Self, GuardError> {
        let flags = if matches!(ownership, Ownership::Nobody) { NO_OWNER } else { OWNED };
        let socket = match ownership {
            Ownership::Of(socket) => socket,
            Ownership::Own | Ownership::Nobody => open_socket()?,
        };
        let mut guard = Self { netlink: Netlink::new(socket), flags, wanted: None, installed: None, generation: None };
        // A table without an owner can get one only when it is made anew: its flags stay for now.
        guard.attempt(&[(flags, flags), (NO_OWNER, NO_OWNER)], |batch, _| batch.add_table())?;
        guard.flags = flags;
        Ok(guard)
    }

    /// Puts the guard in place, or replaces it.
    pub fn install(&mut self, interfaces: &[String], vips: &[IpAddr]) -> Result<(), GuardError> {
        let wanted = Wanted { interfaces: interfaces.to_vec(), vips: vips.to_vec() };
        self.attempt(&self.ways(), |batch, before| {
            batch.replace_table(before);
            batch.fill_table(&wanted.interfaces, &wanted.vips);
        })?;
        // Somebody may have changed it since: what is read must be what was wanted, and the next look reads it again.
        self.installed = self.netlink.read().ok().filter(|read| read.vips == wanted.addresses());
        self.generation = None;
        self.wanted = Some(wanted);
        Ok(())
    }

    /// Whether the table is as it was put in place. Before that nothing is missing.
    pub fn is_intact(&mut self) -> io::Result<bool> {
        let Some(wanted) = &self.wanted else { return Ok(true) };
        let generation = self.netlink.generation()?;
        if self.generation == Some(generation) {
            return Ok(true);
        }
        let now = self.netlink.read()?;
        let intact = now.vips == wanted.addresses() && self.installed.as_ref().is_none_or(|before| *before == now);
        if intact {
            self.generation = Some(generation);
            self.installed = Some(now);
        }
        Ok(intact)
    }

    /// Takes the guard away.
    pub fn remove(&mut self) -> Result<(), GuardError> {
        self.wanted = None;
        // Creating what may be there and deleting it never fails, whether it was there or not.
        self.attempt(&self.ways(), |batch, before| {
            batch.add_table_with(before);
            batch.delete_table();
        })
    }

    /// The flags that the table may have now, and those that it shall have: in this order ours, a table that an earlier
    /// version has made without an owner, and a kernel without owners.
    fn ways(&self) -> [(TableFlags, TableFlags); 3] {
        [(self.flags, self.flags), (NO_OWNER, self.flags), (NO_OWNER, NO_OWNER)]
    }

    /// Carries a transaction out in the first of these ways that the kernel supports.
    fn attempt(
        &mut self,
        ways: &[(TableFlags, TableFlags)],
        fill: impl Fn(&mut Batch, TableFlags),
    ) -> Result<(), GuardError> {
        let mut outcome = Ok(());
        for (before, flags) in ways {
            let mut batch = Batch::new(*flags);
            fill(&mut batch, *before);
            outcome = self.netlink.transact(&batch.finish());
            match &outcome {
                Err(error) if error.is_unsupported() => {}
                Err(_) => break,
                Ok(()) => {
                    self.flags = *flags;
                    break;
                }
            }
        }
        outcome
    }

    /// Whether nobody else can change it.
    pub fn is_owned(&self) -> bool {
        !self.flags.is_empty()
    }
}
