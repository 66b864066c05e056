//! Follows the log and the lead, and tells of both.

use lb_raft_store::Consensus;

use super::{
    derive::{self, name_of},
    event::{Kind, News},
    ring::Events,
};

/// From what is applied when it begins: a node that catches up tells what it missed as it learns of it. Runs until it is aborted.
pub(crate) async fn follow(consensus: Consensus, events: Events) {
    let (mut table, mut lead) = (consensus.watch(), consensus.lead());
    let mut told = table.borrow_and_update().applied;
    let mut leader = lead.borrow_and_update().leader;
    loop {
        tokio::select! {
            changed = table.changed() => if changed.is_err() { return },
            changed = lead.changed() => if changed.is_err() { return },
        }
        let view = table.borrow_and_update().clone();
        match view.history.after(told) {
            Some(changes) => changes.flat_map(|change| derive::news(change)).for_each(|news| tell(&events, news)),
            None => events.note(News::of_node(
                Kind::Configuration,
                false,
                format!("the table was taken over as it is at revision {}", view.applied),
            )),
        }
        told = view.applied;
        let now = *lead.borrow_and_update();
        if now.leader != leader {
            leader = now.leader;
            let (is_bad, reason) = match leader {
                Some(node) => (false, format!("{} leads (term {})", name_of(&view.table, node), now.term)),
                None => (true, "nobody leads: no change can be agreed on until a leader is elected".to_owned()),
            };
            events.tell(News::of_node(Kind::Leader, is_bad, reason));
        }
    }
}

fn tell(events: &Events, news: News) {
    match news.kind {
        // The audit has a line of it, with what was before.
        Kind::Configuration => events.note(news),
        _ => events.tell(news),
    }
}
