//! Segments (bridges in one switch namespace) and hosts attached to them.

use std::{
    cell::Cell,
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures::TryStreamExt as _;
use lb_dataplane::packet::Mac;
use rtnetlink::{
    LinkBridge, LinkBridgePort, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        IpProtocol,
        address::{AddressAttribute, AddressFlags},
        link::BridgeStpState,
        neighbour::{NeighbourAddress, NeighbourAttribute},
        rule::{RuleAction, RuleAttribute, RulePortRange},
    },
};

use crate::{
    cluster::accelerated,
    distance::Distance,
    netns::{Namespace, index_of},
    sys::reference,
};

/// All segments of a test, and the ports of their hosts.
pub struct Network {
    switch: Namespace,
    next: Cell<u16>,
    /// Whatever its hosts send leaves them with whole checksums.
    completes_checksums: bool,
}

/// Which way a cable is cut, seen from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// It is whole.
    None,
    /// The host sends, and hears nothing.
    Deaf,
    /// The host hears, and nothing that it sends arrives.
    Mute,
    /// Nothing passes in either direction.
    Silent,
}

/// What travels between the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Their heartbeats, over UDP.
    Heartbeats,
    /// Everything else, over TCP.
    Raft,
}

/// The cluster port of all nodes.
const CLUSTER_PORT: u16 = 7401;

/// A machine.
pub struct Host {
    /// Its name, for messages.
    pub name: String,
    /// Where it is.
    pub ns: Namespace,
    ports: std::cell::RefCell<BTreeMap<String, Port>>,
}

/// An interface of a host, and the switch's end of its cable.
#[derive(Debug, Clone)]
pub struct Port {
    /// The host's MAC address.
    pub mac: Mac,
    /// The switch's interface.
    pub switch_port: String,
}

impl Network {
    /// A switch without segments.
    pub fn new() -> io::Result<Self> {
        let switch = Namespace::new()?;
        // Else the bridge hands frames to iptables, which eats the hostile ones before they arrive.
        for table in ["iptables", "ip6tables", "arptables"] {
            switch.sysctl(&format!("bridge.bridge-nf-call-{table}"), "0", true)?;
        }
        switch.sysctl("ipv6.conf.all.disable_ipv6", "1", true)?;
        switch.sysctl("ipv6.conf.default.disable_ipv6", "1", true)?;
        Ok(Self { switch, next: Cell::new(1), completes_checksums: false })
    }

    /// The same, for accelerators: its hosts send whole checksums, as those do that are on other machines.
    pub fn for_engine(engine: &str) -> io::Result<Self> {
        let completes_checksums = accelerated(engine).1 != "off";
        Ok(Self { completes_checksums, ..Self::new()? })
    }

    /// The switch, to capture at its ports.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// Makes a segment.
    pub fn segment(&self, name: &str) -> io::Result<()> {
        self.switch.netlink(async |handle| {
            let bridge = LinkBridge::new(name).stp_state(BridgeStpState::Disabled).mcast_snooping(false).up();
            handle.link().add(bridge.build()).execute().await
        })
    }

    /// A machine that is attached to nothing yet.
    pub fn host(&self, name: &str) -> io::Result<Host> {
        let ns = Namespace::new()?;
        for interface in ["all", "default"] {
            ns.sysctl(&format!("ipv6.conf.{interface}.disable_ipv6"), "1", true)?;
            ns.sysctl(&format!("ipv4.conf.{interface}.rp_filter"), "0", false)?;
        }
        Ok(Host { name: name.to_owned(), ns, ports: std::cell::RefCell::default() })
    }

