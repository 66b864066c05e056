//! Copies of this node's frames, for one caller.

use std::{sync::Arc, time::Duration};

use futures::Stream;
use lb_dataplane::{Dataplane, TapFilter, Tapped};
use lb_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{convert, status};

/// Messages that wait for the caller: he who reads slowly misses frames, which are counted.
const WAITING: usize = 4;
/// Between two looks whether he is there.
const PATIENCE: Duration = Duration::from_millis(50);

/// Begins, and goes on until the caller goes or `stop` is true.
pub(super) fn begin(
    dataplane: &Arc<Dataplane>,
    stop: watch::Receiver<bool>,
    request: &v1::CaptureRequest,
) -> Result<impl Stream<Item = Result<v1::CaptureResponse, Status>> + Send + use<>, Status> {
    let filter = TapFilter {
        vip: convert::optional("vip", &request.vip)?,
        only_drops: request.only_drops,
        snap_len: request.snap_len as usize,
    };
    let capture = dataplane.capture(filter);
    let capture = capture.ok_or_else(|| status::busy("this node has 4 captures under way: end one, and ask again"))?;
    let (messages, answers) = mpsc::channel(WAITING);
    // For as long as it lasts; there are few.
    std::thread::Builder::new()
        .name("capture".into())
        .spawn(move || {
            let mut next = Ok(v1::CaptureResponse::default());
            while messages.blocking_send(next).is_ok() {
                let frames = loop {
                    let frames = capture.next(PATIENCE);
                    if messages.is_closed() {
                        return;
                    }
                    if *stop.borrow() {
                        // Nobody may listen any more.
                        let _ = messages.blocking_send(Err(status::stopping()));
                        return;
                    }
                    if !frames.is_empty() {
                        break frames;
                    }
                };
                let frames = frames.into_iter().map(shown).collect();
                next = Ok(v1::CaptureResponse { frames, missed: capture.missed() });
            }
        })
        .map_err(|error| Status::unavailable(format!("a thread for the capture: {error}")))?;
    Ok(ReceiverStream::new(answers))
}

fn shown(tapped: Tapped) -> v1::CapturedFrame {
    let since = tapped.at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    v1::CapturedFrame {
        time_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
        interface: tapped.interface.as_deref().unwrap_or_default().to_owned(),
        outgoing: tapped.is_outgoing,
        length: u32::try_from(tapped.len).unwrap_or(u32::MAX),
        data: tapped.bytes,
        dropped: tapped.dropped.map(|reason| reason.label().to_owned()).unwrap_or_default(),
        comment: tapped.comment,
    }
}
