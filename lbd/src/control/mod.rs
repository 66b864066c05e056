//! A revision's way out: [`compile`] turns the replicated table into what this node's dataplane
//! forwards, [`reconcile`] publishes it.

mod compile;
mod reconcile;

pub(crate) use reconcile::{Control, Retiring, claimant, retire};
