//! The kernel's side of the dataplane, and the only unsafe code: packet sockets, the receive ring, io_uring, and the engines
//! that move frames between them and whoever judges them.
//!
//! [`sys`] has what the kernel offers, [`cbpf`] the programs that it runs for us, [`fanout`] the sharing of frames between
//! several workers, [`engine`] the three ways of moving frames, [`departure`] how one leaves, [`control`] the sockets for ARP and
//! neighbour discovery, [`check_socket`] those by which the node asks backends how they are. It knows no worker: an engine is made for whatever [judges frames](engine::FrameJudge).

pub(crate) mod cbpf;
pub(crate) mod check_socket;
pub(crate) mod control;
pub(crate) mod departure;
pub(crate) mod engine;
pub(crate) mod fanout;
pub(crate) mod local_delivery;
pub mod sys;
pub(crate) mod wake;

pub use check_socket::CheckSocket;
pub use engine::{EngineError, EngineKind};
pub use sys::{
    bpf::XdpMode,
    offload::{driver, merges_received, segments_tcp, takes_tags_off},
    socket::{PortConfig, SocketError},
};
