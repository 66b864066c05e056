//! The protocol in a simulated world: drifting clocks, links that lose, delay, repeat and reorder, cuts of
//! every kind, pauses, restarts that have forgotten the end of the log, changes of membership, moves,
//! deletions. One seed decides everything. Real are [`Member`] and the table; Raft is reduced to what it
//! promises: one log, entries that a majority can agree on, leaders that come and go.
//!
//! `LB_SIM_SEEDS=1000000 cargo test --release -p lbd simulation` runs more seeds; `LB_SIM_SEED=N` one of them.

mod backends;
mod faults;
mod node;
mod planted;
mod promises;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashSet},
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use lb_raft_store::{
    Lead, View,
    table::{
        Attachment, Body, MacAddr, Mutation, NewNode, NodeId, Role, Silence, Table, Timing, Unmatched, VipSettings,
    },
};
use uuid::Uuid;

use planted::{PLANTED, apply};
pub(super) use planted::{planted, planted_suffices};

use super::{
    Bug,
    grants::{Grants, Plan},
    member::{Member, Output},
    message::Message,
};

const US: u64 = 1000;
const MS: u64 = 1_000_000;
const VIPS: u8 = 3;

#[derive(Debug, Clone)]
enum Entry {
    Command(Body),
    Configuration(Vec<BTreeSet<NodeId>>),
}

#[derive(Debug, Clone)]
enum Event {
    Deliver {
        from: NodeId,
        to: NodeId,
        message: Message,
    },
    Wake {
        node: NodeId,
        life: u64,
    },
    /// The node applies the log as far as it can get it.
    Apply {
        node: NodeId,
        life: u64,
    },
    /// The node's daemon publishes what it is to answer for by the table that it has applied.
    Publish {
        node: NodeId,
        life: u64,
    },
    /// The node's workers judge by what was published last, and by nothing older.
    TakeUp {
        node: NodeId,
        life: u64,
    },
    /// A proposal reaches the leader.
    Propose {
        by: NodeId,
        entry: Entry,
        term: Option<u64>,
    },
    /// The leader has a majority for it, or not.
    Commit {
        leader: NodeId,
        term: u64,
        entry: Entry,
    },
    /// An election that somebody started ends.
    Election {
        candidate: NodeId,
        against: u64,
    },
    /// Nobody has heard the leader for an election's time.
    Timeout,
    Fault,
    /// A node looks at its VIPs' backends.
    Look {
        node: NodeId,
    },
    Resume {
        node: NodeId,
        life: u64,
    },
    /// The heartbeat's thread finds out that the node does its work, or does not.
    Fitness {
        node: NodeId,
        life: u64,
        fit: bool,
    },
    /// Workers that were halted go on.
    Unhalt {
        node: NodeId,
        life: u64,
    },
    Restart {
        node: NodeId,
    },
    /// A node's connection to another one has ended, and new ones are refused.
    Refused {
        node: NodeId,
        life: u64,
        by: NodeId,
    },
    /// Links that are cut or mended at a moment of a plan.
    Plan {
        cut: Vec<(NodeId, NodeId)>,
        mend: Vec<(NodeId, NodeId)>,
        raft_cut: Vec<(NodeId, NodeId)>,
        bounce: Option<NodeId>,
    },
    Heal,
    End,
}

struct Node {
    /// Counted up with each process.
    life: u64,
    up: bool,
    paused: bool,
    /// Its workers are halted, while the rest of the process goes on.
    halted: bool,
    /// It does its work, as its heartbeat's thread would find.
    fit: bool,
    offset: u64,
    drift_ppm: i64,
    nonce: u64,
    member: Member,
    /// How far the process has applied.
    applied: usize,
    grants: Grants,
    /// Published, and not yet taken up: by which view, and what. One at a time, as in the daemon.
    published: Option<(Arc<View>, Plan)>,
    /// Something has changed since that was published.
    publish_again: bool,
    /// What its workers judge by.
    plan: Plan,
    /// Received while paused.
    inbox: Vec<(NodeId, Message)>,
    believes: Lead,
    wake_at: u64,
}

