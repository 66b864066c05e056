//! The changes of the last entries, in their order, for those who follow the table. Bounded: what is older is forgotten, and
//! whoever asks for it is told so. After a start it is filled again from the log behind the snapshot.

use std::{ops::Bound, sync::Arc};

use rpds::RedBlackTreeMapSync as Map;

use crate::table::{Body, Command, Evidence, NodeId, RequestId, Table, Touched};

/// Room for all of it.
const ROOM: usize = 32 << 20;
/// What an entry takes: the ways to the rows that it has changed, in the table before and after it.
const ENTRY_BYTES: usize = 2 << 10;
const ROW_BYTES: usize = 4 << 10;

/// What an entry was, as far as it says why something has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// A lease ended.
    Fence {
        /// Its holder.
        node: NodeId,
        /// Why that was safe.
        evidence: Evidence,
    },
    /// Somebody has called for it.
    Caller {
        /// As whom the log has it.
        name: String,
        /// By which it is found again, in logs too.
        request: Option<RequestId>,
    },
    /// What nodes do among themselves.
    Nodes,
}

impl From<&Command> for Cause {
    fn from(command: &Command) -> Self {
        match (&command.body, &command.principal) {
            (Body::Fence { node, evidence, .. }, _) => Self::Fence { node: *node, evidence: evidence.clone() },
            (_, Some(principal)) => Self::Caller { name: principal.name.clone(), request: command.request.clone() },
            _ => Self::Nodes,
        }
    }
}

/// What one entry has changed.
#[derive(Debug)]
pub struct Change {
    /// The entry's index.
    pub index: u64,
    /// What it was.
    pub cause: Cause,
    /// The rows that it touched.
    pub touched: Touched,
    /// The table before it, without the requests that are remembered.
    pub before: Table,
    /// The table after it, likewise.
    pub after: Table,
}

impl Change {
    fn bytes(&self) -> usize {
        ENTRY_BYTES + self.touched.rows() * ROW_BYTES
    }
}

/// The changes of the last entries. A clone costs nothing.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Nothing is known of this entry and of those before.
    forgotten: u64,
    changes: Map<u64, Arc<Change>>,
    bytes: usize,
}

impl History {
    /// Knows nothing of what was before: a table was taken over that is so far.
    pub(crate) fn beginning_after(index: u64) -> Self {
        Self { forgotten: index, ..Self::default() }
    }

    pub(crate) fn note(&mut self, (index, cause): (u64, Cause), touched: Touched, before: &Table, after: &Table) {
        if touched.rows() == 0 {
            return;
        }
        let change =
            Change { index, cause, touched, before: before.without_requests(), after: after.without_requests() };
        self.bytes += change.bytes();
        self.changes.insert_mut(index, Arc::new(change));
        // The newest stays, however large: whoever follows closely is told of it.
        while self.bytes > ROOM
            && self.changes.size() > 1
            && let Some((oldest, bytes)) = self.changes.first().map(|(index, change)| (*index, change.bytes()))
        {
            self.changes.remove_mut(&oldest);
            self.bytes -= bytes;
            self.forgotten = oldest;
        }
    }

    /// The changes after an entry, in their order; `None` if some of them are forgotten.
    pub fn after(&self, index: u64) -> Option<impl Iterator<Item = &Arc<Change>>> {
        (index >= self.forgotten)
            .then(|| self.changes.range((Bound::Excluded(index), Bound::Unbounded)).map(|(_, change)| change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(rows: usize) -> Touched {
        Touched { verdicts: (0..rows as u64).collect(), ..Touched::default() }
    }

    fn indexes(history: &History, after: u64) -> Option<Vec<u64>> {
        Some(history.after(after)?.map(|change| change.index).collect())
    }

    #[test]
    fn changes_come_in_order_and_what_is_forgotten_is_said_to_be() {
        let table = Table::default();
        let mut history = History::beginning_after(10);
        for (index, rows) in [(11, 1), (12, 0), (14, 2)] {
            history.note((index, Cause::Nodes), touched(rows), &table, &table);
        }
        assert_eq!(indexes(&history, 9), None, "before the snapshot");
        assert_eq!(indexes(&history, 10), Some(vec![11, 14]));
        assert_eq!(indexes(&history, 13), Some(vec![14]));
        assert_eq!(indexes(&history, u64::MAX), Some(vec![]));
        // One that is too large for all the room takes it alone, until the next one comes.
        history.note((15, Cause::Nodes), touched(ROOM / ROW_BYTES), &table, &table);
        assert_eq!(indexes(&history, 13), None);
        assert_eq!(indexes(&history, 14), Some(vec![15]));
        for index in 16..100_000 {
            history.note((index, Cause::Nodes), touched(1), &table, &table);
        }
        let kept = indexes(&history, history.forgotten).unwrap();
        assert_eq!(kept.len(), ROOM / (ENTRY_BYTES + ROW_BYTES));
        assert_eq!((kept[0], kept.last()), (history.forgotten + 1, Some(&99_999)));
    }
}
