//! One process's part in the protocol: holder, supporter, and, where it leads, the one who ends leases. Pure:
//! the table, messages and moments come in; messages and proposals come out.
//!
//! Before: [`super::heartbeat`] receives and reads the clock. After: it sends, and [`super::driver`] proposes.

use std::{collections::BTreeMap, sync::Arc};

use lb_raft_store::{
    Lead, View,
    table::{Body, Evidence, LeaseId, NodeId, QuorumLoss},
};

use super::{
    backoff::Backoff,
    distance::{RoundTrip, RoundTrips},
    lease::Holder,
    message::{Ack, Echo, Message, Ping, Verdict},
    support::{Judge, Supporter},
    takeover::{Own, Takeover},
    timing::{REPEAT_NS, Timing},
};

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Output {
    /// Send it at once.
    Send(NodeId, Message),
    /// Have it agreed on, by way of whoever leads. What is still needed comes again.
    Propose(Body),
    /// Have it agreed on as the leader of this term, or not at all.
    ProposeInTerm(u64, Body),
    /// Take the lead from that node.
    Elect(NodeId),
    /// Whether callers' writes wait: another node must catch up.
    HoldBack(bool),
}

/// An answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answered {
    /// The node that answered.
    pub(super) node: NodeId,
    pub(super) ago_ms: u64,
    pub(super) verdict: Verdict,
}

/// Between two proposals of what has no effect.
const LONGEST_PAUSE_NS: u64 = 10_000_000_000;

/// What is known of another node's process.
#[derive(Debug, Default)]
struct Peer {
    /// Of the last ping that was taken.
    last: Option<(u64, u64)>,
    /// How far its table was applied then.
    applied: u64,
    /// The newest acknowledgement from it.
    echo: Option<Echo>,
    repeated_ns: u64,
    /// When it last answered a ping of this process, and what.
    answered_ns: u64,
    verdict: Option<Verdict>,
    round_trip: RoundTrip,
}

/// Proposals that wait for their effect to show in the table.
#[derive(Debug, Default)]
struct Asked {
    open: Backoff,
    ready: Backoff,
    confirm: Backoff,
    retract: Backoff,
}

impl Asked {
    /// The table has moved on: what is still needed is asked for without delay. Leases that are opened while nobody answers,
    /// or so far away that they never become valid, are ended by the others for ever: that counts as no change.
    fn on_change(&mut self, answered: bool, was_valid: bool) {
        let Self { open, ready, confirm, retract } = self;
        if answered {
            [ready, confirm, retract].into_iter().for_each(Backoff::begin_anew);
        }
        if answered && was_valid {
            open.begin_anew();
        }
    }

    fn begin_anew(&mut self) {
        let Self { open, ready, confirm, retract } = self;
        [open, ready, confirm, retract].into_iter().for_each(Backoff::begin_anew);
    }
}

/// One node of the protocol: its three roles, and what it has heard of the others.
#[derive(Debug)]
pub(super) struct Member {
    me: NodeId,
    nonce: u64,
    started_ns: u64,
    view: Arc<View>,
    lead: Lead,
    timing: Timing,
    holder: Holder,
    supporter: Supporter,
    takeover: Takeover,
    peers: BTreeMap<NodeId, Peer>,
    asked: Asked,
    seq: u64,
    next_ping_ns: u64,
    /// The dataplane works by a table that was compiled for this lease.
    in_force: Option<LeaseId>,
    /// It does its work. A node that does not keeps its vote, and gives its VIPs away.
    fit: bool,
    /// Since when. After it was unfit as one that could own VIPs it takes none for a while: what comes and goes must not
    /// have them come and go.
    fit_since_ns: u64,
    was_unfit: bool,
    /// So many nodes answered its heartbeats at the last look that a lease could become valid.
    answered: bool,
    /// The lease that was last asked for has become valid.
    was_valid: bool,
    /// Callers' writes wait.
    held_back: bool,
    /// It asks for nothing any more.
    stopped: bool,
    output: Vec<Output>,
}

