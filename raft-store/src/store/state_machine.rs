//! The table as openraft's state machine: in memory, snapshotted into sled, rebuilt from snapshot and
//! log at start.

use std::{io, path::PathBuf, sync::Arc};

use futures::{Stream, TryStreamExt as _};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{EntryResponder, RaftStateMachine},
};

use super::{
    StoreError, envelope, keys,
    writer::{Note, Writer},
};
use crate::{
    codec::{DecodeError, record},
    feed::{Fingerprints, Publisher, View},
    raft::{Entry, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig},
    table::{Applied, Reply, Table, decode_table, encode_table},
};

/// The table and how far it got.
#[derive(Clone)]
pub(crate) struct StateMachine {
    path: PathBuf,
    snapshots: sled::Tree,
    meta: sled::Tree,
    writer: Writer,
    publisher: Publisher,
    table: Table,
    fingerprints: Fingerprints,
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
        path: PathBuf,
        snapshots: sled::Tree,
        meta: sled::Tree,
        writer: Writer,
        publisher: Publisher,
    ) -> Result<Self, StoreError> {
        let mut machine = Self {
            path,
            snapshots,
            meta,
            writer,
            publisher,
            table: Table::default(),
            fingerprints: Fingerprints::default(),
            forwarding: 0,
            applied: None,
            membership: StoredMembership::default(),
            storing: Arc::default(),
        };
        if let Some(snapshot) = machine.stored_snapshot()? {
            machine.adopt(&snapshot.meta, &snapshot.snapshot)?;
        }
        Ok(machine)
    }

    fn adopt(&mut self, meta: &SnapshotMeta, data: &[u8]) -> Result<(), StoreError> {
        self.table = decode_table(data).map_err(|error| StoreError::unreadable(&self.path, "the snapshot", error))?;
        self.applied = meta.last_log_id;
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
                let Applied { reply, touched } = self.table.apply(entry.log_id.index(), command);
                if touched.changes_forwarding() {
                    self.forwarding = entry.log_id.index();
                }
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
    pub(super) fn pretend_applied(&mut self, last: LogId) {
        self.applied = Some(last);
    }

    fn publish(&self) {
        self.publisher.publish(View {
            table: self.table.clone(),
            applied: self.applied.map_or(0, |id| id.index()),
            forwarding: self.forwarding,
            voters: self.membership.voter_ids().collect(),
        });
    }

    fn stored_record(&self) -> Result<Option<record::StoredSnapshot>, StoreError> {
        let record = self.writer.read(&self.path, self.meta.get(keys::SNAPSHOT))?;
        record
            .map(|record| envelope::open_message(keys::SNAPSHOT.as_bytes(), &record))
            .transpose()
            .map_err(|error| StoreError::damaged(&self.path, format!("the snapshot's record: {error}")))
    }

    fn stored_snapshot(&self) -> Result<Option<Snapshot>, StoreError> {
        let damaged = |what: String| StoreError::damaged(&self.path, format!("the snapshot: {what}"));
        let Some(record) = self.stored_record()? else { return Ok(None) };
        let mut data = Vec::new();
        for position in 0..record.chunks {
            let key = keys::chunk(record.generation, position);
            let chunk = self
                .writer
                .read(&self.path, self.snapshots.get(key))?
                .ok_or_else(|| damaged(format!("chunk {position} is missing")))?;
            let body = envelope::open(&key, &chunk).map_err(|error| damaged(format!("chunk {position}: {error}")))?;
            data.extend_from_slice(body);
        }
        if data.len() as u64 != record.len {
            return Err(damaged(format!("it has {} bytes instead of {}", data.len(), record.len)));
        }
        let meta = record.meta.ok_or_else(|| damaged("it does not say what it holds".into()))?;
        let meta = meta.try_into().map_err(|error: DecodeError| damaged(error.to_string()))?;
        Ok(Some(Snapshot { meta, snapshot: data }))
    }

    /// Chunks first, then the record that names them, then the old chunks go: whatever is cut short,
    /// the record names a complete snapshot.
    async fn store(&self, meta: &SnapshotMeta, data: &[u8]) -> io::Result<()> {
        let _turn = self.storing.lock().await;
        let stored = self.stored_record()?;
        let stored_last: Option<LogId> =
            stored.as_ref().and_then(|record| record.meta.as_ref()).and_then(|meta| meta.last).map(Into::into);
        if stored_last > meta.last_log_id {
            return Ok(()); // One that was built while a newer one was installed.
        }
        let generation = stored.map_or(1, |record| record.generation + 1);
        let mut chunks = 0;
        for (position, chunk) in (0u32..).zip(data.chunks(keys::PART_LEN)) {
            let key = keys::chunk(generation, position);
            self.writer.checked(self.snapshots.insert(key, envelope::seal(&key, chunk)))?;
            chunks = position + 1;
        }
        self.writer.barrier(Note::Nothing).await?;
        let record = record::StoredSnapshot { meta: Some(meta.into()), generation, chunks, len: data.len() as u64 };
        let key = keys::SNAPSHOT;
        self.writer.checked(self.meta.insert(key, envelope::seal_message(key.as_bytes(), &record)))?;
        self.writer.barrier(Note::Nothing).await?;
        for key in self.snapshots.range(..keys::chunk(generation, 0)).keys() {
            self.writer.checked(self.snapshots.remove(self.writer.checked(key)?))?;
        }
        Ok(())
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        let data = encode_table(&self.table);
        self.store(&meta, &data).await?;
        Ok(Snapshot { meta, snapshot: data })
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
        self.store(meta, &data).await?;
        Ok(self.adopt(meta, &data)?)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let _turn = self.storing.lock().await;
        Ok(self.stored_snapshot()?)
    }
}
