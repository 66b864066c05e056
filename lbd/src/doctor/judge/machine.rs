//! The machine: its disk, its clock, its scheduler, its interfaces; and what the node complains of itself.

use std::time::Duration;

use lb_proto::v1;
use lb_raft_store::table::Table;

use super::super::{
    finding::{Id, finding},
    readings::Readings,
};
use crate::alarms::Alarm;

/// Beyond it each change takes noticeably longer; and a node that leads waits as long for each lease that it grants.
const SLOW_SYNC: Duration = Duration::from_millis(50);
/// What NTP slews at most (adjtimex(2)). Promises are kept by clocks that run alike.
const SLEW_PPM: f64 = 500.0;
/// A heartbeat is due each 20 ms: in a second and a bit so much waiting is a few of them.
const STALLED: Duration = Duration::from_millis(60);
/// Entries: more than a second's worth under load.
const BEHIND: u64 = 2000;

pub(super) fn judge(readings: &Readings, table: &Table, found: &mut Vec<v1::Finding>) {
    found.extend(readings.alarms.iter().filter_map(|(alarm, problem)| of_alarm(*alarm, problem, table)));
    if readings.disk_sync > SLOW_SYNC {
        found.push(finding(
            Id::DiskLatency,
            "data_dir",
            format!(
                "a small file takes {} ms to be durable: so long each change takes at least",
                readings.disk_sync.as_millis()
            ),
            "give node.data_dir a disk of its own, best one with a cache that survives a power cut",
        ));
    }
    if readings.clock_slew_ppm.abs() > SLEW_PPM {
        found.push(finding(
            Id::ClockRate,
            "clock",
            format!("it is slewed by {:.0} ppm: leases count on clocks that run alike", readings.clock_slew_ppm),
            "chronyc tracking, or timedatectl timesync-status: something corrects the clock faster than NTP may",
        ));
    }
    if readings.stalled > STALLED {
        found.push(finding(
            Id::Scheduling,
            "heartbeat",
            format!("the thread of the heartbeats waited {} ms for a core in the last second", readings.stalled.as_millis()),
            "give lbd real-time priority (deploy/systemd/realtime.conf beside its unit), or the machine less other work; on a virtual machine look for steal in vmstat",
        ));
    }
    for (node, entries) in readings.behind.iter().filter(|(_, entries)| *entries > BEHIND) {
        let name = table.node(*node).map(|node| node.name.to_string()).unwrap_or_default();
        found.push(finding(
            Id::RaftBehind,
            format!("node {name}"),
            format!("its log is {entries} entries behind the leader's"),
            format!(
                "on {name}: iostat -x, and the way between the nodes: it catches up by itself when both are fast enough"
            ),
        ));
    }
    interfaces(readings, table, found);
    if readings.forwards == Some(true)
        && let Some(problem) = &readings.guard_problem
    {
        found.push(finding(
            Id::ForwardingWithoutGuard,
            "machine",
            format!(
                "its kernel routes (ip_forward), and is not kept from the VIPs' packets: {problem}: they go out twice"
            ),
            "sysctl net.ipv4.ip_forward=0, or mend the guard: nft list table netdev lbd",
        ));
    }
    of_frames(readings, found);
}

