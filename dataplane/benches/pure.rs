//! What a packet and a table cost without the kernel: `cargo bench -p lb-dataplane`.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use lb_dataplane::{
    forward::{
        compile::Compiler,
        flow::FlowTable,
        hash::HashKey,
        maglev::{Candidate, Maglev},
        snapshot::Snapshot,
        spec::{BackendSpec, BackendState, PortRangeSpec, PortSpec, ServiceSpec, TableSpec, Timeouts, VipSpec},
    },
    packet::{self, FrameMeta, Mac, Protocol},
    verdict::Verdict,
    worker::{Peek, Pipeline},
};

const OWN: Mac = Mac([2, 0, 0, 0, 0, 2]);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100);
/// Flows that are known, or new, in turn.
const FLOWS: u16 = 16_384;
/// Frames between two looks at the table, as in an engine's batch.
const BATCH: u16 = 16;
/// Slots of the flow table: 32 MiB, far more than the caches hold.
const SLOTS: usize = 1 << 20;

fn snapshot() -> Snapshot {
    let vip = |address: IpAddr, id: u64| VipSpec {
        address,
        answer_on: vec![0],
        rejects: false,
        services: vec![ServiceSpec {
            name: format!("dns{id}"),
            ports: vec![PortRangeSpec { protocol: Protocol::Udp, first: 53, last: 53 }],
            by_source: false,
            resets_flows: false,
            table_size: 65_537,
            backends: (1..=8)
                .map(|number| BackendSpec {
                    id: id + u64::from(number),
                    address: [10, 0, 0, 100 + number].into(),
                    mac: Some(Mac([2, 0, 0, 0, 1, number])),
                    weight: 1,
                    state: BackendState::Active,
                })
                .collect(),
        }],
    };
    Compiler::default().compile(&TableSpec {
        hash_key: 0x1234_5678,
        ports: vec![PortSpec {
            name: "eth0".into(),
            ifindex: 1,
            mac: OWN,
            mtu: 1500,
            carrier: true,
            segments: true,
            addresses: vec![(Ipv4Addr::new(10, 0, 0, 2).into(), 24)],
        }],
        vips: vec![vip(VIP.into(), 10), vip(VIP6.into(), 20)],
        ..TableSpec::default()
    })
}

fn frame(family: &str) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], OWN.0);
    let mut frame = Vec::new();
    let written = match family {
        "IPv4" => ethernet.ipv4([10, 0, 0, 1], VIP.octets(), 64).udp(1024, 53).write(&mut frame, &[0; 18]),
        _ => ethernet.ipv6(CLIENT6.octets(), VIP6.octets(), 64).udp(1024, 53).write(&mut frame, &[0; 18]),
    };
    written.expect("a frame is written to memory");
    frame
}

/// A batch as an engine has it judged: a peek at each frame, the lookahead, then the judgement, by the code that ships.
fn judge(pipeline: &mut Pipeline, batch: &mut [Vec<u8>]) {
    let mut peeks = [Peek::NOTHING; BATCH as usize];
    for (frame, peek) in batch.iter().zip(&mut peeks) {
        pipeline.peek(black_box(frame), peek);
    }
    peeks.iter_mut().for_each(|peek| pipeline.look_ahead(peek));
    peeks.iter().for_each(|peek| pipeline.look_closer(peek));
    for (frame, peek) in batch.iter_mut().zip(&peeks) {
        let verdict = pipeline.judge(0, FrameMeta::default(), frame, peek);
        assert!(matches!(verdict, Verdict::Forward { port: 0, .. }));
    }
}

/// Parse, decide and rewrite, by flow.
fn packets(c: &mut Criterion) {
    let snapshot = Arc::new(snapshot());
    for family in ["IPv4", "IPv6"] {
        let mut group = c.benchmark_group(format!("packet/{family}"));
        group.throughput(Throughput::Elements(1));
        let template = frame(family);
        let ports_at = if family == "IPv4" { 34 } else { 54 };
        group.bench_function("parse", |b| b.iter(|| packet::flow(black_box(&template))));
        for (name, known) in [("hit", true), ("miss", false)] {
            let flows = FlowTable::new(SLOTS, Timeouts::default()).expect("memory for a flow table");
            let mut pipeline = Pipeline::new(snapshot.clone(), flows, Arc::default(), Arc::default());
            let mut batch = vec![template.clone(); BATCH.into()];
            let mut port = 0u16;
            let mut round = 0u64;
            let mut step = || {
                for frame in &mut batch {
                    frame.copy_from_slice(&template);
                    frame[ports_at..ports_at + 2].copy_from_slice(&port.to_be_bytes());
                    port = (port + 1) % FLOWS;
                }
                // UDP is forgotten after 30 s: a minute later every flow is new again.
                round += u64::from(port == 0 && !known);
                pipeline.set_time((1 << 40) + round * 60_000_000_000);
                judge(&mut pipeline, &mut batch);
            };
            for _ in 0..FLOWS / BATCH {
                step();
            }
            group.throughput(Throughput::Elements(BATCH.into()));
            group.bench_function(format!("{name} x{BATCH}"), |b| b.iter(&mut step));
        }
    }
}

/// Builds of a service's table.
fn maglev(c: &mut Criterion) {
    let mut group = c.benchmark_group("maglev");
    for (backends, size) in [(10u32, 16_381), (100, 16_381), (10, 65_537), (100, 65_537), (1000, 65_537)] {
        let member = |i: u32| Candidate::new(HashKey(1), IpAddr::V4(Ipv4Addr::from(0x0a00_0001 + i)), 1, size);
        let members: Vec<Candidate> = (0..backends).map(member).collect();
        group.bench_with_input(BenchmarkId::new(format!("{backends} backends"), size), &members, |b, members| {
            b.iter_batched(|| (), |()| Maglev::build(black_box(members), size), BatchSize::LargeInput);
        });
    }
}

criterion_group!(benches, packets, maglev);
criterion_main!(benches);
