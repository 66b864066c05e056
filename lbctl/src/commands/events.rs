//! `lbctl events`.

use lb_proto::{
    label,
    v1::{self, EventKind},
};

use crate::{
    cli::{EventFilter, Format},
    exit::{Failure, complain},
    output::{self, Row},
    session::Session,
};

pub(super) async fn run(session: &Session, filter: EventFilter) -> Result<(), Failure> {
    let EventFilter { follow, from, kinds } = filter;
    let request = v1::WatchEventsRequest {
        after_number: from.map_or(0, |number| number.saturating_sub(1)),
        kinds: kinds.into_iter().map(Into::into).collect(),
        once: !follow,
    };
    let mut client = session.node();
    let mut events = session.read(request, |request| async move { client.watch_events(request).await }).await?;
    let (mut all, mut last) = (Vec::new(), from);
    loop {
        let event = match events.message().await {
            Ok(Some(event)) => event,
            Ok(None) => break,
            Err(status) => {
                if let Some(next) = last.filter(|_| follow) {
                    complain(&format!("lbctl: to go on from here: lbctl events --follow --from {next}"));
                }
                return Err(Failure::from_status(&status, None));
            }
        };
        last = Some(event.number + 1);
        if event.missed {
            complain(
                "lbctl: warning: events before this one are forgotten: a node remembers 4096 since it was started",
            );
        }
        match (follow, session.format()) {
            (false, _) => all.push(event),
            (true, Format::Table | Format::Wide | Format::Name) => output::row(session.format(), &event)?,
            (true, format) => output::one_of_many(format, &event)?,
        }
    }
    if follow { Ok(()) } else { output::list(session.format(), "events", &all) }
}

impl Row for v1::WatchEventsResponse {
    const COLUMNS: &'static [&'static str] = &["time", "number", "node", "kind", "event"];
    const WIDE: &'static [&'static str] = &["number"];

    fn cells(&self) -> Vec<String> {
        let kind = label::<EventKind>(self.kind).to_owned();
        let event = if self.warning { format!("! {}", self.event) } else { self.event.clone() };
        // What others wrote may have control characters in it.
        let event = event.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] });
        vec![self.time.clone(), self.number.to_string(), self.node.clone(), kind, event.collect()]
    }
}