fn interfaces(readings: &Readings, table: &Table, found: &mut Vec<v1::Finding>) {
    for name in &readings.merging {
        found.push(finding(
            Id::LargeReceiveOffload,
            format!("interface {name}"),
            "it merges what it receives (large receive offload): what was merged cannot be sent on as it came",
            format!("ethtool -K {name} lro off"),
        ));
    }
    for link in readings.links.iter().filter(|link| link.ifindex != 0 && !link.segments) {
        found.push(finding(
            Id::SoftwareSegmentation,
            format!("interface {}", link.name),
            "it does not segment TCP itself (TSO): the kernel does, which is correct and slower",
            format!("ethtool -K {} tso on, where its driver can", link.name),
        ));
    }
    // From where clients' packets come to where backends are: what is longer than the way on takes does not fit.
    let vips = || table.vips().map(|vip| vip.settings.address);
    let there = || readings.links.iter().filter(|link| link.ifindex != 0);
    let from = there().filter(|link| vips().any(|vip| link.is_on(vip))).map(|link| link.mtu).max();
    let to = readings.seen.values().filter_map(|seen| readings.links.get(seen.port)).map(|link| link.mtu).min();
    if let (Some(from), Some(to)) = (from, to)
        && to < from
    {
        let each: Vec<String> = there().map(|link| format!("{} {}", link.name, link.mtu)).collect();
        found.push(finding(
            Id::MtuDiffers,
            "interfaces",
            format!(
                "clients' packets may have {from} bytes, and towards the backends {to} fit ({}): longer ones are answered with an ICMP \
                 error, or taken apart",
                each.join(", ")
            ),
            "ip link set dev NAME mtu N: towards the backends at least as much as from the clients, on the switch and on the backends too",
        ));
    }
}

fn of_frames(readings: &Readings, found: &mut Vec<v1::Finding>) {
    for (interface, reason) in &readings.not_accelerated {
        found.push(finding(
            Id::NotAccelerated,
            format!("interface {interface}"),
            reason.clone(),
            "what the reason names; or dataplane.accelerator = \"off\", and a start",
        ));
    }
    let changes = readings.reports[1].totals.backend_mac_changed;
    if changes > MAC_CHANGES.max(MAC_CHANGES_EACH * readings.seen.len() as u64) {
        found.push(finding(
            Id::BackendMacChanges,
            "backends",
            format!("they have had other MAC addresses {changes} times since the start: lbctl events --kind health says which"),
            "two hosts may have one address: arping -D -I INTERFACE ADDRESS; or a bond's or cluster's address moves",
        ));
    }
}

/// A backend that is replaced has another one once: since the start of the node, of all together and of each.
const MAC_CHANGES: u64 = 20;
const MAC_CHANGES_EACH: u64 = 10;

/// What the node complains of, with what mends it.
fn of_alarm(alarm: Alarm, problem: &str, table: &Table) -> Option<v1::Finding> {
    let name = |id| table.node(id).map(|node| node.name.to_string()).unwrap_or_default();
    let (id, object, mend) = match alarm {
        Alarm::Unfit => {
            (Id::Unfit, "this node".to_owned(), "what it says mends it by itself, or: journalctl -u lbd -p warning")
        }
        Alarm::Lease => (
            Id::Lease,
            "this node".to_owned(),
            "it gets another one when a majority of the nodes hears it: lbctl node list",
        ),
        Alarm::Quorum => (
            Id::Quorum,
            "cluster".to_owned(),
            "start the nodes that are off; of a single survivor lbd recover makes a new cluster",
        ),
        Alarm::SilentPeer(node) => (
            Id::NodeSilent,
            format!("node {}", name(node)),
            "there: systemctl status lbd; and UDP to the port of cluster.listen, in both directions",
        ),
        Alarm::Distance(node) => (Id::NodeFar, format!("node {}", name(node)), "lbctl cluster set timing=relaxed"),
        Alarm::Address => (
            Id::AddressDiffers,
            "this node".to_owned(),
            "lbctl node set NAME --address HOST:PORT on another node, or correct cluster.advertise",
        ),
        Alarm::Identity => (
            Id::AddressDiffers,
            "this node".to_owned(),
            "two nodes must not have one name, one address or one data directory",
        ),
        Alarm::OwnVip(vip) => (
            Id::VipOnInterface,
            format!("vip {vip}"),
            "take it away there: ip address del; a node that is a backend itself has it on lo",
        ),
        Alarm::Space => {
            (Id::DiskSpace, "data_dir".to_owned(), "make room on its file system: at 16 MiB changes are refused")
        }
        Alarm::FlowTable => (
            Id::FlowTableSmall,
            "dataplane.flows".to_owned(),
            "raise dataplane.flows to about twice the number of flows, and restart the node",
        ),
        Alarm::Ring => (
            Id::RingFull,
            "dataplane".to_owned(),
            "dataplane.workers = 2 or more, or dataplane.realtime = true; lbctl capture and lbctl top show what comes",
        ),
        Alarm::Checks => {
            (Id::ChecksStretched, "checks".to_owned(), "longer intervals: lbctl service set NAME --check-interval 5s")
        }
        Alarm::Credentials => (
            Id::Certificate,
            "tls".to_owned(),
            "the certificate, its key and the authority's files must fit together: lbctl pki list",
        ),
        Alarm::Expiry => {
            (Id::Certificate, "tls".to_owned(), "lbctl pki renew, and put it in its place: it is taken up within 5 s")
        }
        // Looked at more closely by the claims themselves.
        Alarm::Contested(_) => return None,
    };
    Some(finding(id, object, problem, mend))
}

