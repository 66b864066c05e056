//! The filter of the sockets by which this node checks backends: what answers its own questions.

use super::{
    INDEX_IPV4_HEADER, Instruction, JUMP_ABOVE, JUMP_ANY_BIT, JUMP_AT_LEAST, LOAD_BYTE, LOAD_BYTE_AT_INDEX, LOAD_HALF,
    LOAD_HALF_AT_INDEX, RETURN, instruction, only_if,
};
use crate::packet::{CHECK_PORTS, ETHERTYPE_IPV4, ETHERTYPE_IPV6};

const ETHERNET: u32 = 14;
const ICMP: u32 = 1;
const ICMPV6: u32 = 58;
const TRANSPORTS: [u32; 2] = [6, 17];
/// Echo reply.
const ECHO_REPLY: u32 = 0;
const ECHO_REPLY_V6: u32 = 129;

const TAKE: Instruction = instruction(RETURN, u32::MAX);
const LEAVE: Instruction = instruction(RETURN, 0);

/// Takes TCP segments and datagrams to the ports of checks, and echo replies.
pub(in crate::io) fn checks() -> Vec<Instruction> {
    let v4 = [
        vec![
            // Of a fragment only the first has ports, and no answer is one.
            instruction(LOAD_HALF, ETHERNET + 6),
            Instruction { jump_true: 0, jump_false: 1, ..instruction(JUMP_ANY_BIT, 0x1fff) },
            LEAVE,
            instruction(INDEX_IPV4_HEADER, ETHERNET),
            instruction(LOAD_BYTE, ETHERNET + 9),
        ],
        only_if(
            ICMP,
            [vec![instruction(LOAD_BYTE_AT_INDEX, ETHERNET)], only_if(ECHO_REPLY, vec![TAKE]), vec![LEAVE]].concat(),
        ),
        TRANSPORTS
            .into_iter()
            .flat_map(|one| only_if(one, to_checks(instruction(LOAD_HALF_AT_INDEX, ETHERNET + 2))))
            .collect(),
        vec![LEAVE],
    ]
    .concat();
    let behind = ETHERNET + 40;
    let v6 = [
        vec![instruction(LOAD_BYTE, ETHERNET + 6)],
        only_if(
            ICMPV6,
            [vec![instruction(LOAD_BYTE, behind)], only_if(ECHO_REPLY_V6, vec![TAKE]), vec![LEAVE]].concat(),
        ),
        TRANSPORTS.into_iter().flat_map(|one| only_if(one, to_checks(instruction(LOAD_HALF, behind + 2)))).collect(),
        vec![LEAVE],
    ]
    .concat();
    [
        vec![instruction(LOAD_HALF, 12)],
        only_if(ETHERTYPE_IPV4.into(), v4),
        only_if(ETHERTYPE_IPV6.into(), v6),
        vec![LEAVE],
    ]
    .concat()
}

/// Whether the port that is loaded is one of the checks'.
fn to_checks(load_port: Instruction) -> Vec<Instruction> {
    vec![
        load_port,
        Instruction { jump_true: 0, jump_false: 2, ..instruction(JUMP_AT_LEAST, (*CHECK_PORTS.start()).into()) },
        Instruction { jump_true: 1, jump_false: 0, ..instruction(JUMP_ABOVE, (*CHECK_PORTS.end()).into()) },
        TAKE,
        LEAVE,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(frame: &[u8]) -> bool {
        super::super::run(&checks(), frame, 0) != 0
    }

    fn v4(protocol: u8, options: usize, transport: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0; 80];
        frame[12..14].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
        frame[14] = 0x45 + options as u8;
        frame[23] = protocol;
        frame[34 + 4 * options..][..4].copy_from_slice(&transport);
        frame
    }

    fn v6(protocol: u8, transport: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0; 80];
        frame[12..14].copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
        frame[20] = protocol;
        frame[54..58].copy_from_slice(&transport);
        frame
    }

    fn to(port: u16) -> [u8; 4] {
        let [high, low] = port.to_be_bytes();
        [0, 80, high, low]
    }

    #[test]
    fn what_answers_a_check_is_taken_and_nothing_else() {
        let (first, last) = (*CHECK_PORTS.start(), *CHECK_PORTS.end());
        for protocol in [6, 17] {
            for (port, is_ours) in [(first - 1, false), (first, true), (last, true), (last + 1, false), (80, false)] {
                assert_eq!(takes(&v4(protocol, 0, to(port))), is_ours, "IPv4, protocol {protocol}, port {port}");
                assert_eq!(takes(&v4(protocol, 3, to(port))), is_ours, "with options");
                assert_eq!(takes(&v6(protocol, to(port))), is_ours, "IPv6, protocol {protocol}, port {port}");
            }
        }
        let mut fragment = v4(17, 0, to(first));
        fragment[21] = 1;
        assert!(!takes(&fragment));
        assert!(takes(&v4(1, 0, [0; 4])) && !takes(&v4(1, 0, [8, 0, 0, 0])));
        assert!(takes(&v6(58, [129, 0, 0, 0])) && !takes(&v6(58, [136, 0, 0, 0])));
        assert!(!takes(&v4(132, 0, to(first))) && !takes(&v6(132, to(first))));
        let mut arp = v4(6, 0, to(first));
        arp[12..14].copy_from_slice(&[8, 6]);
        assert!(!takes(&arp));
    }
}
