//! Where the frames for a VIP land.

use lb_dataplane::packet::{Packet, parse};
use lb_tests::{
    capture::{Capture, Injector},
    site::{PATIENCE, Server, Site, VIPS},
    wait,
};

/// The port of the services `quiet` and `quiet6`, on which no server listens: an answer would make the client, who has
/// not asked, send errors and resets that land as well.
pub(crate) const QUIET: u16 = 9;

/// Adds them: TCP and UDP on a VIP each, served by all servers, which are known by their IPv4 addresses.
pub(crate) fn add_quiet_services(site: &Site) -> anyhow::Result<()> {
    let lb = &site.nodes[0];
    let (udp, tcp) = (format!("{QUIET}/udp"), format!("{QUIET}/tcp"));
    for (vip, service) in VIPS.into_iter().zip(["quiet", "quiet6"]) {
        lb.lbctl_ok(&[
            "service",
            "add",
            service,
            "--vip",
            &vip.to_string(),
            "--port",
            &udp,
            "--port",
            &tcp,
            "--check",
            "none",
        ])?;
        for server in &site.servers {
            lb.lbctl_ok(&["backend", "add", service, &server.address.to_string()])?;
        }
    }
    lb.wait_resolved(6 * site.servers.len());
    Ok(())
}

/// Sends frames to the node by way of the router's interface, and sees on which server each lands.
pub(crate) struct Landings {
    captures: Vec<Capture>,
    /// To send what shall not land.
    pub(crate) injector: Injector,
}

impl Landings {
    pub(crate) fn watch(site: &Site) -> anyhow::Result<Self> {
        let is_for_vip = |frame: &[u8]| match parse(frame) {
            Packet::Flow(flow) => VIPS.contains(&flow.tuple.destination.into()),
            Packet::Error(error) => VIPS.contains(&error.destination.into()),
            _ => false,
        };
        let capture = |server: &Server| Capture::start(&server.host.ns, "eth0", is_for_vip);
        let captures = site.servers.iter().map(capture).collect::<Result<_, _>>()?;
        Ok(Self { captures, injector: Injector::new(&site.router.ns, "eth1")? })
    }

    /// Sends a frame; the server on which it lands.
    pub(crate) fn of(&self, what: &str, frame: &[u8]) -> anyhow::Result<usize> {
        let counts = || self.captures.iter().map(Capture::received).collect::<Vec<_>>();
        let before = counts();
        self.injector.send(frame)?;
        wait::until(&format!("{what} arrives"), PATIENCE, || counts() != before);
        let landed = counts().iter().zip(&before).position(|(now, before)| now > before);
        landed.ok_or_else(|| anyhow::anyhow!("{what}: counted backwards"))
    }
}
