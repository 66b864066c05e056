//! How fast the counters of a cluster grow, from two answers of `NodeService.GetStats` with `all_nodes`.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use crate::v1;

/// How fast one VIP's or backend's counters grow, in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Rate {
    /// Packets sent on.
    pub packets_per_second: f64,
    /// Their bytes.
    pub bytes_per_second: f64,
    /// Flows for which a backend was chosen.
    pub new_flows_per_second: f64,
}

/// How fast one node's counters grow, in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct NodeRate {
    /// Frames received.
    pub received_per_second: f64,
    /// Frames sent on.
    pub forwarded_per_second: f64,
    /// Frames dropped.
    pub dropped_per_second: f64,
}

/// How fast the counters of a cluster grow.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rates {
    /// By the nodes' names.
    pub nodes: BTreeMap<String, NodeRate>,
    /// By the VIPs' addresses.
    pub vips: HashMap<String, Rate>,
    /// By the backends' services and addresses.
    pub backends: HashMap<(String, String), Rate>,
    /// Frames dropped in a second, by reason.
    pub drops: BTreeMap<String, f64>,
}

impl Rates {
    /// From two answers and the time between them. Nothing where that cannot be told: a node was started anew, answers no more, or
    /// did not answer before.
    pub fn between(before: &v1::GetStatsResponse, after: &v1::GetStatsResponse, elapsed: Duration) -> Option<Self> {
        let are_the_same = !before.nodes.is_empty()
            && before.nodes.len() == after.nodes.len()
            && before.nodes.iter().zip(&after.nodes).all(|(b, a)| b.node == a.node && b.received <= a.received);
        let seconds = elapsed.as_secs_f64();
        if !are_the_same || seconds <= 0.0 {
            return None;
        }
        let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
        let nodes = before.nodes.iter().zip(&after.nodes).map(|(b, a)| {
            let node = NodeRate {
                received_per_second: rate(b.received, a.received),
                forwarded_per_second: rate(b.forwarded, a.forwarded),
                dropped_per_second: rate(b.dropped, a.dropped),
            };
            (a.node.clone(), node)
        });
        let of = |b: (u64, u64, u64), a: (u64, u64, u64)| Rate {
            packets_per_second: rate(b.0, a.0),
            bytes_per_second: rate(b.1, a.1),
            new_flows_per_second: rate(b.2, a.2),
        };
        let vip = |of: &v1::VipCount| (of.packets, of.bytes, of.new_flows);
        let backend = |of: &v1::BackendCount| (of.packets, of.bytes, of.new_flows);
        // What is new since has begun at 0.
        let known: HashMap<&str, _> = before.vips.iter().map(|of| (of.address.as_str(), vip(of))).collect();
        let vips = after.vips.iter().map(|now| {
            let before = known.get(now.address.as_str()).copied().unwrap_or_default();
            (now.address.clone(), of(before, vip(now)))
        });
        let known: HashMap<_, _> =
            before.backends.iter().map(|of| ((of.service.as_str(), of.address.as_str()), backend(of))).collect();
        let backends = after.backends.iter().map(|now| {
            let before = known.get(&(now.service.as_str(), now.address.as_str())).copied().unwrap_or_default();
            ((now.service.clone(), now.address.clone()), of(before, backend(now)))
        });
        let known: HashMap<&str, u64> = before.drops.iter().map(|of| (of.reason.as_str(), of.packets)).collect();
        let drops = after.drops.iter().map(|now| {
            let before = known.get(now.reason.as_str()).copied().unwrap_or_default();
            (now.reason.clone(), rate(before, now.packets))
        });
        Some(Self {
            nodes: nodes.collect(),
            vips: vips.collect(),
            backends: backends.collect(),
            drops: drops.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(nodes: &[(&str, u64)], packets: u64) -> v1::GetStatsResponse {
        let node = |(name, received): &(&str, u64)| v1::NodeCount {
            node: (*name).to_owned(),
            received: *received,
            ..v1::NodeCount::default()
        };
        v1::GetStatsResponse {
            nodes: nodes.iter().map(node).collect(),
            vips: vec![v1::VipCount { address: "192.0.2.1".to_owned(), packets, ..v1::VipCount::default() }],
            ..v1::GetStatsResponse::default()
        }
    }

    #[test]
    fn counters_are_compared_while_the_same_nodes_go_on() {
        let two = Duration::from_secs(2);
        let before = stats(&[("lb1", 100), ("lb2", 0)], 50);
        let rates = Rates::between(&before, &stats(&[("lb1", 300), ("lb2", 0)], 90), two).unwrap();
        assert_eq!((rates.nodes["lb1"].received_per_second, rates.vips["192.0.2.1"].packets_per_second), (100.0, 20.0));
        for other in [stats(&[("lb1", 20), ("lb2", 0)], 90), stats(&[("lb1", 300)], 90), stats(&[], 0)] {
            assert_eq!(Rates::between(&before, &other, two), None, "{other:?}");
        }
        assert_eq!(Rates::between(&before, &before, Duration::ZERO), None);
        assert_eq!(Rates::between(&stats(&[], 0), &stats(&[], 1), two), None, "of an older node, or of none");
    }
}
