//! What happens to the nodes and to what is between them.

use super::*;

impl World {
    pub(super) fn time_out(&mut self) {
        let alive = self.leader.is_some_and(|(leader, _)| self.has_majority(leader));
        if !alive {
            let able: Vec<NodeId> =
                self.newest().table.configuration().voters().into_iter().filter(|id| self.has_majority(*id)).collect();
            if !able.is_empty() {
                let chosen = able[self.random.usize(..able.len())];
                self.elect(chosen);
            }
        } else {
            // Its heartbeats carry the log on.
            let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
            for id in ids {
                self.schedule_apply(id);
            }
        }
    }

    pub(super) fn kill(&mut self, id: NodeId, with_obituary: bool) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.up) else { return };
        node.up = false;
        node.inbox.clear();
        let nonce = node.nonce;
        let others = self.nodes.keys().copied().filter(|other| *other != id && self.connected(id, *other));
        for other in others.collect::<Vec<NodeId>>() {
            let life = self.nodes[&other].life;
            let after = self.some_delay() + MS;
            self.schedule(after, Event::Refused { node: other, life, by: id });
        }
        if with_obituary {
            let peers: Vec<NodeId> = self.nodes.keys().copied().filter(|other| *other != id).collect();
            for to in peers {
                self.send(id, to, Message::Obituary { nonce });
            }
        }
    }

    pub(super) fn resume(&mut self, id: NodeId) {
        let now = self.local(id);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.paused = false;
        // The socket is read empty before any deadline is judged.
        for (from, message) in std::mem::take(&mut node.inbox) {
            node.member.on_message(from, &message, now);
        }
        node.member.on_fitness(node.fit, now);
        node.member.on_time(now);
        node.wake_at = 0;
        let (life, publishing) = (node.life, node.published.is_some());
        self.settle(id);
        self.schedule_apply(id);
        let event = if publishing { Event::TakeUp { node: id, life } } else { Event::Publish { node: id, life } };
        self.schedule(0, event);
    }

    pub(super) fn fault(&mut self) {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let pick = |world: &mut Self| ids[world.random.usize(..ids.len())];
        let (a, b) = (pick(self), pick(self));
        match self.random.u64(..20) {
            0 => {
                let obituary = self.random.bool();
                self.kill(a, obituary);
                let after = self.random.u64(1..=900) * MS;
                self.schedule(after, Event::Restart { node: a });
            }
            1 | 2 if self.nodes[&a].up => {
                let life = self.nodes[&a].life;
                self.nodes.get_mut(&a).expect("a node").paused = true;
                let after = self.random.u64(5..=900) * MS;
                self.schedule(after, Event::Resume { node: a, life });
            }
            3 => drop(self.heartbeat_cut.insert((a, b))),
            4 => drop(self.raft_cut.insert((a, b))),
            5 | 6 => {
                // A node is cut off, in one direction or both, on one network or both.
                let kind = self.random.u64(..5);
                for other in ids.iter().copied().filter(|other| *other != a) {
                    if kind != 1 {
                        self.heartbeat_cut.insert((a, other));
                    }
                    if kind != 0 {
                        self.heartbeat_cut.insert((other, a));
                    }
                    if kind >= 2 {
                        self.raft_cut.insert((a, other));
                    }
                    if kind == 3 {
                        self.heartbeat_cut.remove(&(a, other));
                        self.heartbeat_cut.remove(&(other, a));
                    }
                }
            }
            7 => {
                // Two parts.
                let part: BTreeSet<NodeId> = ids.iter().copied().filter(|_| self.random.bool()).collect();
                for (x, y) in ids.iter().flat_map(|x| ids.iter().map(move |y| (*x, *y))) {
                    if part.contains(&x) != part.contains(&y) {
                        self.heartbeat_cut.insert((x, y));
                        self.raft_cut.insert((x, y));
                    }
                }
            }
            8 => {
                // Everybody but one, which is mute, restarts.
                for other in ids.iter().copied().filter(|other| *other != a) {
                    self.heartbeat_cut.insert((a, other));
                    self.raft_cut.insert((a, other));
                    self.kill(other, false);
                    let after = self.random.u64(1..=60) * MS;
                    self.schedule(after, Event::Restart { node: other });
                }
            }
            9 | 10 => {
                let to = a;
                let vip = vip(self.random.u8(..VIPS));
                self.propose(b, Body::MoveIntent { vip, to }, None);
                if self.random.u64(..3) == 0 {
                    // Called off.
                    let to = b;
                    self.propose(a, Body::MoveIntent { vip, to }, None);
                }
            }
            11 => {
                let number = self.random.u8(..VIPS);
                let delete = Mutation::DeleteVip { address: vip(number), cascade: true };
                self.propose(a, mutate(delete), None);
                for _ in 0..3 {
                    let after = self.random.u64(1..=200) * MS;
                    self.schedule(after, Event::Propose { by: a, entry: create(number), term: None });
                }
            }
            12 => {
                let draining = self.random.bool();
                self.propose(a, Body::SetDraining { node: a, draining }, None);
            }
            13 => self.change_membership(a),
            14 | 15 => {
                self.heartbeat_cut.clear();
                self.raft_cut.clear();
            }
            16 => {
                // A supporter withdraws, restarts and hears its holder again, while the others lose it: what the
                // process before had said must not count together with what they say.
                let withdraw = u64::from(self.newest().table.timing().withdraw_ms) * MS;
                let others: Vec<NodeId> = ids.iter().copied().filter(|id| ![a, b].contains(id)).collect();
                let plan = |cut, mend, raft_cut, bounce| Event::Plan { cut, mend, raft_cut, bounce };
                let towards = |to: NodeId| (a, to);
                self.heartbeat_cut.insert((a, b));
                let later = plan(others.iter().copied().map(towards).collect(), vec![], vec![], None);
                self.schedule(withdraw * 2 / 3, later);
                let (after, back) = if self.random.bool() {
                    // It cannot open its lease.
                    let back = others.iter().map(|other| (b, *other)).collect();
                    (withdraw * 3 / 2 + self.random.u64(..withdraw / 6), back)
                } else {
                    // It can, while the end of its holder's lease waits to be written.
                    (withdraw * 5 / 3 + self.random.u64(..withdraw / 6), vec![])
                };
                self.schedule(after, plan(vec![], vec![(a, b)], back, Some(b)));
            }
            17 | 18 if self.nodes[&a].up => {
                // Its workers stop, or its kernel refuses the guard: that is found out after a while, or not before it is
                // over.
                let life = self.nodes[&a].life;
                let found_out = self.random.u64(..=200) * MS;
                let lasts = [self.random.u64(1..=200) * MS, self.random.u64(200..=1500) * MS][self.random.usize(..2)];
                if self.random.bool() {
                    self.nodes.get_mut(&a).expect("a node").halted = true;
                }
                if found_out < lasts {
                    self.schedule(found_out, Event::Fitness { node: a, life, fit: false });
                }
                self.schedule(lasts, Event::Unhalt { node: a, life });
            }
            _ => {
                let timing = [Timing::DEFAULT, Timing::RELAXED][self.random.usize(..2)];
                if timing == Timing::DEFAULT && self.random.bool() {
                    // The others restart and do not know of the longer promises that they gave to one who is mute.
                    for other in ids.iter().copied().filter(|other| *other != a) {
                        let (cut, bounce) = (vec![(a, other)], Some(other));
                        let after = self.random.u64(20..=120) * MS;
                        self.schedule(after, Event::Plan { cut, mend: vec![], raft_cut: vec![], bounce });
                    }
                }
                self.propose(a, settings_command(timing), None);
            }
        }
    }

    /// As the leader does it: only when every holder counts in the present configuration.
    pub(super) fn change_membership(&mut self, a: NodeId) {
        let Some((leader, _)) = self.leader else { return };
        if !self.has_majority(leader) || !self.newest().table.is_configuration_confirmed() {
            return;
        }
        let configuration = self.newest().table.configuration();
        if configuration.halves.len() != 1 {
            return;
        }
        let old = configuration.halves[0].clone();
        let mut new = old.clone();
        if old.contains(&a) && old.len() > 1 && self.random.bool() {
            new.remove(&a);
        } else if old.contains(&a) && self.spare < 2 {
            self.spare += 1;
            let id = self.log.len() as u64 + 1;
            let node = NewNode {
                name: format!("lb{id}").parse().expect("a name"),
                role: Role::Lb,
                address: format!("10.0.0.{id}:7401"),
                store: Uuid::from_u128(u128::from(id)),
            };
            self.append(Entry::Command(Body::AddNode(node)));
            self.attach(id, self.newest().table.feature_level());
            self.start(id, self.log.len());
            if self.silent.is_some() {
                self.look(id);
            }
            new.insert(id);
        } else {
            new.insert(a);
        }
        if new == old {
            return;
        }
        self.append(Entry::Configuration(vec![old, new.clone()]));
        let term = self.term;
        let after = self.random.u64(0..=50) * MS + self.some_delay();
        self.schedule(after, Event::Commit { leader, term, entry: Entry::Configuration(vec![new]) });
    }

    pub(super) fn heal(&mut self) {
        self.healed = true;
        self.heartbeat_cut.clear();
        self.raft_cut.clear();
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids.iter().copied() {
            if !self.nodes[&id].up {
                self.schedule(0, Event::Restart { node: id });
            } else if self.nodes[&id].paused {
                self.resume(id);
            }
            self.unhalt(id);
        }
        // A joint configuration is left by the next leader.
        let halves = self.newest().table.configuration().halves;
        if halves.len() == 2 {
            self.append(Entry::Configuration(vec![halves[1].clone()]));
        }
        // One may stay deaf: the others must do without it.
        let voters = self.newest().table.configuration().voters();
        if voters.len() > 2 && self.random.u64(..5) == 0 {
            let deaf = ids[self.random.usize(..ids.len())];
            self.deaf = Some(deaf);
            self.heartbeat_cut.extend(ids.iter().map(|other| (*other, deaf)));
        }
        let period = u64::from(self.newest().table.timing().heartbeat_ms);
        self.schedule(1500 * MS + period.max(20) * 50 * MS, Event::End);
    }
}
