//! The replicated table as this node's dataplane needs it. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use lb_dataplane::{
    forward::spec::{
        BackendSpec, BackendState, PeerSpec, PortRangeSpec, PortSpec, ServiceSpec, TableSpec, Timeouts, VipSpec,
    },
    packet::{self, Mac},
};
use lb_raft_store::table::{
    Affinity, Backend, Cidr, FlowTimeouts, NodeId, PortRange, Protocol, Service, Table, Takers, Takes, Unmatched, Vip,
};

use crate::{
    health::gateways,
    link::{Link, is_beside},
};

/// How a node forwards, whether it owns VIPs or not.
pub(super) fn compile(table: &Table, hash_key: u128, me: NodeId, links: &[Link]) -> TableSpec {
    let peers = table.nodes().filter(|node| node.id != me);
    let attachments = peers.flat_map(|node| &node.attachments);
    let peer_addresses = attachments.map(|a| (Mac(a.mac.octets()), a.address)).collect();
    let mut services: BTreeMap<IpAddr, Vec<ServiceSpec>> = BTreeMap::new();
    for service in table.services() {
        services.entry(service.settings.vip).or_default().push(compile_service(table, service));
    }
    let vip = |vip: &Vip| {
        let services = services.remove(&vip.settings.address).unwrap_or_default();
        compile_vip(vip, services, links)
    };
    TableSpec {
        hash_key,
        ports: links.iter().map(|link| own_addresses(link.port_spec(), table)).collect(),
        vips: table.vips().map(vip).collect(),
        peer_addresses,
        peers: heard_on_segments(table, me, links),
        timeouts: compile_timeouts(table.settings().flow_timeouts),
    }
}

/// Without VIPs that somebody has put on the interface: the dataplane must not ask in their name.
fn own_addresses(mut port: PortSpec, table: &Table) -> PortSpec {
    port.addresses.retain(|(address, _)| table.vip(*address).is_none());
    port
}

fn compile_vip(vip: &Vip, services: Vec<ServiceSpec>, links: &[Link]) -> VipSpec {
    VipSpec {
        address: vip.settings.address,
        answer_on: answer_on(vip, links),
        rejects: vip.settings.unmatched == Unmatched::Reject,
        services,
    }
}

fn compile_timeouts(FlowTimeouts { tcp_s, fin_s, udp_s }: FlowTimeouts) -> Timeouts {
    Timeouts { tcp_s, fin_s, udp_s, ..Timeouts::default() }
}

/// Whom this node listens for on its segments: the other nodes, and the gateways.
fn heard_on_segments(table: &Table, me: NodeId, links: &[Link]) -> Vec<PeerSpec> {
    let others = || table.nodes().filter(|node| node.id != me).flat_map(|node| &node.attachments);
    let mut peers = Vec::new();
    for (port, link) in links.iter().enumerate() {
        for own in link.addresses.iter().filter_map(|(address, len)| Cidr::containing(*address, *len)) {
            for attachment in others().filter(|attachment| attachment.segment() == Some(own)) {
                peers.push(PeerSpec { port, address: attachment.address, mac: Some(Mac(attachment.mac.octets())) });
            }
        }
    }
    peers.extend(gateways(table, links).iter().map(|of| PeerSpec { port: of.port, address: of.address, mac: None }));
    peers
}

/// The interfaces on whose segment the VIP is; all of them for a routed one.
fn answer_on(vip: &Vip, links: &[Link]) -> Vec<usize> {
    let on = |matches: &dyn Fn(&(IpAddr, u8)) -> bool| -> Vec<usize> {
        let on_segment = |(_, link): &(usize, &Link)| link.addresses.iter().any(matches);
        links.iter().enumerate().filter(on_segment).map(|(at, _)| at).collect()
    };
    let attached = match vip.settings.segment {
        Some(segment) => on(&|(address, _)| segment.contains(*address)),
        None => on(&|own| is_beside(*own, vip.settings.address)),
    };
    if attached.is_empty() { (0..links.len()).collect() } else { attached }
}

fn compile_service(table: &Table, service: &Service) -> ServiceSpec {
    let settings = &service.settings;
    let takers = table.takers(service);
    ServiceSpec {
        name: settings.name.to_string(),
        ports: settings.ports.iter().map(compile_port).collect(),
        by_source: settings.affinity == Affinity::Source,
        table_size: settings.table_size,
        resets_flows: settings.resets_flows,
        // In the order of their addresses, on every node alike.
        backends: table
            .backends_of(&settings.name)
            .map(|backend| compile_backend(table, service, backend, &takers))
            .collect(),
    }
}

fn compile_port(range: &PortRange) -> PortRangeSpec {
    let protocol = match range.protocol {
        Protocol::Tcp => packet::Protocol::Tcp,
        Protocol::Udp => packet::Protocol::Udp,
    };
    PortRangeSpec { protocol, first: range.first, last: range.last }
}

