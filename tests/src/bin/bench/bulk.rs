//! One TCP connection as fast as it goes. With the offloads that every interface has by default GSO frames of up to 64 KiB pass
//! the load balancer on their way from the client to the server, which answers directly; without those of the client, frames as on a wire.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use lb_dataplane::packet::{Mac, Protocol};
use lb_tests::{
    sys::reference,
    topology::{Host, Network},
};

use crate::{
    chain::{FEW_FLOWS, GENERATOR_CPU, LB_CPU, pin, pin_receiver, threaded_napi},
    forwarders::{Forwarder, Site},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
const PORT: u16 = 5001;
const WARM_UP: Duration = Duration::from_millis(500);
const MEASURE: Duration = Duration::from_secs(2);

/// A client, a load balancer and a server on one segment.
pub(crate) struct Segment {
    client: Host,
    server: Host,
    lb: Host,
    lb_mac: Mac,
    server_mac: Mac,
    _net: Network,
}

impl Segment {
    pub(crate) fn build() -> anyhow::Result<Self> {
        let net = Network::new()?;
        net.segment("lan")?;
        let (client, server, lb) = (net.host("client")?, net.host("server")?, net.host("lb")?);
        net.attach(&client, "eth0", "lan", &["10.0.0.1/24"])?;
        let server_mac = net.attach(&server, "eth0", "lan", &["10.0.0.3/24"])?;
        let lb_mac = net.attach(&lb, "eth0", "lan", &["10.0.0.2/24"])?;
        server.make_backend(VIP.into())?;
        // Receiving on a thread of its own needs a NAPI context, which a veth has with GRO.
        lb.ns.enter(|| reference::enable_gro("eth0"))?;
        // For an accelerator: tags stay on frames, and the other end takes what a program sends.
        lb.ns.enter(|| reference::keep_tags("eth0"))?;
        let far_end = lb.port("eth0").switch_port;
        net.switch().enter(|| reference::enable_gro(&far_end))?;
        let pinned = lb.ns.enter(|| threaded_napi("eth0")).and_then(|()| pin_receiver("eth0", LB_CPU));
        if let Err(error) = pinned {
            println!("  (softirqs of the load balancer are not pinned: {error})");
        }
        // The VIP's owner is the load balancer, whoever forwards there.
        let ifindex = client.ns.ifindex("eth0")?;
        client.ns.netlink(async |handle| {
            handle.neighbours().add(ifindex, VIP.into()).link_layer_address(&lb_mac.0).execute().await
        })?;
        Ok(Self { client, server, lb, lb_mac, server_mac, _net: net })
    }

    /// From now on the client sends frames as they are on a wire.
    pub(crate) fn complete_checksums(&mut self) -> anyhow::Result<()> {
        Ok(self.client.ns.enter(|| {
            reference::disable_tso("eth0")?;
            reference::complete_checksums("eth0", true)
        })?)
    }

    /// Gigabits a second through a forwarder; without one, to the server's own address.
    pub(crate) fn measure(&self, forwarder: Option<Forwarder>) -> anyhow::Result<f64> {
        let Some(forwarder) = forwarder else { return self.transfer(SERVER) };
        let site = Site {
            namespace: self.lb.ns.clone(),
            interface: "eth0",
            ifindex: self.lb.ns.ifindex("eth0")?,
            mac: self.lb_mac,
            vip: VIP,
            vips: 1,
            protocol: Protocol::Tcp,
            port: PORT,
            backends: vec![self.server_mac],
            flow_capacity: FEW_FLOWS,
            cpu: LB_CPU,
        };
        forwarder.during(&site, || self.transfer(VIP))
    }

    fn transfer(&self, to: Ipv4Addr) -> anyhow::Result<f64> {
        let (received, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let listener = self.server.ns.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))?;
        thread::scope(|scope| {
            scope.spawn(|| {
                pin(GENERATOR_CPU);
                let Ok((mut connection, _)) = listener.accept() else { return };
                let mut buffer = vec![0; 1 << 20];
                while let Ok(len) = connection.read(&mut buffer) {
                    if len == 0 {
                        return;
                    }
                    received.fetch_add(len as u64, Ordering::Relaxed);
                }
            });
            let connection = self.client.ns.enter(|| TcpStream::connect_timeout(&(to, PORT).into(), MEASURE));
            let mut connection = match connection {
                Ok(connection) => connection,
                Err(error) => {
                    // The accepting thread waits for somebody.
                    drop(self.server.ns.enter(|| TcpStream::connect((SERVER, PORT))));
                    return Err(error.into());
                }
            };
            connection.set_write_timeout(Some(MEASURE))?;
            let sender = scope.spawn(|| {
                pin(GENERATOR_CPU);
                let buffer = vec![0; 1 << 20];
                loop {
                    if stop.load(Ordering::Relaxed) || connection.write_all(&buffer).is_err() {
                        break;
                    }
                }
                drop(connection);
            });
            thread::sleep(WARM_UP);
            let (before, begun) = (received.load(Ordering::Relaxed), Instant::now());
            thread::sleep(MEASURE);
            let bytes = received.load(Ordering::Relaxed) - before;
            let rate = bytes as f64 * 8.0 / 1e9 / begun.elapsed().as_secs_f64();
            stop.store(true, Ordering::Relaxed);
            sender.join().map_err(|_| anyhow::anyhow!("the client panicked"))?;
            Ok(rate)
        })
    }
}
