//! The machine's interfaces, read over netlink.

use std::{net::IpAddr, time::Duration};

use futures::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _};
use lb_dataplane::{
    forward::spec::PortSpec,
    io::{PortConfig, segments_tcp},
    packet::Mac,
};
use lb_raft_store::table::{Attachment, Cidr, MacAddr, NodeId, Silence};
use rtnetlink::{
    Handle, MulticastGroup, new_connection, new_multicast_connection,
    packet_route::{
        address::AddressAttribute,
        link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType},
    },
};
use tokio::{
    sync::watch,
    task::{AbortHandle, spawn_blocking},
    time::{MissedTickBehavior, interval, timeout},
};

use crate::task::AbortOnDrop;

/// Between two looks without a change.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// For the kernel to list all interfaces and addresses.
const ANSWER: Duration = Duration::from_secs(5);

/// Why a listed interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("dataplane.interfaces: there is no interface {name:?}; this machine has: {}", present.join(", "))]
    Absent { name: String, present: Vec<String> },
    #[error("dataplane.interfaces: {name} is a port of {master}: list {master} instead")]
    Enslaved { name: String, master: String },
    #[error("dataplane.interfaces: {name} is not an Ethernet interface")]
    NotEthernet { name: String },
    #[error("dataplane.interfaces: {name} is a VRF, which has no segment: list its members instead")]
    Vrf { name: String },
    #[error("dataplane.interfaces: {name} is down: ip link set dev {name} up")]
    Down { name: String },
    #[error("cannot read the interfaces: {0}")]
    Netlink(String),
}

impl LinkError {
    /// It is the machine that may change, not the configuration: an interface that comes up later, or a file that is checked
    /// on another machine.
    pub(crate) fn is_of_the_moment(&self) -> bool {
        matches!(self, Self::Absent { .. } | Self::Down { .. } | Self::Netlink(_))
    }
}

impl From<rtnetlink::Error> for LinkError {
    fn from(error: rtnetlink::Error) -> Self {
        Self::Netlink(error.to_string())
    }
}

/// A listed interface as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) name: String,
    /// 0 while it is gone.
    pub(crate) ifindex: u32,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
    /// Without it the node is not on the segment.
    pub(crate) carrier: bool,
    /// Whether it segments TCP GSO frames itself.
    pub(crate) segments: bool,
    /// The node's own addresses on it, with the lengths of their prefixes.
    pub(crate) addresses: Vec<(IpAddr, u8)>,
}

/// Whether an address is in the network of an interface's own one.
pub(crate) fn is_beside((own, len): (IpAddr, u8), address: IpAddr) -> bool {
    Cidr::containing(own, len).is_some_and(|network| network.contains(address))
}

impl Link {
    /// Whether an address is in the network of one of its own.
    pub(crate) fn is_on(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| is_beside(*own, address))
    }

    /// One that is well, for tests.
    #[cfg(test)]
    pub(crate) fn sample(name: &str, addresses: &[&str]) -> Self {
        let address = |text: &&str| {
            let (address, len) = text.split_once('/').expect("an address with its prefix's length");
            (address.parse().expect("an address"), len.parse().expect("a length"))
        };
        Self {
            name: name.into(),
            ifindex: 2,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            carrier: true,
            segments: true,
            addresses: addresses.iter().map(address).collect(),
        }
    }

    pub(crate) fn port_config(&self) -> PortConfig {
        PortConfig { name: self.name.clone(), ifindex: self.ifindex, mtu: self.mtu }
    }

    pub(crate) fn port_spec(&self) -> PortSpec {
        PortSpec {
            name: self.name.clone(),
            ifindex: self.ifindex,
            mac: self.mac,
            mtu: self.mtu,
            carrier: self.carrier,
            segments: self.segments,
            addresses: self.addresses.clone(),
        }
    }

    /// What the node publishes of it: nothing without a carrier. `hears` says who is heard on a segment.
    pub(crate) fn attachments(&self, mut hears: impl FnMut(Cidr) -> Vec<NodeId>) -> Vec<Attachment> {
        let mut attachment = |(address, prefix_len): &(IpAddr, u8)| {
            Some(Attachment {
                interface: self.name.clone(),
                mac: MacAddr::try_from(self.mac.0).ok()?,
                address: *address,
                prefix_len: *prefix_len,
                hears: Cidr::containing(*address, *prefix_len).map(&mut hears).unwrap_or_default(),
                silence: Silence::None,
                gateway_silence: Silence::None,
            })
        };
        self.addresses.iter().filter(|_| self.carrier).filter_map(&mut attachment).collect()
    }
}

