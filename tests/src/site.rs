//! The worked example as a site: a client, a router, load balancers, and servers in three subnets.
//!
//! ```text
//!   client 192.168.1.10 --- router --- 192.168.2.0/24 --- lb1.. (VIP 192.168.2.1)
//!                              |                           |
//!                              +------ 192.168.3.0/24 -----+--- servers 192.168.3.5..
//! ```
//!
//! With one interface a node has both subnets on the same segment; with two, one on each.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use lb_dataplane::packet::Mac;
use tempfile::TempDir;

use crate::{
    cluster::{self, LbNode, NodeConfig},
    flood::{self, Flood},
    frame::Path,
    topology::{Host, Network},
    traffic::Backend,
};

/// The VIP.
pub const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 1);
/// A VIP of IPv6.
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
/// The VIPs of both families.
pub const VIPS: [IpAddr; 2] = [IpAddr::V4(VIP), IpAddr::V6(VIP6)];
/// The VIP as lbctl is told.
pub const VIP_TEXT: &str = "192.168.2.1";
/// The HTTP service's port.
pub const HTTP: u16 = 80;
/// The UDP echo's port.
pub const ECHO: u16 = 7;
/// Where the client connects to.
pub const HTTP_ADDRESS: SocketAddrV4 = SocketAddrV4::new(VIP, HTTP);
/// The same, in both families.
pub const HTTP_ADDRESSES: [SocketAddr; 2] = [SocketAddr::V4(HTTP_ADDRESS), SocketAddr::new(IpAddr::V6(VIP6), HTTP)];
/// Every engine that a node can run, and the first one with three workers.
pub const ENGINES: [&str; 4] = ["ring", "ring/3", "multishot", "mmsg"];
/// The same, and one with an accelerator: for what an accelerator could do otherwise.
pub const ALL_ENGINES: [&str; 5] = ["ring", "ring/3", "multishot", "mmsg", "ring+xdp"];
/// For a connection that must come about.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What to build.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Load balancers.
    pub nodes: u8,
    /// Servers, which are backends of both services.
    pub servers: u8,
    /// A node has an interface for each subnet, not one for both.
    pub two_interfaces: bool,
    /// The dataplane's engine, and behind a slash the number of its workers if it is not one.
    pub engine: &'static str,
}

/// A running site. What runs is dropped before what it runs in.
pub struct Site {
    /// The load balancers.
    pub nodes: Vec<LbNode>,
    /// The servers.
    pub servers: Vec<Server>,
    /// What they serve on [`VIP6`].
    ipv6: Vec<Backend>,
    /// Their machines.
    pub node_hosts: Vec<Host>,
    /// Between the client and the rest.
    pub router: Host,
    /// The client.
    pub client: Host,
    /// The segments.
    pub net: Network,
    /// The nodes' files.
    pub root: TempDir,
    two_interfaces: bool,
    /// Addresses that nodes have got since the start, or had.
    renumbered: BTreeSet<String>,
    /// While it lasts.
    flood: Option<Flood>,
}

/// A server.
pub struct Server {
    /// What it serves.
    pub backend: Backend,
    /// Its machine.
    pub host: Host,
    /// Its own address.
    pub address: Ipv4Addr,
    /// And that of IPv6, where the site has it.
    pub address6: Ipv6Addr,
    /// Its MAC address.
    pub mac: Mac,
}

impl Server {
    /// As what it is known to the services of [`VIP6`]: by turns of either family.
    pub fn address_on_vip6(&self) -> IpAddr {
        if self.address.octets()[3].is_multiple_of(2) { self.address6.into() } else { self.address.into() }
    }
}

