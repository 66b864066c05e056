//! What the two processes may do beyond an ordinary user: the working one keeps what it uses, its parent nothing. Started as
//! root, both become a user of their own.

mod calls;
mod user;

use rustix::{
    io,
    thread::{CapabilitySet, capabilities, set_capabilities, set_keep_capabilities, set_no_new_privs},
};

pub(crate) use calls::Programs;
pub(crate) use user::{User, UserError};

/// Packet sockets; the nftables guard and large buffers; real-time priority; locked memory.
const USED: CapabilitySet = CapabilitySet::NET_RAW
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::SYS_NICE)
    .union(CapabilitySet::IPC_LOCK);

fn used(programs: Programs) -> CapabilitySet {
    match programs {
        Programs::None => USED,
        Programs::Accelerator => USED.union(CapabilitySet::BPF),
    }
}

/// For the working process, before it has more threads than one.
pub(crate) fn become_user_with_what_is_used(user: &User, programs: Programs) -> Result<(), UserError> {
    set_keep_capabilities(true).map_err(UserError::Refused)?;
    user.enter()?;
    keep(used(programs)).map_err(UserError::Refused)
}

/// For the working process, before it has more threads than one.
pub(crate) fn keep_what_is_used(programs: Programs) -> Result<(), Box<dyn std::error::Error>> {
    set_no_new_privs(true)?;
    let kept = keep(used(programs));
    // Whatever became of that.
    calls::filter(programs)?;
    Ok(kept?)
}

/// For the parent, when the working process is started: it waits, and sends what it was given.
pub(crate) fn keep_nothing(user: Option<&User>) -> Result<(), UserError> {
    if let Some(user) = user {
        user.enter()?;
    }
    keep(CapabilitySet::empty()).map_err(UserError::Refused)
}

fn keep(wanted: CapabilitySet) -> io::Result<()> {
    let before = capabilities(None)?;
    let mut sets = before;
    sets.permitted = sets.permitted.intersection(wanted);
    sets.inheritable = sets.inheritable.intersection(wanted);
    // Becoming another user has put them out of effect.
    sets.effective = sets.permitted;
    // A unit that gives no more needs no call that its filter refuses.
    if sets == before { Ok(()) } else { set_capabilities(None, sets) }
}
