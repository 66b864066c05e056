//! What has changed, for those who follow the table.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use futures::{Stream, StreamExt as _, stream};
use lb_proto::v1::{self, change::Row};
use lb_raft_store::{
    Change, View, Watcher,
    table::{BackendKey, Table, Touched},
};
use prost::Message as _;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{convert, settings, status};

/// Between two messages at most, so that there is a revision to resume from.
const BOOKMARK_EVERY: Duration = Duration::from_secs(10);
/// Changes that come at almost the same time are told together: to wake a hundred followers for each costs more than what
/// they are told.
const GATHER: Duration = Duration::from_millis(5);
/// While one comes after the other, a follower is woken for them once in so long.
const PACE: Duration = Duration::from_millis(50);
/// Batches of messages that wait for a caller.
const WAITING: usize = 1;
/// A caller that has no room for a message for so long has gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of a message, as far as there is more than one row in it; and of a batch, as far as there is more than one message in it.
const LONGEST: usize = 64 << 10;

type Told = Result<v1::WatchResponse, Status>;
/// What goes to the connection at once.
type Batch = Vec<Told>;

/// Follows the table from a revision on, until the caller goes or `stop` is true.
pub(super) fn follow(
    table: Watcher,
    stop: watch::Receiver<bool>,
    request: &v1::WatchRequest,
) -> Result<impl Stream<Item = Told> + Send + use<>, Status> {
    let kind = |number: &i32| match v1::Kind::try_from(*number) {
        Ok(v1::Kind::Unspecified) | Err(_) => Err(status::invalid("kinds", format!("{number} is not known"))),
        Ok(kind) => Ok(kind),
    };
    let kinds = request.kinds.iter().map(kind).collect::<Result<BTreeSet<_>, _>>()?;
    let (sender, receiver) = mpsc::channel(WAITING);
    let follower = Follower {
        table,
        stop,
        kinds,
        told: request.from_revision,
        batch: Batch::new(),
        batch_len: 0,
        flushed: Instant::now(),
        sender,
    };
    tokio::spawn(async move { drop(follower.run().await) });
    Ok(ReceiverStream::new(receiver).flat_map(stream::iter))
}

struct Follower {
    table: Watcher,
    stop: watch::Receiver<bool>,
    /// Only these; all if it is empty.
    kinds: BTreeSet<v1::Kind>,
    /// The revision up to which the caller knows all.
    told: u64,
    batch: Batch,
    /// Its bytes.
    batch_len: usize,
    /// When the last one went.
    flushed: Instant,
    sender: mpsc::Sender<Batch>,
}

/// The caller has gone, or the node ends.
struct Gone;

impl Follower {
    async fn run(mut self) -> Result<(), Gone> {
        let view = self.table.borrow_and_update().clone();
        if self.told == 0 || view.history.after(self.told).is_none() {
            self.tell_all(&view).await?;
        }
        drop(view);
        loop {
            // One at a time: whoever reads slowly keeps nothing that is forgotten meanwhile.
            let view = self.table.borrow_and_update().clone();
            let next = view.history.after(self.told).map(|mut changes| changes.next().cloned());
            match next {
                Some(Some(change)) => self.tell(&change).await?,
                Some(None) => {
                    self.told = self.told.max(view.applied);
                    drop(view);
                    self.flush().await?;
                    self.wait().await?;
                }
                None => {
                    self.put(Err(status::too_slow(self.told)), 0).await?;
                    return self.flush().await;
                }
            }
        }
    }

    /// Until there is something new, or it is time for a sign that there is not.
    async fn wait(&mut self) -> Result<(), Gone> {
        let due = tokio::select! {
            changed = self.table.changed() => changed.map(|()| None).map_err(|_| Gone)?,
            () = self.sender.closed() => return Err(Gone),
            () = tokio::time::sleep(BOOKMARK_EVERY) => {
                Some(Ok(v1::WatchResponse { revision: self.told, ..v1::WatchResponse::default() }))
            }
            _ = self.stop.wait_for(|stop| *stop) => Some(Err(status::stopping())),
        };
        let Some(due) = due else {
            sleep_until((Instant::now() + GATHER).max(self.flushed + PACE)).await;
            return Ok(());
        };
        let goes_on = due.is_ok();
        self.put(due, 0).await?;
        self.flush().await?;
        if goes_on { Ok(()) } else { Err(Gone) }
    }

    async fn tell(&mut self, change: &Change) -> Result<(), Gone> {
        let rows = changes(&change.before, &change.after, &change.touched);
        self.tell_rows(rows.into_iter(), change.index, false).await
    }

    /// The whole table: the caller knows nothing of it, or something that nobody can go on from.
    async fn tell_all(&mut self, view: &View) -> Result<(), Gone> {
        self.tell_rows(all(&view.table), view.applied, true).await
    }

