//! What has happened on this node, for those who follow it.

use std::{collections::BTreeSet, time::Duration};

use futures::Stream;
use lb_proto::v1;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::status;
use crate::events::{Event, Events};

/// Messages that wait for a caller.
const WAITING: usize = 64;
/// A caller that has no room for a message for so long has gone.
const PATIENCE: Duration = Duration::from_secs(60);

type Told = Result<v1::WatchEventsResponse, Status>;

/// Tells what has happened after a number, until the caller goes or `stop` is true.
pub(super) fn follow(
    events: Events,
    mut stop: watch::Receiver<bool>,
    node: String,
    request: &v1::WatchEventsRequest,
) -> Result<impl Stream<Item = Told> + Send + use<>, Status> {
    let kind = |number: &i32| match v1::EventKind::try_from(*number) {
        Ok(v1::EventKind::Unspecified) | Err(_) => Err(status::invalid("kinds", format!("{number} is not known"))),
        Ok(kind) => Ok(kind as i32),
    };
    let kinds = request.kinds.iter().map(kind).collect::<Result<BTreeSet<_>, _>>()?;
    let last = *events.watch().borrow();
    if request.after_number > last {
        let problem = format!("the last event of {node} is {last}: the numbers are each node's own");
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
                let message = shown(&event, &node, missed);
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

fn shown(event: &Event, node: &str, missed: bool) -> v1::WatchEventsResponse {
    v1::WatchEventsResponse {
        event: event.news.reason.clone(),
        number: event.number,
        time: humantime::format_rfc3339_millis(event.at).to_string(),
        node: node.to_owned(),
        kind: v1::EventKind::from(event.news.kind).into(),
        objects: event.news.objects.clone(),
        revision: event.news.revision,
        warning: event.news.is_bad,
        missed,
    }
}
