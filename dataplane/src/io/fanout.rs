//! PACKET_FANOUT (packet(7)): the sockets of several workers on one interface form a group, and a program picks for
//! each frame the one that gets it: the same that [`Steering`] names. Without PACKET_FANOUT_FLAG_DEFRAG, which would
//! put fragments together and so change packets.

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    cbpf::{Instruction, filter, steering::program},
    sys::socket::{PacketSocket, PortConfig, SocketError},
};
use crate::forward::steering::{SPEAKER, Steering};

/// The groups of a dataplane's sockets, one for each interface. Sockets are told apart by their place in the group,
/// which is that of their joining: so workers open theirs one after the other, the speaker first. When it founds the
/// groups anew, all others follow.
pub(crate) struct Fanout {
    program: Vec<Instruction>,
    groups: Mutex<Groups>,
    /// How often they were founded.
    foundings: AtomicU64,
    /// A worker wants them to be founded anew.
    is_asked: AtomicBool,
}

#[derive(Default)]
struct Groups {
    /// What they were made for: the index and the MTU of each interface.
    made_for: Vec<(u32, u32)>,
    /// None for an interface that is gone.
    ids: Vec<Option<u16>>,
    /// Workers whose sockets are in.
    joined: usize,
}

impl Fanout {
    /// For the sockets of one set of workers.
    pub(crate) fn new(steering: Steering) -> Arc<Self> {
        Arc::new(Self {
            program: program(steering),
            groups: Mutex::default(),
            foundings: AtomicU64::new(0),
            is_asked: AtomicBool::new(false),
        })
    }
}

/// A worker's place among those that share the frames of the same interfaces.
#[derive(Clone)]
pub(crate) struct Share {
    worker: usize,
    /// `None` for a worker that is alone.
    fanout: Option<Arc<Fanout>>,
    /// The founding of the groups that its sockets are in.
    joined: Cell<u64>,
}

impl Share {
    pub(crate) fn new(worker: usize, fanout: Option<Arc<Fanout>>) -> Self {
        Self { worker, fanout, joined: Cell::new(0) }
    }

    /// Whether this worker speaks for the node.
    pub(super) fn is_speaker(&self) -> bool {
        self.worker == SPEAKER
    }

    /// Whether this worker's sockets are to be opened anew, because another one's were or shall be: a group of which
    /// some have gone gives the others what is not theirs.
    pub(crate) fn is_outdated(&self) -> bool {
        self.fanout.as_ref().is_some_and(|fanout| match self.worker {
            SPEAKER => fanout.is_asked.load(Ordering::Acquire),
            _ => fanout.foundings.load(Ordering::Acquire) != self.joined.get(),
        })
    }

    /// Has all workers open their sockets anew.
    pub(crate) fn ask_anew(&self) {
        if let Some(fanout) = &self.fanout {
            fanout.is_asked.store(true, Ordering::Release);
        }
    }

    /// Begins to open a worker's sockets; the others wait meanwhile.
    pub(super) fn open<'a>(
        &'a self,
        ports: &[PortConfig],
        filter: &'a [Instruction],
    ) -> Result<Opening<'a>, NotInTurn> {
        let Some(fanout) = &self.fanout else { return Ok(Opening { filter, joining: None }) };
        let mut groups = fanout.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let made_for: Vec<(u32, u32)> = ports.iter().map(|port| (port.ifindex, port.mtu)).collect();
        if self.worker == SPEAKER {
            *groups = Groups { made_for, ..Groups::default() };
            fanout.is_asked.store(false, Ordering::Release);
            fanout.foundings.fetch_add(1, Ordering::AcqRel);
        } else if groups.made_for != made_for || groups.joined != self.worker {
            return Err(NotInTurn);
        }
        Ok(Opening { filter, joining: Some(Joining { groups, share: self, fanout }) })
    }
}

/// The workers before this one have not opened their sockets yet.
#[derive(Debug)]
pub(super) struct NotInTurn;

/// The receivers of one worker, while they are opened.
pub(super) struct Opening<'a> {
    filter: &'a [Instruction],
    joining: Option<Joining<'a>>,
}

struct Joining<'a> {
    groups: MutexGuard<'a, Groups>,
    share: &'a Share,
    fanout: &'a Fanout,
}

impl Opening<'_> {
    /// A socket that receives nothing yet.
    pub(super) fn receiver(&self, port: &PortConfig, buffer_bytes: libc::c_int) -> Result<PacketSocket, SocketError> {
        // Between binding and joining it would get what is for others.
        let filter = if self.joining.is_some() { &[filter::REJECT] } else { self.filter };
        PacketSocket::receiver(port, filter, buffer_bytes)
    }

    /// Makes it receive its worker's frames; called for one interface after the other. Nothing comes from one that is
    /// gone.
    pub(super) fn bind(&mut self, socket: &PacketSocket, port: &PortConfig) -> Result<(), SocketError> {
        socket.bind_all(port)?;
        let Some(Joining { groups, share, fanout }) = &mut self.joining else { return Ok(()) };
        if share.worker == SPEAKER {
            let id = (!port.is_gone()).then(|| socket.found_group(&fanout.program)).transpose()?;
            groups.ids.push(id);
        } else {
            let at = groups.made_for.iter().position(|(ifindex, _)| *ifindex == port.ifindex);
            let id = at.and_then(|at| *groups.ids.get(at)?);
            id.map(|id| socket.join_group(id)).transpose()?;
        }
        socket.attach(self.filter).map_err(|error| socket.error("attaching the filter", error))
    }

    /// All sockets of this worker are open: it is the next one's turn.
    pub(super) fn done(self) {
        if let Some(Joining { mut groups, share, fanout }) = self.joining {
            groups.joined = share.worker + 1;
            // The lock is held: nobody has founded others meanwhile.
            share.joined.set(fanout.foundings.load(Ordering::Acquire));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_one_worker_opens_its_sockets_anew_all_others_follow() {
        let fanout = Fanout::new(Steering::new(3, 7));
        let shares = [0, 1, 2].map(|worker| Share::new(worker, Some(fanout.clone())));
        let port = |mtu| [PortConfig { name: "eth0".into(), ifindex: 2, mtu }];
        let open = |worker: usize, mtu| shares[worker].open(&port(mtu), &[]).map(Opening::done);
        let outdated = || shares.each_ref().map(Share::is_outdated);
        assert!(matches!(open(1, 1500), Err(NotInTurn)), "the speaker is the first");
        for worker in 0..3 {
            open(worker, 1500).unwrap();
        }
        assert_eq!(outdated(), [false; 3]);
        // Another MTU, which is the old one again before all have followed.
        open(0, 9000).unwrap();
        assert!(matches!(open(1, 1500), Err(NotInTurn)));
        assert_eq!(outdated(), [false, true, true]);
        for worker in 0..3 {
            open(worker, 1500).unwrap();
        }
        assert_eq!(outdated(), [false; 3]);
        // Any of them can ask for it.
        shares[2].ask_anew();
        assert_eq!(outdated(), [true, false, false]);
        open(0, 1500).unwrap();
        assert_eq!(outdated(), [false, true, true]);
        assert!(matches!(open(2, 1500), Err(NotInTurn)), "one after the other");
        open(1, 1500).unwrap();
        open(2, 1500).unwrap();
        assert_eq!(outdated(), [false; 3]);
    }
}
