//! Whether it is the backends that are silent, or this node that is cut off from them: most of a segment's at once are told
//! to the other nodes first, and so is a gateway. Pure: what the dataplane has found, the links and the time come in.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use lb_dataplane::{SeenBackend, forward::runtime::Liveness};
use lb_raft_store::table::{Cidr, Silence, Table};
use tokio::time::Instant;

use crate::link::Link;

/// Whoever is cut off as well has noticed by then: with the first backend that is found silent all others are asked, and two
/// nodes find the first one within a second of each other.
const LASTING: Duration = Duration::from_millis(1200);

/// A gateway has so long to answer when it is asked for the first time.
const FIRST_ANSWER: Duration = Duration::from_secs(1);

/// An interface, and a segment that it is on.
pub(super) type At = (String, Cidr);

/// Where those who should be there are silent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Silences {
    /// Most of the backends.
    pub(crate) backends: BTreeMap<At, Silence>,
    /// The gateway.
    pub(crate) gateways: BTreeMap<At, Silence>,
}

/// A gateway that is to be heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gateway {
    /// The interface towards it.
    pub(crate) port: usize,
    at: At,
    /// Its address.
    pub(crate) address: IpAddr,
}

/// The gateways of the segments that this node is on.
pub(crate) fn gateways(table: &Table, links: &[Link]) -> Vec<Gateway> {
    let mut gateways = Vec::new();
    for (port, link) in links.iter().enumerate().filter(|(_, link)| link.carrier) {
        let networks: BTreeSet<Cidr> =
            link.addresses.iter().filter_map(|(own, len)| Cidr::containing(*own, *len)).collect();
        for segment in networks.iter().filter_map(|network| table.segment(network)) {
            let at = (link.name.clone(), segment.settings.network);
            gateways.push(Gateway { port, at, address: segment.settings.gateway });
        }
    }
    gateways
}

/// Since when it is so.
#[derive(Debug, Default)]
pub(super) struct Segments {
    backends: BTreeMap<At, Instant>,
    gateways: BTreeMap<At, Instant>,
    /// Since when each gateway is asked.
    asked: BTreeMap<(At, IpAddr), Instant>,
}

impl Segments {
    /// Where it is so now. `heard`: the interface and the address of whoever is.
    pub(super) fn look(
        &mut self,
        (seen, links): (&[SeenBackend], &[Link]),
        (gateways, heard): (&[Gateway], &[(usize, IpAddr)]),
        now: Instant,
    ) -> Silences {
        let asked = gateways.iter().map(|gateway| (gateway.at.clone(), gateway.address));
        self.asked = asked.map(|key| (key.clone(), self.asked.get(&key).copied().unwrap_or(now))).collect();
        let is_silent = |gateway: &&Gateway| {
            let since = self.asked.get(&(gateway.at.clone(), gateway.address));
            let had_time = since.is_some_and(|since| now.duration_since(*since) >= FIRST_ANSWER);
            had_time && !heard.contains(&(gateway.port, gateway.address))
        };
        let silent = gateways.iter().filter(is_silent).map(|gateway| gateway.at.clone()).collect();
        Silences {
            backends: aged(&mut self.backends, mostly_silent(seen, links), now),
            gateways: aged(&mut self.gateways, silent, now),
        }
    }
}

/// For how long it has been so.
fn aged(since: &mut BTreeMap<At, Instant>, silent: BTreeSet<At>, now: Instant) -> BTreeMap<At, Silence> {
    since.retain(|at, _| silent.contains(at));
    let age = |at: At| {
        let since = *since.entry(at.clone()).or_insert(now);
        let lasts = now.duration_since(since) >= LASTING;
        (at, if lasts { Silence::Lasting } else { Silence::Begun })
    };
    silent.into_iter().map(age).collect()
}

/// The segments on which more than half of those that are asked are silent.
fn mostly_silent(seen: &[SeenBackend], links: &[Link]) -> BTreeSet<At> {
    let asked = seen.iter().filter(|backend| backend.liveness != Liveness::NotAsked);
    mostly(asked.map(|backend| (backend, backend.liveness == Liveness::Silent)), links)
}

