//! Nodes come and go, one at a time, under the leader's eyes.
//!
//! Adding: ask the machine who it is, give it an id through the log, hand it the id, let it catch up
//! as a learner, make it a voter. Removing: drain it, take its vote, forget it, tell it. Each step may
//! be repeated, so a command that was cut short is simply given again.

use std::{collections::BTreeSet, time::Duration};

use openraft::{
    BasicNode, ChangeMembers, RaftMetrics,
    async_runtime::WatchReceiver as _,
    errors::{ClientWriteError, RaftError},
    type_config::TypeConfigExt as _,
};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::{
    message::{AddNode, Answer, Description, Join, Reach, Reached, RefusedKind, Remove, Request, Unreached},
    network::{CallError, Lane},
    node::{Consensus, Member},
    start::new_key,
};
use crate::{
    raft::TypeConfig,
    table::{Body, Command, Effect, Evidence, Name, NewNode, Node, NodeId, Rejection, Role, Table},
};

/// For a question that a machine can answer at once.
const QUESTION: Duration = Duration::from_secs(2);
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// One that is to be added, and has answered; it has no id yet.
const NEW: NodeId = 0;
/// A node that does not answer within this time counts as dead.
const ANSWER: Duration = Duration::from_secs(1);

/// Why a node was not added or removed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MembershipError {
    /// This node belongs to no cluster.
    #[error("this node waits to be added to a cluster itself")]
    NotAMember,
    /// No leader could be found within the deadline.
    #[error("there is no leader: a majority of the cluster's nodes must be up and reach each other")]
    NoLeader,
    /// It is not possible as things are; the text says what to do.
    #[error("{0}")]
    Refused(String),
    /// It began, and its end did not come in time.
    #[error("it did not finish in time: {0}; give the same command again to go on")]
    TimedOut(String),
}

impl Consensus {
    /// Adds the machine at `address` and returns when it votes.
    pub async fn add_node(
        &self,
        name: &Name,
        role: Role,
        address: &str,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        let request = |timeout_ms| {
            Request::AddNode(AddNode {
                name: name.to_string(),
                address: address.to_owned(),
                witness: role == Role::Witness,
                timeout_ms,
            })
        };
        self.change_membership(request, deadline).await
    }

    /// Removes a node; with `force` also one that does not answer.
    pub async fn remove_node(&self, name: &Name, force: bool, deadline: Instant) -> Result<(), MembershipError> {
        let request = |timeout_ms| Request::RemoveNode(Remove { name: name.to_string(), force, timeout_ms });
        self.change_membership(request, deadline).await
    }

    /// Says at which address a node is reached from now on. It must run there already.
    pub async fn check_address(&self, node: NodeId, address: &str) -> Result<(), MembershipError> {
        let member = self.inner.member.get().ok_or(MembershipError::NotAMember)?;
        let view = self.view();
        let Some(known) = view.table.node(node) else {
            return Err(MembershipError::Refused("there is no such node any more".into()));
        };
        let refused = |problem: String| Err(MembershipError::Refused(problem));
        if member.identity.node != node {
            match member.peers.call(node, address, Lane::Bulk, Request::Describe(true), QUESTION).await {
                Ok(Answer::Description(found)) if found.store == known.store.as_bytes() => {}
                Ok(Answer::Description(found)) => {
                    return refused(format!("at {address} there is {} and not {}", found.name, known.name));
                }
                Ok(_) => return refused(format!("what listens at {address} is no lbd")),
                Err(error) => {
                    return refused(format!(
                        "{error}. Start {} with its new address first (cluster.listen and cluster.advertise in its lbd.toml)",
                        known.name
                    ));
                }
            }
        }
        // It must be one for all of them: a node's own loopback answers too.
        let asked = Reach { nodes: vec![Reached { address: address.to_owned(), ..reached(known) }] };
        let others = view.table.nodes().filter(|other| other.id != node && other.id != member.identity.node);
        let ask = async |other: &Node| {
            let request = Request::Reach(asked.clone());
            match member.peers.call(other.id, &other.address, Lane::Bulk, request, QUESTION).await {
                Ok(Answer::Unreached(Unreached { reasons })) if !reasons.is_empty() => {
                    Some(format!("{} does not reach it: {}", other.name, reasons.join("; ")))
                }
                // One that is down, or of an older build, says nothing of it.
                _ => None,
            }
        };
        let answers = futures::future::join_all(others.map(ask)).await;
        match answers.into_iter().flatten().next() {
            None => Ok(()),
            Some(problem) => refused(problem),
        }
    }

