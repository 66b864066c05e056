//! Which node of which cluster a store belongs to.

use uuid::Uuid;

use crate::{
    codec::record,
    table::{NodeId, Role},
};

/// Who a store belongs to, once its node is part of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) cluster: Uuid,
    pub(crate) cluster_name: String,
    pub(crate) name: String,
    pub(crate) role: Role,
    /// Clusters from which this node was recovered as the only survivor; their other nodes are gone for good.
    pub(crate) recovered_from: Vec<Uuid>,
}

impl Identity {
    /// As it stands in the store of that name.
    pub(crate) fn record(&self, store: Uuid) -> record::Identity {
        record::Identity {
            node: self.node,
            cluster: self.cluster.as_bytes().to_vec(),
            store: store.as_bytes().to_vec(),
            name: self.name.clone(),
            witness_role: self.role == Role::Witness,
            cluster_name: self.cluster_name.clone(),
            recovered_from: self.recovered_from.iter().map(|id| id.as_bytes().to_vec()).collect(),
        }
    }

    /// The inverse, or what is wrong with it.
    pub(crate) fn read(record: record::Identity, store: Uuid) -> Result<Self, String> {
        if record.store != store.as_bytes() {
            return Err("the witness file belongs to another store".into());
        }
        Ok(Self {
            node: record.node,
            cluster: Uuid::from_slice(&record.cluster).map_err(|error| error.to_string())?,
            cluster_name: record.cluster_name,
            recovered_from: record.recovered_from.iter().filter_map(|id| Uuid::from_slice(id).ok()).collect(),
            name: record.name,
            role: if record.witness_role { Role::Witness } else { Role::Lb },
        })
    }
}
