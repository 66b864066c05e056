//! Health checks: the owner of a VIP asks its backends what a client would, by the way that a client's packets take. So a
//! server that runs and has no VIP on its loopback is not healthy, and neither is one behind a port of a switch that drops
//! what is for the VIP.
//!
//! [`plan`] says what is asked of whom, [`pace`] when, [`probe`] how, [`wire`] is the way there, [`judge`] makes of answers
//! what holds, and [`checker`] runs all of it in a thread of its own.

mod answer;
mod checker;
mod judge;
mod pace;
mod plan;
mod probe;
mod wire;

pub(crate) use checker::{Checker, Outcome};
pub(crate) use plan::Plan;