/// Reads the listed interfaces, in their order; each of them must be usable.
pub(crate) async fn read(names: &[String]) -> Result<Vec<Link>, LinkError> {
    read_each(names).await?.into_iter().collect()
}

/// Why the listed interfaces cannot be used on this machine, as [`read`] would say; without a running runtime.
pub(crate) fn problems(names: &[String]) -> Vec<LinkError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let read = runtime.map_err(|error| LinkError::Netlink(error.to_string()));
    match read.and_then(|runtime| runtime.block_on(read_each(names))) {
        Ok(links) => links.into_iter().filter_map(Result::err).collect(),
        Err(error) => vec![error],
    }
}

/// Keeps `links` as they are: at each change, and every second, so that a missed one heals. Runs until it is aborted.
///
/// On its own, because the kernel may let a reader wait for seconds (its lock on all links is also taken to tear
/// namespaces down), and the table must not wait for that.
pub(crate) async fn follow(links: watch::Sender<Vec<Link>>) {
    let (_driver, mut changes) = match changes() {
        Ok((driver, changes)) => (Some(AbortOnDrop(driver)), changes.left_stream()),
        Err(error) => {
            tracing::warn!(%error, "changes of the interfaces are noticed late");
            (None, futures::stream::pending().right_stream())
        }
    };
    let mut look_again = interval(LOOK_AGAIN);
    look_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // All that have gathered come to one look.
            Some(()) = changes.next() => while changes.next().now_or_never().flatten().is_some() {},
            _ = look_again.tick() => {}
        }
        let mut now = links.borrow().clone();
        refresh(&mut now).await;
        links.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
    }
}

/// Reads them again. One that cannot be used now stays as it was, without a carrier.
async fn refresh(links: &mut [Link]) {
    let names: Vec<String> = links.iter().map(|link| link.name.clone()).collect();
    match read_each(&names).await {
        Ok(read) => {
            for (link, now) in links.iter_mut().zip(read) {
                match now {
                    Ok(now) => {
                        match (link.carrier, now.carrier) {
                            (true, false) => {
                                tracing::warn!(interface = link.name, "the carrier is lost: is the cable plugged in?")
                            }
                            (false, true) => tracing::info!(interface = link.name, "the carrier is back"),
                            _ => {}
                        }
                        *link = now;
                    }
                    Err(error) => {
                        if link.carrier {
                            tracing::warn!(%error, "an interface is lost");
                        }
                        link.carrier = false;
                        // What is only down keeps its index, and its sockets.
                        if !matches!(error, LinkError::Down { .. }) {
                            link.ifindex = 0;
                        }
                    }
                }
            }
        }
        Err(error) => tracing::warn!(%error, "the interfaces cannot be read"),
    }
}

/// A message for each change of a link or an address, whichever.
fn changes() -> Result<(AbortHandle, impl Stream<Item = ()> + Unpin), LinkError> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, _, messages) =
        new_multicast_connection(&groups).map_err(|error| LinkError::Netlink(error.to_string()))?;
    Ok((tokio::spawn(connection).abort_handle(), messages.map(drop)))
}

async fn read_each(names: &[String]) -> Result<Vec<Result<Link, LinkError>>, LinkError> {
    let (connection, handle, _) = new_connection().map_err(|error| LinkError::Netlink(error.to_string()))?;
    let driver = tokio::spawn(connection);
    let links = timeout(ANSWER, read_with(&handle, names)).await;
    driver.abort();
    links.unwrap_or_else(|_| Err(LinkError::Netlink("the kernel does not answer".into())))
}

async fn read_with(handle: &Handle, names: &[String]) -> Result<Vec<Result<Link, LinkError>>, LinkError> {
    let mut all = Vec::new();
    let mut links = handle.link().get().execute();
    while let Some(message) = links.try_next().await? {
        let mut found = Found { index: message.header.index, ..Found::default() };
        found.ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        found.up = message.header.flags.contains(LinkFlags::Up);
        found.carrier = message.header.flags.contains(LinkFlags::LowerUp);
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => found.name = name,
                LinkAttribute::Mtu(mtu) => found.mtu = mtu,
                LinkAttribute::Controller(master) => found.master = Some(master),
                // It takes only the routing of its members over (Documentation/networking/vrf.rst).
                LinkAttribute::LinkInfo(info) => found.is_vrf = info.contains(&LinkInfo::Kind(InfoKind::Vrf)),
                LinkAttribute::Address(mac) => found.mac = mac.try_into().ok().map(Mac),
                _ => {}
            }
        }
        all.push(found);
    }
    let mut addresses: Vec<(u32, IpAddr, u8)> = Vec::new();
    let mut stream = handle.address().get().execute();
    while let Some(message) = stream.try_next().await? {
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let address = local.or_else(|| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        });
        if let Some(address) = address {
            addresses.push((message.header.index, address, message.header.prefix_len));
        }
    }
    let asked = names.to_vec();
    // The kernel may let this wait, too. What is not known is nothing to complain of.
    let ask = move || asked.iter().map(|name| segments_tcp(name).unwrap_or(true)).collect();
    let segments: Vec<bool> = spawn_blocking(ask).await.map_err(|error| LinkError::Netlink(error.to_string()))?;
    let resolved = names.iter().zip(segments).map(|(name, segments)| resolve(name, &all, &addresses, segments));
    Ok(resolved.collect())
}

