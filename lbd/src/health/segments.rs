//! Whether it is the backends that are silent, or this node that is cut off from them: most of a segment's at once are told
//! to the other nodes first. Pure: what the dataplane has found, the links and the time come in.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use lb_dataplane::{SeenBackend, forward::runtime::Liveness};
use lb_raft_store::table::{Cidr, Silence};
use tokio::time::Instant;

use crate::link::Link;

/// Whoever is cut off as well has noticed by then: with the first backend that is found silent all others are asked, and two
/// nodes find the first one within a second of each other.
const LASTING: Duration = Duration::from_millis(1200);

/// The segments on which most backends are silent, by interface.
pub(crate) type Silences = BTreeMap<(String, Cidr), Silence>;

/// Since when it is so.
#[derive(Debug, Default)]
pub(super) struct Segments(BTreeMap<(String, Cidr), Instant>);

impl Segments {
    /// Where it is so now.
    pub(super) fn look(&mut self, seen: &[SeenBackend], links: &[Link], now: Instant) -> Silences {
        let mostly = mostly_silent(seen, links);
        self.0.retain(|at, _| mostly.contains(at));
        let mut silences = Silences::new();
        for at in mostly {
            let since = *self.0.entry(at.clone()).or_insert(now);
            let lasts = now.duration_since(since) >= LASTING;
            silences.insert(at, if lasts { Silence::Lasting } else { Silence::Begun });
        }
        silences
    }
}

/// The segments on which more than half of those that are asked are silent.
fn mostly_silent(seen: &[SeenBackend], links: &[Link]) -> BTreeSet<(String, Cidr)> {
    let asked = seen.iter().filter(|backend| backend.liveness != Liveness::NotAsked);
    mostly(asked.map(|backend| (backend, backend.liveness == Liveness::Silent)), links)
}

/// The segments of which something holds for more than half of the machines, each counted once.
pub(super) fn mostly<'a>(
    of: impl Iterator<Item = (&'a SeenBackend, bool)>,
    links: &[Link],
) -> BTreeSet<(String, Cidr)> {
    let machines: HashMap<(usize, IpAddr), bool> =
        of.map(|(backend, holds)| ((backend.port, backend.address), holds)).collect();
    let mut counts: BTreeMap<(String, Cidr), (usize, usize)> = BTreeMap::new();
    for ((port, address), holds) in machines {
        if let Some(at) = segment_of(links, port, address) {
            let (held, all) = counts.entry(at).or_default();
            *all += 1;
            *held += usize::from(holds);
        }
    }
    counts.into_iter().filter(|(_, (held, all))| 2 * held > *all).map(|(at, _)| at).collect()
}

/// The narrowest segment of an interface in which an address is.
pub(super) fn segment_of(links: &[Link], port: usize, address: IpAddr) -> Option<(String, Cidr)> {
    let link = links.get(port)?;
    let with = link.addresses.iter().filter_map(|(own, len)| Some((*len, Cidr::containing(*own, *len)?)));
    let narrowest = with.filter(|(_, segment)| segment.contains(address)).max_by_key(|(len, _)| *len)?;
    Some((link.name.clone(), narrowest.1))
}

#[cfg(test)]
mod tests {
    use lb_dataplane::packet::Mac;

    use super::*;

    fn links() -> Vec<Link> {
        let link = |name: &str, addresses: &[(&str, u8)]| Link {
            name: name.into(),
            ifindex: 2,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            carrier: true,
            segments: true,
            addresses: addresses.iter().map(|(address, len)| (address.parse().unwrap(), *len)).collect(),
        };
        vec![link("eth0", &[("192.0.2.1", 24)]), link("eth1", &[("10.0.0.1", 8), ("10.1.0.1", 16)])]
    }

    fn seen(port: usize, of: &[(&str, Liveness)]) -> Vec<SeenBackend> {
        let backend = |((address, liveness), id): (&(&str, Liveness), u64)| SeenBackend {
            id,
            address: address.parse().unwrap(),
            port,
            mac: None,
            liveness: *liveness,
        };
        of.iter().zip(1..).map(backend).collect()
    }

    #[test]
    fn more_than_half_of_a_segment_is_told_and_after_a_while_as_lasting() {
        use Liveness::{Answers, Asked, NotAsked, Silent};
        let at = |name: &str, segment: &str| (name.to_owned(), segment.parse::<Cidr>().unwrap());
        let (links, start) = (links(), Instant::now());
        let mut segments = Segments::default();
        let half = [("10.1.0.5", Silent), ("10.1.0.6", Answers), ("10.2.0.5", Silent), ("10.2.0.6", Silent)];
        let of_eth1 = at("eth1", "10.0.0.0/8");
        assert_eq!(
            segments.look(&seen(1, &half), &links, start),
            Silences::from([(of_eth1.clone(), Silence::Begun)]),
            "each segment by itself, the narrowest first"
        );
        let later = start + LASTING;
        assert_eq!(segments.look(&seen(1, &half), &links, later), Silences::from([(of_eth1, Silence::Lasting)]));
        // A machine with many services is one; who is not asked, or may answer yet, does not count as silent.
        let services = [("192.0.2.5", Silent), ("192.0.2.5", Silent), ("192.0.2.6", Answers), ("192.0.2.7", NotAsked)];
        assert_eq!(segments.look(&seen(0, &services), &links, later), Silences::new());
        let unknown = [("192.0.2.5", Silent), ("192.0.2.6", Asked)];
        assert_eq!(segments.look(&seen(0, &unknown), &links, later), Silences::new());
        // What ends begins anew.
        assert_eq!(segments.look(&seen(1, &half), &links, later).into_values().collect::<Vec<_>>(), [Silence::Begun]);
        let elsewhere = [("198.51.100.1", Silent)];
        assert_eq!(segments.look(&seen(0, &elsewhere), &links, later), Silences::new(), "on no segment of ours");
    }
}
