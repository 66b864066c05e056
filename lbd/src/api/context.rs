//! What every call needs: the node's parts, the deadline, the request's id, the caller's name.

use std::{sync::Arc, time::Duration};

use lb_dataplane::Dataplane;
use lb_proto::tls::Role;
use lb_raft_store::{
    Consensus, View, request_span,
    table::{Body, Command, Effect, Expected, Mutation, Principal, Rejection, Reply, RequestId, Table},
};
use tokio::{sync::watch, time::Instant};
use tonic::{Request, Status};
use tracing::Instrument as _;

use super::{guard::Guard, roles, status, summary, watch::changes};
use crate::{
    alarms::Alarms,
    clock,
    config::Config,
    connection::{Peer, Refusals},
    control::InForce,
    doctor::Doctor,
    events::Events,
    ownership::Ownership,
    peers::Peers,
};

/// For a call that sets no deadline.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// From this feature level on, revisions are those of objects, and a request is what its caller has sent.
const GUARDS_LEVEL: u32 = 11;
/// Nobody waits longer: what takes more has failed.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(600);
/// What changes more than so many objects is not told one by one.
const TOLD_ROWS: usize = 1000;
/// The answer must be on its way before the caller gives up.
const MARGIN: Duration = Duration::from_millis(150);

/// The node, as its API sees it.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) config: Arc<Config>,
    pub(crate) consensus: Consensus,
    pub(crate) ownership: Ownership,
    pub(crate) dataplane: Option<Arc<Dataplane>>,
    /// The revision by which the dataplane forwards.
    pub(crate) in_force: InForce,
    pub(crate) alarms: Alarms,
    pub(crate) events: Events,
    pub(crate) peers: Peers,
    pub(crate) refusals: Refusals,
    pub(crate) doctor: Doctor,
    /// Becomes true when the node ends.
    pub(crate) stopping: watch::Receiver<bool>,
}

/// What is known of a call beside its message.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) deadline: Instant,
    caller: String,
    from: String,
    role: Option<Role>,
    method: &'static str,
}

impl Call {
    pub(super) fn new<T>(method: &'static str, request: &Request<T>) -> Self {
        let timeout = request.metadata().get("grpc-timeout").and_then(|value| parse_timeout(value.to_str().ok()?));
        let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT).min(LONGEST_TIMEOUT);
        let deadline = Instant::now() + timeout.saturating_sub(MARGIN.min(timeout / 10));
        let peer = request.extensions().get::<Peer>();
        Self {
            deadline,
            caller: peer.map_or_else(|| "unknown".to_owned(), roles::name_of),
            from: peer.map(ToString::to_string).unwrap_or_default(),
            role: peer.and_then(|peer| roles::role_of(&peer.who())),
            method,
        }
    }

    /// Who called.
    pub(super) fn caller(&self) -> &str {
        &self.caller
    }

    /// Whether the caller may do what only some of those may who call this method.
    pub(super) fn needs(&self, role: Role, what: &str) -> Result<(), Status> {
        match self.role.is_some_and(|own| own >= role) {
            true => Ok(()),
            false => Err(status::forbidden(&format!("{what} needs the role {role}: this is {}", self.caller))),
        }
    }

    /// One line for every call that changed something.
    pub(super) fn audit(&self, what: &str, revision: u64, request: &RequestId) {
        let (caller, from, request) = (&self.caller, &self.from, request.as_str());
        tracing::info!(target: "audit", caller, from, method = self.method, revision, request, "{what}");
    }
}

/// The gRPC wire form: up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

/// What a change came to.
pub(super) struct Changed {
    pub(super) revision: u64,
    pub(super) effect: Effect,
    pub(super) request: RequestId,
}

impl Changed {
    /// Whether it was already so.
    pub(super) fn unchanged(&self) -> bool {
        self.effect == Effect::Unchanged
    }
}

impl Context {
    /// The table, linearizable.
    pub(super) async fn read(&self, call: &Call) -> Result<Arc<View>, Status> {
        self.consensus.read(call.deadline).await.map_err(|error| status::not_proposed(&error, None))
    }

    /// The table at a revision or later; 0 for linearizable.
    pub(super) async fn read_at_least(&self, call: &Call, revision: u64) -> Result<Arc<View>, Status> {
        if revision == 0 {
            return self.read(call).await;
        }
        let view = self.consensus.applied(revision, call.deadline).await;
        view.ok_or_else(|| {
            let applied = self.consensus.view().applied;
            status::timed_out(&format!("this node's table is at {applied}, and does not get to revision {revision}"))
        })
    }

