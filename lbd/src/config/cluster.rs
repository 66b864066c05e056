//! `[cluster]`.

use std::net::SocketAddr;

use lb_raft_store::table::Name;

use super::reader::Section;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cluster {
    pub(crate) name: Name,
    /// Raft on the first; the others are for heartbeats.
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) advertise: String,
    pub(crate) bootstrap: bool,
}

/// The listeners, and all of it where it has no fault.
pub(super) fn read(cluster: &mut Section) -> (Vec<SocketAddr>, Option<Cluster>) {
    let cluster_name = cluster
        .optional("name", |text| text.parse::<Name>().map_err(|error| error.to_string()))
        .or_else(|| "lb".parse().ok());
    let listen = cluster.list("listen", socket_address);
    if listen.is_empty() && !cluster.has_fault("listen") {
        cluster.fault(
            "listen",
            "is required: the address at which the other nodes reach this one, such as \"10.77.1.1:7401\"",
        );
    }
    let advertise = cluster.optional("advertise", host_and_port);
    let bootstrap = cluster.flag("bootstrap");
    for (at, address) in listen.iter().enumerate() {
        if listen[..at].contains(address) {
            cluster.fault("listen", &format!("{address} is listed twice"));
        }
    }
    if advertise.is_none() && listen.first().is_some_and(|first| first.ip().is_unspecified()) {
        cluster
            .fault("advertise", "is required when listen is 0.0.0.0 or [::]: the address that other nodes can reach");
    }
    let advertise = advertise.or_else(|| listen.first().map(ToString::to_string));
    let whole = cluster_name.zip(advertise);
    let whole = whole.map(|(name, advertise)| Cluster { name, listen: listen.clone(), advertise, bootstrap });
    (listen, whole)
}

pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an address and port such as \"10.77.1.1:7401\""))
}

fn host_and_port(text: &str) -> Result<String, String> {
    let sound = |(host, port): (&str, &str)| {
        let unspecified = ["0.0.0.0", "[::]"].contains(&host);
        !host.is_empty() && !unspecified && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    if text.rsplit_once(':').is_some_and(sound) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not HOST:PORT, as other nodes can reach it"))
    }
}
