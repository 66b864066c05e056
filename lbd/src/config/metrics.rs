//! `[metrics]`.

use std::net::SocketAddr;

use super::{cluster::socket_address, reader::Section};

/// What monitoring gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Metrics {
    /// Where it is read.
    pub(crate) listen: SocketAddr,
    /// Whether each backend has series of its own.
    pub(crate) per_backend: bool,
}

/// Nothing if the section is absent. `taken`: what else listens by TCP.
pub(super) fn read(metrics: &mut Section, is_given: bool, taken: &[SocketAddr]) -> Option<Metrics> {
    if !is_given {
        return None;
    }
    let listen = metrics.required("listen", socket_address);
    if let Some(same) = listen.and_then(|listen| taken.iter().find(|taken| **taken == listen)) {
        metrics.fault("listen", &format!("{same} is listened to already: name another port"));
    }
    let per_backend = metrics.flag("per_backend", true);
    listen.map(|listen| Metrics { listen, per_backend })
}
