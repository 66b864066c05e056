//! The program by which PACKET_FANOUT picks a frame's socket: it computes what [`Steering`] does, so that the kernel and the
//! workers agree on who owns a flow.

use super::{
    INDEX_ACCUMULATOR, INDEX_IPV4_HEADER, INDEX_MEMORY, Instruction, JUMP_ANY_BIT, JUMP_EQUAL, LOAD_BYTE, LOAD_HALF,
    LOAD_MEMORY, LOAD_WORD, LOAD_WORD_AT_INDEX, MULTIPLY, PROTOCOL, RETURN, RETURN_ACCUMULATOR, SHIFT_RIGHT, STORE,
    XOR_INDEX, instruction, only_if,
};
use crate::{
    forward::steering::{SPEAKER, Steering},
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};

const TCP: u32 = 6;
const UDP: u32 = 17;
const ICMPV6: u32 = 58;

/// Computes what [`Steering`] does, as far as the first bytes of a packet tell. What the program cannot read is the
/// speaker's.
pub(in crate::io) fn program(steering: Steering) -> Vec<Instruction> {
    let key = steering.key();
    let keep = [
        instruction(MULTIPLY, key),
        instruction(INDEX_ACCUMULATOR, 0),
        instruction(SHIFT_RIGHT, Steering::SHIFT),
        instruction(XOR_INDEX, 0),
        instruction(STORE, 0),
    ];
    let first = |load: Instruction| [vec![load], keep.to_vec()].concat();
    let next = |load: Instruction| {
        [vec![load, instruction(INDEX_MEMORY, 0), instruction(XOR_INDEX, 0)], keep.to_vec()].concat()
    };
    let spread = vec![
        instruction(LOAD_MEMORY, 0),
        instruction(SHIFT_RIGHT, 16),
        instruction(MULTIPLY, steering.workers()),
        instruction(SHIFT_RIGHT, 16),
        instruction(RETURN_ACCUMULATOR, 0),
    ];
    let word = |at| instruction(LOAD_WORD, at);
    let speaker = instruction(RETURN, SPEAKER as u32);
    let mut ipv4 = [first(word(12)), next(word(16))].concat();
    ipv4.push(instruction(LOAD_HALF, 6));
    // More fragments, or an offset: by the addresses.
    ipv4.push(Instruction { jump_false: spread.len() as u8, ..instruction(JUMP_ANY_BIT, 0x3fff) });
    ipv4.extend_from_slice(&spread);
    ipv4.push(instruction(LOAD_BYTE, 9));
    ipv4.push(Instruction { jump_true: 2, ..instruction(JUMP_EQUAL, TCP) });
    ipv4.push(Instruction { jump_true: 1, ..instruction(JUMP_EQUAL, UDP) });
    ipv4.push(speaker);
    ipv4.push(instruction(INDEX_IPV4_HEADER, 0));
    ipv4.extend(next(instruction(LOAD_WORD_AT_INDEX, 0)));
    ipv4.extend_from_slice(&spread);

    let mut ipv6 = [first(word(8)), next(word(12)), next(word(16)), next(word(20)), next(word(36))].concat();
    ipv6.push(instruction(LOAD_BYTE, 6));
    ipv6.push(Instruction { jump_false: 1, ..instruction(JUMP_EQUAL, ICMPV6) });
    ipv6.push(speaker);
    let over_spread = spread.len() as u8;
    ipv6.push(Instruction { jump_true: 1 + over_spread, ..instruction(JUMP_EQUAL, TCP) });
    ipv6.push(Instruction { jump_true: over_spread, ..instruction(JUMP_EQUAL, UDP) });
    // Fragments, and what stands behind other extension headers: by the addresses.
    ipv6.extend_from_slice(&spread);
    ipv6.extend(next(word(40)));
    ipv6.extend_from_slice(&spread);

    let mut program = vec![instruction(LOAD_HALF, PROTOCOL)];
    program.extend(only_if(ETHERTYPE_IPV4.into(), ipv4));
    program.extend(only_if(ETHERTYPE_IPV6.into(), ipv6));
    program.push(speaker);
    program
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::packet;

    const STEERING: (usize, u32) = (5, 0x1234_5677);

    fn by_kernel(frame: &[u8]) -> usize {
        let steering = Steering::new(STEERING.0, STEERING.1);
        super::super::run(&program(steering), &frame[14..], u16::from_be_bytes([frame[12], frame[13]])) as usize
    }

    fn by_worker(frame: &[u8]) -> Option<usize> {
        Steering::new(STEERING.0, STEERING.1).packet(&packet::parse(frame))
    }

    #[test]
    fn kernel_and_workers_agree_on_every_flow_and_fragment() {
        let v4 = |n: u8| PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([192, 0, 2, n], [198, 51, 100, 1], 64);
        let source = |n: u8| [0x20, 1, 0xd, 0xb8, 0, n, 0, 0, 0, 0, 0, 0, 0, 0, 0, n];
        let v6 = |n: u8| PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6(source(n), source(200), 64);
        let mut met = [0; STEERING.0];
        for n in 0..100u8 {
            let port = 20_000 + u16::from(n);
            let mut frames = vec![Vec::new(); 4];
            v4(n).tcp(port, 80, 1, 9).write(&mut frames[0], b"x").unwrap();
            v4(n).udp(port, 53).write(&mut frames[1], b"x").unwrap();
            v6(n).tcp(port, 80, 1, 9).write(&mut frames[2], b"x").unwrap();
            v6(n).udp(port, 53).write(&mut frames[3], &[n; 8]).unwrap();
            for frame in frames.clone() {
                assert_eq!(Some(by_kernel(&frame)), by_worker(&frame));
                met[by_kernel(&frame)] += 1;
            }
            // With four bytes of IPv4 options.
            let mut options = frames[1].clone();
            options.splice(34..34, [1, 1, 1, 0]);
            (options[14], options[17]) = (0x46, options[17] + 4);
            assert_eq!((Some(by_kernel(&options)), by_kernel(&options)), (by_worker(&options), by_kernel(&frames[1])));
            // First and later fragments.
            for later in [0, 1] {
                let (mut v4, mut v6) = (frames[1].clone(), frames[3].clone());
                (v4[20], v4[21]) = (0x20, 9 * later);
                v4.resize(14 + 20 + 16, 0);
                v4[17] = 36;
                v6.splice(54..54, [17, 0, 0, 1 + 8 * later, 0, 0, 0, 5]);
                (v6[20], v6[19]) = (44, v6[19] + 8);
                for frame in [v4, v6] {
                    assert!(matches!(packet::parse(&frame), packet::Packet::Fragment(_)));
                    assert_eq!(Some(by_kernel(&frame)), by_worker(&frame));
                }
            }
        }
        assert!(met.iter().all(|met| *met > 40), "{met:?}");
    }

    #[test]
    fn what_speaks_to_the_node_is_the_speakers() {
        let mut ping = Vec::new();
        let v4 = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([192, 0, 2, 1], [198, 51, 100, 1], 64);
        v4.icmpv4_echo_request(1, 2).write(&mut ping, b"ping").unwrap();
        let mut ping6 = Vec::new();
        let v6 = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([1; 16], [2; 16], 64);
        v6.icmpv6_echo_request(1, 2).write(&mut ping6, b"ping").unwrap();
        let arp = packet::arp::probe(packet::Mac([2; 6]), [192, 0, 2, 1].into()).to_vec();
        for frame in [ping, ping6, arp] {
            assert_eq!((by_kernel(&frame), by_worker(&frame)), (SPEAKER, Some(SPEAKER)));
        }
        // Too short for its ports.
        assert_eq!(by_kernel(&[&[0; 12][..], &[8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6]].concat()), SPEAKER);
    }
}
