//! The room for connections, and for those who have not shown yet who they are: nobody takes all of it.

use std::net::IpAddr;

use lb_proto::tls::network_of;

use super::{
    peer::Peer,
    refusals::{Refusal, Refusals},
    shares::{NoPlace, Place, SharedRoom},
};
use crate::descriptors::at_most_a;

/// Handshakes at a time.
const HANDSHAKES: usize = 1024;
/// Of one network.
const HANDSHAKES_OF_A_NETWORK: usize = 32;
/// Whom a certificate is for has one of so many parts of the room.
const SHARES: usize = 4;

/// The room for connections of listeners together. Clones are of the same.
#[derive(Clone)]
pub(crate) struct Room {
    /// By whom a certificate is for.
    connections: SharedRoom<String>,
    /// Of those who have not shown who they are, by network: they take no place from others.
    handshakes: SharedRoom<IpAddr>,
    refusals: Refusals,
}

impl Room {
    pub(crate) fn for_connections(count: usize, refusals: Refusals) -> Self {
        let count = at_most_a(8, count);
        Self {
            connections: SharedRoom::of(count, count.div_ceil(SHARES)),
            handshakes: SharedRoom::of(at_most_a(16, HANDSHAKES), HANDSHAKES_OF_A_NETWORK),
            refusals,
        }
    }

    /// A place for a connection. If there is none for it, that is told, and the connection is to be closed.
    pub(super) fn take(&self, peer: &Peer) -> Option<Place<String>> {
        let place = self.connections.take(peer.holder());
        let told = |why: &NoPlace| match why {
            NoPlace::Share => {
                let caller = peer.who();
                tracing::debug!(%caller, from = %peer, "a connection is closed: its holder has as many as one gets");
            }
            NoPlace::Whole => tracing::debug!(from = %peer, "a connection is closed: there are as many as are taken"),
        };
        place.inspect_err(told).inspect_err(|_| self.refusals.count(Refusal::Room)).ok()
    }

    /// Where it is counted that somebody is refused.
    pub(super) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    pub(super) fn begin_handshake(&self, address: IpAddr) -> Option<Place<IpAddr>> {
        self.handshakes.take(Some(network_of(address))).inspect_err(|_| self.refusals.count(Refusal::Room)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_takes_all_the_room_for_handshakes() {
        let room = Room::for_connections(1, Refusals::default());
        let [one, neighbor, other] = ["2001:db8::1", "2001:db8::ffff:2", "192.0.2.1"].map(|text| text.parse().unwrap());
        let begun: Vec<_> = (0..HANDSHAKES_OF_A_NETWORK).map_while(|_| room.begin_handshake(one)).collect();
        assert_eq!(begun.len(), HANDSHAKES_OF_A_NETWORK);
        assert!(room.begin_handshake(neighbor).is_none(), "of the same network");
        assert!(room.begin_handshake(other).is_some());
        drop(begun);
        assert!(room.begin_handshake(neighbor).is_some());
    }
}
