//! `lbctl stats`: counters, and how fast they grow.

use std::time::Duration;

use lb_proto::{
    rates::Rates,
    v1::{self, GetStatsRequest},
};
use tokio::time::{Instant, sleep_until};

use crate::{
    cli::Stats,
    exit::{Failure, complain},
    output::{
        self, Row, Summary as _,
        views::{self, Paced},
    },
    session::Session,
};

pub(super) async fn run(session: &Session, what: Stats) -> Result<(), Failure> {
    if let Some(over) = what.rates {
        return rates(session, over).await;
    }
    let stats = read(session, what.all).await?;
    match session.format() {
        format if format.is_data() => output::object(format, &views::with_counters(&stats)?),
        _ => output::print(&stats.summary()),
    }
}

/// Of one node, or of all.
pub(super) async fn read(session: &Session, all_nodes: bool) -> Result<v1::GetStatsResponse, Failure> {
    let mut client = session.node();
    session.read(GetStatsRequest { all_nodes }, |request| async move { client.get_stats(request).await }).await
}

async fn rates(session: &Session, over: Duration) -> Result<(), Failure> {
    let begun = Instant::now();
    let before = read(session, true).await?;
    sleep_until(begun + over).await;
    let again = Instant::now();
    let after = read(session, true).await?;
    let rates = Rates::between(&before, &after, again - begun);
    let unknown = || Failure::Refused("a node was started or ended meanwhile: ask again".to_owned());
    let rates = rates.ok_or_else(unknown)?;
    after.silent_nodes.iter().for_each(|silent| complain(&format!("lbctl: warning: without {silent}")));
    let paced = Paced::new(&rates, &after);
    let format = session.format();
    if format.is_data() {
        return output::object(format, &paced);
    }
    section(session, "nodes", &paced.nodes)?;
    section(session, "vips", &paced.vips)?;
    section(session, "backends", &paced.backends)?;
    section(session, "drops", &paced.drops)
}

fn section<T: Row>(session: &Session, noun: &'static str, rows: &[T]) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    output::list(session.format(), noun, rows)?;
    output::print("\n")
}