    /// Hands the request to the leader, again if the leader changes meanwhile.
    async fn change_membership(
        &self,
        request: impl Fn(u64) -> Request,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        let member = self.inner.member.get().ok_or(MembershipError::NotAMember)?;
        while Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            let request = request(left.as_millis().try_into().unwrap_or(u64::MAX));
            let answer = match self.leader() {
                None => Ok(Answer::NotLeader(0)),
                Some((leader, _)) if leader == member.identity.node => Ok(match request {
                    Request::AddNode(record) => self.add_node_as_leader(member, record).await,
                    Request::RemoveNode(record) => self.remove_node_as_leader(member, record).await,
                    _ => Answer::NotLeader(0),
                }),
                Some((leader, address)) => member.peers.call(leader, &address, Lane::Bulk, request, left).await,
            };
            match answer {
                Ok(Answer::Done(_)) => return Ok(()),
                Ok(Answer::Refused(refused)) | Err(CallError::Refused(refused)) => {
                    return Err(match refused.kind() {
                        RefusedKind::TimedOut => MembershipError::TimedOut(refused.message),
                        _ => MembershipError::Refused(refused.message),
                    });
                }
                _ => tokio::time::sleep(RETRY_PAUSE).await,
            }
        }
        Err(MembershipError::NoLeader)
    }

    pub(super) async fn add_node_as_leader(&self, member: &Member, record: AddNode) -> Answer {
        let deadline = Instant::now() + Duration::from_millis(record.timeout_ms);
        answer(self.add(member, &record, deadline).await)
    }

    pub(super) async fn remove_node_as_leader(&self, member: &Member, record: Remove) -> Answer {
        let deadline = Instant::now() + Duration::from_millis(record.timeout_ms);
        answer(self.remove(member, &record, deadline).await)
    }

    async fn add(&self, member: &Member, record: &AddNode, deadline: Instant) -> Result<(), Failure> {
        let _one_at_a_time = self.inner.changing_membership.lock().await;
        if !self.is_leader() {
            return Err(Failure::NotLeader(self.leader().map_or(0, |(leader, _)| leader)));
        }
        let address = record.address.as_str();
        let known = self.view().table.node_named(&record.name).map(|node| node.address.clone());
        if let Some(known) = known.filter(|known| *known != record.address) {
            return Err(Failure::refused(format!(
                "node {0} is a member at {known}: if it has moved, 'lbctl node set {0} --address {address}'; if it is another \
                 machine, 'lbctl node remove {0}' first",
                record.name
            )));
        }
        let described = member.peers.call(0, address, Lane::Bulk, Request::Describe(true), QUESTION).await;
        let description = match described {
            Ok(Answer::Description(description)) => description,
            Ok(_) => return Err(Failure::refused(format!("what listens at {address} is no lbd"))),
            Err(error) => {
                return Err(Failure::refused(format!(
                    "{error}. Start lbd there first (without bootstrap), and give its cluster.listen address"
                )));
            }
        };
        let new = self.check_description(member, record, &description)?;
        let silent = self.silent(member).await?;
        self.check_calls_back(member, address, &description, &silent).await?;
        let with = |id: NodeId| self.view().voters.iter().copied().chain([id]).collect::<BTreeSet<_>>();
        self.check_majority_lives(&silent, &with(NEW))?;
        let store = new.store;
        let id = match self.write(Body::AddNode(new), deadline).await? {
            Effect::NodeAdded(id) => id,
            effect => return Err(Failure::refused(format!("the table answered {effect:?}"))),
        };
        let join =
            Join { cluster: member.identity.cluster.as_bytes().to_vec(), node: id, store: store.as_bytes().to_vec() };
        match member.peers.call(id, address, Lane::Bulk, Request::Join(join), QUESTION * 2).await {
            Ok(Answer::Done(_)) => {}
            Ok(_) => return Err(Failure::refused(format!("{address} answered something else than was asked"))),
            Err(error) => return Err(Failure::refused(format!("{} did not join: {error}", record.name))),
        }
        let node = BasicNode { addr: record.address.clone() };
        self.wait_until_confirmed(deadline).await?;
        within(deadline, "the new node catches up", member.raft.add_learner(id, node, true)).await?;
        self.wait_until_confirmed(deadline).await?;
        // All that took time: a change that is begun now must be one that can be finished.
        let silent = self.silent(member).await?;
        self.check_majority_lives(&silent, &with(id))?;
        let voter = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
        within(deadline, "the new node becomes a voter", member.raft.change_membership(voter, true)).await
    }

    /// The new node must reach the others too: one that does not would vote and hold no lease, and nobody would see why.
    async fn check_calls_back(
        &self,
        member: &Member,
        address: &str,
        description: &Description,
        silent: &BTreeSet<NodeId>,
    ) -> Result<(), Failure> {
        let view = self.view();
        // One that is being added again does not call itself, nor one of which an addition was begun and not finished.
        let members = members(member);
        let others = view.table.nodes().filter(|node| members.contains(&node.id));
        let others = others.filter(|node| node.store.as_bytes() != description.store.as_slice());
        // A node that is down is not the new one's fault.
        let nodes: Vec<Reached> = others.filter(|node| !silent.contains(&node.id)).map(reached).collect();
        match member.peers.call(0, address, Lane::Bulk, Request::Reach(Reach { nodes }), QUESTION).await {
            Ok(Answer::Unreached(Unreached { reasons })) if reasons.is_empty() => Ok(()),
            Ok(Answer::Unreached(Unreached { reasons })) => Err(Failure::refused(format!(
                "{} cannot reach the cluster: {}. Each node must reach every other one at its address ('lbctl node list'); \
                 a wrong one is corrected by 'lbctl node set NAME --address ADDRESS' and cluster.advertise in its lbd.toml",
                description.name,
                reasons.join("; ")
            ))),
            // An older build knows no such question.
            Err(CallError::Refused(refused)) if refused.kind() == RefusedKind::Internal => Ok(()),
            Ok(_) => Err(Failure::refused(format!("{address} answered something else than was asked"))),
            Err(error) => Err(Failure::refused(format!(
                "{}, the new node, did not say whom it reaches: {error}",
                description.name
            ))),
        }
    }

    /// The nodes that do not answer a question of this moment within a second. What they answered before says nothing of
    /// one that has just died.
    async fn silent(&self, member: &Member) -> Result<BTreeSet<NodeId>, Failure> {
        let asked = TypeConfig::now();
        // An error means that the node stops.
        drop(member.raft.trigger().heartbeat().await);
        let me = member.identity.node;
        let others: BTreeSet<NodeId> = members(member).into_iter().filter(|id| *id != me).collect();
        let answered = |metrics: &RaftMetrics<TypeConfig>, id: &NodeId| {
            let heard = metrics.heartbeat.as_ref().and_then(|nodes| nodes.get(id).copied().flatten());
            heard.is_some_and(|at| *at >= asked)
        };
        let all = member.raft.wait(Some(ANSWER));
        let all_answer =
            all.metrics(|metrics| others.iter().all(|id| answered(metrics, id)), "every node answers").await;
        if all_answer.is_ok() {
            return Ok(BTreeSet::new());
        }
        let metrics = member.raft.metrics().borrow_watched().clone();
        // Whoever does not lead is answered by nobody, and must not judge by that.
        if metrics.current_leader != Some(me) {
            return Err(Failure::NotLeader(metrics.current_leader.unwrap_or(0)));
        }
        Ok(others.into_iter().filter(|id| !answered(&metrics, id)).collect())
    }

    /// Whether majorities of the present voters and of those that there will be answer: the change can be agreed on, and all
    /// that follows. One that is begun without would lock the cluster for good.
    fn check_majority_lives(&self, silent: &BTreeSet<NodeId>, after: &BTreeSet<NodeId>) -> Result<(), Failure> {
        let view = self.view();
        let now: BTreeSet<NodeId> = view.voters.iter().copied().collect();
        let lives = |voters: &BTreeSet<NodeId>| voters.difference(silent).count() > voters.len() / 2;
        if !lives(&now) {
            return Err(Failure::refused(
                "no majority of the voters answers: no change of the membership can be agreed on. Start the others again; if \
                 they are lost for good, stop lbd here and run 'lbd recover'"
                    .into(),
            ));
        }
        if lives(after) {
            return Ok(());
        }
        let voters = after.len();
        let name = |id: &NodeId| view.table.node(*id).map_or_else(|| id.to_string(), |node| node.name.to_string());
        let names: Vec<String> = after.intersection(silent).map(name).collect();
        let (dead, example) = (names.join(", "), names.first().cloned().unwrap_or_default());
        Err(Failure::refused(format!(
            "no answer within a second from {dead}, without which {voters} voters would have no majority: the cluster could \
             agree on nothing any more. Start it again; or, if it is lost for good, remove it first: 'lbctl node remove \
             {example} --force'"
        )))
    }

    fn check_description(
        &self,
        member: &Member,
        record: &AddNode,
        description: &Description,
    ) -> Result<NewNode, Failure> {
        let (address, name) = (&record.address, &record.name);
        if description.name != *name {
            return Err(Failure::refused(format!(
                "the machine at {address} calls itself {:?} (node.name in its lbd.toml), not {name:?}",
                description.name
            )));
        }
        let role = |witness| if witness { Role::Witness } else { Role::Lb };
        if description.witness != record.witness {
            return Err(Failure::refused(format!(
                "{name} is configured with role {:?} (node.role in its lbd.toml), not {:?}",
                role(description.witness).to_string(),
                role(record.witness).to_string()
            )));
        }
        if description.cluster_name != member.identity.cluster_name {
            return Err(Failure::refused(format!(
                "{name} is configured for the cluster {:?} (cluster.name in its lbd.toml), not {:?}",
                description.cluster_name, member.identity.cluster_name
            )));
        }
        if !description.cluster.is_empty() && description.cluster != member.identity.cluster.as_bytes() {
            let theirs = Uuid::from_slice(&description.cluster).unwrap_or_default();
            return Err(Failure::refused(format!(
                "{name} belongs to another cluster ({theirs}): empty its data_dir first, and start it without bootstrap"
            )));
        }
        let level = self.view().table.feature_level();
        if description.feature_level < level {
            return Err(Failure::refused(format!(
                "{name} runs an lbd of feature level {}, and the cluster is at {level}: install the version of the others",
                description.feature_level
            )));
        }
        let invalid = |what: &str| Failure::refused(format!("{name} describes itself with a bad {what}"));
        Ok(NewNode {
            name: name.parse().map_err(|error| Failure::refused(format!("name: {error}")))?,
            role: role(record.witness),
            address: address.clone(),
            store: Uuid::from_slice(&description.store).map_err(|_| invalid("store id"))?,
        })
    }

    async fn remove(&self, member: &Member, record: &Remove, deadline: Instant) -> Result<(), Failure> {
        let _one_at_a_time = self.inner.changing_membership.lock().await;
        let view = self.view();
        if !self.is_leader() {
            return Err(Failure::NotLeader(self.leader().map_or(0, |(leader, _)| leader)));
        }
        let Some(node) = view.table.node_named(&record.name) else { return Ok(()) };
        let (id, address) = (node.id, node.address.clone());
        if view.voters.len() == 1 && view.voters.contains(&id) {
            return Err(Failure::refused(format!(
                "{} is the last node: stop lbd and empty its data_dir instead",
                record.name
            )));
        }
        let silent = self.silent(member).await?;
        let left: BTreeSet<NodeId> = view.voters.iter().copied().filter(|voter| *voter != id).collect();
        if view.voters.contains(&id) {
            self.check_majority_lives(&silent, &left)?;
        }
        if !record.force && silent.contains(&id) {
            return Err(Failure::refused(format!(
                "{0} does not answer: if it is only down, start it, so that it lets go of its VIPs; if it is lost for good, \
                 'lbctl node remove {0} --force'",
                record.name
            )));
        }
        let drain = Body::SetDraining { node: id, draining: true };
        self.write(drain, deadline).await?;
        // The operator's word that it is off, where nobody's promises can run out any more.
        let fence = view.table.lease(id).filter(|_| record.force && silent.contains(&id)).map(|lease| Body::Fence {
            node: id,
            lease: lease.id,
            evidence: Evidence::Operator,
            heard: Vec::new(),
        });
        if let Some(fence) = fence.map(Command::from).filter(|fence| fence.is_allowed_at(view.table.feature_level())) {
            self.propose(&fence, deadline).await.map_err(|error| Failure::TimedOut(error.to_string()))?;
        }
        self.wait_until_free(id, record, deadline).await?;
        if id == member.identity.node {
            return self.hand_over(member, deadline).await;
        }
        let is_member = member.raft.metrics().borrow_watched().membership_config.get_node(&id).is_some();
        if is_member {
            let gone = BTreeSet::from([id]);
            self.wait_until_confirmed(deadline).await?;
            if view.voters.contains(&id) {
                self.check_majority_lives(&self.silent(member).await?, &left)?;
                let change = ChangeMembers::RemoveVoters(gone.clone());
                within(deadline, "its vote is taken", member.raft.change_membership(change, true)).await?;
            }
            self.wait_until_confirmed(deadline).await?;
            let change = ChangeMembers::RemoveNodes(gone);
            within(deadline, "it leaves the membership", member.raft.change_membership(change, true)).await?;
        }
        self.write(Body::RemoveNode { node: id, heartbeat_key: new_key() }, deadline).await?;
        // It may be gone for good: what it does not hear now, it hears from whoever it asks.
        let told = member.peers.call(id, &address, Lane::Bulk, Request::Removed(true), QUESTION).await;
        if let Err(error) = told {
            tracing::info!(node = id, %error, "the removed node does not answer");
        }
        Ok(())
    }

    /// Waits until the node owns nothing, or until nobody else could.
    async fn wait_until_free(&self, id: NodeId, record: &Remove, deadline: Instant) -> Result<(), Failure> {
        let stuck = |table: &Table| {
            let mut held = table.vips_of(id).peekable();
            held.peek().is_some() && held.all(|vip| vip.intent.is_none() && !vip.deleting)
        };
        let mut watcher = self.watch();
        let free = watcher.wait_for(|view| view.table.vips_of(id).next().is_none() || stuck(&view.table));
        let view = match timeout_at(deadline, free).await {
            Ok(Ok(view)) => view.clone(),
            _ => {
                let hint = if record.force { "" } else { ": if it is dead for good, add --force" };
                return Err(Failure::TimedOut(format!("{} still owns VIPs{hint}", record.name)));
            }
        };
        if let Some(vip) = view.table.vips_of(id).next() {
            return Err(Failure::refused(format!(
                "no other node is able to own {} and its other VIPs: remove the VIPs or add a node first",
                vip.settings.address
            )));
        }
        Ok(())
    }

    /// Waits until every holder of a lease counts its majorities among the present voters. Evidence must block
    /// all configurations that a holder may count in: changes that ran ahead would make that impossible.
    async fn wait_until_confirmed(&self, deadline: Instant) -> Result<(), Failure> {
        let mut watcher = self.watch();
        let confirmed = watcher.wait_for(|view| view.table.is_configuration_confirmed());
        let confirmed = matches!(timeout_at(deadline, confirmed).await, Ok(Ok(_)));
        let late = || Failure::TimedOut("a node has not confirmed the last change of membership yet".into());
        if confirmed { Ok(()) } else { Err(late()) }
    }

    /// A leader does not remove itself: it gives the lead to another voter, who then does.
    async fn hand_over(&self, member: &Member, deadline: Instant) -> Result<(), Failure> {
        let me = member.identity.node;
        let successor = self.successor(member);
        let Some(successor) = successor else { return Err(Failure::refused("it is the only voter".into())) };
        member.raft.trigger().transfer_leader(successor).await.map_err(|e| Failure::refused(e.to_string()))?;
        while Instant::now() < deadline {
            match self.leader() {
                Some((leader, _)) if leader != me => return Err(Failure::NotLeader(leader)),
                _ => tokio::time::sleep(RETRY_PAUSE).await,
            }
        }
        Err(Failure::TimedOut("no other node took the lead".into()))
    }

    async fn write(&self, body: Body, deadline: Instant) -> Result<Effect, Failure> {
        let reply = self.propose(&body.into(), deadline).await.map_err(|error| Failure::TimedOut(error.to_string()))?;
        reply.result.map_err(|Rejection { message, .. }| Failure::refused(message))
    }
}

