//! A table as a file says it: VIPs, services, backends, segments and settings by the API's own field names. Which fields
//! there are comes from the descriptors of the API, so that what it gains can be declared without a change here.
//!
//! A file's way: [`mod@tree`] reads YAML or JSON with its lines, [`mod@read`] makes messages of it, [`mod@plan`] says what has to be sent
//! so that the table becomes what they say. What comes back, and what a table holds, is written by [`mod@write`]; [`mod@schema`] says
//! all of it as a JSON schema.

mod plan;
mod read;
mod schema;
mod shapes;
#[cfg(test)]
mod tests;
mod tree;
mod write;

use prost_reflect::DynamicMessage;

pub(crate) use plan::{Others, Planned, plan};
pub(crate) use read::read;
pub(crate) use schema::schema;
pub(crate) use shapes::{BACKEND, SEGMENT, SERVICE, SETTINGS, Shape, VIP, of_message};
pub(crate) use write::{Changed, Fields, Shown, changes, document};

/// One row.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    pub(crate) shape: &'static Shape,
    /// Where it stands in its file; 0 for one of the table.
    pub(crate) line: u64,
    pub(crate) message: DynamicMessage,
}

/// All that a file, or a table, says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Document {
    pub(crate) objects: Vec<Object>,
    pub(crate) settings: Option<Object>,
    /// The kinds that are listed, if only as empty lists.
    pub(crate) listed: Vec<&'static Shape>,
}
