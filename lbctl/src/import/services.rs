//! Virtual and real servers of IPVS, as VIPs, services and backends.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_proto::v1;

use super::Imported;
use crate::declared::{BACKEND, SERVICE, VIP, of_message};

/// The largest weight of a backend.
const MOST_WEIGHT: u32 = 1000;

/// A virtual server.
#[derive(Debug, Clone)]
pub(super) struct Virtual {
    pub(super) line: u64,
    /// What it was called, if it was.
    pub(super) name: Option<String>,
    pub(super) address: SocketAddr,
    pub(super) protocol: v1::Protocol,
    /// Its settings; the name, the VIP and the ports are set here.
    pub(super) service: v1::Service,
    pub(super) backends: Vec<Real>,
}

/// A real server.
#[derive(Debug, Clone)]
pub(super) struct Real {
    pub(super) line: u64,
    pub(super) address: SocketAddr,
    pub(super) weight: u32,
    /// It serves when the others do not.
    pub(super) is_spare: bool,
}

/// Rows of them.
pub(super) fn rows(found: Vec<Virtual>, mut notes: Vec<(u64, String)>) -> Imported {
    let mut vips = BTreeMap::new();
    let mut names = BTreeSet::new();
    let (mut services, mut backends) = (Vec::new(), Vec::new());
    for of in found {
        let (vip, port) = (of.address.ip().to_canonical(), of.address.port());
        if vip.is_unspecified() || vip.is_multicast() || vip.is_loopback() {
            notes.push((of.line, format!("the virtual server {} is left out: {vip} can be no VIP", of.address)));
            continue;
        }
        vips.entry(vip).or_insert_with(|| v1::Vip { address: vip.to_string(), ..v1::Vip::default() });
        let name = unused(&of, &mut names);
        let ports = vec![v1::PortRange { protocol: of.protocol.into(), first: port.into(), last: port.into() }];
        let mut known = BTreeSet::new();
        for real in &of.backends {
            let address = real.address.ip().to_canonical();
            // A real server's port of 0 is that of the packet (ipvsadm(8)).
            if ![0, port].contains(&real.address.port()) {
                notes.push((
                    real.line,
                    format!(
                        "{} serves port {}, and its clients port {port}: ports are not rewritten with direct server return, so it \
                         has to serve {port} itself",
                        real.address.ip(),
                        real.address.port()
                    ),
                ));
            }
            if !known.insert(address) {
                notes.push((real.line, format!("{address} is a backend of {name} already: it is left out here")));
                continue;
            }
            let weight = real.weight.min(MOST_WEIGHT);
            if weight < real.weight {
                let said = format!("the weight {} is {MOST_WEIGHT} here, which is the largest", real.weight);
                notes.push((real.line, said));
            }
            backends.push(v1::Backend {
                service: name.clone(),
                address: address.to_string(),
                weight: Some(weight),
                tier: if real.is_spare { 2 } else { 0 },
                ..v1::Backend::default()
            });
        }
        if of.backends.is_empty() {
            notes.push((of.line, format!("the virtual server {} has no real servers", of.address)));
        }
        services.push(v1::Service { name, vip: vip.to_string(), ports, ..of.service });
    }
    let mut imported = Imported { notes, ..Imported::default() };
    let objects = &mut imported.document.objects;
    objects.extend(vips.values().map(|row| of_message(&VIP, row)));
    objects.extend(services.iter().map(|row| of_message(&SERVICE, row)));
    objects.extend(backends.iter().map(|row| of_message(&BACKEND, row)));
    imported.notes.sort();
    imported
}

/// VIPs that something else speaks of.
pub(super) fn add_vips(imported: &mut Imported, vips: impl IntoIterator<Item = IpAddr>) {
    let objects = &mut imported.document.objects;
    for vip in vips {
        let row = of_message(&VIP, &v1::Vip { address: vip.to_string(), ..v1::Vip::default() });
        if !objects.iter().any(|object| object.name() == row.name()) {
            objects.insert(0, row);
        }
    }
}

/// A name for a service: the one that it had, or one of its address, such as "192.0.2.1-tcp-80".
fn unused(of: &Virtual, names: &mut BTreeSet<String>) -> String {
    let protocol = if of.protocol == v1::Protocol::Udp { "udp" } else { "tcp" };
    let address = of.address.ip().to_canonical().to_string().replace(':', "-");
    let port = if of.address.port() == 0 { "any".to_owned() } else { of.address.port().to_string() };
    let said = of.name.as_deref().map(|name| {
        let sound = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        name.chars().map(sound).take(50).collect::<String>()
    });
    // An IPv6 address may begin with its colons.
    let plain = said.unwrap_or_else(|| format!("{address}-{protocol}-{port}"));
    let plain = plain.trim_start_matches(['.', '_', '-']);
    let plain = if plain.is_empty() { "service" } else { plain };
    let numbered = (2..).map(|number| format!("{plain}-{number}"));
    let name = std::iter::once(plain.to_owned()).chain(numbered).find(|name| !names.contains(name));
    let name = name.unwrap_or_default();
    names.insert(name.clone());
    name
}

/// What a scheduler of IPVS (ipvsadm(8)) becomes: everything is consistent hashing here, of the flow or of its source.
pub(super) fn scheduler(name: &str) -> (v1::Affinity, Option<String>) {
    match name {
        "sh" => (v1::Affinity::Source, None),
        "mh" | "rr" | "wrr" => (v1::Affinity::Flow, None),
        "lc" | "wlc" | "sed" | "nq" | "lblc" | "lblcr" | "fo" | "ovf" | "dh" | "twos" => (
            v1::Affinity::Flow,
            Some(format!(
                "the scheduler {name} becomes consistent hashing by weights (Maglev): it does not look at how many connections a \
                 backend has"
            )),
        ),
        other => (
            v1::Affinity::Flow,
            Some(format!("the scheduler {other} is not known: consistent hashing takes its place")),
        ),
    }
}

/// What a persistence becomes.
pub(super) const PERSISTENCE: &str = "persistence becomes affinity: source, by which all flows of an address go to one backend for as long \
                                      as it is there, without a time";

/// What another way than direct routing means.
pub(super) fn method(name: &str) -> Option<String> {
    let other = match name.to_ascii_uppercase().as_str() {
        "DR" => return None,
        "NAT" => "NAT",
        "TUN" => "tunnels",
        _ => name,
    };
    Some(format!(
        "{other} becomes direct server return: the backends need the VIP on their loopback (deploy/backend/lb-backend), and must be on a \
         segment of the nodes"
    ))
}
