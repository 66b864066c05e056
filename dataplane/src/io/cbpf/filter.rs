//! The socket filters (classic BPF). One for data: IP for the VIPs, and frames of which a VLAN tag is left when the kernel
//! has taken one out, so that they are counted. One for control frames: ARP and neighbour discovery, which are left out of
//! the data. They spare the sockets everything else on the wire; the worker checks again, so a filter that lets too much
//! by costs time and nothing more. Of an IPv6 destination only the last 32 bits are looked at.

use std::net::IpAddr;

use super::{AND, Instruction, JUMP_EQUAL, LOAD_BYTE, LOAD_HALF, LOAD_WORD, RETURN, instruction, only_if};
use crate::packet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, ndp};

/// Compared one after the other; more VIPs than this are covered by shorter prefixes.
const MAX_PREFIXES: usize = 16;

const WHOLE_FRAME: u32 = 0x40000;
const ETHERTYPE_AT: u32 = 12;
const IPV4_DESTINATION_AT: u32 = 30;
const NEXT_HEADER_AT: u32 = 20;
/// The last word of the destination.
const IPV6_DESTINATION_AT: u32 = 50;
const ICMPV6_TYPE_AT: u32 = 54;
const ICMPV6: u32 = 58;

const ACCEPT: Instruction = instruction(RETURN, WHOLE_FRAME);
pub(in crate::io) const REJECT: Instruction = instruction(RETURN, 0);

/// The filter of data for a set of VIPs.
pub(crate) fn program(vips: &[IpAddr]) -> Vec<Instruction> {
    let words_v4 = vips.iter().filter_map(|vip| match vip {
        IpAddr::V4(vip) => Some(u32::from(*vip)),
        IpAddr::V6(_) => None,
    });
    let words_v6 = vips.iter().filter_map(|vip| match vip {
        IpAddr::V4(_) => None,
        // Cut off on purpose.
        IpAddr::V6(vip) => Some(u128::from(*vip) as u32),
    });
    let mut program = vec![instruction(LOAD_HALF, ETHERTYPE_AT)];
    for ethertype in [ETHERTYPE_VLAN, ETHERTYPE_SERVICE_VLAN] {
        program.extend(only_if(ethertype.into(), vec![ACCEPT]));
    }
    program.extend(only_if(ETHERTYPE_IPV4.into(), destinations(IPV4_DESTINATION_AT, words_v4.collect())));
    let mut ipv6 = if_neighbor_discovery(REJECT);
    ipv6.extend(destinations(IPV6_DESTINATION_AT, words_v6.collect()));
    program.extend(only_if(ETHERTYPE_IPV6.into(), ipv6));
    program.push(REJECT);
    program
}

/// The filter of control frames.
pub(in crate::io) fn control() -> Vec<Instruction> {
    let mut program = vec![instruction(LOAD_HALF, ETHERTYPE_AT)];
    program.extend(only_if(ETHERTYPE_ARP.into(), vec![ACCEPT]));
    program.extend(only_if(ETHERTYPE_IPV6.into(), if_neighbor_discovery(ACCEPT)));
    program.push(REJECT);
    program
}

/// Ends so for a solicitation or an advertisement right behind the IPv6 header, where alone they are valid.
fn if_neighbor_discovery(end: Instruction) -> Vec<Instruction> {
    vec![
        instruction(LOAD_BYTE, NEXT_HEADER_AT),
        Instruction { jump_false: 4, ..instruction(JUMP_EQUAL, ICMPV6) },
        instruction(LOAD_BYTE, ICMPV6_TYPE_AT),
        Instruction { jump_true: 1, ..instruction(JUMP_EQUAL, ndp::SOLICITATION as u32) },
        Instruction { jump_false: 1, ..instruction(JUMP_EQUAL, ndp::ADVERTISEMENT as u32) },
        end,
    ]
}

