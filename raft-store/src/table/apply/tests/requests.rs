//! Request ids that carry their time, and revisions of what a command is about. Feature level 11.

use super::*;

const HOUR_MS: u64 = 60 * 60 * 1000;
const NOW: u64 = 1_795_000_000_000;

/// One that was made at that moment.
fn made_at(ms: u64, number: u64) -> Option<RequestId> {
    let id = Uuid::from_u128(u128::from(ms) << 80 | 7 << 76 | 2 << 62 | u128::from(number));
    assert_eq!(id.get_version_num(), 7);
    RequestId::parse(&id.to_string()).unwrap()
}

fn level_11() -> Log {
    let (mut log, _) = Log::with_nodes(2);
    log.at_level(11);
    log
}

fn asked(request: Option<RequestId>, stamp_ms: u64, asked: u64, mutations: Vec<Mutation>) -> Command {
    Command { request, stamp_ms, asked, ..mutation(mutations).into() }
}

fn add_and_remove() -> Vec<Mutation> {
    vec![vip(VIP), Mutation::DeleteVip { address: ip(VIP), cascade: false }]
}

#[test]
fn an_id_that_carries_its_time_holds_for_an_hour_and_is_refused_afterwards() {
    let mut log = level_11();
    let add = |stamp_ms| asked(made_at(NOW, 1), stamp_ms, 5, vec![vip(VIP)]);
    let first = log.apply(add(NOW + 100));
    log.mutate(vec![Mutation::DeleteVip { address: ip(VIP), cascade: false }]);
    // Others come, by hundreds of thousands a count would have forgotten it; the time has not.
    log.ok(asked(made_at(NOW + HOUR_MS, 2), NOW + 100 + HOUR_MS, 6, vec![vip("192.168.2.101")]));
    assert_eq!(log.apply(add(NOW + 100 + HOUR_MS)), first);
    let late = asked(made_at(NOW + HOUR_MS, 3), NOW + 101 + HOUR_MS, 7, vec![vip("192.168.2.102")]);
    log.ok(late);
    let refused = log.refused(add(NOW + 101 + HOUR_MS));
    assert_eq!((refused.kind, refused.subject.as_str()), (RejectionKind::FailedPrecondition, "request_id"));
    assert!(refused.message.contains("made 3600 s ago"), "{refused}");
    assert!(log.table.vip(ip(VIP)).is_none_or(|vip| vip.deleting), "it was not done again");
    // One that was made before and comes for the first time may be another one's repetition, too.
    assert_eq!(log.refused(asked(made_at(NOW - 5, 9), NOW + 2 * HOUR_MS, 8, add_and_remove())).subject, "request_id");
    log.ok(asked(made_at(NOW + 1, 10), NOW + 2 * HOUR_MS, 8, vec![vip("192.168.2.103")]));
}

#[test]
fn a_clock_that_is_wrong_makes_no_other_id_too_old() {
    let mut log = level_11();
    // A caller's clock.
    log.ok(asked(made_at(NOW + 24 * HOUR_MS, 1), NOW, 1, vec![vip(VIP)]));
    // And a node's: what was remembered is forgotten at once, and later ids are taken all the same.
    log.ok(asked(made_at(NOW + 1, 2), NOW + 1, 2, vec![vip("192.168.2.101")]));
    log.ok(asked(made_at(NOW + 2, 3), NOW + 9000 * HOUR_MS, 3, vec![vip("192.168.2.102")]));
    log.ok(asked(made_at(NOW + 3, 4), NOW + 3, 4, vec![vip("192.168.2.103")]));
    assert_eq!(log.table.clock_ms(), NOW + 9000 * HOUR_MS, "it never goes back");
    let again = asked(made_at(NOW + 3, 4), NOW + 4, 4, vec![vip("192.168.2.103")]);
    assert!(log.apply(again).result.is_ok());
}

#[test]
fn ids_of_nodes_are_forgotten_soon_and_others_by_count() {
    let mut log = level_11();
    let own = RequestId::own(Uuid::from_u128(9));
    let other = RequestId::parse("r-1").unwrap();
    log.ok(asked(Some(own.clone()), NOW, 1, vec![vip(VIP)]));
    log.ok(asked(other.clone(), NOW, 2, vec![vip("192.168.2.101")]));
    assert!(log.table.answered(&own, 1).is_some());
    assert!(log.table.answered(&own, 2).unwrap().result.is_err(), "that is another request");
    log.ok(asked(None, NOW + 121_000, 0, vec![vip("192.168.2.102")]));
    log.ok(asked(RequestId::parse("r-2").unwrap(), NOW + 24 * HOUR_MS, 3, vec![vip("192.168.2.103")]));
    assert!(log.table.answered(&own, 1).is_none());
    assert!(log.table.answered(&other.unwrap(), 2).is_some());
}

