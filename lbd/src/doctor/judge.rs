//! What the readings of a node mean. Pure.

mod backends;
mod machine;
mod vips;

use lb_proto::v1;
use lb_raft_store::table::Table;

use super::readings::Readings;

/// All that is wrong, or worth knowing.
pub(super) fn judge(readings: &Readings, table: &Table) -> Vec<v1::Finding> {
    let mut found = Vec::new();
    machine::judge(readings, table, &mut found);
    vips::judge(readings, table, &mut found);
    backends::judge(readings, table, &mut found);
    found
}