    /// Lays a cable from a new interface of a host to a segment.
    pub fn attach(&self, host: &Host, interface: &str, segment: &str, addresses: &[&str]) -> io::Result<Mac> {
        let number = self.next.get();
        self.next.set(number + 1);
        let [high, low] = number.to_be_bytes();
        let mac = Mac([2, 0, 0, 0, high, low]);
        let switch_port = format!("p{number}");
        let switch_fd = self.switch.fd_for_netlink();
        host.ns.netlink(async |handle| {
            handle.link().add(LinkVeth::new(interface, &switch_port).build()).execute().await?;
            let near = index_of(&handle, interface).await?;
            let far = index_of(&handle, &switch_port).await?;
            handle.link().set(LinkUnspec::new_with_index(far).setns_by_fd(switch_fd).build()).execute().await?;
            let near = LinkUnspec::new_with_index(near).address(mac.0.to_vec()).up();
            handle.link().set(near.build()).execute().await
        })?;
        self.switch.netlink(async |handle| {
            let bridge = index_of(&handle, segment).await?;
            let port = index_of(&handle, &switch_port).await?;
            handle.link().set(LinkUnspec::new_with_index(port).controller(bridge).up().build()).execute().await
        })?;
        if self.completes_checksums {
            host.ns.enter(|| reference::complete_checksums(interface, true))?;
        }
        for address in addresses {
            host.add_address(interface, address)?;
        }
        host.ports.borrow_mut().insert(interface.to_owned(), Port { mac, switch_port });
        Ok(mac)
    }

    /// Cuts a cable without anybody seeing its carrier go, in one direction or in both; or mends it.
    pub fn cut(&self, host: &Host, interface: &str, cut: Cut) -> io::Result<()> {
        let switch_port = host.port(interface).switch_port;
        let (hears, speaks) = match cut {
            Cut::None => (true, true),
            Cut::Deaf => (false, true),
            Cut::Mute => (true, false),
            Cut::Silent => (false, false),
        };
        self.switch.netlink(async |handle| {
            let port = index_of(&handle, &switch_port).await?;
            // A port that learns no addresses hears only what is flooded; a locked one lets by only what comes
            // from addresses that were learnt on it.
            let port = LinkBridgePort::new(port)
                .learning(hears && speaks)
                .flood(hears)
                .bcast_flood(hears)
                .mcast_flood(hears)
                .locked(!speaks)
                .fdb_flush();
            handle.link().set_port(port.build()).execute().await
        })
    }

    /// Separates a host's port from all other separated ones of its segment, and from nobody else.
    pub fn isolate(&self, host: &Host, interface: &str, isolated: bool) -> io::Result<()> {
        let switch_port = host.port(interface).switch_port;
        self.switch.netlink(async |handle| {
            let port = LinkBridgePort::new(index_of(&handle, &switch_port).await?).isolated(isolated);
            handle.link().set_port(port.build()).execute().await
        })
    }

    /// Makes a cable as long as it takes for each frame to be under way for `by`, in either direction, until the result is
    /// dropped.
    pub fn lengthen(&self, host: &Host, interface: &str, segment: &str, by: Duration) -> io::Result<Distance> {
        let near = host.port(interface).switch_port;
        let (far, inside) = (format!("{near}far"), format!("{near}in"));
        let ends = self.switch.netlink(async |handle| {
            handle.link().add(LinkVeth::new(&far, &inside).build()).execute().await?;
            let bridge = index_of(&handle, segment).await?;
            let near = index_of(&handle, &near).await?;
            let (far, inside) = (index_of(&handle, &far).await?, index_of(&handle, &inside).await?);
            handle.link().set(LinkUnspec::new_with_index(near).nocontroller().build()).execute().await?;
            handle.link().set(LinkUnspec::new_with_index(far).controller(bridge).up().build()).execute().await?;
            handle.link().set(LinkUnspec::new_with_index(inside).up().build()).execute().await?;
            Ok((near, inside))
        })?;
        self.switch.enter(|| Distance::between(ends.0, ends.1, by))
    }

    /// Unplugs or plugs the switch's end of a cable: the host sees its carrier go or come.
    pub fn plug(&self, host: &Host, interface: &str, plugged: bool) -> io::Result<()> {
        self.switch.set_up(&host.port(interface).switch_port, plugged)
    }
}

