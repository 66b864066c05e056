//! What only a VIP's owner says: on the interfaces where the VIP is, and while its lease is valid.

use super::*;

const PORTS: usize = 2;

/// Two interfaces, with the VIPs on the first.
fn two_ports() -> (Pipeline, Arc<LeaseClock>) {
    let (mut pipeline, lease) = pipeline();
    let mut spec = spec();
    let second = PortSpec { name: "eth1".into(), ifindex: 3, mac: OTHER_PORT, ..spec.ports[0].clone() };
    spec.ports.push(second);
    pipeline.adopt(Arc::new(Compiler::default().compile(&spec)));
    (pipeline, lease)
}

const OTHER_PORT: Mac = Mac([2, 0, 0, 0, 0, 10]);
const OWN_PORTS: [Mac; PORTS] = [OWN, OTHER_PORT];

/// The questions to which an owner answers by any way but a service, as they come by a port.
fn questions(port: usize) -> Vec<Vec<u8>> {
    let own = OWN_PORTS[port];
    let mut frames = sound();
    let (refused4, echo4, refused6, echo6) =
        (frames[2].clone(), frames[5].clone(), frames.swap_remove(8), frames[9].clone());
    let station = [192, 168, 2, 254].into();
    let arp = arp::request(ROUTER, station, VIP.into(), None).to_vec();
    let asked = ndp::solicitation(ROUTER, CLIENT6, VIP6, Some(own)).to_vec();
    let mut all = vec![arp, asked, echo4, echo6, refused4, refused6];
    for frame in &mut all[2..] {
        frame[..6].copy_from_slice(&own.0);
    }
    all
}

/// Whether each question is answered, in place or beside.
fn answered(pipeline: &mut Pipeline, port: usize) -> Vec<bool> {
    let answer = |frame: Vec<u8>| {
        let (mut frame, mut peek) = (frame, Peek::NOTHING);
        pipeline.peek(&frame, &mut peek);
        pipeline.look_ahead(&mut peek);
        pipeline.look_closer(&peek);
        let verdict = pipeline.judge(port, FrameMeta::default(), &mut frame, &peek);
        verdict == Verdict::Answer || empty_outbox(pipeline) > 0
    };
    questions(port).into_iter().map(answer).collect()
}

#[test]
fn arp_and_neighbour_discovery_are_answered_where_the_vip_is() {
    let (mut pipeline, _) = two_ports();
    assert_eq!(answered(&mut pipeline, 0), [true; 6]);
    // Whoever came by another interface is answered by what has no interface.
    assert_eq!(answered(&mut pipeline, 1), [false, false, true, true, true, true]);
}

#[test]
fn nothing_is_said_for_a_vip_of_another_node() {
    let (mut pipeline, _) = two_ports();
    pipeline.own(Arc::new(Owned::new(2, &[])));
    for port in 0..PORTS {
        assert_eq!(answered(&mut pipeline, port), [false; 6]);
    }
    // Each family by itself.
    let v6 = Grant { vip: VIP6.into(), epoch: 3, first: false };
    pipeline.own(Arc::new(Owned::new(3, &[v6])));
    assert_eq!(answered(&mut pipeline, 0), [false, true, false, true, false, true]);
}

#[test]
fn nothing_is_said_without_a_valid_lease_and_a_held_one_refuses_nothing() {
    let (mut pipeline, lease) = two_ports();
    Lease::Expired.set(&lease);
    assert_eq!(answered(&mut pipeline, 0), [false; 6]);
    Lease::Held.set(&lease);
    assert_eq!(answered(&mut pipeline, 0), [true, true, true, true, false, false]);
    Lease::Valid.set(&lease);
    assert_eq!(answered(&mut pipeline, 0), [true; 6]);
}