/// The segments of which something holds for more than half of the machines, each counted once.
pub(super) fn mostly<'a>(of: impl Iterator<Item = (&'a SeenBackend, bool)>, links: &[Link]) -> BTreeSet<At> {
    let machines: HashMap<(usize, IpAddr), bool> =
        of.map(|(backend, holds)| ((backend.port, backend.address), holds)).collect();
    let mut counts: BTreeMap<At, (usize, usize)> = BTreeMap::new();
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
pub(super) fn segment_of(links: &[Link], port: usize, address: IpAddr) -> Option<At> {
    let link = links.get(port)?;
    let with = link.addresses.iter().filter_map(|(own, len)| Some((*len, Cidr::containing(*own, *len)?)));
    let narrowest = with.filter(|(_, segment)| segment.contains(address)).max_by_key(|(len, _)| *len)?;
    Some((link.name.clone(), narrowest.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> Vec<Link> {
        vec![Link::sample("eth0", &["192.0.2.1/24"]), Link::sample("eth1", &["10.0.0.1/8", "10.1.0.1/16"])]
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
        let mut look = |seen: &[SeenBackend], now| segments.look((seen, &links), (&[], &[]), now).backends;
        let half = [("10.1.0.5", Silent), ("10.1.0.6", Answers), ("10.2.0.5", Silent), ("10.2.0.6", Silent)];
        let of_eth1 = at("eth1", "10.0.0.0/8");
        assert_eq!(
            look(&seen(1, &half), start),
            BTreeMap::from([(of_eth1.clone(), Silence::Begun)]),
            "each segment by itself, the narrowest first"
        );
        let later = start + LASTING;
        assert_eq!(look(&seen(1, &half), later), BTreeMap::from([(of_eth1, Silence::Lasting)]));
        // A machine with many services is one; who is not asked, or may answer yet, does not count as silent.
        let services = [("192.0.2.5", Silent), ("192.0.2.5", Silent), ("192.0.2.6", Answers), ("192.0.2.7", NotAsked)];
        assert_eq!(look(&seen(0, &services), later), BTreeMap::new());
        let unknown = [("192.0.2.5", Silent), ("192.0.2.6", Asked)];
        assert_eq!(look(&seen(0, &unknown), later), BTreeMap::new());
        // What ends begins anew.
        assert_eq!(look(&seen(1, &half), later).into_values().collect::<Vec<_>>(), [Silence::Begun]);
        let elsewhere = [("198.51.100.1", Silent)];
        assert_eq!(look(&seen(0, &elsewhere), later), BTreeMap::new(), "on no segment of ours");
    }

    #[test]
    fn a_gateway_has_a_second_to_answer_and_is_told_when_it_does_not() {
        let (links, start) = (links(), Instant::now());
        let at = ("eth0".to_owned(), "192.0.2.0/24".parse::<Cidr>().unwrap());
        let address = IpAddr::from([192, 0, 2, 254]);
        let gateways = [Gateway { port: 0, at: at.clone(), address }];
        let mut segments = Segments::default();
        let mut look = |heard: &[(usize, IpAddr)], after: Duration| {
            segments.look((&[], &links), (&gateways, heard), start + after).gateways
        };
        let told = |silence| BTreeMap::from([(at.clone(), silence)]);
        assert_eq!(look(&[], Duration::ZERO), BTreeMap::new());
        assert_eq!(look(&[], FIRST_ANSWER), told(Silence::Begun));
        assert_eq!(look(&[], FIRST_ANSWER + LASTING), told(Silence::Lasting));
        let later = FIRST_ANSWER + 2 * LASTING;
        assert_eq!(look(&[(0, address)], later), BTreeMap::new());
        assert_eq!(look(&[(1, address)], later), told(Silence::Begun), "by another interface it is another station");
    }
}
