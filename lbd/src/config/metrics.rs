//! `[metrics]`.

use std::net::SocketAddr;

use super::{cluster::socket_address, reader::Section};

/// Where the metrics are read; nowhere if the section is absent. `taken`: what else listens by TCP.
pub(super) fn read(metrics: &mut Section, is_given: bool, taken: &[SocketAddr]) -> Option<SocketAddr> {
    let listen = match is_given {
        true => metrics.required("listen", socket_address),
        false => None,
    };
    if let Some(same) = listen.and_then(|listen| taken.iter().find(|taken| **taken == listen)) {
        metrics.fault("listen", &format!("{same} is listened to already: name another port"));
    }
    listen
}
