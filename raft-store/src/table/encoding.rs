//! A whole table as a record, for snapshots.

use prost::Message as _;

use super::{
    Table,
    lease::{Configuration, Lease, LeaseOf},
    requests::{Answered, Kept, RequestId},
    types::Name,
};
use crate::codec::{self, DecodeError, Field, feature_level, record};

/// A whole table, for a snapshot.
pub(crate) fn encode_table(table: &Table) -> Vec<u8> {
    let lease = |(node, lease): (&u64, &Lease)| LeaseOf(*node, *lease).put();
    let request = |(id, answered): (&RequestId, &Answered)| record::Request {
        id: id.as_str().to_owned(),
        index: answered.index,
        fingerprint: answered.fingerprint,
        effect: answered.effect.put(),
        revision: answered.revision,
        clock_ms: answered.clock_ms,
        kept: answered.kept.put(),
    };
    let retraction = |((node, supporter), index): (&(u64, u64), &u64)| record::Retraction {
        node: *node,
        supporter: *supporter,
        index: *index,
    };
    record::Table {
        cluster: table.cluster.put(),
        hash_seed: table.hash_seed.put(),
        feature_level: table.feature_level,
        revision: table.revision,
        next_backend_id: table.next_backend_id,
        nodes: table.nodes.values().map(Field::put).collect(),
        leases: table.leases.iter().map(lease).collect(),
        segments: table.segments.values().map(Field::put).collect(),
        vips: table.vips.values().map(Field::put).collect(),
        services: table.services.values().map(Field::put).collect(),
        backends: table.backends.values().map(Field::put).collect(),
        requests: table.requests.iter().map(request).collect(),
        verdicts: table.verdicts.values().map(Field::put).collect(),
        cluster_name: table.cluster_name.as_ref().map(Field::put).unwrap_or_default(),
        configurations: table.configurations.values().map(Field::put).collect(),
        retractions: table.retractions.iter().map(retraction).collect(),
        settings: table.settings.put(),
        longest_withdraw_ms: table.longest_withdraw_ms,
        config_revision: table.config_revision,
        clock_ms: table.clock_ms,
        horizon_ms: table.horizon_ms,
        heartbeat_keys: table
            .heartbeat_keys()
            .map(|(index, key)| record::HeartbeatKey { index, key: key.put() })
            .collect(),
    }
    .encode_to_vec()
}

/// The inverse of [`encode_table`].
pub(crate) fn decode_table(bytes: &[u8]) -> Result<Table, DecodeError> {
    let record = record::Table::decode(bytes)?;
    if record.feature_level > feature_level() {
        return Err(DecodeError::too_new(record.feature_level));
    }
    let record: record::Table = codec::decode(bytes)?;
    let named = |field| move |error: DecodeError| error.named(field);
    let mut table = Table {
        cluster: Field::read(record.cluster).map_err(named("cluster"))?,
        cluster_name: match record.cluster_name {
            text if text.is_empty() => None,
            text => Some(Name::read(text)?),
        },
        hash_seed: Field::read(record.hash_seed).map_err(named("hash_seed"))?,
        feature_level: record.feature_level,
        revision: record.revision,
        next_backend_id: record.next_backend_id,
        settings: Field::read(record.settings).map_err(named("settings"))?,
        longest_withdraw_ms: record.longest_withdraw_ms,
        config_revision: record.config_revision,
        clock_ms: record.clock_ms,
        horizon_ms: record.horizon_ms,
        ..Table::default()
    };
    let nodes: Vec<super::Node> = Field::read(record.nodes)?;
    table.nodes = nodes.into_iter().map(|node| (node.id, node)).collect();
    let leases: Vec<LeaseOf> = Field::read(record.leases)?;
    table.leases = leases.into_iter().map(|LeaseOf(node, lease)| (node, lease)).collect();
    let configurations: Vec<Configuration> = Field::read(record.configurations)?;
    table.configurations =
        configurations.into_iter().map(|configuration| (configuration.index, configuration)).collect();
    for record::Retraction { node, supporter, index } in record.retractions {
        table.retractions.insert_mut((node, supporter), index);
    }
    for record in record.heartbeat_keys {
        table.heartbeat_keys.insert_mut(record.index, Field::read(record.key).map_err(named("heartbeat_key"))?);
    }
    let segments: Vec<super::Segment> = Field::read(record.segments)?;
    table.segments = segments.into_iter().map(|segment| (segment.settings.network, segment)).collect();
    let vips: Vec<super::Vip> = Field::read(record.vips)?;
    table.vips = vips.into_iter().map(|vip| (vip.settings.address, vip)).collect();
    let services: Vec<super::Service> = Field::read(record.services)?;
    table.services_by_vip =
        services.iter().map(|service| ((service.settings.vip, service.settings.name.clone()), ())).collect();
    table.services = services.into_iter().map(|service| (service.settings.name.clone(), service)).collect();
    let backends: Vec<super::Backend> = Field::read(record.backends)?;
    let key = |backend: &super::Backend| (backend.settings.service.clone(), backend.settings.address);
    table.backends_by_address = backends.iter().map(key).map(|(service, address)| ((address, service), ())).collect();
    table.backends_by_id = backends.iter().map(|backend| (backend.id, key(backend))).collect();
    let verdicts: Vec<super::Verdict> = Field::read(record.verdicts)?;
    table.verdicts = verdicts.into_iter().map(|verdict| (verdict.backend, verdict)).collect();
    table.backends = backends.into_iter().map(|backend| (key(&backend), backend)).collect();
    for request in record.requests {
        let id = RequestId::read(request.id).map_err(named("request.id"))?;
        let effect = Field::read(request.effect).map_err(named("request.effect"))?;
        let kept: Kept = Field::read(request.kept)?;
        let answered = Answered {
            index: request.index,
            fingerprint: request.fingerprint,
            effect,
            revision: request.revision,
            clock_ms: request.clock_ms,
            kept,
        };
        table.request_order.insert_mut((kept, answered.index), id.clone());
        table.request_counts[kept as usize] += 1;
        table.requests.insert_mut(id, answered);
    }
    Ok(table)
}
