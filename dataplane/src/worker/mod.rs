//! The worker: a thread with an engine, a flow table, and its part of the counters. [`pipeline`] has the whole way of a frame,
//! [`classify`] its decisions; this file is the thread's turn around them.

mod classify;
mod explain;
mod handoff;
mod limit;
pub(crate) mod mailbox;
mod outbox;
pub mod pipeline;
mod reopen;
pub(crate) mod shared;
pub(crate) mod tap;

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

pub use classify::Peek;
pub use pipeline::Pipeline;

use handoff::Handoff;
use mailbox::Inbox;
use outbox::{Outgoing, To};
use reopen::Reopening;
use shared::{Published, Table, WorkerHandle, Workers};

use crate::{
    forward::{flow::FlowTable, steering::SPEAKER},
    io::{
        PortConfig,
        control::Control,
        departure::{Outlet, Parting},
        engine::{Engine, EngineFactory},
        local_delivery::LocalDelivery,
    },
    query::Query,
    speaker::{
        Speaker,
        permit::{Permit, boottime_ns},
    },
    verdict::Sent,
};

/// The longest sleep: a worker that has nothing to do shows itself at least this often.
const MAX_WAIT_NS: u64 = 20_000_000;
/// Between two looks at the counters that are not counted frame by frame.
const COUNT_EVERY_NS: u64 = 100_000_000;
/// Before a filter that could not be attached is tried again.
const FILTER_RETRY_NS: u64 = 1_000_000_000;
/// For sockets to be opened anew: the kernel may let that wait.
const OPENING_NS: u64 = 2_000_000_000;
/// The shortest one.
const MIN_WAIT_NS: u64 = 1000;

/// What a worker's thread takes along, and leaves behind.
pub(crate) struct Worker {
    pub(crate) pipeline: Pipeline,
    table: Arc<Table>,
    published: Arc<Published>,
    handle: Arc<WorkerHandle>,
    inbox: Inbox,
    local: LocalDelivery,
    /// When to bring the counters up to date that are not counted frame by frame.
    count_at_ns: u64,
    /// The filter is that of an older table.
    is_filter_behind: bool,
    /// When to try to replace it again; 0 unless that has failed.
    filter_retry_at_ns: u64,
}

impl Worker {
    /// One of a pool, and what the one that spoke for the node before it knew.
    pub(crate) fn new(
        published: Arc<Published>,
        workers: &Arc<Workers>,
        (handle, inbox): (Arc<WorkerHandle>, Inbox),
        flows: FlowTable,
        speaker: Option<Speaker>,
    ) -> Self {
        let table = published.table.load_full();
        let permit = Permit::new(published.lease.clone(), published.owned.load_full());
        let speaker = (handle.index == SPEAKER).then(|| speaker.unwrap_or_default());
        let handoff = Handoff::new(workers, handle.index);
        let stats = handle.stats.clone();
        let mut pipeline = Pipeline::of_worker(table.snapshot.clone(), flows, stats, permit, speaker, handoff);
        pipeline.accelerator.clone_from(&published.accelerator);
        pipeline.now_ns = boottime_ns();
        pipeline.adopt(table.snapshot.clone());
        Self {
            pipeline,
            table,
            published,
            handle,
            inbox,
            local: LocalDelivery::default(),
            count_at_ns: 0,
            is_filter_behind: false,
            filter_retry_at_ns: 0,
        }
    }

    /// Runs until it is told to stop.
    pub(crate) fn run(
        &mut self,
        (engine, control): (Box<dyn Engine<Pipeline>>, Option<Control>),
        factory: EngineFactory,
        ports: Vec<PortConfig>,
        busy_poll: Duration,
    ) -> io::Result<()> {
        let mut sockets = Reopening::new(engine, control, factory, ports);
        sockets.engine.set_filter(&self.table.filter)?;
        let published = self.published.clone();
        let busy_poll_ns = busy_poll.as_nanos() as u64;
        let (mut was_busy, mut awake_until_ns) = (false, 0);
        while !published.stop.load(Ordering::Acquire) {
            self.take_up(&mut *sockets.engine);
            let pipeline = &mut self.pipeline;
            // Whatever was judged before this line was judged by an older table, or by older grants.
            self.handle.seen.set(pipeline.snapshot.generation, pipeline.permit.generation());
            let (index, progress) = (self.handle.index, &published.progress);
            pipeline.now_ns = boottime_ns();
            progress.expect(index, pipeline.now_ns + OPENING_NS);
            sockets.follow(&pipeline.snapshot, &self.table.filter, pipeline.now_ns);
            progress.expect(index, pipeline.now_ns);
            pipeline.tick();
            let now_ns = self.pipeline.now_ns;
            if was_busy {
                // The next frame may be nearer than a wake-up takes.
                awake_until_ns = now_ns + busy_poll_ns;
            }
            sockets.serve_control(&mut self.pipeline, now_ns)?;
            self.open_mail();
            self.send_outbox(&mut *sockets.engine)?;
            let is_awake = now_ns < awake_until_ns;
            let idle = if is_awake { Duration::ZERO } else { self.idle().min(sockets.patience()) };
            progress.expect(index, self.pipeline.now_ns + idle.as_nanos() as u64);
            self.pipeline.keep_accelerator();
            was_busy = sockets.engine.turn(idle, &mut self.pipeline)?;
            self.send_outbox(&mut *sockets.engine)?;
            if self.pipeline.now_ns >= self.count_at_ns {
                self.count_at_ns = self.pipeline.now_ns + COUNT_EVERY_NS;
                let (lost, control_lost) = (sockets.lost(self.pipeline.now_ns), sockets.control_lost());
                self.handle.stats.ring_full.add(lost);
                self.handle.stats.control_lost.add(control_lost);
                let (waiting, slots) = sockets.engine.waiting();
                self.handle.stats.ring_waiting.set(waiting as u64);
                self.handle.stats.ring_slots.set(slots as u64);
                // What others answer comes by the sockets for control frames, whatever becomes of the data.
                if control_lost > 0 {
                    self.pipeline.excuse_silence();
                }
                self.pipeline.count_flows();
                self.pipeline.count_accelerated();
            }
        }
        self.handle.stats.ring_full.add(sockets.engine.lost().frames);
        self.handle.stats.ring_waiting.set(0);
        self.handle.stats.ring_slots.set(0);
        // The others may take a moment yet: until then this one is not late.
        published.progress.expect(self.handle.index, boottime_ns() + OPENING_NS);
        Ok(())
    }

