//! What all nodes have done with their frames, together. A VIP's owner counts its packets, and owners change: the sums are what
//! the cluster has done.

use std::collections::{BTreeMap, HashMap};

use lb_dataplane::{BackendReport, Report, VipReport};
use lb_proto::v1;
use lb_raft_store::table::Table;

/// What one node has to say of its own.
pub(crate) fn of_node(report: Report) -> v1::Traffic {
    let totals = &report.totals;
    let node = v1::NodeCount {
        node: String::new(),
        received: totals.received,
        forwarded: totals.forwarded,
        answered: totals.answered,
        dropped: report.drops.iter().map(|(_, packets)| packets).sum(),
        ring_full: totals.ring_full,
    };
    let backend = |of: &BackendReport| v1::BackendTraffic {
        backend: of.id,
        packets: of.packets,
        bytes: of.bytes,
        new_flows: of.new_flows,
    };
    v1::Traffic {
        node: Some(node),
        drops: drops(&report),
        // What has had nothing need not be told.
        backends: report.backends.iter().filter(|of| of.packets + of.new_flows > 0).map(backend).collect(),
        vips: report.vips.iter().filter(|of| of.packets + of.new_flows > 0).cloned().map(vip).collect(),
        flows_remembered: totals.flows_remembered,
        flows_not_remembered: totals.flows_not_remembered,
        held: totals.held,
        originated: totals.originated,
        segmented: totals.segmented,
    }
}

/// Frames dropped, by reason.
pub(crate) fn drops(report: &Report) -> Vec<v1::DropCount> {
    let drop = |(reason, packets): &(lb_dataplane::verdict::DropReason, u64)| v1::DropCount {
        reason: reason.label().to_owned(),
        packets: *packets,
    };
    report.drops.iter().map(drop).collect()
}

/// A VIP's counters.
pub(crate) fn vip(of: VipReport) -> v1::VipCount {
    v1::VipCount { address: of.address.to_string(), packets: of.packets, bytes: of.bytes, new_flows: of.new_flows }
}

/// What all nodes have said, added up.
pub(crate) fn sum(answers: impl Iterator<Item = (String, v1::Traffic)>, table: &Table) -> v1::GetStatsResponse {
    let mut all = v1::GetStatsResponse::default();
    let mut drops = BTreeMap::<String, u64>::new();
    let mut vips = HashMap::<String, v1::VipCount>::new();
    let mut backends = HashMap::<u64, v1::BackendTraffic>::new();
    for (node, traffic) in answers {
        let totals = v1::NodeCount { node, ..traffic.node.unwrap_or_default() };
        all.received += totals.received;
        all.forwarded += totals.forwarded;
        all.answered += totals.answered;
        all.ring_full += totals.ring_full;
        all.flows_remembered += traffic.flows_remembered;
        all.flows_not_remembered += traffic.flows_not_remembered;
        all.held += traffic.held;
        all.originated += traffic.originated;
        all.segmented += traffic.segmented;
        all.nodes.push(totals);
        for v1::DropCount { reason, packets } in traffic.drops {
            *drops.entry(reason).or_default() += packets;
        }
        for of in traffic.vips {
            let sum = vips.entry(of.address).or_default();
            sum.packets += of.packets;
            sum.bytes += of.bytes;
            sum.new_flows += of.new_flows;
        }
        for of in traffic.backends {
            let sum = backends.entry(of.backend).or_default();
            sum.packets += of.packets;
            sum.bytes += of.bytes;
            sum.new_flows += of.new_flows;
        }
    }
    all.drops = drops.into_iter().map(|(reason, packets)| v1::DropCount { reason, packets }).collect();
    // In the table's order, and what has had nothing too.
    let vip = |vip: &lb_raft_store::table::Vip| {
        let address = vip.settings.address.to_string();
        let counted = vips.remove(&address).unwrap_or_default();
        v1::VipCount { address, ..counted }
    };
    all.vips = table.vips().map(vip).collect();
    let backend = |of: &lb_raft_store::table::Backend| {
        let v1::BackendTraffic { packets, bytes, new_flows, .. } = backends.remove(&of.id).unwrap_or_default();
        v1::BackendCount {
            service: of.settings.service.to_string(),
            address: of.settings.address.to_string(),
            mac: String::new(),
            packets,
            bytes,
            new_flows,
        }
    };
    all.backends = table.backends().map(backend).collect();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_nodes_have_done_is_added_up() {
        let of = |received, dropped| v1::Traffic {
            node: Some(v1::NodeCount { received, dropped, ..v1::NodeCount::default() }),
            drops: vec![v1::DropCount { reason: "no_service".to_owned(), packets: dropped }],
            ..v1::Traffic::default()
        };
        let both = [("lb1".to_owned(), of(10, 3)), ("lb2".to_owned(), of(5, 0))];
        let all = sum(both.into_iter(), &Table::default());
        assert_eq!((all.received, all.drops[0].packets), (15, 3));
        let nodes: Vec<_> = all.nodes.iter().map(|node| (node.node.as_str(), node.received)).collect();
        assert_eq!(nodes, [("lb1", 10), ("lb2", 5)]);
    }
}