/// A node as another one is asked about it.
fn reached(node: &Node) -> Reached {
    Reached { name: node.name.to_string(), address: node.address.clone(), store: node.store.as_bytes().to_vec() }
}

/// Those to which the log is sent, with a vote or without.
fn members(member: &Member) -> BTreeSet<NodeId> {
    member.raft.metrics().borrow_watched().membership_config.nodes().map(|(id, _)| *id).collect()
}

/// Why the leader did not do it.
enum Failure {
    NotLeader(NodeId),
    Refused(String),
    TimedOut(String),
}

impl Failure {
    fn refused(message: String) -> Self {
        Self::Refused(message)
    }
}

fn answer(outcome: Result<(), Failure>) -> Answer {
    match outcome {
        Ok(()) => Answer::Done(true),
        Err(Failure::NotLeader(leader)) => Answer::NotLeader(leader),
        Err(Failure::Refused(message)) => Answer::refused(RefusedKind::Precondition, message),
        Err(Failure::TimedOut(message)) => Answer::refused(RefusedKind::TimedOut, message),
    }
}

type Write<T> = Result<T, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>;

async fn within<T>(deadline: Instant, step: &str, work: impl Future<Output = Write<T>>) -> Result<(), Failure> {
    match timeout_at(deadline, work).await {
        Ok(Ok(_)) => Ok(()),
        // Also from a fresh leader, until a majority has confirmed it: the same is tried again.
        Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => {
            Err(Failure::NotLeader(to.leader_id.unwrap_or(0)))
        }
        Ok(Err(error)) => Err(Failure::refused(format!("{step}: {error}"))),
        Err(_) => Err(Failure::TimedOut(format!("waiting until {step}"))),
    }
}
