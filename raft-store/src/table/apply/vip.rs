//! The rules of VIPs' changes. Who owns them is in [`super::ownership`].

use std::net::IpAddr;

use super::{
    super::{
        Table,
        node::{Attachment, Node},
        rejection::{Rejection, has_dependants},
        types::{Cidr, Name, NodeId, is_host_address},
        vip::{Vip, VipPatch, VipSettings},
    },
    node::no_node,
};

impl Table {
    pub(in crate::table) fn create_vip(&mut self, index: u64, settings: &VipSettings) -> Result<bool, Rejection> {
        let address = settings.address;
        if let Some(vip) = self.vips.get(&address) {
            return match vip {
                vip if vip.deleting => Err(still_deleting(address)),
                vip if vip.settings == *settings => Ok(false),
                _ => Err(Rejection::exists(
                    "vip",
                    format!("VIP {address} exists with other settings: change them with 'lbctl vip set {address}'"),
                )),
            };
        }
        if !is_host_address(address) {
            return Err(Rejection::invalid("address", format!("{address} is no address that a host can have")));
        }
        self.check_prefer(settings.prefer)?;
        self.check_not_reserved(address)?;
        if self.rules().reserved_addresses_are_refused
            && let Some(node) = self.nodes().find(|node| node.is_reached_at(address))
        {
            return Err(Rejection::precondition(
                "address",
                format!("{address} is {}'s cluster address: the nodes would lose it with the VIP", node.name),
            ));
        }
        if let Some((node, attachment)) = self.node_with(address) {
            return Err(Rejection::precondition(
                "address",
                format!(
                    "{address} is {}'s own address on {}: a VIP must be configured on no machine but the backends' loopbacks",
                    node.name, attachment.interface
                ),
            ));
        }
        let vip = Vip {
            settings: settings.clone(),
            owner: None,
            home: None,
            intent: None,
            grants: 0,
            deleting: false,
            revision: index,
        };
        self.vips.insert_mut(address, vip);
        Ok(true)
    }

    pub(in crate::table) fn patch_vip(&mut self, index: u64, patch: &VipPatch) -> Result<bool, Rejection> {
        let settings = patch.applied_to(&self.settled_vip(patch.address)?.settings);
        self.update_vip(index, settings)
    }

    fn update_vip(&mut self, index: u64, settings: VipSettings) -> Result<bool, Rejection> {
        self.check_prefer(settings.prefer)?;
        let mut vip = self.settled_vip(settings.address)?.clone();
        if vip.settings == settings {
            return Ok(false);
        }
        let address = settings.address;
        vip.settings = settings;
        vip.revision = index;
        self.vips.insert_mut(address, vip);
        Ok(true)
    }

    /// Whether there was one.
    pub(in crate::table) fn delete_vip(&mut self, index: u64, address: IpAddr, cascade: bool) -> bool {
        let Some(vip) = self.vips.get(&address).filter(|vip| !vip.deleting) else { return false };
        let mut vip = vip.clone();
        if cascade {
            let services: Vec<Name> = self.services_on(address).map(|s| s.settings.name.clone()).collect();
            for service in &services {
                self.delete_service(service, true);
            }
        }
        if vip.owner.is_some() {
            vip.deleting = true;
            vip.revision = index;
            self.vips.insert_mut(address, vip);
        } else {
            self.vips.remove_mut(&address);
        }
        true
    }

    /// What must hold of a VIP that an entry has touched, once all its changes are made.
    pub(in crate::table) fn check_vip(&self, address: IpAddr) -> Result<(), Rejection> {
        let services: Vec<&Name> = self.services_on(address).map(|service| &service.settings.name).collect();
        match self.vips.get(&address) {
            Some(vip) if !vip.deleting => {
                let service = self.backends_with(address).next().map(|backend| &backend.settings.service);
                service.map_or(Ok(()), |service| {
                    Err(Rejection::precondition("address", format!("{address} is a backend of service {service}")))
                })
            }
            _ if services.is_empty() => Ok(()),
            _ => Err(has_dependants(&format!("VIP {address}"), "service", &services)),
        }
    }

    fn check_prefer(&self, prefer: Option<NodeId>) -> Result<(), Rejection> {
        match prefer {
            Some(id) if !self.nodes.contains_key(&id) => Err(no_node(id)),
            _ => Ok(()),
        }
    }

    /// A VIP that is not on its way out.
    pub(in crate::table) fn settled_vip(&self, address: IpAddr) -> Result<&Vip, Rejection> {
        match self.vips.get(&address) {
            None => Err(Rejection::not_found(
                "vip",
                format!("there is no VIP {address}: 'lbctl vip add {address}' creates it"),
            )),
            Some(vip) if vip.deleting => Err(still_deleting(address)),
            Some(vip) => Ok(vip),
        }
    }

    /// What no host of a segment may have is no VIP and no backend.
    pub(in crate::table) fn check_not_reserved(&self, address: IpAddr) -> Result<(), Rejection> {
        if !self.rules().reserved_addresses_are_refused {
            return Ok(());
        }
        let segments = self.nodes().flat_map(|node| &node.attachments).filter_map(Attachment::segment);
        let narrowest = segments.filter(|segment| segment.contains(address)).max_by_key(Cidr::prefix_len);
        match narrowest.and_then(|segment| Some((segment, segment.reserves(address)?))) {
            Some((segment, what)) => {
                Err(Rejection::invalid("address", format!("{address} is the {what} of {segment}: no host can have it")))
            }
            None => Ok(()),
        }
    }

    fn node_with(&self, address: IpAddr) -> Option<(&Node, &Attachment)> {
        self.nodes().find_map(|node| {
            let attachment = node.attachments.iter().find(|a| a.address == address)?;
            Some((node, attachment))
        })
    }
}

fn still_deleting(address: IpAddr) -> Rejection {
    Rejection::precondition(
        "vip",
        format!("VIP {address} is being removed: its owner has yet to let go of it; try again in a second"),
    )
}