struct World {
    random: fastrand::Rng,
    now: u64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    nodes: BTreeMap<NodeId, Node>,
    log: Vec<Entry>,
    /// The view after each entry.
    views: Vec<Arc<View>>,
    leader: Option<(NodeId, u64)>,
    term: u64,
    /// Directed links that are cut, for heartbeats and for Raft.
    heartbeat_cut: HashSet<(NodeId, NodeId)>,
    raft_cut: HashSet<(NodeId, NodeId)>,
    /// At most, for messages, the log and the dataplane.
    delay: u64,
    loss_one_in: u64,
    healed: bool,
    spare: u64,
    /// Hears nobody, to the end.
    deaf: Option<NodeId>,
    /// Which backends do not answer, by their ids; nothing in a world without.
    silent: Option<BTreeMap<u64, bool>>,
    trace: bool,
}

fn vip(number: u8) -> IpAddr {
    IpAddr::from([192, 168, 2, 100 + number])
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let count = [1, 2, 3, 3, 3, 3, 4, 5][random.usize(..8)];
        // A third of the worlds have no delays at all: what a deadline is off by shows there.
        let delay = [0, 0, 300 * US, 2 * MS, 5 * MS, 8 * MS][random.usize(..6)];
        let loss_one_in = [0, 0, 50, 10][random.usize(..4)];
        let mut world = Self {
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            nodes: BTreeMap::new(),
            log: Vec::new(),
            views: vec![Arc::default()],
            leader: None,
            term: 0,
            heartbeat_cut: HashSet::new(),
            raft_cut: HashSet::new(),
            delay,
            loss_one_in,
            healed: false,
            spare: 0,
            deaf: None,
            silent: None,
            trace: std::env::var_os("LB_SIM_TRACE").is_some(),
            random,
        };
        world.begin(seed, count);
        world
    }

    fn begin(&mut self, seed: u64, count: u64) {
        let voters: BTreeSet<NodeId> = (1..=count).collect();
        // Index 0 stands for the log's first entry, as in openraft.
        let mut table = Table::default();
        table.configure(0, vec![voters]);
        let view = View { voters: (1..=count).collect(), table, ..View::default() };
        self.views = vec![Arc::new(view)];
        let node = |id: u64, role| NewNode {
            name: format!("lb{id}").parse().expect("a name"),
            role,
            address: format!("10.0.0.{id}:7401"),
            store: Uuid::from_u128(id.into()),
        };
        self.append(Entry::Command(Body::CreateCluster {
            cluster: Uuid::from_u128(1),
            cluster_name: "lb".parse().expect("a name"),
            hash_seed: 1,
            heartbeat_key: 1,
            node: node(1, Role::Lb),
        }));
        // Ids come from the log: entries 2, 3, ... add nodes 2, 3, ...
        for id in 2..=count {
            let role = if id == 3 && self.random.u64(..3) == 0 { Role::Witness } else { Role::Lb };
            self.append(Entry::Command(Body::AddNode(node(id, role))));
        }
        for id in 1..=count {
            self.attach(id, 1);
        }
        for number in 0..VIPS {
            self.append(create(number));
        }
        self.add_backends(seed, count);
        if self.random.u64(..4) == 0 {
            // The fast timing is for networks of which a message takes less than a heartbeat.
            let fast = self.delay < MS && self.random.bool();
            let timing = if fast { Timing::FAST } else { Timing::RELAXED };
            self.append(Entry::Command(settings_command(timing)));
        }
        let ids: Vec<NodeId> = (1..=count).collect();
        for id in ids {
            self.start(id, self.log.len());
        }
        self.elect(1);
        self.schedule(700 * MS, Event::Fault);
        let faults = self.random.u64(1200..=3000) * MS;
        self.schedule(700 * MS + faults, Event::Heal);
    }

    fn attach(&mut self, id: NodeId, feature_level: u32) {
        let attachment = Attachment {
            interface: "eth0".into(),
            mac: MacAddr::try_from([2, 0, 0, 0, 0, id as u8]).expect("a MAC"),
            address: IpAddr::from([192, 168, 2, id as u8]),
            prefix_len: 24,
            hears: Vec::new(),
            silence: Silence::None,
            gateway_silence: Silence::None,
        };
        let command = Body::PublishNode {
            node: id,
            attachments: vec![attachment],
            heartbeat: Vec::new(),
            feature_level,
            unfit: String::new(),
            starts: 0,
        };
        self.append(Entry::Command(command));
    }

    fn schedule(&mut self, after: u64, event: Event) {
        self.order += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[slot] = Some(event);
        self.queue.push(Reverse((self.now + after, self.order, slot)));
    }

    fn some_delay(&mut self) -> u64 {
        let limit = self.delay;
        let burst = !self.healed && limit > 0 && self.random.u64(..40) == 0;
        if burst { self.random.u64(..limit * 10) } else { self.random.u64(..=limit) }
    }

    // The log.

    fn append(&mut self, entry: Entry) {
        let index = self.log.len() as u64 + 1;
        let before = self.views.last().expect("the first view");
        let (mut table, mut voters) = (before.table.clone(), before.voters.clone());
        match &entry {
            Entry::Command(command) => apply(&mut table, index, command),
            Entry::Configuration(halves) => {
                table.configure(index, halves.clone());
                voters = halves.iter().flatten().copied().collect();
            }
        }
        self.log.push(entry);
        self.views.push(Arc::new(View { table, applied: index, forwarding: index, voters, ..View::default() }));
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            self.schedule_apply(id);
        }
    }

    fn schedule_apply(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get(&id) else { return };
        let life = node.life;
        let after = if !self.healed && self.random.u64(..30) == 0 {
            self.random.u64(..=self.delay * 20)
        } else {
            self.some_delay()
        };
        self.schedule(after, Event::Apply { node: id, life });
    }

    fn newest(&self) -> &View {
        self.views.last().expect("the first view")
    }

    fn runs(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.up && !node.paused)
    }

    fn connected(&self, a: NodeId, b: NodeId) -> bool {
        a == b || !(self.raft_cut.contains(&(a, b)) || self.raft_cut.contains(&(b, a)))
    }

    /// Whether that node reaches a majority.
    fn has_majority(&self, id: NodeId) -> bool {
        let reached = self.nodes.keys().copied().filter(|other| self.runs(*other) && self.connected(id, *other));
        self.runs(id) && self.newest().table.configuration().is_majority(&reached.collect())
    }

    fn elect(&mut self, id: NodeId) {
        self.term += 1;
        self.leader = Some((id, self.term));
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            self.schedule_apply(id);
        }
    }

    // The nodes.

    fn start(&mut self, id: NodeId, applied: usize) {
        let life = self.nodes.get(&id).map_or(0, |node| node.life) + 1;
        let nonce = self.random.u64(..);
        let (offset, drift_ppm) = match self.nodes.get(&id) {
            Some(node) => (node.offset, node.drift_ppm),
            None => (
                self.random.u64(1000 * MS..=100_000 * MS),
                [-1000, 1000, self.random.u64(0..=2000) as i64 - 1000][self.random.usize(..3)],
            ),
        };
        let local = local_time(self.now, offset, drift_ppm);
        let node = Node {
            life,
            up: true,
            paused: false,
            halted: false,
            fit: true,
            offset,
            drift_ppm,
            nonce,
            member: Member::new(id, nonce, local),
            applied: 0,
            grants: Grants::default(),
            published: None,
            publish_again: false,
            plan: Plan::default(),
            inbox: Vec::new(),
            believes: Lead::default(),
            wake_at: 0,
        };
        self.nodes.insert(id, node);
        self.apply_up_to(id, applied);
    }

    fn local(&self, id: NodeId) -> u64 {
        let node = &self.nodes[&id];
        local_time(self.now, node.offset, node.drift_ppm)
    }

    fn apply_up_to(&mut self, id: NodeId, index: usize) {
        let (now, view) = (self.local(id), self.views[index].clone());
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.applied = index;
        node.member.on_view(view, now);
        let life = node.life;
        let after = self.some_delay();
        self.schedule(after, Event::Publish { node: id, life });
        self.settle(id);
    }

    /// Does what a member asks for, and has it woken up in time.
    fn settle(&mut self, id: NodeId) {
        let now = self.local(id);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let outputs = node.member.take_output();
        let wait = node.member.next_deadline_ns(now).saturating_sub(now).max(10 * US);
        let (life, believes) = (node.life, node.believes);
        let at = self.now + wait;
        if node.wake_at <= self.now || node.wake_at > at {
            node.wake_at = at;
            self.schedule(wait, Event::Wake { node: id, life });
        }
        for output in outputs {
            match output {
                Output::Send(to, message) => self.send(id, to, message),
                Output::Propose(command) => self.propose(id, command, None),
                Output::ProposeInTerm(term, command) => self.propose(id, command, Some(term)),
                // Of how many writes there are it is the consensus that takes care.
                Output::HoldBack(_) => {}
                Output::Elect(_) => {
                    let after = self.some_delay() * 2;
                    self.schedule(after, Event::Election { candidate: id, against: believes.term });
                }
            }
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, message: Message) {
        if self.heartbeat_cut.contains(&(from, to)) || !self.nodes.contains_key(&to) {
            return;
        }
        if self.loss_one_in > 0 && !self.healed && self.random.u64(..self.loss_one_in) == 0 {
            return;
        }
        let copies = if self.random.u64(..50) == 0 { 2 } else { 1 };
        for _ in 0..copies {
            let after = self.some_delay();
            self.schedule(after, Event::Deliver { from, to, message: message.clone() });
        }
    }

    fn propose(&mut self, by: NodeId, command: Body, term: Option<u64>) {
        if planted(Bug::NoRetract) && matches!(command, Body::Retract { .. }) {
            return;
        }
        let entry = Entry::Command(command);
        // What a leader has decided may wait before it is in the log: the process was held up.
        let held_up = term.is_some() && !self.healed && self.random.u64(..6) == 0;
        let after = if held_up { self.random.u64(..300 * MS) } else { self.some_delay() };
        self.schedule(after, Event::Propose { by, entry: entry.clone(), term });
        if term.is_none() && self.random.u64(..30) == 0 && !self.healed {
            // Held up somewhere, and agreed on all the same.
            let late = self.random.u64(1..=800) * MS;
            self.schedule(late, Event::Propose { by, entry, term });
        }
    }

    // What happens.

    fn step(&mut self) -> bool {
        let Some(Reverse((at, _, slot))) = self.queue.pop() else { return false };
        self.now = at;
        let event = self.events[slot].take().expect("a scheduled event");
        self.free.push(slot);
        if self.trace
            && !matches!(
                event,
                Event::Deliver { .. }
                    | Event::Wake { .. }
                    | Event::Apply { .. }
                    | Event::Publish { .. }
                    | Event::TakeUp { .. }
            )
        {
            eprintln!("{:>10} us {event:?}", self.now / US);
        }
        match event {
            Event::Deliver { from, to, message } => self.deliver(from, to, message),
            Event::Wake { node, life } if self.is_live(node, life) => {
                let now = self.local(node);
                let (id, at) = (node, self.now);
                // One that an earlier one has overtaken is void.
                let Some(node) = self.nodes.get_mut(&id).filter(|node| !node.paused && node.wake_at == at) else {
                    return true;
                };
                node.member.on_time(now);
                self.settle(id);
            }
            Event::Apply { node, life } if self.is_live(node, life) => self.follow(node),
            Event::Publish { node, life } if self.is_live(node, life) => self.publish(node),
            Event::TakeUp { node, life } if self.is_live(node, life) => self.take_up(node),
            Event::Propose { by, entry, term } => self.take_proposal(by, entry, term),
            Event::Commit { leader, term, entry }
                if self.leader == Some((leader, term)) && self.has_majority(leader) =>
            {
                self.append(entry);
            }
            Event::Election { candidate, against } if self.term == against && self.has_majority(candidate) => {
                self.elect(candidate);
            }
            Event::Timeout => self.time_out(),
            Event::Fault if !self.healed => {
                self.fault();
                self.turn_a_backend();
                let after = self.random.u64(20..=600) * MS;
                self.schedule(after, Event::Fault);
            }
            Event::Refused { node, life, by } if self.is_live(node, life) && self.runs(node) => {
                let now = self.local(node);
                if let Some(of) = self.nodes.get_mut(&node) {
                    of.member.on_refused(by, now);
                }
                self.settle(node);
            }
            Event::Resume { node, life } if self.is_live(node, life) => self.resume(node),
            Event::Fitness { node, life, fit } if self.is_live(node, life) => self.find_out(node, fit),
            Event::Unhalt { node, life } if self.is_live(node, life) => self.unhalt(node),
            Event::Restart { node } if !self.nodes[&node].up => {
                // The end of its log was not yet committed when it died, as far as it knew.
                let known = self.nodes[&node].applied;
                let forgotten = self.random.usize(..20);
                self.start(node, known.saturating_sub(forgotten));
                self.schedule_apply(node);
            }
            Event::Plan { cut, mend, raft_cut, bounce } if !self.healed => {
                self.heartbeat_cut.extend(cut);
                self.heartbeat_cut.retain(|link| !mend.contains(link));
                self.raft_cut.extend(raft_cut);
                if let Some(node) = bounce {
                    self.kill(node, false);
                    self.schedule(0, Event::Restart { node });
                }
            }
            Event::Look { node } => self.look(node),
            Event::Heal => self.heal(),
            Event::End => return false,
            _ => {}
        }
        self.check_owners();
        true
    }

    fn is_live(&self, id: NodeId, life: u64) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.up && node.life == life)
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, message: Message) {
        let now = self.local(to);
        let Some(node) = self.nodes.get_mut(&to).filter(|node| node.up) else { return };
        if node.paused {
            // What a socket holds.
            if node.inbox.len() < 400 {
                node.inbox.push((from, message));
            }
            return;
        }
        node.member.on_message(from, &message, now);
        self.settle(to);
    }
}

