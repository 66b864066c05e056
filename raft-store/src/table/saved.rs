//! A table in a file: VIPs, services, backends, segments and settings, without secrets and without what belongs to running
//! processes. And the way back: the changes that make another table hold the same.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::{
    Table,
    backend::{Backend, BackendPatch},
    command::{Body, Mutation},
    encoding::{decode_table, encode_table},
    node::Node,
    segment::SegmentPatch,
    service::{Service, ServicePatch},
    settings::SettingsPatch,
    types::Name,
    vip::{Vip, VipPatch},
};
use crate::codec::DecodeError;

/// The file's bytes.
pub fn encode_saved(table: &Table) -> Vec<u8> {
    let fresh = Table::default();
    // Of nodes only the names stay, by which VIPs prefer them.
    let nodes = table.nodes().map(|node| {
        let named = Node {
            id: node.id,
            name: node.name.clone(),
            role: node.role,
            address: String::new(),
            store: Uuid::nil(),
            attachments: Vec::new(),
            heartbeat: Vec::new(),
            feature_level: node.feature_level,
            draining: false,
            unfit: String::new(),
            starts: 0,
        };
        (node.id, named)
    });
    let stripped = Table {
        cluster: fresh.cluster,
        hash_seed: fresh.hash_seed,
        nodes: nodes.collect(),
        leases: fresh.leases,
        configurations: fresh.configurations,
        retractions: fresh.retractions,
        verdicts: fresh.verdicts,
        heartbeat_keys: fresh.heartbeat_keys,
        requests: fresh.requests,
        request_order: fresh.request_order,
        request_counts: fresh.request_counts,
        clock_ms: fresh.clock_ms,
        horizon_ms: fresh.horizon_ms,
        ..table.clone()
    };
    encode_table(&stripped)
}

/// The inverse of [`encode_saved`].
pub fn decode_saved(bytes: &[u8]) -> Result<Table, DecodeError> {
    decode_table(bytes)
}

/// The entry that gives `present` the VIPs, services, backends and settings of `saved`, in one; `None` if it has them. Below
/// feature level 3 settings have no place in it.
pub fn restore(present: &Table, saved: &Table) -> Option<Body> {
    let mut changes = restored_rows(present, saved);
    // Of a cluster that knew less: as if that had come so far.
    let settings = saved.settings().at_level(saved.feature_level(), present.feature_level());
    if present.feature_level() >= 3 && present.settings() != settings {
        changes.push(Mutation::PatchSettings(SettingsPatch::to(settings)));
    }
    (!changes.is_empty()).then_some(Body::Mutate(changes))
}

/// Nodes that a VIP prefers are found by their names; one that is not there any more is not preferred.
fn restored_rows(present: &Table, saved: &Table) -> Vec<Mutation> {
    let mut changes = Vec::new();
    let keeps = |service: &Service| {
        let now = &service.settings;
        saved
            .service(&now.name)
            .is_some_and(|then| then.settings.vip == now.vip && then.settings.table_size == now.table_size)
    };
    // What cannot be changed is made anew, and so is what hangs on it.
    let kept: BTreeSet<&Name> = present.services().filter(|s| keeps(s)).map(|s| &s.settings.name).collect();
    for service in present.services().filter(|service| !kept.contains(&service.settings.name)) {
        changes.push(Mutation::DeleteService { name: service.settings.name.clone(), cascade: true });
    }
    for vip in present.vips().filter(|vip| !vip.deleting && saved.vip(vip.settings.address).is_none()) {
        changes.push(Mutation::DeleteVip { address: vip.settings.address, cascade: true });
    }
    let stays = |backend: &&Backend| saved.backend(&backend.settings.service, backend.settings.address).is_some();
    let of_kept = present.backends().filter(|backend| kept.contains(&backend.settings.service));
    for backend in of_kept.filter(|backend| !stays(backend)) {
        let (service, address) = (backend.settings.service.clone(), backend.settings.address);
        changes.push(Mutation::DeleteBackend { service, address });
    }
    for segment in present.segments().filter(|segment| saved.segment(&segment.settings.network).is_none()) {
        changes.push(Mutation::DeleteSegment { network: segment.settings.network });
    }
    for segment in saved.segments() {
        let settings = segment.settings.clone();
        changes.extend(match present.segment(&settings.network) {
            None => Some(Mutation::CreateSegment(settings)),
            Some(now) if now.settings == settings => None,
            Some(now) => Some(Mutation::UpdateSegment(SegmentPatch::between(&now.settings, settings))),
        });
    }
    changes.extend(saved.vips().filter(|vip| !vip.deleting).filter_map(|vip| restored_vip(present, saved, vip)));
    for service in saved.services() {
        let settings = service.settings.clone();
        changes.extend(match present.service(&settings.name).filter(|_| kept.contains(&settings.name)) {
            None => Some(Mutation::CreateService(settings)),
            Some(now) if now.settings == settings => None,
            Some(now) => Some(Mutation::UpdateService(ServicePatch::between(&now.settings, settings))),
        });
    }
    for backend in saved.backends() {
        let settings = backend.settings.clone();
        let now = present.backend(&settings.service, settings.address).filter(|b| kept.contains(&b.settings.service));
        changes.extend(match now {
            None => Some(Mutation::CreateBackend(settings)),
            Some(now) if now.settings == settings => None,
            Some(now) => Some(Mutation::UpdateBackend(BackendPatch::between(&now.settings, settings))),
        });
    }
    changes
}

fn restored_vip(present: &Table, saved: &Table, vip: &Vip) -> Option<Mutation> {
    let mut settings = vip.settings.clone();
    let preferred = settings.prefer.and_then(|id| saved.node(id));
    settings.prefer = preferred.and_then(|node| present.node_named(node.name.as_str())).map(|node| node.id);
    match present.vip(settings.address) {
        None => Some(Mutation::CreateVip(settings)),
        Some(now) if now.settings == settings => None,
        Some(now) => Some(Mutation::UpdateVip(VipPatch::between(&now.settings, settings))),
    }
}