impl Member {
    /// Of a process that starts now and has chosen this nonce.
    pub(super) fn new(me: NodeId, nonce: u64, now_ns: u64) -> Self {
        let view = Arc::new(View::default());
        let timing = timing_of(&view);
        Self {
            me,
            nonce,
            started_ns: now_ns,
            view,
            lead: Lead::default(),
            timing,
            holder: Holder::new(me, nonce),
            supporter: Supporter::default(),
            takeover: Takeover::default(),
            peers: BTreeMap::new(),
            asked: Asked::default(),
            seq: 0,
            next_ping_ns: now_ns,
            in_force: None,
            fit: true,
            fit_since_ns: now_ns,
            was_unfit: false,
            answered: false,
            was_valid: false,
            held_back: false,
            stopped: false,
            output: Vec::new(),
        }
    }

    /// The lease that this process holds, valid or not.
    pub(super) fn lease(&self) -> Option<LeaseId> {
        self.holder.lease()
    }

    /// Until when this node may answer for what its lease gives it: not before the dataplane knows what, and only while
    /// the node does its work.
    pub(super) fn valid_until_ns(&self) -> u64 {
        match self.holder.lease() {
            _ if !self.fit => 0,
            Some(_) if super::planted(super::Bug::ActsWithoutLease) => u64::MAX,
            Some(lease) if self.in_force == Some(lease) => self.holder.valid_until_ns(),
            _ => 0,
        }
    }

    /// Whether answers go on when the lease has run out: the operator wants it so, and it has been valid once.
    pub(super) fn holds_on(&self) -> bool {
        let wanted = self.view.table.settings().on_quorum_loss == QuorumLoss::Hold;
        let ready = |lease: LeaseId| self.view.table.lease(self.me).is_some_and(|held| held.id == lease && held.ready);
        let holds = |lease| self.in_force == Some(lease) && ready(lease);
        wanted && self.fit && self.holder.lease().is_some_and(holds)
    }

    /// Whether the table may give VIPs to the lease that this process holds.
    fn is_ready(&self) -> bool {
        let held = self.view.table.lease(self.me);
        held.is_some_and(|held| held.ready && Some(held.id) == self.holder.lease())
    }

    /// For so long a worker may be late.
    pub(super) fn stall_ns(&self) -> u64 {
        self.timing.stall_ns
    }

    /// The nodes that answer this one's heartbeats, and those that do not. One that was heard just now may have lost a
    /// few.
    pub(super) fn peers_heard(&self, now_ns: u64) -> BTreeMap<NodeId, bool> {
        let others = self.view.table.nodes().map(|node| node.id).filter(|id| *id != self.me);
        let heard =
            |node: &NodeId| self.peers.get(node).is_some_and(|peer| peer.answered_ns + self.timing.silent_ns > now_ns);
        others.map(|node| (node, heard(&node))).collect()
    }

    /// What each of the others has last answered to a heartbeat, and how long ago.
    pub(super) fn answers(&self, now_ns: u64) -> Vec<Answered> {
        let answered = |(node, peer): (&NodeId, &Peer)| {
            let ago_ms = now_ns.saturating_sub(peer.answered_ns) / 1_000_000;
            peer.verdict.map(|verdict| Answered { node: *node, ago_ms, verdict })
        };
        self.peers.iter().filter_map(answered).collect()
    }

    /// The round trips to the nodes that answer.
    pub(super) fn round_trips(&self, now_ns: u64) -> RoundTrips {
        let answer = self.peers.iter().filter(|(_, peer)| peer.answered_ns + self.timing.silent_ns > now_ns);
        answer.filter_map(|(node, peer)| Some((*node, peer.round_trip.ns()?))).collect()
    }

    /// Whether so many nodes are heard that a lease can be valid.
    pub(super) fn is_majority(&self, heard: &BTreeMap<NodeId, bool>) -> bool {
        let heard = heard.iter().filter(|(_, heard)| **heard).map(|(node, _)| *node);
        let configuration = self.view.table.configuration();
        configuration.halves.is_empty() || configuration.is_majority(&heard.chain([self.me]).collect())
    }

