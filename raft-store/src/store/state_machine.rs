//! The table as openraft's state machine: in memory, snapshotted into a file and into sled, rebuilt from snapshot and
//! log at start.

use std::{io, sync::Arc};

use futures::{Stream, TryStreamExt as _};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{EntryResponder, RaftStateMachine},
};

use super::{StoreError, slow::Watched, snapshots::Snapshots, trees::Trees, writer::Writer};
use crate::{
    feed::{Cause, Fingerprints, History, Publisher, View},
    raft::{Entry, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig},
    span::request_span,
    table::{Applied, Reply, Table, decode_table, encode_table},
};

/// The table and how far it got.
#[derive(Clone)]
pub(crate) struct StateMachine {
    trees: Trees,
    snapshots: Snapshots,
    writer: Writer,
    publisher: Publisher,
    table: Table,
    fingerprints: Fingerprints,
    history: History,
    /// The last entry that changed how frames are forwarded.
    forwarding: u64,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// One that builds, installs or reads the snapshot at a time.
    storing: Arc<tokio::sync::Mutex<()>>,
}

impl StateMachine {
    /// Starts from the snapshot, if there is one.
    pub(crate) fn open(
        (trees, snapshots): (Trees, Snapshots),
        writer: Writer,
        publisher: Publisher,
        snapshot: Option<&Snapshot>,
    ) -> Result<Self, StoreError> {
        let mut machine = Self {
            trees,
            snapshots,
            writer,
            publisher,
            table: Table::default(),
            fingerprints: Fingerprints::default(),
            history: History::default(),
            forwarding: 0,
            applied: None,
            membership: StoredMembership::default(),
            storing: Arc::default(),
        };
        if let Some(snapshot) = snapshot {
            machine.adopt(&snapshot.meta, &snapshot.snapshot)?;
        }
        Ok(machine)
    }

    fn adopt(&mut self, meta: &SnapshotMeta, data: &[u8]) -> Result<(), StoreError> {
        let unreadable = |error| StoreError::unreadable(self.trees.path(), "the snapshot", error);
        self.table = decode_table(data).map_err(unreadable)?;
        self.applied = meta.last_log_id;
        self.history = History::beginning_after(meta.last_log_id.map_or(0, |id| id.index()));
        self.forwarding = meta.last_log_id.map_or(0, |id| id.index());
        self.membership = meta.last_membership.clone();
        self.publish();
        Ok(())
    }

    /// Applies one entry, and shows it to nobody yet.
    pub(crate) fn apply_entry(&mut self, entry: &Entry) -> Reply {
        self.applied = Some(entry.log_id);
        let reply = match &entry.payload {
            EntryPayload::Blank => Reply::default(),
            EntryPayload::Normal(command) => {
                let before = self.table.clone();
                let Applied { reply, touched } = self.table.apply(entry.log_id.index(), command);
                if touched.changes_forwarding() {
                    self.forwarding = entry.log_id.index();
                }
                if let Some(request) = &command.request {
                    let (revision, is_refused) = (entry.log_id.index(), reply.result.is_err());
                    request_span(request)
                        .in_scope(|| tracing::debug!(target: "request", revision, is_refused, "applied to the table"));
                }
                let cause = Cause::from(command);
                self.history.note((entry.log_id.index(), cause), touched, &before, &self.table);
                reply
            }
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                self.table.configure(entry.log_id.index(), membership.get_joint_config().clone());
                Reply::default()
            }
        };
        self.fingerprints.note(entry.log_id.index(), &self.table);
        reply
    }

    /// What the table was at round indexes.
    pub(crate) fn fingerprints(&self) -> &Fingerprints {
        &self.fingerprints
    }

    /// The table as it is now.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    #[cfg(test)]
    pub(super) fn applied_index(&self) -> Option<u64> {
        self.applied.map(|id| id.index())
    }

    #[cfg(test)]
    pub(super) fn pretend_applied(&mut self, last: LogId) {
        self.applied = Some(last);
    }

    fn publish(&self) {
        self.publisher.publish(View {
            table: self.table.clone(),
            applied: self.applied.map_or(0, |id| id.index()),
            forwarding: self.forwarding,
            voters: self.membership.voter_ids().collect(),
            history: self.history.clone(),
        });
    }

    /// The file first: it is what sled's copy can be made from again.
    async fn store(&self, snapshot: Snapshot) -> io::Result<()> {
        let _turn = self.storing.lock().await;
        if self.trees.snapshot_last()? > snapshot.meta.last_log_id {
            return Ok(()); // One that was built while a newer one was installed.
        }
        let (trees, snapshots) = (self.trees.clone(), self.snapshots.clone());
        let written = tokio::task::spawn_blocking(move || {
            let _watched = Watched::begin("storing a snapshot");
            let covered = snapshots.write(&snapshot)?;
            trees.put_snapshot(&snapshot)?;
            Ok::<_, io::Error>(covered)
        });
        let covered =
            written.await.map_err(io::Error::other).flatten().inspect_err(|error| self.writer.failure().note(error))?;
        covered.map_or(Ok(()), |covered| self.writer.retire(covered))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        // Of a large table it takes a while, which nothing else of Raft waits for.
        let table = self.table.clone();
        let encoded = tokio::task::spawn_blocking(move || encode_table(&table)).await.map_err(io::Error::other)?;
        let snapshot = Snapshot { meta, snapshot: encoded };
        self.store(snapshot.clone()).await?;
        Ok(snapshot)
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let _watched = Watched::begin("applying entries");
        let mut answers = Vec::new();
        while let Some((entry, responder)) = entries.try_next().await? {
            let reply = self.apply_entry(&entry);
            answers.extend(responder.map(|responder| (responder, reply)));
        }
        // Whoever gets an answer finds the table that it speaks of.
        self.publish();
        for (responder, reply) in answers {
            responder.send(reply);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        // A copy of the table as it is now; it costs nothing, and applying goes on meanwhile.
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: Vec<u8>) -> Result<(), io::Error> {
        // Decoded first: one that this build cannot read must not be what it starts from.
        decode_table(&data).map_err(io::Error::other)?;
        self.store(Snapshot { meta: meta.clone(), snapshot: data.clone() }).await?;
        Ok(self.adopt(meta, &data)?)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let _turn = self.storing.lock().await;
        let _watched = Watched::begin("reading the snapshot");
        Ok(self.trees.snapshot()?)
    }
}
