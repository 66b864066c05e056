//! Which grants of the table are this process's, and how it lets go of one. Pure: the table, the lease and what the
//! dataplane has taken up come in; what is to be answered and what is to be given up come out. The daemon and the
//! simulation drive the same code, so what the simulation proves is what runs.
//!
//! ```text
//!   answered --(the table says that it leaves)--> leaving --(the workers judge by a plan without it)--> silent
//!   silent --(Released is applied: the grant is another one, or nobody's)--> forgotten
//! ```
//!
//! A silent grant is given up again and again, and no later table wakes it: the entry that ends it may be on its way.
//!
//! Before: [`super::lease`] says which lease this process holds. After: `control` publishes the plan, and
//! [`super::driver`] proposes `Released`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_raft_store::table::{Epoch, LeaseId, NodeId, Table, Vip};

use super::{Bug, planted};

/// A VIP that was given to a node; the epoch tells this grant from the one before and the one after.
pub(crate) type Grant = (IpAddr, Epoch);

/// What the dataplane is to answer for, by one table and under one lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The lease under which all of them were granted.
    pub(crate) lease: Option<LeaseId>,
    /// The VIPs that are answered and announced.
    pub(crate) answered: BTreeMap<IpAddr, Epoch>,
    /// Grants that the table takes away: once the workers judge by this plan, nobody answers for them.
    leaving: BTreeSet<Grant>,
}

/// What this process holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Grants {
    /// VIPs that the table gives to another lease are not this process's.
    lease: Option<LeaseId>,
    /// Grants for which this process has stopped answering.
    silent: BTreeSet<Grant>,
}

/// How far a grant of this process has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Answered,
    Leaving,
    Silent,
}

impl Grants {
    /// The heartbeat holds this lease from now on, or none.
    pub(crate) fn hold(&mut self, lease: Option<LeaseId>) {
        self.lease = lease;
    }

    /// What the dataplane is to answer for by this table.
    pub(crate) fn plan(&self, me: NodeId, table: &Table) -> Plan {
        let mut plan = Plan { lease: self.lease, ..Plan::default() };
        for vip in table.vips_of(me) {
            match self.phase(me, vip) {
                Some((epoch, Phase::Answered)) => drop(plan.answered.insert(vip.settings.address, epoch)),
                Some((epoch, Phase::Leaving)) => drop(plan.leaving.insert((vip.settings.address, epoch))),
                Some((_, Phase::Silent)) | None => {}
            }
        }
        plan
    }

    /// No worker judges by anything older than this plan any more: what leaves by it is silent.
    pub(crate) fn in_force(&mut self, plan: &Plan, table: &Table) {
        self.silent.extend(&plan.leaving);
        self.silent.retain(|grant| stands(table, *grant));
    }

    /// The grants that are to be given up, until the table says that they are.
    pub(crate) fn to_release(&self, me: NodeId, table: &Table) -> Vec<Grant> {
        let mut grants: Vec<Grant> = self.silent.iter().copied().filter(|grant| stands(table, *grant)).collect();
        if planted(Bug::ReleasedBeforeSilent) {
            grants.extend(self.plan(me, table).leaving);
        }
        grants
    }

    /// Whether some grant waits for the table to take it away.
    pub(crate) fn is_releasing(&self) -> bool {
        !self.silent.is_empty()
    }

    fn phase(&self, me: NodeId, vip: &Vip) -> Option<(Epoch, Phase)> {
        let owner = vip.owner.filter(|owner| owner.node == me && Some(owner.lease) == self.lease)?;
        let is_silent =
            self.silent.contains(&(vip.settings.address, owner.epoch)) && !planted(Bug::SilentAnsweredAgain);
        let leaves = vip.intent.is_some() || vip.deleting;
        let phase = match (is_silent, leaves) {
            (true, _) => Phase::Silent,
            (false, true) => Phase::Leaving,
            (false, false) => Phase::Answered,
        };
        Some((owner.epoch, phase))
    }
}

/// Whether a grant is still the VIP's.
fn stands(table: &Table, (vip, epoch): Grant) -> bool {
    table.vip(vip).and_then(|vip| vip.owner).is_some_and(|owner| owner.epoch == epoch)
}

#[cfg(test)]
mod tests {
    use lb_raft_store::table::{
        Attachment, BOOTSTRAP_NODE, Body, Mutation, NewNode, Role, Silence, Unmatched, VipSettings,
    };

    use super::*;

    const ME: NodeId = BOOTSTRAP_NODE;
    const LEASE: Option<LeaseId> = Some(LeaseId(3));

    fn vip() -> IpAddr {
        IpAddr::from([192, 168, 2, 1])
    }

    fn mutate(mutation: Mutation) -> Body {
        Body::Mutate(vec![mutation])
    }

