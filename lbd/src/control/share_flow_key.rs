//! Sees to it that this node has the key of the flow hashes that the others have.

use std::time::Duration;

use lb_proto::v1::{FlowKeyQuestion, ask_request::Question, ask_response::Answer};
use lb_raft_store::{Consensus, new_key, table::Table};
use tokio::time::sleep;

use crate::{
    flow_key::{FlowKey, FlowKeyError},
    peers::{Heard, Peers},
};

/// Between two questions.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Asks until it is known. Runs until it is aborted.
pub(crate) async fn share_flow_key(consensus: Consensus, peers: Peers, key: FlowKey) {
    let mut table = consensus.watch();
    let mut told = false;
    loop {
        let view = table.borrow_and_update().clone();
        if let Some(me) = consensus.status().node.filter(|me| view.table.node(*me).is_some()) {
            if key.of(&view.table).is_some() {
                return std::future::pending().await;
            }
            let heard = peers.ask(&view.table, Some(me), &Question::FlowKey(FlowKeyQuestion {})).await;
            match take(&heard, is_first(&view.table, me), &key) {
                Ok(()) => {}
                // It may be for want of space.
                Err(error) if !std::mem::replace(&mut told, true) => {
                    tracing::error!(%error, "the key of the flow hashes is not kept: this node does not forward yet");
                }
                Err(_) => {}
            }
            sleep(ASK_AGAIN).await;
        } else if table.changed().await.is_err() {
            return;
        }
    }
}

/// Whether this node is the one that makes a key where there is none: one alone.
fn is_first(table: &Table, me: u64) -> bool {
    table.nodes().map(|node| node.id).min() == Some(me)
}

fn take(heard: &Heard, makes_one: bool, key: &FlowKey) -> Result<(), FlowKeyError> {
    let known = heard.answers.iter().find_map(|(_, answer)| match answer {
        Answer::FlowKey(of) => FlowKey::read(&of.key),
        _ => None,
    });
    match known {
        Some(known) => key.keep(known),
        // Whoever is silent may have one.
        None if makes_one && heard.silent.is_empty() => key.keep(new_key()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use lb_proto::v1::FlowKeyAnswer;

    use super::*;
    use crate::peers::Silent;

    #[test]
    fn one_is_made_only_where_all_say_that_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let taken = |heard: &Heard, makes_one| {
            let key = FlowKey::load(dir.path()).unwrap();
            take(heard, makes_one, &key).unwrap();
            key.of(&Table::default())
        };
        let answer = |key: &[u8]| ("lb".to_owned(), Answer::FlowKey(FlowKeyAnswer { key: key.to_vec() }));
        let heard = |keys: &[&[u8]], silent: &[&str]| Heard {
            answers: keys.iter().map(|key| answer(key)).collect(),
            silent: silent
                .iter()
                .map(|reason| Silent { node: "lb2".to_owned(), reason: (*reason).to_owned(), is_older: false })
                .collect(),
        };
        assert_eq!(taken(&heard(&[b"", b""], &[]), false), None);
        assert_eq!(taken(&heard(&[b""], &["lb2: no answer"]), true), None);
        let known = 7u128.to_be_bytes();
        assert_eq!(taken(&heard(&[b"", &known], &["lb3: no answer"]), true), Some(7));
        std::fs::remove_file(dir.path().join("flow.key")).unwrap();
        assert!(taken(&heard(&[b"", b""], &[]), true).is_some());
    }
}
