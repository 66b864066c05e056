//! The dataplane by itself, as a library: one VIP on one interface, answered and forwarded to the backends that are named,
//! without a cluster. `cargo run -p lb-dataplane --example forwarder -- eth0 192.0.2.11/24 192.0.2.1 80 192.0.2.5 192.0.2.6`
//! (as root: packet sockets need CAP_NET_RAW, the guard CAP_NET_ADMIN).

use std::{
    error::Error,
    fs,
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_dataplane::{
    Config, Dataplane, Grant, boottime_ns,
    forward::spec::{BackendSpec, BackendState, PortRangeSpec, PortSpec, ServiceSpec, TableSpec, VipSpec},
    guard,
    io::PortConfig,
    packet::{Mac, Protocol},
};

const USAGE: &str = "usage: forwarder INTERFACE ITS-ADDRESS/LENGTH VIP TCP-PORT BACKEND...";
/// Entries of the service's Maglev table: about a hundred for each backend, and prime.
const TABLE_SIZE: u32 = 4093;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [interface, own, vip, port, backends @ ..] = arguments.as_slice() else { return Err(USAGE.into()) };
    let of_interface = |what: &str| fs::read_to_string(format!("/sys/class/net/{interface}/{what}"));
    let (ifindex, mtu): (u32, u32) = (of_interface("ifindex")?.trim().parse()?, of_interface("mtu")?.trim().parse()?);
    let mac = mac(of_interface("address")?.trim()).ok_or("the interface has no MAC address")?;
    let (address, prefix_len) = own.split_once('/').ok_or(USAGE)?;
    let (vip, port): (IpAddr, u16) = (vip.parse()?, port.parse()?);

    let dataplane = Dataplane::start(&Config {
        ports: vec![PortConfig { name: interface.clone(), ifindex, mtu }],
        engine: None,
        workers: 1,
        realtime: false,
        accelerate: Default::default(),
        link_keeper: None,
        busy_poll: Duration::ZERO,
        cpus: Vec::new(),
        flow_capacity: Config::DEFAULT_FLOW_CAPACITY,
        guard: guard::Ownership::Own,
    })?;
    println!("engine {}", dataplane.engine());

    // How frames are forwarded: addresses of backends are resolved by ARP or neighbour discovery.
    let backend = |(id, address): (u64, &String)| -> Result<BackendSpec, Box<dyn Error>> {
        Ok(BackendSpec { id, address: address.parse()?, mac: None, weight: 1, state: BackendState::Active })
    };
    let service = ServiceSpec {
        name: "service".into(),
        ports: vec![PortRangeSpec { protocol: Protocol::Tcp, first: port, last: port }],
        by_source: false,
        resets_flows: false,
        table_size: TABLE_SIZE,
        backends: (1..).zip(backends).map(backend).collect::<Result<_, _>>()?,
    };
    let generation = dataplane.publish(&TableSpec {
        // A cluster has one key, so that its nodes place flows alike.
        hash_key: 1,
        ports: vec![PortSpec {
            name: interface.clone(),
            ifindex,
            mac,
            mtu,
            carrier: true,
            segments: true,
            addresses: vec![(address.parse()?, prefix_len.parse()?)],
        }],
        vips: vec![VipSpec { address: vip, answer_on: vec![0], rejects: false, services: vec![service] }],
        ..TableSpec::default()
    })?;
    assert!(dataplane.wait_for_table(generation, Duration::from_secs(1)), "the worker has the table");

    // What this node owns and may answer for: here everything, as long as the process lives.
    dataplane.own(&[Grant { vip, epoch: 1, first: true }]);
    let begun = Instant::now();
    while dataplane.is_running() {
        dataplane.lease().set(boottime_ns() + Duration::from_secs(2).as_nanos() as u64);
        std::thread::sleep(Duration::from_secs(1));
        let totals = dataplane.report().totals;
        println!("{:>5} s: {totals:?}", begun.elapsed().as_secs());
    }
    Ok(())
}

fn mac(text: &str) -> Option<Mac> {
    let bytes: Vec<u8> = text.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes.try_into().ok().map(Mac)
}