    /// One node with a ready lease (opened by entry 3), which entry 5 grants a VIP.
    fn table() -> Table {
        let mut table = Table::default();
        let node = NewNode {
            name: "lb1".parse().unwrap(),
            role: Role::Lb,
            address: "10.0.0.1:7401".into(),
            store: Default::default(),
        };
        let attachment = Attachment {
            interface: "eth0".into(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            address: IpAddr::from([192, 168, 2, 2]),
            prefix_len: 24,
            hears: Vec::new(),
            silence: Silence::None,
            gateway_silence: Silence::None,
        };
        let commands = [
            Body::CreateCluster {
                cluster: uuid::Uuid::from_u128(1),
                cluster_name: "lb".parse().unwrap(),
                hash_seed: 5,
                heartbeat_key: 6,
                node,
            },
            Body::PublishNode {
                node: ME,
                attachments: vec![attachment],
                heartbeat: Vec::new(),
                feature_level: 1,
                unfit: String::new(),
                starts: 0,
            },
            Body::OpenLease { node: ME, nonce: 9, previous: None },
            Body::Ready { node: ME, lease: LeaseId(3) },
            mutate(Mutation::CreateVip(VipSettings {
                address: vip(),
                prefer: None,
                segment: None,
                unmatched: Unmatched::Drop,
            })),
        ];
        for (index, command) in (1..).zip(commands) {
            table.apply(index, &command.into()).reply.result.unwrap();
        }
        table
    }

    fn holding(lease: Option<LeaseId>) -> Grants {
        Grants { lease, ..Grants::default() }
    }

    #[test]
    fn a_vip_is_answered_only_under_the_lease_that_this_process_holds() {
        let table = table();
        let answered = |lease, me| holding(lease).plan(me, &table).answered.get(&vip()).copied();
        assert_eq!(answered(LEASE, ME), Some(Epoch(5)));
        assert_eq!(answered(Some(LeaseId(4)), ME), None, "a lease of another process");
        assert_eq!(answered(None, ME), None);
        assert_eq!(answered(LEASE, 99), None, "another node");
    }

    #[test]
    fn a_grant_is_released_only_after_the_workers_judge_without_it() {
        let (mut table, mut grants) = (table(), holding(LEASE));
        let before = grants.plan(ME, &table);
        let delete = mutate(Mutation::DeleteVip { address: vip(), cascade: false });
        table.apply(6, &delete.into()).reply.result.unwrap();
        grants.in_force(&before, &table);
        assert_eq!(grants.to_release(ME, &table), [], "the workers still answer for it");
        let plan = grants.plan(ME, &table);
        assert!(plan.answered.is_empty());
        assert_eq!(grants.to_release(ME, &table), [], "published is not in force");
        grants.in_force(&plan, &table);
        assert_eq!(grants.to_release(ME, &table), [(vip(), Epoch(5))]);
        assert!(grants.is_releasing());
        let released = Body::Released { grants: vec![(vip(), Epoch(5))] };
        table.apply(7, &released.into()).reply.result.unwrap();
        let plan = grants.plan(ME, &table);
        grants.in_force(&plan, &table);
        assert!(!grants.is_releasing(), "the table has no such grant any more");
    }

    #[test]
    fn a_vip_with_an_intent_leaves_and_a_silent_grant_is_not_answered_again() {
        let (mut table, mut grants) = (table(), holding(LEASE));
        let intent = |to| Body::MoveIntent { vip: vip(), to };
        let second = NewNode {
            name: "lb2".parse().unwrap(),
            role: Role::Lb,
            address: "10.0.0.2:7401".into(),
            store: uuid::Uuid::from_u128(2),
        };
        let attachment = Attachment {
            interface: "eth0".into(),
            mac: "02:00:00:00:00:02".parse().unwrap(),
            address: IpAddr::from([192, 168, 2, 3]),
            prefix_len: 24,
            hears: Vec::new(),
            silence: Silence::None,
            gateway_silence: Silence::None,
        };
        for (index, command) in [
            (6, Body::AddNode(second)),
            (
                7,
                Body::PublishNode {
                    node: 6,
                    attachments: vec![attachment],
                    heartbeat: vec![],
                    feature_level: 1,
                    unfit: String::new(),
                    starts: 0,
                },
            ),
            (8, Body::OpenLease { node: 6, nonce: 10, previous: None }),
            (9, Body::Ready { node: 6, lease: LeaseId(8) }),
            (10, intent(6)),
        ] {
            table.apply(index, &command.into()).reply.result.unwrap();
        }
        let plan = grants.plan(ME, &table);
        assert!(plan.answered.is_empty(), "it moves away");
        grants.in_force(&plan, &table);
        table.apply(11, &intent(ME).into()).reply.result.unwrap();
        assert!(table.vip(vip()).unwrap().intent.is_none(), "called off");
        assert!(grants.plan(ME, &table).answered.is_empty(), "its release may be on its way");
        assert_eq!(grants.to_release(ME, &table), [(vip(), Epoch(5))]);
    }
}
