//! What one node says and proposes, by what it hears and when.

use std::collections::BTreeSet;

use lb_raft_store::table::{NewNode, Role, Table};
use uuid::Uuid;

use super::*;

const MS: u64 = 1_000_000;

/// A table of three voters, whose nodes 1, 2 and 3 hold leases with the nonces 11, 12 and 13.
fn view() -> Arc<View> {
    let mut table = Table::default();
    table.configure(0, vec![BTreeSet::from([1, 2, 3])]);
    let node = |id: u64| NewNode {
        name: format!("lb{id}").parse().unwrap(),
        role: Role::Lb,
        address: format!("10.0.0.{id}:7401"),
        store: Uuid::from_u128(id.into()),
    };
    let create = Body::CreateCluster {
        cluster: Uuid::from_u128(1),
        cluster_name: "lb".parse().unwrap(),
        hash_seed: 1,
        heartbeat_key: 1,
        node: node(1),
    };
    let open = |node| Body::OpenLease { node, nonce: 10 + node, previous: None };
    let commands = [create, Body::AddNode(node(2)), Body::AddNode(node(3)), open(1), open(2), open(3)];
    for (index, command) in (1..).zip(&commands) {
        table.apply(index, &command.clone().into()).reply.result.unwrap();
    }
    Arc::new(View { table, applied: 6, forwarding: 6, voters: BTreeSet::from([1, 2, 3]), ..View::default() })
}

/// The lease of a node in that table.
fn lease(node: NodeId) -> LeaseId {
    LeaseId(3 + node)
}

fn ping(from: NodeId, seq: u64, echo: Option<Echo>) -> Message {
    Message::Ping(Ping {
        nonce: 10 + from,
        lease: Some(lease(from)),
        seq,
        applied: 6,
        echo,
        deserted: None,
        withdrawn: Vec::new(),
    })
}

fn member() -> Member {
    let mut member = Member::new(1, 11, 1000 * MS);
    member.on_view(view(), 1000 * MS);
    member.on_in_force(Some(lease(1)));
    member.take_output();
    member
}

/// The verdict on a ping of node 2.
fn verdict(member: &mut Member, message: &Message, now_ns: u64) -> Option<Verdict> {
    member.on_message(2, message, now_ns);
    member.take_output().into_iter().find_map(|output| match output {
        Output::Send(2, Message::Ack(ack)) => Some(ack.verdict),
        _ => None,
    })
}

#[test]
fn support_needs_a_recent_echo_of_this_process() {
    let mut member = member();
    let echo = |nonce, at_ms: u64| Some(Echo { nonce, at_ns: at_ms * MS });
    assert_eq!(verdict(&mut member, &ping(2, 1, None), 1001 * MS), Some(Verdict::Stale));
    assert_eq!(verdict(&mut member, &ping(2, 2, echo(99, 1001)), 1002 * MS), Some(Verdict::Stale));
    let yes = Some(Verdict::Yes { promise_ns: 150 * MS });
    assert_eq!(verdict(&mut member, &ping(2, 3, echo(11, 1001)), 1050 * MS), yes);
    assert_eq!(verdict(&mut member, &ping(2, 4, echo(11, 1001)), 1052 * MS), Some(Verdict::Stale));
    assert_eq!(verdict(&mut member, &ping(2, 3, echo(11, 1001)), 1053 * MS), None, "replayed");
}

#[test]
fn validity_counts_from_the_sending_of_the_ping_that_a_majority_answered() {
    let mut member = member();
    member.on_time(1100 * MS);
    let seq = member.seq;
    let ack = |nonce, verdict| Message::Ack(Ack { nonce, of: 11, lease: Some(lease(1)), seq, at_ns: 5, verdict });
    assert_eq!(member.valid_until_ns(), 0);
    member.on_message(2, &ack(12, Verdict::Stale), 1110 * MS);
    assert_eq!(member.valid_until_ns(), 0);
    member.on_message(3, &ack(13, Verdict::Yes { promise_ns: 150 * MS }), 1110 * MS);
    assert_eq!(member.valid_until_ns(), 1246 * MS, "itself and one other are a majority");
    member.on_in_force(None);
    assert_eq!(member.valid_until_ns(), 0, "the dataplane does not know what this lease gives it");
}

