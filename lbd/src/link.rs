//! The machine's interfaces, read over netlink.

use std::{net::IpAddr, time::Duration};

use futures::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _};
use lb_dataplane::{
    forward::spec::PortSpec,
    io::{PortConfig, segments_tcp},
    packet::Mac,
};
use lb_raft_store::table::{Attachment, Cidr, MacAddr, NodeId};
use rtnetlink::{
    Handle, MulticastGroup, new_connection, new_multicast_connection,
    packet_route::{
        address::AddressAttribute,
        link::{LinkAttribute, LinkFlags, LinkLayerType},
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
    #[error("dataplane.interfaces: {name} is down: ip link set dev {name} up")]
    Down { name: String },
    #[error("cannot read the interfaces: {0}")]
    Netlink(String),
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

impl Link {
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
            })
        };
        self.addresses.iter().filter(|_| self.carrier).filter_map(&mut attachment).collect()
    }
}

/// Reads the listed interfaces, in their order; each of them must be usable.
pub(crate) async fn read(names: &[String]) -> Result<Vec<Link>, LinkError> {
    read_each(names).await?.into_iter().collect()
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
    if let Some(master) = found.master {
        let master = all.iter().find(|link| link.index == master);
        return Err(LinkError::Enslaved { name, master: master.map_or_else(String::new, |m| m.name.clone()) });
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
