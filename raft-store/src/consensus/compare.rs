//! Whether this node's table is that of the others. Each applies the same entries, so all must hold the same; one that does
//! not would forward flows elsewhere after a takeover. A node whose table differs says so, and stops when a majority of the
//! voters agrees against it: then it is this one that is wrong.

use std::{collections::BTreeMap, sync::Weak, time::Duration};

use tokio::time::interval;

use super::{
    message::{Answer, Request},
    network::Lane,
    node::{Consensus, Inner},
};
use crate::table::NodeId;

const EVERY: Duration = Duration::from_secs(10);
/// For a peer to encode its table.
const ANSWER: Duration = Duration::from_secs(2);

/// What the others' answers say of this node's table.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Finding {
    /// Nobody has another one.
    Same,
    /// These have another one, and there is no majority of the voters that agrees against this node.
    Differs(Vec<NodeId>),
    /// A majority of the voters holds one and the same other table.
    Outvoted,
}

/// Runs until the last handle to the node is dropped: it holds none itself.
pub(super) async fn run(node: Weak<Inner>) {
    let mut looks = interval(EVERY);
    loop {
        looks.tick().await;
        let Some(inner) = node.upgrade() else { return };
        Consensus { inner }.compare_once().await;
    }
}

impl Consensus {
    async fn compare_once(&self) {
        let Some(member) = self.inner.member.get() else { return };
        let fingerprints = self.inner.store.machine.fingerprints().clone();
        // Not the newest one: others may not be there yet.
        let Some(index) = fingerprints.indexes().into_iter().rev().nth(1) else { return };
        let own = tokio::task::spawn_blocking(move || fingerprints.at(index)).await;
        let Ok(Some(own)) = own else { return };
        let view = self.view();
        let mut others = BTreeMap::new();
        for node in view.table.nodes().filter(|node| node.id != member.identity.node && view.voters.contains(&node.id))
        {
            let asked = member.peers.call(node.id, &node.address, Lane::Bulk, Request::Fingerprint(index), ANSWER);
            // One that is away, that does not keep this index, or that knows no such question, says nothing.
            if let Ok(Answer::Fingerprint(answer)) = asked.await
                && !answer.of_table.is_empty()
            {
                others.insert(node.id, answer.of_table);
            }
        }
        match judge(&own, &others, view.voters.len()) {
            Finding::Same => {}
            Finding::Differs(nodes) => {
                tracing::error!(index, ?nodes, "the tables of these nodes differ from this one's: please report this");
            }
            Finding::Outvoted => self.stop(format!(
                "the table of this node ({}) differs from the one that a majority of the nodes holds at entry {index}. To \
                 repair: on another node run 'lbctl node remove {} --force', empty this node's data_dir, start lbd again \
                 and run 'lbctl node add'. Please report this",
                member.identity.name, member.identity.name
            )),
        }
    }
}

fn judge(own: &[u8], others: &BTreeMap<NodeId, Vec<u8>>, voters: usize) -> Finding {
    let differing: Vec<NodeId> = others.iter().filter(|(_, theirs)| *theirs != own).map(|(node, _)| *node).collect();
    let mut agreeing: BTreeMap<&[u8], usize> = BTreeMap::new();
    for node in &differing {
        *agreeing.entry(&others[node]).or_default() += 1;
    }
    match agreeing.values().max() {
        None => Finding::Same,
        Some(most) if *most > voters / 2 => Finding::Outvoted,
        Some(_) => Finding::Differs(differing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_majority_that_agrees_stops_a_node() {
        let said = |tables: &[(NodeId, u8)]| tables.iter().map(|(node, table)| (*node, vec![*table])).collect();
        let judge = |tables: &[(NodeId, u8)], voters| judge(&[0], &said(tables), voters);
        assert_eq!(judge(&[], 3), Finding::Same);
        assert_eq!(judge(&[(2, 0), (3, 0)], 3), Finding::Same);
        assert_eq!(judge(&[(2, 0), (3, 1)], 3), Finding::Differs(vec![3]));
        assert_eq!(judge(&[(2, 1), (3, 2)], 3), Finding::Differs(vec![2, 3]), "they do not agree");
        assert_eq!(judge(&[(2, 1)], 3), Finding::Differs(vec![2]), "one of three is no majority");
        assert_eq!(judge(&[(2, 1), (3, 1)], 3), Finding::Outvoted);
        assert_eq!(judge(&[(2, 1)], 2), Finding::Differs(vec![2]), "of two nobody can tell whose it is");
        assert_eq!(judge(&[(2, 1), (3, 1), (4, 0)], 5), Finding::Differs(vec![2, 3]));
    }
}
