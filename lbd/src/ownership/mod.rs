//! For which VIPs this node may answer, and until when.
//!
//! A node opens a lease through the log and renews it with the leader. The leader answers a renewal
//! only after a majority has confirmed, since the renewal came, that it is still the leader. So:
//!
//! - a renewal that was sent at `t` is good until `t` + [`VALID`], by the holder's clock;
//! - a leader ends a lease through the log when it has answered no renewal for [`SILENCE`], counted
//!   from its election or from the last answer, whichever is later; both lie after `t`;
//! - [`SILENCE`] > [`VALID`], so the holder is silent before anybody else may speak.
//!
//! [`holder`] and [`fencing`] are pure; [`driver`] feeds them with time, the table and messages.

mod driver;
mod fencing;
mod holder;
mod message;

use std::time::Duration;

pub(crate) use driver::{Held, Ownership};

/// How long a renewal is good for.
const VALID: Duration = Duration::from_millis(500);
/// After how much silence a leader ends a lease.
const SILENCE: Duration = Duration::from_millis(1000);
/// Between two renewals.
const RENEW_EVERY: Duration = Duration::from_millis(100);

const _: () = assert!(SILENCE.as_millis() > VALID.as_millis());