    /// What a request was answered that comes once more.
    pub(super) fn known(&self, guard: &Guard, table: &Table) -> Result<Option<Changed>, Status> {
        let answered = has_guards(table).then(|| table.answered(&guard.request, guard.asked)).flatten();
        let Some(Reply { revision, result }) = answered else { return Ok(None) };
        let effect = result.map_err(|rejection| status::rejected(&rejection))?;
        Ok(Some(Changed { revision, effect, request: guard.request.clone() }))
    }

    /// Makes changes; all or none.
    pub(super) async fn mutate(&self, call: &Call, guard: &Guard, mutations: Vec<Mutation>) -> Result<Changed, Status> {
        self.change(call, guard, Body::Mutate(mutations), "").await
    }

    /// Notes that a request was answered which is no entry of the log by itself.
    pub(super) async fn note(&self, call: &Call, guard: &Guard) -> Result<Changed, Status> {
        self.change(
            call,
            &Guard { expected_revision: 0, request: guard.request.clone(), ..*guard },
            Body::Mutate(Vec::new()),
            "",
        )
        .await
    }

    /// Has a caller's command agreed on. `what`: for the audit, if it changes anything.
    pub(super) async fn change(&self, call: &Call, guard: &Guard, body: Body, what: &str) -> Result<Changed, Status> {
        let request = guard.request.clone();
        let command = self.command(call, guard, body);
        let asked = async {
            let begun = Instant::now();
            tracing::debug!(target: "request", method = call.method, caller = call.caller, from = call.from, "proposed");
            let reply = self.consensus.propose(&command, call.deadline).await;
            let ms = begun.elapsed().as_millis() as u64;
            match &reply {
                Ok(reply) => tracing::debug!(target: "request", revision = reply.revision, ms, "agreed on"),
                Err(error) => tracing::debug!(target: "request", %error, ms, "not agreed on, as far as is known here"),
            }
            reply
        };
        let reply = asked.instrument(request_span(&request)).await;
        let reply = reply.map_err(|error| status::not_proposed(&error, Some(&request)))?;
        let effect = reply.result.map_err(|rejection| refused(guard, &rejection))?;
        if effect != Effect::Unchanged {
            self.audit(call, what, reply.revision, &request);
        }
        Ok(Changed { revision: reply.revision, effect, request })
    }

    /// Says in the log what a call has changed: `what` it was about, and each object as it was and as it is.
    fn audit(&self, call: &Call, what: &str, revision: u64, request: &RequestId) {
        let (call, what, request) = (call.clone(), what.to_owned(), request.clone());
        let consensus = self.consensus.clone();
        // The answer does not wait until this node has heard of it, too.
        tokio::spawn(async move {
            let view = consensus.applied(revision, Instant::now() + DEFAULT_TIMEOUT).await;
            let change = view.as_ref().and_then(|view| {
                let mut later = view.history.after(revision.saturating_sub(1))?;
                later.next().filter(|change| change.index == revision).cloned()
            });
            let rows = match change {
                Some(change) if change.touched.rows() <= TOLD_ROWS => {
                    summary::of(&changes(&change.before, &change.after, &change.touched))
                }
                Some(change) => format!("{} objects", change.touched.rows()),
                None => String::new(),
            };
            let told: Vec<&str> = [&*what, &*rows].into_iter().filter(|text| !text.is_empty()).collect();
            let told = if told.is_empty() { "changed".to_owned() } else { told.join(": ") };
            call.audit(&told, revision, &request);
        });
    }

    /// As it goes into the log.
    pub(super) fn command(&self, call: &Call, guard: &Guard, body: Body) -> Command {
        let knows = has_guards(&self.consensus.view().table);
        Command {
            request: Some(guard.request.clone()),
            expected_revision: guard.expected_revision,
            expected_of: if knows { guard.expected_of } else { Expected::Table },
            asked: if knows { guard.asked } else { 0 },
            stamp_ms: clock::unix_ms(),
            principal: Some(Principal {
                name: call.caller.clone(),
                node: self.consensus.status().node.unwrap_or_default(),
            }),
            body,
        }
    }
}

fn has_guards(table: &Table) -> bool {
    table.feature_level() >= GUARDS_LEVEL
}

/// What the table has refused. Of several mutations it is said which one.
pub(super) fn refused(guard: &Guard, rejection: &Rejection) -> Status {
    let refused = status::rejected(rejection);
    match rejection.mutation {
        Some(at) if guard.expected_of == Expected::Configuration => status::of_mutation(at as usize, refused),
        _ => refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(parse_timeout("10000000u"), Some(Duration::from_secs(10)));
        assert_eq!(parse_timeout("5S"), Some(Duration::from_secs(5)));
        for text in ["", "S", "123456789S", "5x", "-1S"] {
            assert_eq!(parse_timeout(text), None, "{text}");
        }
    }
}
