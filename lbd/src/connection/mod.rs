//! Connections in and out, and who is at their other end: TLS in both directions by a node's credentials, plain TCP where the
//! operator wants it so, and the Unix socket.

mod accept;
mod authority;
mod dial;
mod keepalive;
mod lasting;
mod peer;
mod refusals;
mod renew;
mod room;
mod secret;
mod security;
mod shares;

pub(crate) use accept::{Watched, incoming, incoming_unix};
pub(crate) use lasting::Stream;
pub(crate) use peer::{Peer, Who};
pub(crate) use refusals::{Refusal, Refusals};
pub(crate) use renew::renew;
pub(crate) use room::Room;
pub(crate) use secret::Secret;
pub(crate) use security::Security;
pub(crate) use shares::{NoPlace, Place, SharedRoom};