impl Host {
    /// Leaves checksums and segments of what it sends to hardware.
    pub fn leave_checksums(&self) -> io::Result<()> {
        let interfaces: Vec<String> = self.ports.borrow().keys().cloned().collect();
        self.ns.enter(|| interfaces.iter().try_for_each(|name| reference::complete_checksums(name, false)))
    }

    /// An interface of this host.
    pub fn port(&self, interface: &str) -> Port {
        self.ports.borrow()[interface].clone()
    }

    /// Gives an interface an address, such as `192.0.2.1/24`.
    pub fn add_address(&self, interface: &str, address: &str) -> io::Result<()> {
        let (address, len) = parse_cidr(address)?;
        self.ns.netlink(async |handle| {
            let index = index_of(&handle, interface).await?;
            let mut request = handle.address().add(index, address, len);
            if address.is_ipv6() {
                // Without duplicate detection it can be bound to at once; with it only some time later, even where
                // nobody is asked.
                request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            request.execute().await
        })
    }

    /// Takes an address from an interface.
    pub fn remove_address(&self, interface: &str, address: IpAddr) -> io::Result<()> {
        self.ns.netlink(async |handle| {
            let index = index_of(&handle, interface).await?;
            let mut found = handle.address().get().set_link_index_filter(index).set_address_filter(address).execute();
            while let Some(message) = found.try_next().await? {
                handle.address().del(message).execute().await?;
            }
            Ok(())
        })
    }

    /// Keeps what a node sends to the others on one of their lanes from leaving, or lets it out again.
    pub fn block(&self, lane: Lane, blocked: bool) -> io::Result<()> {
        let protocol = match lane {
            Lane::Heartbeats => IpProtocol::Udp,
            Lane::Raft => IpProtocol::Tcp,
        };
        let ports = RulePortRange { start: CLUSTER_PORT, end: CLUSTER_PORT };
        // What it asks, and what it answers.
        let sides = [(11, RuleAttribute::DestinationPortRange(ports)), (12, RuleAttribute::SourcePortRange(ports))];
        self.ns.netlink(async |handle| {
            for (priority, side) in sides {
                let mut rule = handle.rule().add().v4().priority(priority).action(RuleAction::Blackhole);
                rule.message_mut().attributes.extend([RuleAttribute::IpProtocol(protocol), side]);
                let message = rule.message_mut().clone();
                match blocked {
                    true => rule.execute().await?,
                    false => handle.rule().del(message).execute().await?,
                }
            }
            Ok(())
        })
    }

    /// Sends everything else to a router.
    pub fn default_route(&self, via: impl Into<IpAddr>) -> io::Result<()> {
        let route = match via.into() {
            IpAddr::V4(via) => RouteMessageBuilder::<Ipv4Addr>::new().gateway(via).build(),
            IpAddr::V6(via) => RouteMessageBuilder::<Ipv6Addr>::new().gateway(via).build(),
        };
        self.ns.netlink(async |handle| handle.route().add(route).execute().await)
    }

    /// Switches IPv6 on, without waiting for anybody to claim an address.
    pub fn enable_ipv6(&self) -> io::Result<()> {
        let interfaces: Vec<String> = self.ports.borrow().keys().cloned().collect();
        for interface in ["all", "default", "lo"].into_iter().chain(interfaces.iter().map(String::as_str)) {
            self.ns.sysctl(&format!("ipv6.conf.{interface}.accept_dad"), "0", false)?;
            self.ns.sysctl(&format!("ipv6.conf.{interface}.disable_ipv6"), "0", false)?;
        }
        Ok(())
    }

    /// Gives an interface another MAC address, while it is up.
    pub fn set_mac(&self, interface: &str, mac: Mac) -> io::Result<()> {
        self.ns.netlink(async |handle| {
            let link = LinkUnspec::new_with_index(index_of(&handle, interface).await?).address(mac.0.to_vec());
            handle.link().set(link.build()).execute().await
        })
    }

    /// Makes a bridge, and an interface that is a port of it.
    pub fn add_bridge(&self, bridge: &str, port: &str) -> io::Result<()> {
        self.ns.netlink(async |handle| {
            handle.link().add(LinkBridge::new(bridge).up().build()).execute().await?;
            handle.link().add(LinkVeth::new(port, &format!("{port}far")).build()).execute().await?;
            let (bridge, port) = (index_of(&handle, bridge).await?, index_of(&handle, port).await?);
            handle.link().set(LinkUnspec::new_with_index(port).controller(bridge).up().build()).execute().await
        })
    }

    /// Sets the largest IP packet of an interface.
    pub fn set_mtu(&self, interface: &str, mtu: u32) -> io::Result<()> {
        self.ns.netlink(async |handle| {
            let link = LinkUnspec::new_with_index(index_of(&handle, interface).await?).mtu(mtu);
            handle.link().set(link.build()).execute().await
        })
    }

    /// Takes an interface out of the machine, its cable with it.
    pub fn remove(&self, interface: &str) -> io::Result<()> {
        self.ns.netlink(async |handle| handle.link().del(index_of(&handle, interface).await?).execute().await)
    }

    /// Sends the packets for one address to a gateway.
    ///
    /// # Panics
    /// If they are not of one family.
    pub fn route(&self, to: IpAddr, via: IpAddr) -> io::Result<()> {
        let route = match (to, via) {
            (IpAddr::V4(to), IpAddr::V4(via)) => {
                RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).gateway(via).build()
            }
            (IpAddr::V6(to), IpAddr::V6(via)) => {
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, 128).gateway(via).build()
            }
            ends => panic!("{ends:?} are of two families"),
        };
        self.ns.netlink(async |handle| handle.route().add(route).execute().await)
    }

    /// The MAC address that this host's kernel has for a neighbour.
    pub fn neighbor(&self, interface: &str, address: impl Into<IpAddr>) -> io::Result<Option<Mac>> {
        let address = match address.into() {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        };
        self.ns.netlink(async |handle| {
            let index = index_of(&handle, interface).await?;
            let mut neighbors = handle.neighbours().get().execute();
            while let Some(entry) = neighbors.try_next().await? {
                let about = |attribute: &NeighbourAttribute| {
                    matches!(attribute, NeighbourAttribute::Destination(a) if *a == address)
                };
                if entry.header.ifindex == index && entry.attributes.iter().any(about) {
                    return Ok(entry.attributes.iter().find_map(|attribute| match attribute {
                        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok().map(Mac),
                        _ => None,
                    }));
                }
            }
            Ok(None)
        })
    }

    /// Forwards between its interfaces, and sends no redirects.
    pub fn make_router(&self) -> io::Result<()> {
        self.ns.sysctl("ipv4.ip_forward", "1", false)?;
        self.ns.sysctl("ipv6.conf.all.forwarding", "1", true)?;
        self.ns.sysctl("ipv4.conf.all.send_redirects", "0", false)?;
        self.ns.sysctl("ipv4.conf.default.send_redirects", "0", false)
    }

    /// Prepares it as a backend: it accepts the VIP and neither answers nor announces ARP for it.
    pub fn make_backend(&self, vip: IpAddr) -> io::Result<()> {
        self.ns.sysctl("ipv4.conf.all.arp_ignore", "1", false)?;
        self.ns.sysctl("ipv4.conf.all.arp_announce", "2", false)?;
        let len = if vip.is_ipv4() { 32 } else { 128 };
        self.add_address("lo", &format!("{vip}/{len}"))
    }
}

fn parse_cidr(text: &str) -> io::Result<(IpAddr, u8)> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, format!("{text} is no address with a prefix"));
    let (address, len) = text.split_once('/').ok_or_else(wrong)?;
    Ok((address.parse().map_err(|_| wrong())?, len.parse().map_err(|_| wrong())?))
}