    /// What is to be done since the last call.
    pub(super) fn take_output(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.output)
    }

    /// The table has moved on.
    pub(super) fn on_view(&mut self, view: Arc<View>, now_ns: u64) {
        if view.applied < self.view.applied {
            return;
        }
        if view.applied > self.view.applied {
            self.asked.on_change(self.answered, self.was_valid);
        }
        let timing = timing_of(&view);
        if timing != self.timing || view.table.configuration().index != self.view.table.configuration().index {
            // A lease may become valid now that did not before.
            self.asked.begin_anew();
        }
        self.view = view;
        let table = &self.view.table;
        self.timing = timing;
        self.holder.on_table(table);
        self.supporter.on_table(self.me, table, self.view.applied, &self.timing, now_ns);
        self.takeover.on_table(table);
        self.peers.retain(|node, _| table.node(*node).is_some());
        for node in table.nodes().filter(|node| node.id != self.me) {
            // Nobody is silent who has not had the time to answer.
            self.peers.entry(node.id).or_insert_with(|| Peer { answered_ns: now_ns, ..Peer::default() });
        }
        self.on_time(now_ns);
    }

    /// Somebody else leads, or nobody.
    pub(super) fn on_lead(&mut self, lead: Lead, now_ns: u64) {
        self.lead = lead;
        self.asked.begin_anew();
        self.on_time(now_ns);
    }

    /// The dataplane works by the table of this lease.
    pub(super) fn on_in_force(&mut self, lease: Option<LeaseId>) {
        self.in_force = lease;
    }

    /// Whether this node does its work from now on. If not, it lets go of a lease with which it can own VIPs, and of them with
    /// it; under the next one it votes, and is given none.
    pub(super) fn on_fitness(&mut self, fit: bool, now_ns: u64) {
        if !self.fit && fit {
            self.fit_since_ns = now_ns;
        }
        self.fit = fit;
        self.on_time(now_ns);
    }

    /// The process behind that node's listener is gone.
    pub(super) fn on_refused(&mut self, node: NodeId, now_ns: u64) {
        // Of another node it says nothing that the heartbeats do not say.
        if self.lead.leader == Some(node) {
            self.takeover.on_refused(node, self.lead.term);
            self.on_time(now_ns);
        }
    }

    /// Lets go of everything. The lease to end, if there is one.
    pub(super) fn stop(&mut self) -> Option<LeaseId> {
        self.stopped = true;
        let lease = self.holder.lease();
        self.holder.give_up();
        lease
    }

    pub(super) fn on_message(&mut self, from: NodeId, message: &Message, now_ns: u64) {
        if from == self.me {
            return;
        }
        match message {
            Message::Ping(ping) => self.on_ping(from, ping, now_ns),
            Message::Ack(ack) => self.on_ack(from, ack, now_ns),
            Message::Obituary { nonce } => {
                self.takeover.on_obituary(from, *nonce);
                self.on_time(now_ns);
            }
        }
    }

    fn on_ping(&mut self, from: NodeId, ping: &Ping, now_ns: u64) {
        let lease = self.view.table.lease(from);
        // A process that has no lease yet, or of a time when this node's table had not caught up, is heard, and
        // nothing that it says counts.
        let is_current = lease.is_some_and(|lease| lease.nonce == ping.nonce && Some(lease.id) == ping.lease);
        let mut verdict = Verdict::Unknown;
        if is_current {
            let peer = self.peers.entry(from).or_default();
            // An old one, replayed or overtaken; the last one may come by a second path.
            if peer.last.is_some_and(|(nonce, seq)| nonce == ping.nonce && ping.seq < seq) {
                return;
            }
            let is_new = peer.last != Some((ping.nonce, ping.seq));
            peer.last = Some((ping.nonce, ping.seq));
            peer.applied = ping.applied;
            let judge = Judge { timing: &self.timing, nonce: self.nonce, own: self.holder.lease(), now_ns };
            verdict = self.supporter.on_ping(from, ping, &judge);
            if is_new && let Some(lease) = ping.lease {
                self.takeover.on_claim(from, lease, ping.applied, &ping.withdrawn, ping.deserted, now_ns);
            }
        }
        let Ping { nonce: of, lease, seq, .. } = *ping;
        let ack = Ack { nonce: self.nonce, of, lease, seq, at_ns: now_ns, verdict };
        self.output.push(Output::Send(from, Message::Ack(ack)));
    }

    fn on_ack(&mut self, from: NodeId, ack: &Ack, now_ns: u64) {
        if ack.of != self.nonce {
            return;
        }
        let peer = self.peers.entry(from).or_default();
        let echo = Echo { nonce: ack.nonce, at_ns: ack.at_ns };
        if peer.echo.is_none_or(|known| known.nonce != echo.nonce || known.at_ns < echo.at_ns) {
            peer.echo = Some(echo);
        }
        peer.answered_ns = now_ns;
        peer.verdict = Some(ack.verdict);
        if let Some(sent_ns) = self.holder.sent_ns(ack.seq) {
            peer.round_trip.on_answer(now_ns.saturating_sub(sent_ns), now_ns);
        }
        let repeat = ack.verdict == Verdict::Stale && now_ns >= peer.repeated_ns + REPEAT_NS;
        if repeat {
            peer.repeated_ns = now_ns;
        }
        self.holder.on_ack(from, ack, &self.timing);
        self.holder.count(&self.view.table.configuration(), &self.timing, now_ns);
        if repeat {
            self.ping(&[from], now_ns);
        }
    }

    /// Looks at the clock. Whatever has been received is handed in before.
    pub(super) fn on_time(&mut self, now_ns: u64) {
        let mut due = now_ns >= self.next_ping_ns;
        if due {
            self.next_ping_ns = now_ns + self.timing.period_ns;
        }
        // A node that the table does not know (yet, or any more) has nobody to speak to.
        if self.view.table.node(self.me).is_none() {
            return;
        }
        let configuration = self.view.table.configuration();
        self.holder.count(&configuration, &self.timing, now_ns);
        if self.holder.is_lost(&configuration, now_ns) && !self.holds_on() {
            self.holder.give_up();
        }
        if !self.fit && self.is_ready() {
            // For good: what opens the next lease ends this one and places its VIPs anew, and it may be agreed on late, when
            // this node has long been fit again.
            self.was_unfit = true;
            match self.holder.lease().filter(|_| super::planted(super::Bug::UnfitKeepsLease)) {
                Some(lease) => self.output.push(Output::Propose(Self::own_release(self.me, lease))),
                None => self.holder.give_up(),
            }
        }
        self.was_valid |= self.holder.valid_until_ns() > now_ns;
        let answered = self.is_answered(now_ns);
        if answered && !self.answered {
            self.asked.begin_anew();
        }
        self.answered = answered;
        let too_fast = self.is_too_fast(now_ns);
        if std::mem::replace(&mut self.held_back, too_fast) != too_fast {
            self.output.push(Output::HoldBack(too_fast));
        }
        if self.may_withdraw(now_ns) {
            // Told at once, not with the next heartbeat.
            due |= self.supporter.withdraw(now_ns);
        }
        if due {
            let all: Vec<NodeId> = self.view.table.nodes().map(|node| node.id).filter(|id| *id != self.me).collect();
            self.ping(&all, now_ns);
        }
        if !self.stopped {
            self.ask(now_ns);
        }
        self.lead(now_ns);
    }

    /// Whether the writes that this node takes as the leader are more than another one can follow: its table is so far behind
    /// that it would soon be supported no more.
    fn is_too_fast(&self, now_ns: u64) -> bool {
        let is_heard = |peer: &Peer| peer.answered_ns + self.timing.short_ns() > now_ns;
        self.lead.leader == Some(self.me)
            && self
                .peers
                .values()
                .any(|peer| is_heard(peer) && self.supporter.is_falling_behind(peer.applied, &self.timing, now_ns))
    }

    /// Whether so many nodes answer its heartbeats that a lease can become valid.
    fn is_answered(&self, now_ns: u64) -> bool {
        let lately = |peer: &Peer| peer.answered_ns + self.timing.short_ns() > now_ns;
        let answering = self.peers.iter().filter(|(_, peer)| lately(peer)).map(|(node, _)| *node);
        self.view.table.configuration().is_majority(&answering.chain([self.me]).collect())
    }

    /// A process that has just started does not know what the one before has promised; one that has just
    /// woken up, or that was cut off from everybody, must not judge the others.
    fn may_withdraw(&self, now_ns: u64) -> bool {
        let started = now_ns >= self.started_ns + self.timing.silence_after_start_ns;
        (started || super::planted(super::Bug::NoStartSilence))
            && self.holder.has_been_valid_for(self.timing.short_ns(), now_ns)
    }

    fn ping(&mut self, to: &[NodeId], now_ns: u64) {
        self.seq += 1;
        self.holder.on_sent(self.seq, now_ns);
        let withdrawn: Vec<(NodeId, LeaseId)> = self.supporter.withdrawn().collect();
        let deserted = self.lead.leader.filter(|leader| self.deserts(*leader, now_ns));
        for node in to {
            let ping = Ping {
                nonce: self.nonce,
                lease: self.holder.lease(),
                seq: self.seq,
                applied: self.view.applied,
                echo: self.peers.get(node).and_then(|peer| peer.echo),
                deserted,
                withdrawn: withdrawn.clone(),
            };
            self.output.push(Output::Send(*node, Message::Ping(ping)));
        }
    }

    /// Whether this node would not support the leader any more. Only a node that hears others can tell.
    fn deserts(&self, leader: NodeId, now_ns: u64) -> bool {
        leader != self.me && self.may_withdraw(now_ns) && !self.supporter.would_support(leader, now_ns)
    }

    /// What this node needs from the log.
    fn ask(&mut self, now_ns: u64) {
        let (me, timing) = (self.me, self.timing);
        let due = |asked: &mut Backoff| asked.is_due(timing.again_ns..=LONGEST_PAUSE_NS, now_ns);
        let table = &self.view.table;
        match (self.holder.lease(), table.lease(me)) {
            (Some(lease), Some(held)) => {
                let valid = self.holder.valid_until_ns() > now_ns && self.in_force == Some(lease);
                let steady = !self.was_unfit || now_ns >= self.fit_since_ns + timing.steady_ns;
                let may = self.fit && steady;
                if !held.ready && valid && may && due(&mut self.asked.ready) {
                    self.output.push(Output::Propose(Body::Ready { node: me, lease }));
                }
                let configuration = table.configuration().index;
                if held.configuration < configuration && due(&mut self.asked.confirm) {
                    self.output.push(Output::Propose(Body::Confirm { node: me, lease, configuration }));
                }
                let retract: Vec<(NodeId, LeaseId)> = self.supporter.to_retract(&timing, now_ns).collect();
                if !retract.is_empty() && due(&mut self.asked.retract) {
                    for (node, of) in retract {
                        let retract = Body::Retract { supporter: me, supporter_lease: lease, node, lease: of };
                        self.output.push(Output::Propose(retract));
                    }
                }
            }
            (_, held) => {
                if due(&mut self.asked.open) {
                    self.was_valid = false;
                    let previous = held.map(|lease| lease.id);
                    self.output.push(Output::Propose(Body::OpenLease { node: me, nonce: self.nonce, previous }));
                }
            }
        }
    }

    /// Ends leases where this node leads; looks after the leader where it does not.
    fn lead(&mut self, now_ns: u64) {
        let Some(leader) = self.lead.leader else { return };
        if leader != self.me {
            let deserts = self.deserts(leader, now_ns);
            let lead = (leader, self.lead.term);
            if self.takeover.elects(&self.view.table, self.me, lead, deserts, &self.timing, now_ns) {
                self.output.push(Output::Elect(leader));
            }
            return;
        }
        self.takeover.leads();
        let withdrawn: Vec<(NodeId, LeaseId)> = self.supporter.withdrawn().collect();
        let own = Own { node: self.me, lease: self.holder.lease(), applied: self.view.applied, withdrawn: &withdrawn };
        for end in self.takeover.ends(&self.view.table, &own, &self.timing, now_ns) {
            let fence = Body::Fence { node: end.node, lease: end.lease, evidence: end.evidence, heard: end.heard };
            self.output.push(Output::ProposeInTerm(self.lead.term, fence));
        }
    }

    /// When [`Self::on_time`] is due at the latest.
    pub(super) fn next_deadline_ns(&self, now_ns: u64) -> u64 {
        let promise = self.supporter.next_deadline_ns().filter(|at| *at > now_ns);
        let election = self.takeover.next_deadline_ns(&self.timing, now_ns);
        // A lease that runs out is told of at that moment.
        let lapse = Some(self.holder.valid_until_ns()).filter(|at| *at > now_ns);
        [promise, election, lapse].into_iter().flatten().fold(self.next_ping_ns, u64::min)
    }

    #[cfg(test)]
    pub(super) fn standing_withdrawals(&self) -> Vec<(NodeId, LeaseId)> {
        self.supporter.withdrawn().collect()
    }

    /// Ends the lease of a process that stops by itself.
    pub(super) fn own_release(me: NodeId, lease: LeaseId) -> Body {
        Body::Fence { node: me, lease, evidence: Evidence::OwnRelease, heard: Vec::new() }
    }
}

fn timing_of(view: &View) -> Timing {
    Timing::new(view.table.timing(), view.table.longest_withdraw_ms())
}

#[cfg(test)]
mod tests;