impl Site {
    /// Builds the machines and the cables, and starts the servers; the nodes are not started.
    pub fn build(plan: Plan) -> anyhow::Result<Self> {
        let net = Network::for_engine(plan.engine)?;
        let lans: (&str, &str) = if plan.two_interfaces { ("vips", "servers") } else { ("lan", "lan") };
        for segment in ["clients", "nodes", lans.0] {
            net.segment(segment)?;
        }
        let router = net.host("router")?;
        router.make_router()?;
        net.attach(&router, "eth0", "clients", &["192.168.1.1/24"])?;
        if plan.two_interfaces {
            net.segment(lans.1)?;
            net.attach(&router, "eth1", lans.0, &["192.168.2.254/24"])?;
            net.attach(&router, "eth2", lans.1, &["192.168.3.1/24"])?;
        } else {
            net.attach(&router, "eth1", lans.0, &["192.168.2.254/24", "192.168.3.1/24"])?;
        }
        let client = net.host("client")?;
        net.attach(&client, "eth0", "clients", &["192.168.1.10/24"])?;
        client.default_route(Ipv4Addr::new(192, 168, 1, 1))?;

        let root = tempfile::Builder::new().prefix("lb-tests-").tempdir()?;
        let mut nodes = Vec::new();
        let mut node_hosts = Vec::new();
        for number in 1..=plan.nodes {
            let host = net.host(&format!("lb{number}"))?;
            let (vips, servers) = (format!("192.168.2.{}/24", 10 + number), format!("192.168.3.{}/24", 10 + number));
            let mut interfaces = vec!["eth0"];
            if plan.two_interfaces {
                net.attach(&host, "eth0", lans.0, &[&vips])?;
                net.attach(&host, "eth1", lans.1, &[&servers])?;
                interfaces.push("eth1");
            } else {
                net.attach(&host, "eth0", lans.0, &[&vips, &servers])?;
            }
            let address = format!("10.77.1.{number}");
            net.attach(&host, "mgmt", "nodes", &[&format!("{address}/24")])?;
            let bootstrap = number == 1;
            let config = NodeConfig { address: &address, interfaces: &interfaces, engine: plan.engine, bootstrap };
            nodes.push(LbNode::new(&host, &root, &config)?);
            node_hosts.push(host);
        }
        let two_interfaces = plan.two_interfaces;
        let mut site = Self {
            nodes,
            servers: Vec::new(),
            ipv6: Vec::new(),
            node_hosts,
            router,
            client,
            net,
            root,
            two_interfaces,
            renumbered: BTreeSet::new(),
            flood: None,
        };
        for number in 0..plan.servers {
            site.add_server(lans.1, number)?;
        }
        Ok(site)
    }

