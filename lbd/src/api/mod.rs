//! A command's way in: [`table`], [`cluster`] and [`node`] are the gRPC services, [`convert`] turns their
//! messages into the domain's values, [`status`] is the one place where errors become status codes.

mod bounds;
mod capture;
mod checks;
mod cluster;
mod context;
mod convert;
mod events;
mod guard;
mod listen;
mod methods;
mod node;
mod overview;
mod page;
mod roles;
mod serving;
mod settings;
mod status;
mod summary;
mod table;
mod watch;

pub(crate) use context::Context;
pub(crate) use listen::{Listeners, serve_nodes};
