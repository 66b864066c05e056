//! What is wrong with this setup, and how to mend it. Each node looks for itself ([`examine`] gathers what there is to read, and asks
//! the segments and the backends; [`judge`] says, purely, what that means); the node that is asked compares what all have found
//! ([`mod@compare`]).

mod compare;
mod examine;
mod finding;
mod judge;
mod netconf;
mod readings;

pub(crate) use compare::compare;
pub(crate) use examine::{Doctor, Last};