    /// What has come to be with a revision, in as many messages as it takes.
    /// Rows are made as they are told: a whole table may be large, and its reader slow.
    async fn tell_rows(
        &mut self,
        rows: impl Iterator<Item = v1::Change> + Send,
        revision: u64,
        compacted: bool,
    ) -> Result<(), Gone> {
        let (mut message, mut len) = (v1::WatchResponse { compacted, ..v1::WatchResponse::default() }, 0);
        for row in rows {
            let is_wanted = kind_of(&row).is_some_and(|kind| self.kinds.contains(&kind));
            if !is_wanted && !self.kinds.is_empty() {
                continue;
            }
            len += row.encoded_len();
            if len > LONGEST && !message.changes.is_empty() {
                let next = v1::WatchResponse { compacted, ..v1::WatchResponse::default() };
                self.put(Ok(std::mem::replace(&mut message, next)), len).await?;
                len = row.encoded_len();
            }
            message.changes.push(row);
        }
        self.told = revision;
        if message.changes.is_empty() && !compacted {
            return Ok(());
        }
        self.put(Ok(v1::WatchResponse { revision, ..message }), len).await
    }

    /// Puts a message into the batch, which goes when it is full.
    async fn put(&mut self, told: Told, len: usize) -> Result<(), Gone> {
        self.batch.push(told);
        self.batch_len += len;
        if self.batch_len < LONGEST { Ok(()) } else { self.flush().await }
    }

    async fn flush(&mut self) -> Result<(), Gone> {
        if self.batch.is_empty() {
            return Ok(());
        }
        (self.batch_len, self.flushed) = (0, Instant::now());
        match timeout(PATIENCE, self.sender.send(std::mem::take(&mut self.batch))).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Gone),
        }
    }
}

/// What an entry has changed, in the API's words. Rows that look as before are not among it.
pub(super) fn changes(before: &Table, after: &Table, touched: &Touched) -> Vec<v1::Change> {
    let mut rows = Vec::new();
    if before.settings() != after.settings() {
        let of = |table: &Table| Some(settings::shown(&table.settings()));
        rows.push(Row::Settings(v1::SettingsChange { before: of(before), after: of(after) }));
    }
    for network in &touched.segments {
        let of = |table: &Table| table.segment(network).map(|segment| convert::segment(segment, table));
        rows.push(Row::Segment(v1::SegmentChange { before: of(before), after: of(after) }));
    }
    let vips: BTreeSet<IpAddr> = touched.vips.iter().chain(&touched.owners).copied().collect();
    for address in vips {
        let of = |table: &Table| table.vip(address).map(|vip| convert::vip(vip, table));
        rows.push(Row::Vip(v1::VipChange { before: of(before), after: of(after) }));
    }
    for name in &touched.services {
        let of = |table: &Table| table.service(name).map(convert::service);
        rows.push(Row::Service(v1::ServiceChange { before: of(before), after: of(after) }));
    }
    let judged = touched.verdicts.iter().filter_map(|id| after.backend_with_id(*id).or(before.backend_with_id(*id)));
    let backends: BTreeSet<BackendKey> = touched.backends.iter().cloned().chain(judged.map(|of| of.key())).collect();
    for (service, address) in backends {
        let of = |table: &Table| table.backend(&service, address).map(|backend| convert::backend(backend, table));
        rows.push(Row::Backend(v1::BackendChange { before: of(before), after: of(after) }));
    }
    rows.retain(|row| match row {
        Row::Settings(_) => true,
        Row::Segment(v1::SegmentChange { before, after }) => before != after,
        Row::Vip(v1::VipChange { before, after }) => before != after,
        Row::Service(v1::ServiceChange { before, after }) => before != after,
        Row::Backend(v1::BackendChange { before, after }) => before != after,
    });
    rows.into_iter().map(|row| v1::Change { row: Some(row) }).collect()
}

/// A whole table, as what has come to be.
fn all(table: &Table) -> impl Iterator<Item = v1::Change> + Send {
    let settings = v1::SettingsChange { before: None, after: Some(settings::shown(&table.settings())) };
    let segment = move |of| Row::Segment(v1::SegmentChange { before: None, after: Some(convert::segment(of, table)) });
    let vip = move |of| Row::Vip(v1::VipChange { before: None, after: Some(convert::vip(of, table)) });
    let service = |of| Row::Service(v1::ServiceChange { before: None, after: Some(convert::service(of)) });
    let backend = move |of| Row::Backend(v1::BackendChange { before: None, after: Some(convert::backend(of, table)) });
    let rows =
        std::iter::once(Row::Settings(settings)).chain(table.segments().map(segment)).chain(table.vips().map(vip));
    let rows = rows.chain(table.services().map(service)).chain(table.backends().map(backend));
    rows.map(|row| v1::Change { row: Some(row) })
}

fn kind_of(change: &v1::Change) -> Option<v1::Kind> {
    Some(match change.row.as_ref()? {
        Row::Vip(_) => v1::Kind::Vip,
        Row::Service(_) => v1::Kind::Service,
        Row::Backend(_) => v1::Kind::Backend,
        Row::Segment(_) => v1::Kind::Segment,
        Row::Settings(_) => v1::Kind::Settings,
    })
}