    fn add_server(&mut self, segment: &str, number: u8) -> anyhow::Result<()> {
        let name = format!("web{}", number + 1);
        let host = self.net.host(&name)?;
        let address = Ipv4Addr::new(192, 168, 3, 5 + number);
        let mac = self.net.attach(&host, "eth0", segment, &[&format!("{address}/24")])?;
        host.default_route(Ipv4Addr::new(192, 168, 3, 1))?;
        host.make_backend(VIP.into())?;
        let backend = Backend::serve(&host.ns, &name, VIP, HTTP, ECHO)?;
        let address6 = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 5 + u16::from(number));
        self.servers.push(Server { backend, host, address, address6, mac });
        Ok(())
    }

    /// Starts all nodes as one cluster, with the VIP, a TCP and a UDP service, and all servers.
    pub fn start(&mut self) -> anyhow::Result<()> {
        cluster::form(&mut self.nodes)?;
        self.configure()
    }

    /// Adds the VIP, its services `web` and `echo`, and the servers. Nothing is checked: what is on the wires is what a test
    /// puts there.
    pub fn configure(&self) -> anyhow::Result<()> {
        let lb = &self.nodes[0];
        lb.lbctl_ok(&["vip", "add", VIP_TEXT])?;
        lb.lbctl_ok(&["service", "add", "web", "--vip", VIP_TEXT, "--port", "80/tcp", "--check", "none"])?;
        lb.lbctl_ok(&["service", "add", "echo", "--vip", VIP_TEXT, "--port", "7/udp"])?;
        for server in &self.servers {
            for service in ["web", "echo"] {
                lb.lbctl_ok(&["backend", "add", service, &server.address.to_string()])?;
            }
        }
        self.wait_resolved();
        Ok(())
    }

    /// Starts all nodes as one cluster with a VIP of each family: beside what [`Self::start`] adds, the services `web6`
    /// and `echo6`, whose backends are by turns known by their IPv4 and by their IPv6 addresses.
    pub fn start_both(&mut self) -> anyhow::Result<()> {
        self.add_ipv6()?;
        self.start()?;
        let lb = &self.nodes[0];
        lb.lbctl_ok(&["vip", "add", &VIP6.to_string()])?;
        for (service, port) in [("web6", "80/tcp"), ("echo6", "7/udp")] {
            lb.lbctl_ok(&["service", "add", service, "--vip", &VIP6.to_string(), "--port", port, "--check", "none"])?;
            for server in &self.servers {
                lb.lbctl_ok(&["backend", "add", service, &server.address_on_vip6().to_string()])?;
            }
        }
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            node.wait_resolved(4 * self.servers.len());
        }
        Ok(())
    }

    /// Changes a backend of the services of both families: such as `drain`.
    pub fn change_backend(&self, how: &str, at: usize) -> anyhow::Result<()> {
        let server = &self.servers[at];
        self.nodes[0].change(&["backend", how, "web", &server.address.to_string()])?;
        self.nodes[0].change(&["backend", how, "web6", &server.address_on_vip6().to_string()])
    }

    /// Gives every machine an IPv6 address in each of its subnets, and the servers [`VIP6`].
    pub fn add_ipv6(&mut self) -> anyhow::Result<()> {
        self.router.enable_ipv6()?;
        let (routers, nodes) = if self.two_interfaces { ("eth2", "eth1") } else { ("eth1", "eth0") };
        for (interface, address) in [("eth0", "2001:db8:1::1"), ("eth1", "2001:db8:2::fe"), (routers, "2001:db8:3::1")]
        {
            self.router.add_address(interface, &format!("{address}/64"))?;
        }
        self.client.enable_ipv6()?;
        self.client.add_address("eth0", "2001:db8:1::10/64")?;
        self.client.default_route("2001:db8:1::1".parse::<IpAddr>()?)?;
        for (number, host) in (11..).zip(&self.node_hosts) {
            host.enable_ipv6()?;
            for (interface, subnet) in [("eth0", 2), (nodes, 3)] {
                host.add_address(interface, &format!("2001:db8:{subnet}::{number}/64"))?;
            }
        }
        for (number, server) in (1..).zip(&self.servers) {
            server.host.enable_ipv6()?;
            server.host.add_address("eth0", &format!("{}/64", server.address6))?;
            server.host.default_route("2001:db8:3::1".parse::<IpAddr>()?)?;
            server.host.make_backend(VIP6.into())?;
            let name = format!("web{number}");
            self.ipv6.push(Backend::serve(&server.host.ns, &name, VIP6, HTTP, ECHO)?);
        }
        Ok(())
    }

    /// From the client, by way of the router, to a service of a VIP: what the first node receives.
    pub fn path(&self, vip: IpAddr, service_port: u16) -> Path {
        let client: IpAddr = match vip {
            IpAddr::V4(_) => Ipv4Addr::new(192, 168, 1, 10).into(),
            IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10).into(),
        };
        Path {
            from: self.router.port("eth1").mac,
            to: self.node_hosts[0].port("eth0").mac,
            client: SocketAddr::new(client, 40_000),
            service: SocketAddr::new(vip, service_port),
        }
    }

    /// Whoever sends leaves checksums and segments to hardware, also where it would not for an accelerator: such frames are
    /// then the workers'.
    pub fn with_offloads(self) -> anyhow::Result<Self> {
        let servers = self.servers.iter().map(|server| &server.host);
        let all = self.node_hosts.iter().chain([&self.client, &self.router]).chain(servers);
        all.into_iter().try_for_each(Host::leave_checksums)?;
        Ok(self)
    }

    /// Waits until every running node knows every server's MAC address for both services.
    pub fn wait_resolved(&self) {
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            node.wait_resolved(2 * self.servers.len());
        }
    }

    /// Gives a node that does not run another address on the network between the nodes, and its configuration with it.
    pub fn renumber(&mut self, at: usize) -> anyhow::Result<()> {
        let node = &mut self.nodes[at];
        let before = node.address.trim_end_matches(":7401").to_owned();
        let last: u8 = before.rsplit('.').next().unwrap_or_default().parse()?;
        // To and fro.
        let after = format!("10.77.1.{}", if last < 100 { last + 100 } else { last - 100 });
        let host = &self.node_hosts[at];
        if host.ns.ifindex("mgmt").is_ok() && !self.renumbered.contains(&after) {
            host.add_address("mgmt", &format!("{after}/24"))?;
        }
        self.renumbered.extend([before.clone(), after.clone()]);
        node.reconfigure(&before, &after)?;
        node.address = format!("{after}:7401");
        Ok(())
    }

    /// Floods a node with so many datagrams for the VIP a second.
    pub fn flood(&mut self, at: usize, rate: u64) -> anyhow::Result<()> {
        self.flood_of_flows(at, flood::FLOWS, rate)
    }

    /// The same, of so many flows, a power of two.
    pub fn flood_of_flows(&mut self, at: usize, flows: u32, rate: u64) -> anyhow::Result<()> {
        self.flood = Some(Flood::start(&self.net, &self.node_hosts[at], "eth0", VIP, flows, rate)?);
        Ok(())
    }

    /// Ends the flood, if there is one.
    pub fn end_flood(&mut self) -> anyhow::Result<()> {
        Ok(self.flood.take().map_or(Ok(()), Flood::finish)?)
    }

    /// A host on the VIP's segment that reaches the rest through the router; for sites of one interface a node.
    pub fn add_neighbor(&self) -> anyhow::Result<Host> {
        let neighbor = self.net.host("neighbor")?;
        self.net.attach(&neighbor, "eth0", "lan", &["192.168.2.50/24"])?;
        neighbor.default_route(Ipv4Addr::new(192, 168, 2, 254))?;
        Ok(neighbor)
    }

    /// The node that owns the VIP.
    pub fn owner(&self) -> anyhow::Result<usize> {
        let alive = self.nodes.iter().find(|node| node.is_running());
        let name = alive.map_or_else(|| Ok(String::new()), |node| node.owner_of(VIP_TEXT))?;
        let owner = self.nodes.iter().position(|node| node.name == name);
        owner.ok_or_else(|| anyhow::anyhow!("the VIP has no owner"))
    }
}

/// Whether a frame is TCP over IPv4; for captures.
pub fn is_tcp(frame: &[u8]) -> bool {
    use lb_dataplane::packet::{Packet, Protocol, parse};
    matches!(parse(frame), Packet::Flow(flow) if flow.tuple.protocol == Protocol::Tcp)
}