#[test]
fn beyond_the_bound_the_oldest_is_too_old_to_tell() {
    let mut log = level_11();
    let bound = log.table.rules().requests as u64;
    for number in 0..=bound {
        // Not by its wire form: that of the whole table would be compared each time.
        let command = asked(made_at(NOW + number, number), NOW + number, 1, vec![]);
        log.index += 1;
        assert!(log.table.apply(log.index, &command).reply.result.is_ok());
    }
    assert_eq!(log.table.requests.size() as u64, bound);
    let first = asked(made_at(NOW, 0), NOW + bound, 1, vec![]);
    assert_eq!(log.table.apply(log.index + 1, &first).reply.result.unwrap_err().subject, "request_id");
    let kept = decode_table(&encode_table(&log.table)).unwrap();
    assert_eq!(kept, log.table);
}

#[test]
fn what_the_caller_sent_makes_a_request_and_not_what_its_names_stand_for() {
    let mut log = level_11();
    let request = made_at(NOW, 1);
    log.ok(asked(request.clone(), NOW, 77, vec![vip(VIP)]));
    let resolved_otherwise = asked(request.clone(), NOW, 77, vec![vip("192.168.2.101")]);
    assert_eq!(log.apply(resolved_otherwise).result, Ok(Effect::Changed), "as it was answered");
    assert!(log.table.vip(ip("192.168.2.101")).is_none());
    assert_eq!(log.refused(asked(request, NOW, 78, vec![vip(VIP)])).subject, "request_id");
}

#[test]
fn a_revision_is_that_of_the_object_or_of_the_configuration() {
    let mut log = level_11();
    log.mutate(vec![vip(VIP), service("a", VIP, &[(80, 80)]), service("b", VIP, &[(81, 81)])]);
    let seen = log.table.revision();
    let ports = |of: &str, first| {
        let ports = Some(vec![PortRange { protocol: Protocol::Tcp, first, last: first }]);
        Mutation::UpdateService(ServicePatch { ports, ..ServicePatch::of(name(of)) })
    };
    let expecting = |expected_revision, expected_of, mutations: Vec<Mutation>| Command {
        expected_revision,
        expected_of,
        ..mutation(mutations).into()
    };
    let object = |revision, change| expecting(revision, Expected::Object, vec![change]);
    // What others have changed meanwhile does not matter, nor who owns what.
    log.mutate(vec![ports("b", 90)]);
    let owner = log.owner(VIP).unwrap().node;
    log.fence(owner);
    log.ok(object(seen, ports("a", 91)));
    let refused = log.refused(object(seen, ports("a", 92)));
    let told = format!("service a is at revision {}, not {seen}", log.table.service(&name("a")).unwrap().revision);
    assert!(refused.subject == "expected_revision" && refused.message.contains(&told), "{refused}");
    assert_eq!(log.refused(object(u64::MAX, ports("a", 92))).subject, "expected_revision", "nobody has seen that");
    // Of several changes at once it is that of all.
    let both = |revision| expecting(revision, Expected::Configuration, vec![ports("a", 93), ports("b", 94)]);
    let configured = log.table.config_revision();
    log.fence(log.owner(VIP).unwrap().node);
    assert!(log.table.revision() > configured, "ownership moves the table's revision alone");
    assert_eq!(log.refused(both(seen)).subject, "expected_revision");
    log.ok(both(configured));
    log.ok(both(log.table.revision()));
    let Vip { revision, .. } = log.table.vip(ip(VIP)).unwrap().clone();
    let to = log.table.nodes().map(|node| node.id).find(|id| Some(*id) != log.owner(VIP).map(|owner| owner.node));
    let intent = Body::MoveIntent { vip: ip(VIP), to: to.unwrap() };
    let moved =
        |expected_revision| Command { expected_revision, expected_of: Expected::Object, ..intent.clone().into() };
    assert_eq!(log.refused(moved(revision - 1)).subject, "expected_revision");
}

#[test]
fn the_mutation_that_is_wrong_is_named() {
    let mut log = level_11();
    let of = |log: &mut Log, mutations| log.refused(mutation(mutations)).mutation;
    let good = || vec![vip(VIP), service("a", VIP, &[(80, 80)])];
    let with = |more: Mutation| good().into_iter().chain([more]).collect::<Vec<_>>();
    assert_eq!(of(&mut log, with(service("b", VIP, &[(80, 80)]))), Some(2), "the later of two that collide");
    assert_eq!(of(&mut log, with(backend("nobody", "192.168.2.50"))), Some(2));
    assert_eq!(of(&mut log, with(backend("a", VIP))), Some(2));
    let patch = |of: &str| Mutation::UpdateService(ServicePatch { min_healthy: Some(1), ..ServicePatch::of(name(of)) });
    assert_eq!(of(&mut log, [patch("b")].into_iter().chain(good()).collect()), Some(0));
    log.mutate(good());
    assert_eq!(
        of(&mut log, vec![backend("a", "192.168.2.50"), Mutation::DeleteService { name: name("a"), cascade: false }]),
        Some(1)
    );
}