/// Accepts frames whose word at `at` is in one of the networks that cover `words`, and rejects others.
fn destinations(at: u32, words: Vec<u32>) -> Vec<Instruction> {
    let (mask, networks) = cover(words);
    let mut part = vec![instruction(LOAD_WORD, at), instruction(AND, mask)];
    for (number, network) in networks.iter().enumerate() {
        // Over the other comparisons and over the rejection.
        let to_accept = (networks.len() - number) as u8;
        part.push(Instruction { jump_true: to_accept, ..instruction(JUMP_EQUAL, *network) });
    }
    part.extend([REJECT, ACCEPT]);
    part
}

/// The longest prefix length with which few networks cover all words.
fn cover(words: Vec<u32>) -> (u32, Vec<u32>) {
    for len in (0..=32).rev() {
        let mask = u32::MAX.checked_shl(32 - len).unwrap_or(0);
        let mut networks: Vec<u32> = words.iter().map(|word| word & mask).collect();
        networks.sort_unstable();
        networks.dedup();
        if networks.len() <= MAX_PREFIXES {
            return (mask, networks);
        }
    }
    (0, vec![0])
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn accepts(program: &[Instruction], frame: &[u8]) -> bool {
        super::super::run(program, frame, 0) != 0
    }

    fn frame(ethertype: u16, destination: IpAddr) -> Vec<u8> {
        let mut frame = vec![0; 80];
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        match destination {
            IpAddr::V4(destination) => frame[30..34].copy_from_slice(&destination.octets()),
            IpAddr::V6(destination) => frame[38..54].copy_from_slice(&destination.octets()),
        }
        frame
    }

    fn v4(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 168, 2, last).into()
    }

    fn v6(last: u16) -> IpAddr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into()
    }

    #[test]
    fn vips_pass_as_data_the_search_for_neighbours_as_control_and_the_rest_does_not() {
        for count in [0, 1, 2, 16] {
            let vips: Vec<IpAddr> = (1..=count).flat_map(|i| [v4(i), v6(i.into())]).collect();
            let program = program(&vips);
            for vip in &vips {
                let ethertype = if vip.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
                assert!(accepts(&program, &frame(ethertype, *vip)), "{vip} of {count}");
            }
            assert!(!accepts(&program, &frame(ETHERTYPE_IPV4, v4(200))));
            assert!(!accepts(&program, &frame(ETHERTYPE_IPV6, v6(200))));
            assert!(!accepts(&program, &frame(0x8847, v4(1))));
            let (arp, tagged) = (frame(ETHERTYPE_ARP, v4(200)), frame(ETHERTYPE_VLAN, v4(200)));
            assert!(accepts(&program, &tagged) && !accepts(&control(), &tagged));
            assert!(!accepts(&program, &arp) && accepts(&control(), &arp));
            for (kind, is_control) in [(ndp::SOLICITATION, true), (ndp::ADVERTISEMENT, true), (134, false), (1, false)]
            {
                for (to, is_vip) in [(v6(200), false), (v6(1), count > 0)] {
                    let mut frame = frame(ETHERTYPE_IPV6, to);
                    (frame[20], frame[54]) = (58, kind);
                    let passed = (accepts(&program, &frame), accepts(&control(), &frame));
                    assert_eq!(passed, (is_vip && !is_control, is_control), "ICMPv6 type {kind} to {to}");
                }
            }
        }
    }

    #[test]
    fn many_vips_are_covered_by_a_short_program() {
        let v4 = |i: u32| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + i * 257));
        let v6 = |i: u32| IpAddr::from(Ipv6Addr::from((0x2001_0db8 << 96) | u128::from(i)));
        let vips: Vec<IpAddr> = (0..4096u32).flat_map(|i| [v4(i), v6(i)]).collect();
        let program = program(&vips);
        assert!(program.len() < 64);
        for vip in vips {
            let ethertype = if vip.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
            assert!(accepts(&program, &frame(ethertype, vip)));
        }
        assert!(!accepts(&program, &frame(ETHERTYPE_IPV4, Ipv4Addr::new(192, 168, 0, 1).into())));
    }
}
