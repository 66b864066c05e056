//! How often somebody was refused, and why. The log has a line for each; this is what alerts are made of.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use crate::events::Told;

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No certificate in time, or none that counts here.
    Certificate,
    /// A certificate that is no node's, where only nodes speak.
    NoNode,
    /// A node that speaks for another one, or that is none of this cluster.
    Impostor,
    /// The method needs another role.
    Role,
    /// A datagram where heartbeats come in that nobody with a key has signed, or not for this node.
    Datagram,
    /// As many calls of the kind were under way as this node takes, of all or of one.
    Busy,
    /// There were as many connections as are taken, of all or of one.
    Room,
}

impl Refusal {
    const ALL: [Self; 7] =
        [Self::Certificate, Self::NoNode, Self::Impostor, Self::Role, Self::Datagram, Self::Busy, Self::Room];

    fn label(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::NoNode => "no_node",
            Self::Impostor => "impostor",
            Self::Role => "role",
            Self::Datagram => "datagram",
            Self::Busy => "busy",
            Self::Room => "room",
        }
    }
}

/// The counts. Clones are handles to the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refusals(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    counts: [AtomicU64; Refusal::ALL.len()],
    told: Mutex<Told>,
}

impl Refusals {
    pub(crate) fn count(&self, why: Refusal) {
        self.0.counts[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Somebody was refused before it was known who he is. Who comes again and again has a line once in a while.
    pub(super) fn tell(&self, from: IpAddr, why: Refusal, reason: &dyn ToString) {
        self.count(why);
        let reason = reason.to_string();
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(times) = told.times(&format!("{from} {reason}"), Instant::now()) {
            tracing::info!(target: "audit", %from, reason, times, "a connection was refused");
        }
    }

    /// By reason.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Refusal::ALL.iter().map(|why| (why.label(), self.0.counts[*why as usize].load(Ordering::Relaxed)))
    }
}
