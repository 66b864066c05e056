//! The multicast groups to which solicitations for owned IPv6 VIPs are sent. They are joined with a socket of the
//! kernel's, so that it reports them (MLD, RFC 3810) and opens the interface's filter: a switch that snoops sends
//! nothing else here. (Joined by a packet socket they would not be reported.)

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv6Addr},
};

use socket2::{Domain, Socket, Type};

use super::permit::Grant;
use crate::{forward::spec::TableSpec, packet::ndp};

/// A group on an interface, by its index.
type Membership = (u32, Ipv6Addr);

/// What is joined.
#[derive(Debug, Default)]
pub(crate) struct MulticastGroups {
    /// A socket holds only so many memberships (net.core.optmem_max): another one is opened when it is full.
    sockets: Vec<Socket>,
    /// And by which socket.
    joined: BTreeMap<Membership, usize>,
    /// What could not be joined, so that it is told once.
    refused: BTreeSet<Membership>,
}

impl MulticastGroups {
    /// Joins what owned VIPs need and leaves what they do not need any more.
    pub(crate) fn follow(&mut self, spec: &TableSpec, grants: &[Grant]) {
        let mut wanted = BTreeSet::new();
        let owned: BTreeSet<IpAddr> = grants.iter().map(|grant| grant.vip).collect();
        for vip in spec.vips.iter().filter(|vip| owned.contains(&vip.address)) {
            if let IpAddr::V6(address) = vip.address {
                let ports = vip.answer_on.iter().filter_map(|at| spec.ports.get(*at)).filter(|port| !port.is_gone());
                wanted.extend(ports.map(|port| (port.ifindex, ndp::solicited_node(address))));
            }
        }
        let sockets = &self.sockets;
        self.joined.retain(|(ifindex, group), by| {
            let stays = wanted.contains(&(*ifindex, *group));
            if !stays {
                // An interface that is gone has left all its groups.
                let _ = sockets[*by].leave_multicast_v6(group, *ifindex);
            }
            stays
        });
        self.refused.retain(|membership| wanted.contains(membership));
        for membership in wanted {
            if self.joined.contains_key(&membership) {
                continue;
            }
            match self.join(membership) {
                Ok(by) => drop(self.joined.insert(membership, by)),
                Err(error) if self.refused.insert(membership) => {
                    let (ifindex, group) = membership;
                    tracing::warn!(
                        ifindex, %group, %error,
                        "the group of an IPv6 VIP cannot be joined: a switch that snoops may keep its solicitations \
                         from this node (is IPv6 off there? sysctl net.ipv6.conf.IF.disable_ipv6)"
                    );
                }
                Err(_) => {}
            }
        }
    }

    fn join(&mut self, (ifindex, group): Membership) -> io::Result<usize> {
        if let Some(by) = self.sockets.len().checked_sub(1) {
            match self.sockets[by].join_multicast_v6(&group, ifindex) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOBUFS)) => {}
                joined => return joined.map(|()| by),
            }
        }
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
        socket.join_multicast_v6(&group, ifindex)?;
        self.sockets.push(socket);
        Ok(self.sockets.len() - 1)
    }
}
