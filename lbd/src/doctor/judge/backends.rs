//! The backends: whether they are where packets for them go, and have what is needed there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_dataplane::{forward::runtime::Liveness, packet::Mac, verdict::DropReason};
use lb_proto::v1::{self, Severity};
use lb_raft_store::table::{AdminState, Backend, Health, Table};

use super::super::{
    finding::{Id, finding},
    readings::Readings,
};
use crate::health::Presence;

/// The kernel drops what comes by `lo` from elsewhere (ip-sysctl, rp_filter).
const STRICT: u8 = 1;

pub(super) fn judge(readings: &Readings, table: &Table, found: &mut Vec<v1::Finding>) {
    if readings.links.is_empty() {
        return;
    }
    let wanted = || table.backends().filter(|backend| backend.settings.state != AdminState::Down);
    for backend in wanted() {
        presence(readings, backend, table, found);
    }
    off_segment(readings, table, found);
    returned(readings, found);
    shared(readings, found);
    // It is a setting of IPv4 alone.
    let own = |backend: &Backend| backend.settings.address.is_ipv4() && is_own(readings, backend.settings.address);
    let strict = readings.rp_filter.values().max() == Some(&STRICT);
    if strict && let Some(backend) = wanted().find(|backend| own(backend)) {
        found.push(finding(
            Id::ReversePathFilter,
            object(backend),
            "this node is the backend, and its kernel's strict reverse-path filter drops what comes to it by lo",
            "sysctl net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.lo.rp_filter=2",
        ));
    }
}

fn object(backend: &Backend) -> String {
    format!("backend {} {}", backend.settings.service, backend.settings.address)
}

fn is_own(readings: &Readings, address: IpAddr) -> bool {
    readings.links.iter().any(|link| link.addresses.iter().any(|(own, _)| *own == address))
}

/// Whether it has its VIP. Where a check is answered, it has.
fn presence(readings: &Readings, backend: &Backend, table: &Table, found: &mut Vec<v1::Finding>) {
    let address = backend.settings.address;
    let vip = table.service(&backend.settings.service).map(|service| service.settings.vip);
    let Some(vip) = vip.filter(|_| table.health(backend) != Health::Healthy) else { return };
    if readings.presence.get(&backend.id) == Some(&Presence::Missing) {
        let missing = finding(
            Id::VipMissing,
            object(backend),
            format!(
                "{address} is there, and does not answer a ping to the VIP {vip}: it lacks the VIP on its loopback, or drops what is for it"
            ),
            format!(
                "on {address}: ip address add {vip}/{} dev lo, with arp_ignore=1 and arp_announce=2 (deploy/backend/lb-backend add does all three)",
                if vip.is_ipv4() { 32 } else { 128 }
            ),
        );
        // A firewall may keep back the ping alone: it is sure where a check says the same.
        let severity = if table.health(backend) == Health::Unhealthy { Severity::Error } else { Severity::Warning };
        found.push(v1::Finding { severity: severity.into(), ..missing });
    }
    if readings.seen.get(&backend.id).is_some_and(|seen| seen.liveness == Liveness::Silent) {
        found.push(finding(
            Id::BackendUnresolved,
            object(backend),
            format!(
                "{address} does not answer ARP or neighbour discovery on this node's segment: nothing can be sent to it"
            ),
            format!("is it up, and on this segment? arping -I INTERFACE {address}"),
        ));
    }
}

/// Backends that no interface leads to: direct server return needs one segment.
fn off_segment(readings: &Readings, table: &Table, found: &mut Vec<v1::Finding>) {
    let vip_is_here = |backend: &Backend| {
        let vip = table.service(&backend.settings.service).map(|service| service.settings.vip);
        vip.is_some_and(|vip| readings.is_on(vip))
    };
    let is_off = |backend: &&Backend| {
        let settings = &backend.settings;
        settings.state != AdminState::Down && settings.mac.is_none() && !readings.is_on(settings.address)
    };
    // One whose MAC address was given is sent to without being asked for, and VIPs of other segments are others' business.
    for backend in table.backends().filter(is_off).filter(|backend| vip_is_here(backend)) {
        found.push(finding(
            Id::BackendOffSegment,
            object(backend),
            "it is in the network of none of this node's interfaces: behind a router its frames cannot be sent to it by their MAC address alone",
            "give the node an interface on the backend's segment and list it in dataplane.interfaces, or move the backend",
        ));
    }
}

/// Packets came back from the backend that they were sent to.
fn returned(readings: &Readings, found: &mut Vec<v1::Finding>) {
    let count = |of: DropReason| {
        let at = |at: usize| readings.reports[at].drops.iter().find(|(reason, _)| *reason == of).map_or(0, |(_, n)| *n);
        at(1).saturating_sub(at(0))
    };
    let came = count(DropReason::Hairpin);
    if came > 0 {
        found.push(finding(
            Id::BackendReturnsPackets,
            "backends",
            format!("{came} packets came back in the last second from the backend that they had been sent to: it lacks the VIP, and routes them back"),
            "lbctl capture --drops shows which one (hairpin); there: put the VIP on lo, and sysctl net.ipv4.ip_forward=0",
        ));
    }
}

/// Two addresses with one MAC address: one host, or a router in between.
fn shared(readings: &Readings, found: &mut Vec<v1::Finding>) {
    let mut by_mac = BTreeMap::<Mac, BTreeSet<IpAddr>>::new();
    for backend in readings.seen.values() {
        if let Some(mac) = backend.mac {
            by_mac.entry(mac).or_default().insert(backend.address);
        }
    }
    for (mac, addresses) in by_mac.into_iter().filter(|(_, addresses)| addresses.len() > 1) {
        let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        found.push(finding(
            Id::SharedMac,
            format!("mac {mac}"),
            format!(
                "{} have it all: one host with several addresses, or a router that answers for those behind it",
                all.join(", ")
            ),
            "nothing, if it is one host; behind a router direct server return does not work",
        ));
    }
}
