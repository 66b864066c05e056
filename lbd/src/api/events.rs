//! What has happened on this node, for those who follow it.

use std::{collections::BTreeSet, time::Duration};

use futures::Stream;
use lb_proto::v1;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Context, status};

/// Messages that wait for a caller.
const WAITING: usize = 64;
/// A caller that has no room for a message for so long has gone.
const PATIENCE: Duration = Duration::from_secs(60);

type Told = Result<v1::WatchEventsResponse, Status>;

/// Tells what has happened after a number, until the caller goes or `stop` is true.
pub(super) fn follow(
    context: Context,
    request: &v1::WatchEventsRequest,
) -> Result<impl Stream<Item = Told> + Send + use<>, Status> {
    let kind = |number: &i32| match v1::EventKind::try_from(*number) {
        Ok(v1::EventKind::Unspecified) | Err(_) => Err(status::invalid("kinds", format!("{number} is not known"))),
        Ok(kind) => Ok(kind as i32),
    };
    let kinds = request.kinds.iter().map(kind).collect::<Result<BTreeSet<_>, _>>()?;
    let events = context.events.clone();
    let mut stop = context.stopping.clone();
    let last = *events.watch().borrow();
    if request.after_number > last {
        let problem = format!("the last event of {} is {last}: the numbers are each node's own", context.config.name);
        return Err(status::invalid("after_number", problem));
    }
    let (mut told, once) = (request.after_number, request.once);
    let (sender, receiver) = mpsc::channel::<Told>(WAITING);
    tokio::spawn(async move {
        let mut last = events.watch();
        // Told with the next one that is told.
        let mut missed = false;
        loop {
            last.mark_unchanged();
            let (new, forgotten) = events.after(told);
            missed |= forgotten;
            for event in new {
                told = event.number;
                let message = context.event(&event, missed);
                if !kinds.is_empty() && !kinds.contains(&message.kind) {
                    continue;
                }
                missed = false;
                let Ok(Ok(())) = timeout(PATIENCE, sender.send(Ok(message))).await else { return };
            }
            if once {
                return;
            }
            let goes_on = tokio::select! {
                changed = last.changed() => changed.is_ok(),
                () = sender.closed() => false,
                _ = stop.wait_for(|stop| *stop) => false,
            };
            if !goes_on {
                if *stop.borrow() {
                    drop(sender.send(Err(status::stopping())).await);
                }
                return;
            }
        }
    });
    Ok(ReceiverStream::new(receiver))
}
