//! The load balancer's gRPC API, package `lb.v1`, generated from `lb/v1/*.proto`.
#![forbid(unsafe_code)]

pub mod cause;
mod labels;
pub mod rates;
mod reason;
#[cfg(feature = "tls")]
pub mod tls;

pub use labels::{Label, label};
pub use prost_types::FieldMask;
pub use reason::Reason;

/// Package `lb.v1`. With the feature `serde` its messages can be serialized: fields by their names in the .proto files, enums
/// by their labels.
#[allow(
    missing_docs,
    clippy::all,
    unreachable_pub,
    unused_qualifications,
    reason = "generated; the .proto files are the documentation"
)]
pub mod v1 {
    tonic::include_proto!("lb.v1");
}

/// The descriptors of the operators' services, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The largest request or answer, in bytes.
pub const MAX_MESSAGE_LEN: usize = 4 << 20;

/// The domain of the `google.rpc.ErrorInfo` in every error's details.
pub const ERROR_DOMAIN: &str = "lb.v1";

/// The trailer that carries the id of a request that may or may not have been applied.
pub const REQUEST_ID_METADATA: &str = "lb-request-id";
