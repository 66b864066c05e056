//! Questions to all nodes about what each knows by itself. Whoever does not answer in time is named.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use futures::{
    FutureExt as _,
    future::{BoxFuture, join_all},
};
use lb_dataplane::Dataplane;
use lb_proto::{
    cause,
    v1::{
        AskRequest, BackendFlows, CountFlows, Diagnosis, FlowCounts, FlowKeyAnswer, GetStatsResponse, TrafficQuestion,
        Version, VersionQuestion, ask_request::Question, ask_response::Answer, raft_service_client::RaftServiceClient,
    },
};
use lb_raft_store::table::{NodeId, Table};
use tokio::time::timeout;
use tonic::Code;

use crate::{
    flow_key::FlowKey,
    raft::{Answers, Channels, MAX_MESSAGE_LEN},
    traffic,
};

/// For the others to answer.
const PATIENCE: Duration = Duration::from_millis(1000);
/// For them to look for what is wrong.
const LONG_PATIENCE: Duration = Duration::from_millis(4000);

/// Looks for what is wrong on this node.
pub(crate) type Examine = Arc<dyn Fn() -> BoxFuture<'static, Diagnosis> + Send + Sync>;

/// All nodes, this one among them.
#[derive(Clone)]
pub(crate) struct Peers {
    channels: Arc<Channels>,
    own: Answers,
}

/// What was heard.
pub(crate) struct Heard {
    /// With the names of those that gave them.
    pub(crate) answers: Vec<(String, Answer)>,
    pub(crate) silent: Vec<Silent>,
}

/// A node that did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Silent {
    pub(crate) node: String,
    /// Why, for people.
    pub(crate) reason: String,
    /// It does not know the question.
    pub(crate) is_older: bool,
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.node, self.reason)
    }
}

/// Why an answer did not come.
struct NoAnswer {
    reason: String,
    is_older: bool,
}

impl NoAnswer {
    fn of(reason: impl ToString) -> Self {
        Self { reason: reason.to_string(), is_older: false }
    }

    fn older() -> Self {
        Self { reason: "it runs an older version, which does not know what is asked".to_owned(), is_older: true }
    }
}

impl Peers {
    pub(crate) fn new(
        channels: Arc<Channels>,
        dataplane: Option<Arc<Dataplane>>,
        flow_key: FlowKey,
        examine: Examine,
    ) -> Self {
        Self { channels, own: answers(dataplane, flow_key, examine) }
    }

    /// What this node answers.
    pub(crate) fn answers(&self) -> Answers {
        self.own.clone()
    }

    /// Asks all nodes at the same time.
    pub(crate) async fn ask(&self, table: &Table, me: Option<NodeId>, question: &Question) -> Heard {
        let asked = table.nodes().map(|node| async move {
            let answer = if Some(node.id) == me {
                (self.own)(*question).await.ok_or_else(|| NoAnswer::of("its dataplane does not answer"))
            } else {
                self.ask_one(&node.address, node.name.as_str(), *question).await
            };
            match answer {
                Ok(answer) => Ok((node.name.to_string(), answer)),
                Err(NoAnswer { reason, is_older }) => Err(Silent { node: node.name.to_string(), reason, is_older }),
            }
        });
        let (answers, silent) = join_all(asked).await.into_iter().fold((Vec::new(), Vec::new()), |mut all, answer| {
            match answer {
                Ok(answer) => all.0.push(answer),
                Err(reason) => all.1.push(reason),
            }
            all
        });
        Heard { answers, silent }
    }

    /// What all nodes have done with their frames.
    pub(crate) async fn traffic(&self, table: &Table, me: Option<NodeId>) -> GetStatsResponse {
        let Heard { answers, silent } = self.ask(table, me, &Question::Traffic(TrafficQuestion {})).await;
        let answers = answers.into_iter().filter_map(|(node, answer)| match answer {
            Answer::Traffic(traffic) => Some((node, traffic)),
            _ => None,
        });
        GetStatsResponse {
            silent_nodes: silent.iter().map(ToString::to_string).collect(),
            ..traffic::sum(answers, table)
        }
    }

    /// How many flows each backend has on all nodes, by their ids; and the nodes that did not say.
    pub(crate) async fn flows(&self, table: &Table, me: Option<NodeId>) -> (HashMap<u64, u64>, Vec<String>) {
        let Heard { answers, silent } = self.ask(table, me, &Question::CountFlows(CountFlows {})).await;
        let counts = answers.into_iter().filter_map(|(_, answer)| match answer {
            Answer::FlowCounts(counts) => Some(counts.backends),
            _ => None,
        });
        let mut flows = HashMap::new();
        for of in counts.flatten() {
            *flows.entry(of.backend).or_default() += of.flows;
        }
        (flows, silent.iter().map(ToString::to_string).collect())
    }

    /// The versions of those that answer, by the nodes' names.
    pub(crate) async fn versions(&self, table: &Table, me: Option<NodeId>) -> HashMap<String, String> {
        let Heard { answers, .. } = self.ask(table, me, &Question::Version(VersionQuestion {})).await;
        let answers = answers.into_iter().filter_map(|(node, answer)| match answer {
            Answer::Version(of) => Some((node, of.version)),
            _ => None,
        });
        answers.collect()
    }

    async fn ask_one(&self, address: &str, name: &str, question: Question) -> Result<Answer, NoAnswer> {
        let channel = self.channels.get(address, Some(name), None).map_err(NoAnswer::of)?;
        let request = AskRequest { question: Some(question) };
        let patience = if matches!(question, Question::Diagnosis(_)) { LONG_PATIENCE } else { PATIENCE };
        let mut client = RaftServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_LEN);
        let answer = timeout(patience, client.ask(request)).await;
        let answer = answer.map_err(|_| NoAnswer::of(format!("no answer within {} ms", patience.as_millis())))?;
        let answer = answer.map_err(|status| match status.code() {
            Code::Unimplemented => NoAnswer::older(),
            _ => NoAnswer::of(cause::of_status(&status)),
        })?;
        answer.into_inner().answer.ok_or_else(NoAnswer::older)
    }
}

fn answers(dataplane: Option<Arc<Dataplane>>, flow_key: FlowKey, examine: Examine) -> Answers {
    Arc::new(move |question| {
        let (dataplane, flow_key, examine) = (dataplane.clone(), flow_key.clone(), examine.clone());
        async move {
            match question {
                Question::Version(_) => {
                    Some(Answer::Version(Version { version: env!("CARGO_PKG_VERSION").to_owned() }))
                }
                Question::Diagnosis(_) => Some(Answer::Diagnosis(examine().await)),
                Question::Traffic(_) => {
                    // Of many backends it takes milliseconds.
                    let report = move || dataplane.map(|dataplane| dataplane.report()).unwrap_or_default();
                    let told = tokio::task::spawn_blocking(move || traffic::of_node(report())).await;
                    Some(Answer::Traffic(told.ok()?))
                }
                Question::FlowKey(_) => Some(Answer::FlowKey(FlowKeyAnswer { key: flow_key.bytes() })),
                Question::CountFlows(_) => {
                    let Some(dataplane) = dataplane else { return Some(Answer::FlowCounts(FlowCounts::default())) };
                    // The workers are asked piece by piece.
                    let counted = tokio::task::spawn_blocking(move || dataplane.count_flows()).await.ok()??;
                    let backends =
                        counted.into_iter().map(|(backend, flows)| BackendFlows { backend, flows }).collect();
                    Some(Answer::FlowCounts(FlowCounts { backends }))
                }
            }
        }
        .boxed()
    })
}