fn compile_backend(table: &Table, service: &Service, backend: &Backend, takers: &Takers) -> BackendSpec {
    let settings = &backend.settings;
    BackendSpec {
        id: backend.id,
        address: settings.address,
        mac: settings.mac.map(|mac| Mac(mac.octets())),
        // In eighths where shares rise; what is the same for all changes nothing otherwise.
        weight: if service.settings.slow_start_s > 0 {
            settings.weight.get() * backend.share() as u16
        } else {
            settings.weight.get()
        },
        state: match table.takes(backend, takers) {
            Takes::All => BackendState::Active,
            Takes::Known => BackendState::Draining,
            Takes::KnownTcp => BackendState::Silent,
            Takes::Nothing => BackendState::Down,
        },
    }
}

#[cfg(test)]
mod tests {
    use lb_raft_store::table::*;

    use super::*;

    const ME: NodeId = BOOTSTRAP_NODE;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// One node with a ready lease (opened by entry 3) and a VIP on its segment.
    fn table() -> Table {
        let mut table = Table::default();
        let node = NewNode {
            name: "lb1".parse().unwrap(),
            role: Role::Lb,
            address: "10.0.0.1:7401".into(),
            store: Default::default(),
        };
        let attachment = Attachment {
            interface: "eth0".into(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            address: ip("192.168.2.2"),
            prefix_len: 24,
            hears: Vec::new(),
            silence: Silence::None,
            gateway_silence: Silence::None,
        };
        let vip = VipSettings { address: ip("192.168.2.1"), prefer: None, segment: None, unmatched: Unmatched::Drop };
        let commands = [
            Body::CreateCluster {
                cluster: "7b0b8e9a-3f0e-4b6f-9a49-0c9d4f7c8a11".parse().unwrap(),
                cluster_name: "lb".parse().unwrap(),
                hash_seed: 5,
                heartbeat_key: 6,
                node,
            },
            Body::PublishNode {
                node: ME,
                attachments: vec![attachment],
                heartbeat: Vec::new(),
                feature_level: 1,
                unfit: String::new(),
                starts: 0,
            },
            Body::OpenLease { node: ME, nonce: 9, previous: None },
            Body::Ready { node: ME, lease: LeaseId(3) },
            Body::Mutate(vec![Mutation::CreateVip(vip)]),
        ];
        for (index, command) in (1..).zip(commands) {
            table.apply(index, &command.into()).reply.result.unwrap();
        }
        table
    }

    fn links() -> Vec<Link> {
        vec![Link::sample("eth0", &["192.168.2.2/24"]), Link::sample("eth1", &["192.168.3.2/24"])]
    }

    #[test]
    fn a_vip_is_answered_on_its_segment_and_a_routed_one_everywhere() {
        let table = table();
        assert_eq!(compile(&table, 5, ME, &links()).vips[0].answer_on, [0]);
        let elsewhere = &links()[1..];
        assert_eq!(compile(&table, 5, ME, elsewhere).vips[0].answer_on, [0], "routed: on every interface");
    }

    #[test]
    fn a_backend_that_is_unreachable_or_weighs_nothing_keeps_its_flows_and_takes_no_new_ones() {
        let mut table = table();
        let ports = vec![PortRange { protocol: Protocol::Tcp, first: 80, last: 80 }];
        let service = ServiceSettings::new("web".parse().unwrap(), ip("192.168.2.1"), ports);
        let backend = |last: u8, state| {
            let settings = BackendSettings::new("web".parse().unwrap(), IpAddr::from([192, 168, 2, last]));
            Mutation::CreateBackend(BackendSettings { state, ..settings })
        };
        let states = [AdminState::Active, AdminState::Active, AdminState::Drain, AdminState::Down];
        let mut rows = vec![Mutation::CreateService(service)];
        rows.extend((50..).zip(states).map(|(last, state)| backend(last, state)));
        let attachments = table.node(ME).unwrap().attachments.clone();
        let (heartbeat, unfit) = (Vec::new(), String::new());
        let mut apply = |index: u64, body: Body| table.apply(index, &body.into()).reply.result.unwrap();
        apply(10, Body::PublishNode { node: ME, attachments, heartbeat, feature_level: 6, unfit, starts: 0 });
        apply(11, Body::RaiseFeatureLevel { level: 6 });
        apply(12, Body::Mutate(rows));
        let verdicts = [1, 3, 4].map(|backend| Verdict { backend, health: Health::Unreachable, ..Verdict::default() });
        apply(13, Body::Report { node: ME, lease: LeaseId(3), verdicts: verdicts.to_vec() });
        let spec = compile(&table, 5, ME, &links());
        let states: Vec<BackendState> = spec.vips[0].services[0].backends.iter().map(|backend| backend.state).collect();
        use BackendState::{Active, Down, Silent};
        assert_eq!(states, [Silent, Active, Silent, Down]);
    }
}
