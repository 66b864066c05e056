//! `[cluster]`.

use std::{
    fmt::Display,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use lb_raft_store::table::{Name, check_cluster_address};

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
    let advertise = cluster.optional("advertise", |text| check_cluster_address(text).map(|()| text.to_owned()));
    let bootstrap = cluster.flag("bootstrap", false);
    refuse_twice(cluster, &listen);
    if advertise.is_none() && listen.first().is_some_and(|first| first.ip().is_unspecified()) {
        cluster
            .fault("advertise", "is required when listen is 0.0.0.0 or [::]: the address that other nodes can reach");
    }
    // A node that says one family and hears the other is reached by nobody.
    if let Some(address) = advertise.as_ref().and_then(|advertise| advertise.parse::<SocketAddr>().ok())
        && !listen.is_empty()
        && !listen.iter().any(|listen| listen.is_ipv4() == address.is_ipv4() || is_dual(listen))
    {
        cluster.fault("advertise", &format!("{address} is of another IP family than all of cluster.listen"));
    }
    let advertise = advertise.or_else(|| listen.first().map(ToString::to_string));
    let whole = cluster_name.zip(advertise);
    let whole = whole.map(|(name, advertise)| Cluster { name, listen: listen.clone(), advertise, bootstrap });
    (listen, whole)
}

/// Of several listeners each must be another one.
pub(super) fn refuse_twice<T: PartialEq + Display>(section: &mut Section, listen: &[T]) {
    for (at, address) in listen.iter().enumerate() {
        if listen[..at].contains(address) {
            section.fault("listen", &format!("{address} is listed twice"));
        }
    }
}

/// An address and a port at which others find this machine.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| {
        let hint = match text.parse::<Ipv6Addr>() {
            Ok(_) => ": an IPv6 address needs brackets and a port, as in \"[2001:db8::1]:7401\"",
            Err(_) => "",
        };
        format!("{text:?} is not an address and port such as \"10.77.1.1:7401\"{hint}")
    })?;
    match address.ip() {
        ip if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) => {
            Err(format!("{address} is the address of no single machine"))
        }
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            Err(format!("{address} is valid on one link only: use another address"))
        }
        _ if address.port() == 0 => Err(format!("{address}: port 0 is another one at each start; name one")),
        _ => Ok(address),
    }
}

/// An unspecified IPv6 address hears both families, unless the system says otherwise.
fn is_dual(listen: &SocketAddr) -> bool {
    listen.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
}