#[cfg(test)]
mod tests {
    use lb_raft_store::table::Table;

    use super::*;
    use crate::link::Link;

    fn ids(readings: &Readings) -> Vec<String> {
        let mut found = Vec::new();
        judge(readings, &Table::default(), &mut found);
        found.into_iter().map(|finding| finding.id).collect()
    }

    /// Those that no test can make for real.
    #[test]
    fn readings_of_a_machine_that_is_ill_are_found() {
        assert!(ids(&Readings::default()).is_empty());
        let ms = Duration::from_millis;
        assert_eq!(ids(&Readings { disk_sync: ms(51), ..Readings::default() }), ["disk-latency"]);
        assert_eq!(ids(&Readings { clock_slew_ppm: -501.0, ..Readings::default() }), ["clock-rate"]);
        assert_eq!(ids(&Readings { stalled: ms(61), ..Readings::default() }), ["scheduling"]);
        assert_eq!(ids(&Readings { behind: vec![(2, 2001)], ..Readings::default() }), ["raft-behind"]);
        assert_eq!(
            ids(&Readings { merging: vec!["eth0".to_owned()], ..Readings::default() }),
            ["large-receive-offload"]
        );
        let link = |segments, mtu| Link { segments, mtu, ..Link::sample("eth0", &[]) };
        let of = |links: Vec<Link>| ids(&Readings { links, ..Readings::default() });
        assert_eq!(of(vec![link(false, 1500)]), ["software-segmentation"]);
        let guard = Some("it was removed".to_owned());
        assert!(ids(&Readings { guard_problem: guard.clone(), ..Readings::default() }).is_empty());
        assert_eq!(
            ids(&Readings { guard_problem: guard, forwards: Some(true), ..Readings::default() }),
            ["forwarding-without-guard"]
        );
        let not_accelerated = vec![("eth0".to_owned(), "it is gone".to_owned())];
        assert_eq!(ids(&Readings { not_accelerated, ..Readings::default() }), ["not-accelerated"]);
        let mut readings = Readings::default();
        readings.reports[1].totals.backend_mac_changed = MAC_CHANGES + 1;
        assert_eq!(ids(&readings), ["backend-mac-changes"]);
    }

    #[test]
    fn what_a_node_complains_of_is_a_finding() {
        let all = [Alarm::Unfit, Alarm::Lease, Alarm::Quorum, Alarm::SilentPeer(1), Alarm::Distance(1), Alarm::Address];
        let more = [Alarm::Identity, Alarm::Space, Alarm::FlowTable, Alarm::Ring, Alarm::Checks, Alarm::Credentials];
        for alarm in all.into_iter().chain(more).chain([Alarm::Expiry]) {
            let found = of_alarm(alarm, "it is so", &Table::default()).unwrap();
            assert!(found.explanation == "it is so" && found.mend.len() > 10, "{alarm:?}");
        }
    }
}
