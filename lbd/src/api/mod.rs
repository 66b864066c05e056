//! A command's way in: [`table`], [`cluster`] and [`node`] are the gRPC services, [`convert`] turns their
//! messages into the domain's values, [`status`] is the one place where errors become status codes.

mod authority;
mod checks;
mod cluster;
mod context;
mod convert;
mod listen;
mod node;
mod settings;
mod status;
mod table;

pub(crate) use context::Context;
pub(crate) use listen::{Listeners, bind_cluster, bind_tcp};
