//! How much is done for callers at once: what is beyond is refused at once, with a word about when to ask again, so that those who
//! are served are served in time, and memory is bounded however slowly answers are read.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{
    body::{Bytes, Frame, SizeHint},
    http::{Request, Response},
};
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{methods::Work, status};
use crate::connection::{NoPlace, Peer, Place, Refusal, Refusals, SharedRoom};

/// Changes that wait for a majority.
const WRITES: usize = 256;
/// Reads, and their answers of up to 4 MiB.
const READS: usize = 128;
/// Streams that stay open.
const STREAMS: usize = 512;
/// For a caller to read an answer that is no stream.
const READ_OUT: Duration = Duration::from_secs(30);

/// The bounds of one node, for all its listeners together.
#[derive(Clone)]
pub(super) struct Bounds {
    writes: Bound,
    reads: Bound,
    streams: Bound,
    refusals: Refusals,
}

/// So many of a kind at a time, and half as many of one caller, as far as callers show who they are.
#[derive(Clone)]
struct Bound {
    what: &'static str,
    most: usize,
    room: SharedRoom<String>,
}

impl Bound {
    fn of(most: usize, what: &'static str) -> Self {
        Self { what, most, room: SharedRoom::of(most, most / 2) }
    }

    fn admit(&self, holder: Option<String>) -> Result<Place<String>, Status> {
        let Self { what, most, .. } = self;
        self.room.take(holder).map_err(|why| {
            status::busy(&match why {
                NoPlace::Share => {
                    format!("{} {what} of this caller are under way, as many as one gets: ask again", most / 2)
                }
                NoPlace::Whole => {
                    format!("this node has {most} {what} under way, as many as it takes: ask again, or another node")
                }
            })
        })
    }
}

impl Bounds {
    pub(super) fn new(refusals: Refusals) -> Self {
        Self {
            writes: Bound::of(WRITES, "changes"),
            reads: Bound::of(READS, "reads"),
            streams: Bound::of(STREAMS, "streams"),
            refusals,
        }
    }

    fn admit(&self, work: Work, holder: Option<String>) -> Result<Place<String>, Status> {
        let bound = match work {
            Work::Write => &self.writes,
            Work::Read => &self.reads,
            Work::Stream => &self.streams,
        };
        bound.admit(holder).inspect_err(|_| self.refusals.count(Refusal::Busy))
    }
}

impl<S> Layer<S> for Bounds {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded { bounds: self.clone(), inner }
    }
}

/// A service behind the bounds.
#[derive(Clone)]
pub(super) struct Bounded<S> {
    bounds: Bounds,
    inner: S,
}

impl<S, B> Service<Request<B>> for Bounded<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // Said by whoever has let the call through.
        let work = request.extensions().get().copied().unwrap_or(Work::Write);
        let holder = request.extensions().get::<Peer>().and_then(Peer::holder);
        match self.bounds.admit(work, holder) {
            Ok(place) => {
                let answer = self.inner.call(request);
                Box::pin(async move { Ok(answer.await?.map(|body| Body::new(Held::new(body, place, work)))) })
            }
            Err(refused) => Box::pin(async move { Ok(refused.into_http()) }),
        }
    }
}

/// An answer that takes room until it is read, or given up.
struct Held {
    body: Body,
    /// `None` for a stream, which may stay.
    until: Option<Pin<Box<Sleep>>>,
    _place: Place<String>,
}

impl Held {
    fn new(body: Body, place: Place<String>, work: Work) -> Self {
        let until = (work != Work::Stream).then(|| Box::pin(sleep(READ_OUT)));
        Self { body, until, _place: place }
    }
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(until) = &mut self.until
            && until.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(status::timed_out("the answer was read too slowly"))));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_room_is_refused_and_what_ends_makes_room() {
        let bounds = Bounds::new(Refusals::default());
        let read = |holder: Option<&str>| bounds.admit(Work::Read, holder.map(str::to_owned));
        let mut held: Vec<_> = (0..READS / 2).map(|_| read(Some("one")).unwrap()).collect();
        let refused = read(Some("one")).err().unwrap();
        assert!(refused.code() == tonic::Code::ResourceExhausted && refused.message().contains("of this caller"));
        held.extend((0..READS / 2).map(|_| read(Some("other")).unwrap()));
        let refused = read(None).err().unwrap();
        assert!(refused.code() == tonic::Code::ResourceExhausted && refused.message().contains("this node has"));
        assert!(bounds.admit(Work::Write, None).is_ok(), "each kind by itself");
        drop(held);
        assert!(read(Some("one")).is_ok());
    }
}
