//! A revision's way out: [`compile`] turns the replicated table into what this node's dataplane
//! forwards, [`reconcile`] publishes it. [`caretaker`] does what is nobody's request.

mod answered;
mod caretaker;
mod compile;
mod conflicts;
mod reconcile;
mod reload;

pub(crate) use answered::Answered;
pub(crate) use caretaker::take_care;
pub(crate) use conflicts::{Conflicts, claimant};
pub(crate) use reconcile::{Control, Leave, Retiring, retire};
pub(crate) use reload::reload;