fn local_time(now: u64, offset: u64, drift_ppm: i64) -> u64 {
    let drift = i128::from(now) * i128::from(drift_ppm) / 1_000_000;
    (i128::from(offset) + i128::from(now) + drift) as u64
}

fn mutate(mutation: Mutation) -> Body {
    Body::Mutate(vec![mutation])
}

fn create(number: u8) -> Entry {
    let settings = VipSettings { address: vip(number), prefer: None, segment: None, unmatched: Unmatched::Drop };
    Entry::Command(mutate(Mutation::CreateVip(settings)))
}

/// Runs one world to its end.
fn run(seed: u64) {
    let mut world = World::new(seed);
    // Raft's own timeout, where no hint starts an election.
    for at in 1..80 {
        world.schedule(at * 150 * MS, Event::Timeout);
    }
    while world.step() {}
    world.check_the_end();
}

/// The first failing seed of `first..first + count` under a planted fault, and how it failed.
fn first_failure(bug: Option<Bug>, first: u64, count: u64) -> Option<(u64, String)> {
    let (next, found) = (AtomicU64::new(first), Mutex::new(None::<(u64, String)>));
    let worker = || {
        PLANTED.set(bug);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count || found.lock().unwrap().is_some() {
                return;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(seed))) {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                *found.lock().unwrap() = Some((seed, text));
            }
        }
    };
    let workers = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(worker))));
    found.into_inner().unwrap()
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

#[test]
fn the_promises_hold_in_every_world() {
    if let Some(seed) = number("LB_SIM_SEED") {
        return run(seed);
    }
    let count = number("LB_SIM_SEEDS").unwrap_or(10_000);
    if let Some((seed, text)) = first_failure(None, number("LB_SIM_FIRST").unwrap_or(0), count) {
        panic!("seed {seed}: {text}\n  LB_SIM_SEED={seed} cargo test -p lbd the_promises_hold");
    }
}

fn settings_command(timing: Timing) -> Body {
    let settings = lb_raft_store::table::ClusterSettings { timing, ..Default::default() };
    Body::UpdateSettings(settings)
}
