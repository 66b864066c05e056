//! What has happened, for whoever asks later: numbered, with a reason and what it is about.
//!
//! ```text
//!   entries of the log --(derive: the same on all nodes)--\
//!   alarms, the lead   --(what this node sees itself)------+--> ring --> the log, WatchEvents
//! ```

mod derive;
mod event;
mod follow;
mod ring;
mod told;

pub(crate) use derive::name_of;
pub(crate) use event::{Event, Kind, News};
pub(crate) use follow::follow;
pub(crate) use ring::Events;
pub(crate) use told::Told;