#[derive(Default)]
struct Found {
    index: u32,
    name: String,
    mac: Option<Mac>,
    mtu: u32,
    master: Option<u32>,
    is_vrf: bool,
    ethernet: bool,
    up: bool,
    carrier: bool,
}

fn resolve(name: &str, all: &[Found], addresses: &[(u32, IpAddr, u8)], segments: bool) -> Result<Link, LinkError> {
    let name = name.to_owned();
    let Some(found) = all.iter().find(|link| link.name == name) else {
        let present = all.iter().map(|link| link.name.clone()).collect();
        return Err(LinkError::Absent { name, present });
    };
    let master = found.master.map(|master| all.iter().find(|link| link.index == master));
    if let Some(master) = master.filter(|master| !master.is_some_and(|master| master.is_vrf)) {
        return Err(LinkError::Enslaved { name, master: master.map_or_else(String::new, |m| m.name.clone()) });
    }
    if found.is_vrf {
        return Err(LinkError::Vrf { name });
    }
    let Some(mac) = found.mac.filter(|mac| found.ethernet && mac.is_host()) else {
        return Err(LinkError::NotEthernet { name });
    };
    if !found.up {
        return Err(LinkError::Down { name });
    }
    // Link-local addresses are on every segment and tell nothing about it.
    let ours = addresses.iter().filter(|(index, address, _)| {
        *index == found.index && !matches!(address, IpAddr::V6(a) if a.is_unicast_link_local())
    });
    let mut addresses: Vec<(IpAddr, u8)> = ours.map(|(_, address, len)| (*address, *len)).collect();
    addresses.sort_unstable();
    Ok(Link { name, ifindex: found.index, mac, mtu: found.mtu, carrier: found.carrier, segments, addresses })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(index: u32, name: &str, master: Option<u32>) -> Found {
        let mac = Some(Mac([2, 0, 0, 0, 0, index as u8]));
        let (name, mtu) = (name.to_owned(), 1500);
        Found { index, name, mac, mtu, master, is_vrf: false, ethernet: true, up: true, carrier: true }
    }

    fn outcome(all: &[Found], name: &str) -> String {
        let addresses = [(3, IpAddr::from([192, 0, 2, 1]), 24)];
        match resolve(name, all, &addresses, true) {
            Ok(link) => format!("{} addresses", link.addresses.len()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_member_of_a_vrf_keeps_its_addresses_and_a_port_of_anything_else_does_not() {
        let red = Found { is_vrf: true, ..found(1, "red", None) };
        let all = [
            red,
            found(2, "bond0", None),
            found(3, "eth0", Some(1)),
            found(4, "eth1", Some(2)),
            found(5, "eth2", None),
        ];
        assert_eq!(outcome(&all, "eth0"), "1 addresses");
        assert!(outcome(&all, "eth1").ends_with("eth1 is a port of bond0: list bond0 instead"));
        assert_eq!(outcome(&all, "eth2"), "0 addresses");
        assert!(outcome(&all, "red").ends_with("list its members instead"));
        // A master that is gone, or in another network namespace.
        assert!(outcome(&[found(4, "eth1", Some(9))], "eth1").contains("eth1 is a port of"));
    }

    #[test]
    fn what_passes_and_what_does_not() {
        let down = Found { up: false, ..found(1, "eth0", None) };
        let problem = |all: &[Found], name| resolve(name, all, &[], true).err().map(|error| error.is_of_the_moment());
        assert_eq!(problem(&[down], "eth0"), Some(true));
        assert_eq!(problem(&[], "eth0"), Some(true));
        assert_eq!(problem(&[found(4, "eth1", Some(9))], "eth1"), Some(false));
        assert_eq!(problem(&[Found { ethernet: false, ..found(4, "tun0", None) }], "tun0"), Some(false));
    }
}
