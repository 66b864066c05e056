//! The rules of backends' changes.

use std::net::IpAddr;

use super::{
    super::{
        Table,
        backend::{Backend, BackendPatch, BackendSettings},
        rejection::Rejection,
        types::{Name, is_host_address},
    },
    service::no_service,
};

impl Table {
    pub(in crate::table) fn create_backend(
        &mut self,
        index: u64,
        stamp_ms: u64,
        settings: &BackendSettings,
    ) -> Result<bool, Rejection> {
        let (service, address) = (&settings.service, settings.address);
        if let Some(backend) = self.backend(service, address) {
            if backend.settings == *settings {
                return Ok(false);
            }
            return Err(Rejection::exists(
                "backend",
                format!(
                    "backend {address} of {service} exists with other settings: change them with \
                     'lbctl backend set {service} {address}'"
                ),
            ));
        }
        if !is_host_address(address) {
            return Err(Rejection::invalid("address", format!("{address} is no address that a host can have")));
        }
        self.check_not_reserved(address)?;
        if settings.mac.is_none() && !self.nodes().any(|node| node.is_attached_to(address)) {
            return Err(Rejection::precondition(
                "address",
                format!(
                    "{address} is on no node's segment: direct server return needs the backend on a segment of the \
                     load balancers ('lbctl node list' shows them), or name its MAC with --mac"
                ),
            ));
        }
        let id = self.next_backend_id;
        self.next_backend_id += 1;
        let mut backend = Backend::new(settings.clone(), id, index);
        self.turn(&mut backend, None, stamp_ms);
        self.put_backend(backend);
        Ok(true)
    }

    pub(in crate::table) fn patch_backend(
        &mut self,
        index: u64,
        stamp_ms: u64,
        patch: &BackendPatch,
    ) -> Result<bool, Rejection> {
        let (service, address) = (&patch.service, patch.address);
        let Some(before) = self.backend(service, address) else {
            return Err(Rejection::not_found(
                "backend",
                format!("service {service} has no backend {address}: 'lbctl backend list {service}' shows them"),
            ));
        };
        let mut backend = before.clone();
        backend.settings = patch.applied_to(&before.settings);
        if backend == *before {
            return Ok(false);
        }
        backend.revision = index;
        let state = before.settings.state;
        self.turn(&mut backend, Some(state), stamp_ms);
        self.put_backend(backend);
        Ok(true)
    }

    /// Whether there was one.
    pub(in crate::table) fn delete_backend(&mut self, service: &Name, address: IpAddr) -> bool {
        self.remove_backend(service, address)
    }

    pub(in crate::table) fn put_backend(&mut self, backend: Backend) {
        let (service, address) = (backend.settings.service.clone(), backend.settings.address);
        self.backends_by_address.insert_mut((address, service.clone()), ());
        self.backends_by_id.insert_mut(backend.id, (service.clone(), address));
        self.backends.insert_mut((service, address), backend);
    }

    pub(in crate::table) fn remove_backend(&mut self, service: &Name, address: IpAddr) -> bool {
        if let Some(backend) = self.backend(service, address) {
            let id = backend.id;
            self.backends_by_id.remove_mut(&id);
            self.verdicts.remove_mut(&id);
        }
        self.backends_by_address.remove_mut(&(address, service.clone()));
        self.backends.remove_mut(&(service.clone(), address))
    }

    /// What must hold of a backend that an entry has touched, once all its changes are made.
    pub(in crate::table) fn check_backend(&self, service: &Name, address: IpAddr) -> Result<(), Rejection> {
        if self.backend(service, address).is_none() {
            return Ok(());
        }
        if !self.services.contains_key(service) {
            return Err(no_service(service));
        }
        let may_leave = self.rules().leaving_vip_may_be_backend;
        if self.vips.get(&address).is_some_and(|vip| !(vip.deleting && may_leave)) {
            return Err(Rejection::precondition(
                "address",
                format!("{address} is a VIP: name the backend by its own address"),
            ));
        }
        Ok(())
    }
}
