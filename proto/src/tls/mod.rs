//! Who speaks on a connection. Both ends show a certificate (TLS 1.3, RFC 8446) whose URI names the cluster, the role and the
//! name: `lb://CLUSTER/ROLE/NAME`. Host names prove nothing here: a node is one because the cluster's authority says so.

mod credentials;
mod identity;
mod network;
mod verify;

pub use credentials::{Credentials, CredentialsError, Paths, Sources, WATCHDOG};
pub use identity::{Certified, Identity, IdentityError, Role};
pub use network::network_of;
