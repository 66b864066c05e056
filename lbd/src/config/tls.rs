//! `[tls]`: whether TCP is plain, and what may listen then.

use std::net::SocketAddr;

use super::{api::ApiListener, reader::Section};

/// Whether the listeners may go without TLS.
pub(super) fn read(tls: &mut Section) -> bool {
    for key in ["cert", "key", "ca"] {
        if tls.optional(key, |text| Ok(text.to_owned())).is_some() {
            tls.fault(
                key,
                "TLS is not supported yet: bind to loopback or the Unix socket, or set tls.insecure = true on a trusted \
                 network",
            );
        }
    }
    tls.flag("insecure")
}

/// Without TLS nothing listens beyond loopback, unless the operator wants it.
pub(super) fn check_exposed(cluster: (&mut Section, &[SocketAddr]), api: (&mut Section, &[ApiListener])) {
    let exposed = |address: &SocketAddr| !address.ip().is_loopback();
    let hint = "listens beyond loopback without TLS: set tls.insecure = true if the network is trusted";
    if let Some(address) = cluster.1.iter().find(|address| exposed(address)) {
        cluster.0.fault("listen", &format!("{address} {hint}"));
    }
    let tcp = |listener: &ApiListener| match listener {
        ApiListener::Tcp(address) if exposed(address) => Some(*address),
        _ => None,
    };
    if let Some(address) = api.1.iter().find_map(tcp) {
        api.0.fault("listen", &format!("{address} {hint}"));
    }
}
