//! ICMP errors about what backends have sent: each reaches the backend of the flow that it quotes.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::ensure;
use lb_dataplane::packet::Protocol;
use lb_tests::{
    frame::Path,
    site::{PATIENCE, Plan, Site, VIPS},
    wait,
};

use crate::landings::{Landings, QUIET, add_quiet_services};

/// Unreachable (host, port), fragmentation needed, time exceeded, parameter problem (RFC 792).
const ERRORS_V4: [(u8, u8); 5] = [(3, 1), (3, 3), (3, 4), (11, 0), (12, 0)];
/// Unreachable (address, port), packet too big, time exceeded, parameter problem (RFC 4443).
const ERRORS_V6: [(u8, u8); 5] = [(1, 3), (1, 4), (2, 0), (3, 0), (4, 1)];

/// Every kind of error, quoting as little as eight bytes of the transport header or as much as fits, about segments of
/// a usual size and about GSO frames. One about no flow of ours reaches nobody.
pub(crate) fn errors(engine: &'static str) -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 3, two_interfaces: false, engine })?;
    site.start_both()?;
    let lb = &site.nodes[0];
    add_quiet_services(&site)?;
    let landings = Landings::watch(&site)?;
    for vip in VIPS {
        let mut met = BTreeSet::new();
        for port in 3000..3006 {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                let path = site.path(vip, QUIET).from_port(port);
                let opened = if protocol == Protocol::Udp { path.udp(b"x") } else { path.syn() };
                let backend = landings.of("the flow", &opened)?;
                met.insert(backend);
                for error in errors_about(path, protocol)? {
                    let at = landings.of(&format!("{engine}: an error to {vip}"), &error)?;
                    ensure!(at == backend, "{engine}: {error:02x?} went to server {at} instead of {backend}");
                }
            }
        }
        ensure!(met.len() > 1, "{engine}: all flows are at one server, so this shows nothing");
        let foreign = site.path(vip, 9999);
        let before = lb.drops("icmp_unrelated")?;
        for error in errors_about(foreign, Protocol::Udp)? {
            landings.injector.send(&error)?;
        }
        wait::until(&format!("{engine}: errors about nothing are counted"), PATIENCE, || {
            lb.drops("icmp_unrelated").is_ok_and(|now| now == before + 20)
        });
    }
    Ok(())
}

/// From a router on the way to the client.
fn errors_about(path: Path, protocol: Protocol) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut by_router = path;
    let (kinds, ip_header_len, longest) = match path.client.ip() {
        IpAddr::V4(_) => (ERRORS_V4, 20, 548),
        IpAddr::V6(_) => (ERRORS_V6, 40, 1232),
    };
    by_router.client.set_ip(if path.client.is_ipv4() { "192.168.1.1" } else { "2001:db8:1::1" }.parse()?);
    let mut errors = Vec::new();
    for (kind, code) in kinds {
        for (data, quoted) in [(100, ip_header_len + 8), (100, longest), (30_000, ip_header_len + 8), (30_000, longest)]
        {
            let answer = path.answer(protocol, data);
            let quote = &answer[..answer.len().min(quoted)];
            let mut error = Vec::new();
            let ip = by_router.ip();
            match path.client.is_ipv4() {
                true => ip.icmpv4_raw(kind, code, [0, 0, 5, 0]).write(&mut error, quote)?,
                false => ip.icmpv6_raw(kind, code, [0, 0, 5, 0]).write(&mut error, quote)?,
            }
            errors.push(error);
        }
    }
    Ok(errors)
}