#[test]
fn a_node_that_nobody_answers_asks_for_leases_ever_more_seldom() {
    let mut member = member();
    let mut asked = 0;
    // Each lease that it opens is ended by the others before it becomes valid.
    for (applied, ms) in (7..).zip((1200..61_200).step_by(50)) {
        let mut view = View::clone(&view());
        view.applied = applied;
        let fence = Body::Fence { node: 1, lease: lease(1), evidence: Evidence::OwnRelease, heard: Vec::new() };
        view.table.apply(applied, &fence.into()).reply.result.unwrap();
        member.on_view(Arc::new(view), ms * MS);
        let open = |output: &Output| matches!(output, Output::Propose(Body::OpenLease { .. }));
        asked += member.take_output().iter().filter(|output| open(output)).count();
    }
    assert!((8..=16).contains(&asked), "{asked} within a minute");
}

#[test]
fn a_node_that_the_table_does_not_know_sleeps_between_two_looks() {
    let mut member = Member::new(9, 19, 1000 * MS);
    for now_ns in [1000 * MS, 1500 * MS] {
        member.on_time(now_ns);
        assert_eq!(member.next_deadline_ns(now_ns), now_ns + 20 * MS);
        assert_eq!(member.take_output(), []);
    }
}

#[test]
fn a_leader_ends_the_lease_of_a_dead_process_and_of_no_other() {
    let mut member = member();
    member.on_lead(Lead { leader: Some(1), term: 4 }, 1001 * MS);
    member.take_output();
    let fences = |member: &mut Member, nonce| {
        member.on_message(2, &Message::Obituary { nonce }, 1002 * MS);
        let fence = |output: &Output| matches!(output, Output::ProposeInTerm(4, Body::Fence { node: 2, .. }));
        member.take_output().iter().filter(|output| fence(output)).count()
    };
    assert_eq!(fences(&mut member, 77), 0, "of the process before");
    assert_eq!(fences(&mut member, 12), 1);
}

#[test]
fn a_refused_connection_counts_against_the_present_leader_alone() {
    let mut member = member();
    let elects = |member: &mut Member| member.take_output().contains(&Output::Elect(2));
    member.on_refused(2, 1001 * MS);
    member.on_lead(Lead { leader: Some(2), term: 4 }, 1002 * MS);
    assert!(!elects(&mut member), "it was refused before it led");
    member.on_refused(2, 1003 * MS);
    assert!(elects(&mut member));
}

#[test]
fn a_leader_holds_writes_back_while_a_node_that_is_heard_falls_behind() {
    let mut member = member();
    let mut now_ns = 1001 * MS;
    member.on_lead(Lead { leader: Some(1), term: 4 }, now_ns);
    let ahead = View { applied: 9, ..View::clone(&view()) };
    member.on_view(Arc::new(ahead), now_ns);
    member.take_output();
    let mut seq = 0;
    // Each 20 ms node 2 says how far it is.
    let mut held_back = |until_ms: u64, applied: u64| {
        let mut said = Vec::new();
        while now_ns < until_ms * MS {
            now_ns += 20 * MS;
            seq += 1;
            let Message::Ping(ping) = ping(2, seq, None) else { unreachable!() };
            member.on_message(2, &Message::Ping(Ping { applied, ..ping }), now_ns);
            let ack = Ack { nonce: 12, of: 11, lease: None, seq, at_ns: now_ns, verdict: Verdict::Unknown };
            member.on_message(2, &Message::Ack(ack), now_ns);
            member.on_time(now_ns);
            let output = member.take_output().into_iter();
            said.extend(output.filter_map(|output| match output {
                Output::HoldBack(held_back) => Some((held_back, now_ns / MS)),
                _ => None,
            }));
        }
        said
    };
    assert_eq!(held_back(1100, 6), [], "it may be on its way");
    assert_eq!(held_back(1300, 6), [(true, 1141)]);
    assert_eq!(held_back(1400, 9), [(false, 1321)], "it has caught up");
    assert_eq!(held_back(1600, 8), [(true, 1421), (false, 1501)], "what is too old already is waited for no more");
}
