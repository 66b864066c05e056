//! The VIPs: whether anybody else answers for them, and whether their packets come where they should.

use std::{collections::HashMap, net::IpAddr};

use lb_dataplane::{VipReport, packet::Mac, stats::Conflict};
use lb_proto::v1::{self, Severity};
use lb_raft_store::table::Table;

use super::super::{
    finding::{Id, finding},
    readings::Readings,
};
use crate::{
    alarms::Alarm,
    control::{Claimant, claimant},
    link::is_beside,
};

/// A straggler is none.
const STALE: u64 = 3;

pub(super) fn judge(readings: &Readings, table: &Table, found: &mut Vec<v1::Finding>) {
    claims(readings, table, found);
    stale_ports(readings, table, found);
    networks(readings, table, found);
}

/// Who has claimed a VIP while it was looked.
fn claims(readings: &Readings, table: &Table, found: &mut Vec<v1::Finding>) {
    let [before, after] = &readings.conflicts;
    let known: HashMap<(IpAddr, Mac), Conflict> = before.iter().map(|of| ((of.vip, of.mac), *of)).collect();
    let is_contested = |vip| readings.alarms.iter().any(|(alarm, _)| *alarm == Alarm::Contested(vip));
    for Conflict { vip, mac, count, questions } in after.iter().copied() {
        let (count_before, questions_before) =
            known.get(&(vip, mac)).map_or((0, 0), |before| (before.count, before.questions));
        let (asks, answers) = (questions > questions_before, count - questions > count_before - questions_before);
        let object = format!("vip {vip}");
        match claimant(table, &readings.reports[1].backends, mac) {
            Claimant::Backend(backend) => {
                if answers {
                    found.push(finding(
                        Id::BackendAnswersArp,
                        object.clone(),
                        format!("backend {backend} ({mac}) answers ARP for it: clients that hear it first go past the load balancer"),
                        format!("on {backend}: sysctl net.ipv4.conf.all.arp_ignore=1 (deploy/backend/lb-backend does it)"),
                    ));
                }
                // It asks once in a while: for as long as its claim is complained of.
                if asks || (questions > 0 && is_contested(vip)) {
                    found.push(finding(
                        Id::BackendAsksWithVip,
                        object,
                        format!("backend {backend} ({mac}) asks for others with the VIP as its own address: who hears it learns the wrong MAC address"),
                        format!("on {backend}: sysctl net.ipv4.conf.all.arp_announce=2 (deploy/backend/lb-backend does it)"),
                    ));
                }
            }
            Claimant::Unknown if answers => found.push(finding(
                Id::DuplicateVip,
                object,
                format!("a station with the MAC address {mac}, which is no node and no backend, answers for it"),
                format!("find it by the switch's table of MAC addresses, and take the address away there: arping -D {vip} shows it"),
            )),
            // Of a node one claim may be a late frame, or a fence: what lasts is complained of.
            Claimant::Node(_) | Claimant::Unknown => {}
        }
    }
    for (alarm, problem) in &readings.alarms {
        let Alarm::Contested(vip) = alarm else { continue };
        let object = format!("vip {vip}");
        if found.iter().all(|finding| finding.object != object) {
            let mend = "find the station by the switch's table of MAC addresses, and take the address away there";
            // Nobody answers now: it is worth knowing.
            let past = finding(Id::DuplicateVip, object, format!("not now, but in the last minute: {problem}"), mend);
            found.push(v1::Finding { severity: Severity::Info.into(), ..past });
        }
    }
}

/// Packets for VIPs that another node owns come here.
fn stale_ports(readings: &Readings, table: &Table, found: &mut Vec<v1::Finding>) {
    let [before, after] = &readings.reports;
    let known: HashMap<IpAddr, u64> = before.vips.iter().map(|vip| (vip.address, vip.packets)).collect();
    for VipReport { address, packets, .. } in &after.vips {
        let came = packets - known.get(address).copied().unwrap_or(*packets).min(*packets);
        let owner = table.vip(*address).and_then(|vip| vip.owner);
        let Some(owner) = owner.filter(|owner| Some(owner.node) != readings.me) else { continue };
        // It has just moved.
        let is_settled = readings.owners.get(address) == Some(&(owner.node, owner.epoch));
        if came > STALE && is_settled {
            let name = table.node(owner.node).map(|node| node.name.to_string()).unwrap_or_default();
            found.push(finding(
                Id::StalePort,
                format!("vip {address}"),
                format!("{name} owns it, and {came} of its packets came here in the last second: a router or switch has not learnt of the move"),
                "they are served all the same; on the router: does it take gratuitous ARP (arp_accept, or a static entry)? Its entry for the VIP shows whom it believes",
            ));
        }
    }
}

/// Networks of VIPs in which this node has no address.
fn networks(readings: &Readings, table: &Table, found: &mut Vec<v1::Finding>) {
    let Some(me) = readings.me.and_then(|me| table.node(me)) else { return };
    if readings.links.is_empty() || me.attachments.is_empty() {
        return;
    }
    // A VIP that is in nobody's network is routed to the nodes; that is no fault.
    let elsewhere = |vip: IpAddr| {
        let mut others = table.nodes().filter(|node| node.id != me.id).flat_map(|node| &node.attachments);
        others.any(|at| is_beside((at.address, at.prefix_len), vip))
    };
    let missing: Vec<String> = table
        .vips()
        .map(|vip| vip.settings.address)
        .filter(|vip| !readings.is_on(*vip) && elsewhere(*vip))
        .map(|vip| vip.to_string())
        .collect();
    if let Some(first) = missing.first() {
        found.push(finding(
            Id::InterfaceWithoutAddress,
            format!("vip {first}"),
            format!(
                "none of this node's interfaces has an address in the network of {}: it can own none of them",
                missing.join(", ")
            ),
            "ip address add ADDRESS/LEN dev NAME, one of dataplane.interfaces",
        ));
    }
}
