//! A revision's way out: [`compile`] turns the replicated table into what this node's dataplane forwards,
//! [`publish_table`] publishes it, and [`publish_grants`] which VIPs this node owns. [`publish_node`] says in the table what
//! this node sees of its segments. [`look_out`] looks for what nobody tells of. [`leader_tasks`] does what is nobody's request, [`mod@retire`] ends it all in the right order.

mod answered;
mod compile;
mod conflicts;
mod in_force;
mod leader_tasks;
mod local_news;
mod look_out;
mod publish_grants;
mod publish_node;
mod publish_table;
mod reload;
mod retire;
mod share_flow_key;
mod takeovers;

pub(crate) use conflicts::{Claimant, Conflicts, claimant};
pub(crate) use in_force::InForce;
pub(crate) use leader_tasks::{raise_feature_level, run_leader_tasks};
pub(crate) use local_news::LocalNews;
pub(crate) use look_out::LookOut;
pub(crate) use publish_grants::PublishGrants;
pub(crate) use publish_node::{Hysteresis, PublishNode};
pub(crate) use publish_table::PublishTable;
pub(crate) use reload::reload;
pub(crate) use retire::{Leave, Retiring, retire};
pub(crate) use share_flow_key::share_flow_key;
pub(crate) use takeovers::Takeovers;