    /// Works by what is published.
    fn take_up(&mut self, engine: &mut dyn Engine<Pipeline>) {
        self.pipeline.taps.adopt(&self.published.taps);
        let owned = self.published.owned.load();
        if owned.generation != self.pipeline.permit.generation() {
            self.pipeline.own(owned.clone());
        }
        let table = self.published.table.load();
        if table.snapshot.generation != self.pipeline.snapshot.generation {
            self.is_filter_behind |= table.filter != self.table.filter;
            self.table = table.clone();
            self.pipeline.adopt(self.table.snapshot.clone());
        }
        if self.is_filter_behind {
            self.renew_filter(engine);
        }
    }

    /// Has the filter let the table's VIPs by. Where it cannot, the rest of the table holds all the same.
    fn renew_filter(&mut self, engine: &mut dyn Engine<Pipeline>) {
        let now_ns = self.pipeline.now_ns;
        if now_ns < self.filter_retry_at_ns {
            return;
        }
        match (engine.set_filter(&self.table.filter), self.filter_retry_at_ns) {
            (Ok(()), failed) => {
                if failed > 0 {
                    tracing::info!("the socket filter is replaced");
                }
                (self.is_filter_behind, self.filter_retry_at_ns) = (false, 0);
            }
            (Err(error), failed) => {
                if failed == 0 {
                    tracing::error!(%error, "the socket filter cannot be replaced: new VIPs may get no frames");
                }
                self.filter_retry_at_ns = now_ns + FILTER_RETRY_NS;
            }
        }
    }

    /// Takes what others have put into the mailbox.
    pub(crate) fn open_mail(&mut self) {
        let handle = self.handle.clone();
        let Some((frames, questions)) = handle.mailbox.take(&self.inbox) else { return };
        frames.into_iter().for_each(|handed| self.pipeline.take_over(handed));
        questions.into_iter().for_each(|question| self.answer(question));
    }

    /// Answers what the control plane has asked for.
    fn answer(&mut self, question: Query) {
        let pipeline = &mut self.pipeline;
        match question {
            Query::Explain(question, reply) => reply.give(pipeline.explain(&question)),
            Query::ProbeVips(reply) => reply.give(pipeline.probe_vips()),
            Query::ListFlows(slots, reply) => {
                let now = crate::forward::flow::Tick::from_ns(pipeline.now_ns);
                let entries = pipeline.flows.entries(slots, now).collect();
                reply.give((entries, pipeline.flows.slots()));
            }
        }
    }

    /// Sends what has gathered beside the frames of the engine.
    pub(crate) fn send_outbox(&mut self, engine: &mut dyn Engine<Pipeline>) -> io::Result<()> {
        if self.pipeline.outbox.is_empty() {
            return Ok(());
        }
        let mut outbox = std::mem::take(&mut self.pipeline.outbox);
        // Right before the announcements, as before each answer.
        let may_announce = !outbox.iter().any(|outgoing| outgoing.is_claim) || self.pipeline.permit.to_announce();
        let mut partings = Vec::with_capacity(outbox.len());
        for outgoing @ Outgoing { to, frame, sent, is_claim } in &outbox {
            if *is_claim && !may_announce {
                self.handle.stats.announcements_withheld.add(1);
                continue;
            }
            let by = match to {
                To::Port(port) => Ok(Outlet::Port(*port)),
                To::Local => self.local.outlet(),
            };
            match by {
                Ok(by) => {
                    if *sent == Sent::Originated {
                        self.handle.stats.originated.add(1);
                    }
                    if !self.pipeline.taps.is_empty() {
                        let pipeline = &mut self.pipeline;
                        pipeline.taps.sent(&pipeline.snapshot, pipeline.now_ns, outgoing);
                    }
                    partings.push(Parting { by, frame, sent: *sent });
                }
                Err(_) => self.pipeline.send_failed(*sent),
            }
        }
        engine.send(&partings, &mut self.pipeline)?;
        // Its room is used again.
        outbox.clear();
        self.pipeline.outbox = outbox;
        Ok(())
    }

    /// How long there is nothing to do but frames.
    fn idle(&self) -> Duration {
        let now_ns = self.pipeline.now_ns;
        let next = self.pipeline.next_due_ns();
        let wait = next.map_or(MAX_WAIT_NS, |at| at.saturating_sub(now_ns)).min(MAX_WAIT_NS);
        Duration::from_nanos(wait.max(MIN_WAIT_NS))
    }

    /// Its thread has ended, and nobody hands anything to it any more. What others go on with.
    pub(crate) fn retire(self) -> (Option<Speaker>, FlowTable) {
        self.give_up().retire()
    }

    fn give_up(self) -> Pipeline {
        self.pipeline.give_up(self.inbox.rest())
    }
}

#[cfg(test)]
mod tests;
