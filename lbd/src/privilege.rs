//! What the two processes may do beyond an ordinary user: the working one keeps what it uses, its parent nothing.

mod calls;

use rustix::{
    io,
    thread::{CapabilitySet, capabilities, set_capabilities, set_no_new_privs},
};

/// Packet sockets; the nftables guard and large buffers; real-time priority; locked memory.
const USED: CapabilitySet = CapabilitySet::NET_RAW
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::SYS_NICE)
    .union(CapabilitySet::IPC_LOCK);

/// For the working process, before it has more threads than one.
pub(crate) fn keep_what_is_used() -> Result<(), Box<dyn std::error::Error>> {
    set_no_new_privs(true)?;
    keep(USED)?;
    Ok(calls::filter()?)
}

/// For the parent, when the working process is started: it waits, and sends what it was given.
pub(crate) fn keep_nothing() -> io::Result<()> {
    keep(CapabilitySet::empty())
}

fn keep(wanted: CapabilitySet) -> io::Result<()> {
    let mut sets = capabilities(None)?;
    for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
        *set = set.intersection(wanted);
    }
    set_capabilities(None, sets)
}
