//! The rules of segments' changes.

use std::net::IpAddr;

use super::super::{
    Table,
    rejection::Rejection,
    segment::{Segment, SegmentPatch, SegmentSettings},
    types::{Cidr, is_host_address},
};

impl Table {
    pub(in crate::table) fn create_segment(
        &mut self,
        index: u64,
        settings: &SegmentSettings,
    ) -> Result<bool, Rejection> {
        let network = settings.network;
        match self.segments.get(&network) {
            Some(segment) if segment.settings == *settings => Ok(false),
            Some(_) => Err(Rejection::exists(
                "segment",
                format!(
                    "segment {network} exists with another gateway: change it with 'lbctl segment set {network} --gateway IP'"
                ),
            )),
            None => {
                self.segments.insert_mut(network, Segment { settings: settings.clone(), revision: index });
                Ok(true)
            }
        }
    }

    pub(in crate::table) fn patch_segment(&mut self, index: u64, patch: &SegmentPatch) -> Result<bool, Rejection> {
        let network = patch.network;
        let segment = self.segments.get(&network).ok_or_else(|| {
            Rejection::not_found(
                "segment",
                format!("there is no segment {network}: 'lbctl segment add {network} --gateway IP' creates it"),
            )
        })?;
        let settings = patch.applied_to(&segment.settings);
        if segment.settings == settings {
            return Ok(false);
        }
        self.segments.insert_mut(network, Segment { settings, revision: index });
        Ok(true)
    }

    /// Whether there was one.
    pub(in crate::table) fn delete_segment(&mut self, network: &Cidr) -> bool {
        self.segments.remove_mut(network)
    }

    /// What must hold of a segment that an entry has touched, once all its changes are made.
    pub(in crate::table) fn check_segment(&self, network: &Cidr) -> Result<(), Rejection> {
        let Some(segment) = self.segments.get(network) else { return Ok(()) };
        let gateway = segment.settings.gateway;
        let invalid = |problem: String| Err(Rejection::invalid("gateway", problem));
        // IPv6 routers may be known by their link-local addresses alone (RFC 4861 6.1.2).
        let is_link_local = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let is_there = network.contains(gateway) || (is_link_local && network.is_ipv6());
        if !is_there {
            return invalid(format!("{gateway} is not in {network}: a gateway is asked by ARP or neighbour discovery"));
        }
        if !is_host_address(gateway) && !is_link_local {
            return invalid(format!("{gateway} is no address that a router can have"));
        }
        if let Some(what) = network.reserves(gateway) {
            return invalid(format!("{gateway} is the {what} of {network}: no router can have it"));
        }
        if self.vips.contains_key(&gateway) {
            return invalid(format!("{gateway} is a VIP: its owner would ask itself"));
        }
        if let Some(node) = self.nodes().find(|node| node.attachments.iter().any(|a| a.address == gateway)) {
            return invalid(format!("{gateway} is {}'s own address: it would ask itself", node.name));
        }
        Ok(())
    }
}
