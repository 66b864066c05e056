//! The rules of services' changes.

use std::net::IpAddr;

use super::super::{
    Table,
    rejection::{Rejection, has_dependants},
    service::{PortRange, Service, ServicePatch, ServiceSettings, TABLE_SIZES},
    types::Name,
};

impl Table {
    pub(in crate::table) fn create_service(
        &mut self,
        index: u64,
        settings: &ServiceSettings,
    ) -> Result<bool, Rejection> {
        let name = &settings.name;
        if let Some(service) = self.services.get(name) {
            if service.settings == *settings {
                return Ok(false);
            }
            return Err(Rejection::exists(
                "service",
                format!("service {name} exists with other settings: change them with 'lbctl service set {name}'"),
            ));
        }
        if !TABLE_SIZES.contains(&settings.table_size) {
            return Err(Rejection::invalid(
                "table_size",
                format!("{} is none of 4093, 16381, 65537, 655373", settings.table_size),
            ));
        }
        self.put_service(Service { settings: settings.clone(), revision: index });
        Ok(true)
    }

    pub(in crate::table) fn patch_service(&mut self, index: u64, patch: &ServicePatch) -> Result<bool, Rejection> {
        let service = self.services.get(&patch.name).ok_or_else(|| no_service(&patch.name))?;
        let settings = patch.applied_to(&service.settings);
        if service.settings == settings {
            return Ok(false);
        }
        if settings.checks.is_empty() {
            self.forget_checks(&patch.name);
        }
        self.put_service(Service { settings, revision: index });
        Ok(true)
    }

    /// Whether there was one.
    pub(in crate::table) fn delete_service(&mut self, name: &Name, cascade: bool) -> bool {
        let backends: Vec<IpAddr> = self.backends_of(name).filter(|_| cascade).map(|b| b.settings.address).collect();
        for address in backends {
            self.remove_backend(name, address);
        }
        self.remove_service(name)
    }

    fn put_service(&mut self, service: Service) {
        let name = service.settings.name.clone();
        self.services_by_vip.insert_mut((service.settings.vip, name.clone()), ());
        self.services.insert_mut(name, service);
    }

    fn remove_service(&mut self, name: &Name) -> bool {
        if let Some(service) = self.services.get(name) {
            self.services_by_vip.remove_mut(&(service.settings.vip, name.clone()));
        }
        self.services.remove_mut(name)
    }

    /// What must hold of a service that an entry has touched, once all its changes are made.
    pub(in crate::table) fn check_service(&self, name: &Name) -> Result<(), Rejection> {
        match self.services.get(name) {
            Some(service) => {
                self.settled_vip(service.settings.vip)?;
                self.check_ports(&service.settings)?;
                match service.settings.problem_of_checks().or_else(|| service.settings.problem_of_times()) {
                    Some((field, problem)) => Err(Rejection::invalid(&field, problem)),
                    None => Ok(()),
                }
            }
            None => {
                let backends: Vec<IpAddr> = self.backends_of(name).map(|backend| backend.settings.address).collect();
                match backends.is_empty() {
                    true => Ok(()),
                    false => Err(has_dependants(&format!("service {name}"), "backend", &backends)),
                }
            }
        }
    }

    fn check_ports(&self, settings: &ServiceSettings) -> Result<(), Rejection> {
        let ports = &settings.ports;
        if ports.is_empty() || ports.len() > self.rules().ports_per_service {
            return Err(Rejection::invalid(
                "ports",
                format!("{} port ranges; a service has 1 to {}", ports.len(), self.rules().ports_per_service),
            ));
        }
        for (i, port) in ports.iter().enumerate() {
            if port.first > port.last {
                return Err(Rejection::invalid("ports", format!("{port} ends before it begins")));
            }
            if let Some(twin) = ports[..i].iter().find(|other| other.collides_with(port)) {
                return Err(Rejection::invalid("ports", format!("{twin} and {port} overlap")));
            }
        }
        let others = self.services_on(settings.vip).filter(|other| other.settings.name != settings.name);
        for other in others {
            let collides = |port: &&PortRange| other.settings.ports.iter().any(|taken| taken.collides_with(port));
            if let Some(port) = ports.iter().find(collides) {
                return Err(Rejection::precondition(
                    "ports",
                    format!("{port} on {} belongs to service {}", settings.vip, other.settings.name),
                ));
            }
        }
        Ok(())
    }
}

pub(in crate::table) fn no_service(name: &Name) -> Rejection {
    Rejection::not_found(
        "service",
        format!("there is no service {name}: 'lbctl service add {name} --vip IP --port 80/tcp' creates it"),
    )
}
