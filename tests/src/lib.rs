//! The harness of the system tests, the quickstart and the benchmark: real daemons, real frames, in
//! network namespaces that are built over netlink and vanish with the process.
#![deny(unsafe_code)]

pub mod binaries;
pub mod browser;
pub mod campaign;
pub mod capture;
pub mod checked;
pub mod cluster;
pub mod crowd;
pub mod distance;
pub mod faults;
pub mod files;
pub mod flood;
pub mod follower;
pub mod frame;
pub mod grpc;
pub mod manager;
pub mod netns;
pub mod nft;
pub mod observe;
pub mod pki;
pub mod python;
pub mod runner;
pub mod running;
pub mod site;
#[allow(unsafe_code, reason = "entering namespaces and packet sockets; each block says why it is sound")]
pub mod sys;
pub mod terminal;
pub mod topology;
pub mod traffic;
pub mod wait;
