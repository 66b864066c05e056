//! The socket filters (classic BPF). One for data: IP for the VIPs, and frames of which a VLAN tag is left when the kernel
//! has taken one out, so that they are counted. One for control frames: ARP and neighbour discovery, which are left out of
//! the data. They spare the sockets everything else on the wire; the worker checks again, so a filter that lets too much
//! by costs time and nothing more. Of an IPv6 destination only the last 32 bits are looked at.

use std::{collections::HashSet, net::IpAddr, ops::RangeInclusive};

use super::{
    Instruction, JUMP, JUMP_ABOVE, JUMP_AT_LEAST, JUMP_EQUAL, LOAD_BYTE, LOAD_HALF, LOAD_WORD, RETURN, instruction,
    only_if,
};
use crate::packet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, ndp};

/// Ranges of one family's VIPs at most. A socket takes a program of up to net.core.optmem_max bytes; that was 20 KiB until Linux
/// 6.9, and an instruction takes eight bytes and sometimes two instructions of the kernel's own.
const MAX_RANGES: usize = 80;

const WHOLE_FRAME: u32 = 0x40000;
const ETHERTYPE_AT: u32 = 12;
const IPV4_DESTINATION_AT: u32 = 30;
const NEXT_HEADER_AT: u32 = 20;
/// The last word of the destination.
const IPV6_DESTINATION_AT: u32 = 50;
const ICMPV6_TYPE_AT: u32 = 54;
const ICMPV6: u32 = 58;

pub(in crate::io) const ACCEPT: Instruction = instruction(RETURN, WHOLE_FRAME);
pub(in crate::io) const REJECT: Instruction = instruction(RETURN, 0);

/// The words by which the addresses of each family are told apart.
fn words(addresses: &[IpAddr]) -> [Vec<u32>; 2] {
    let v4 = addresses.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(u32::from(*address)),
        IpAddr::V6(_) => None,
    });
    let v6 = addresses.iter().filter_map(|address| match address {
        IpAddr::V4(_) => None,
        // Cut off on purpose.
        IpAddr::V6(address) => Some(u128::from(*address) as u32),
    });
    [v4.collect(), v6.collect()]
}

/// The filter of data for a set of VIPs. `own`: the node's own addresses, whose frames are not let by.
pub(crate) fn program(vips: &[IpAddr], own: &[IpAddr]) -> Vec<Instruction> {
    let ([vips_v4, vips_v6], [own_v4, own_v6]) = (words(vips), words(own));
    let mut program = vec![instruction(LOAD_HALF, ETHERTYPE_AT)];
    for ethertype in [ETHERTYPE_VLAN, ETHERTYPE_SERVICE_VLAN] {
        program.extend(only_if(ethertype.into(), vec![ACCEPT]));
    }
    program.extend(only_if(ETHERTYPE_IPV4.into(), destinations(IPV4_DESTINATION_AT, &vips_v4, &own_v4, MAX_RANGES)));
    let mut ipv6 = if_neighbor_discovery(REJECT);
    ipv6.extend(destinations(IPV6_DESTINATION_AT, &vips_v6, &own_v6, MAX_RANGES));
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

/// Accepts frames whose word at `at` is in one of the ranges that cover `words`, and rejects others: a search by halves, so
/// that many ranges cost a frame few comparisons.
fn destinations(at: u32, words: &[u32], own: &[u32], most: usize) -> Vec<Instruction> {
    let mut part = vec![instruction(LOAD_WORD, at)];
    part.extend(search(&cover(words, own, most)));
    part
}

/// Ends with the acceptance of what is in one of the ranges, and the rejection of everything else.
fn search(ranges: &[RangeInclusive<u32>]) -> Vec<Instruction> {
    match ranges {
        [] => vec![REJECT],
        [range] if range.start() == range.end() => {
            vec![Instruction { jump_false: 1, ..instruction(JUMP_EQUAL, *range.start()) }, ACCEPT, REJECT]
        }
        [range] => vec![
            // Over the other comparison and the acceptance, to the rejection.
            Instruction { jump_false: 2, ..instruction(JUMP_AT_LEAST, *range.start()) },
            Instruction { jump_true: 1, ..instruction(JUMP_ABOVE, *range.end()) },
            ACCEPT,
            REJECT,
        ],
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let (below, above) = (search(low), search(high));
            // A conditional jump goes not far enough for large halves.
            let pivot = Instruction { jump_true: 1, ..instruction(JUMP_AT_LEAST, *high[0].start()) };
            let over = [instruction(JUMP, 1), instruction(JUMP, below.len() as u32)];
            [vec![pivot], over.to_vec(), below, above].concat()
        }
    }
}

/// At most so many ranges that cover all words: each of its own as long as that is possible, and then those together that
/// are closest to each other. Never over one of the node's own addresses, whose traffic is none of ours, as long as that is
/// possible.
fn cover(words: &[u32], own: &[u32], most: usize) -> Vec<RangeInclusive<u32>> {
    let mut words = words.to_vec();
    words.sort_unstable();
    words.dedup();
    let mut ranges: Vec<RangeInclusive<u32>> = Vec::new();
    for word in words {
        match ranges.last_mut() {
            Some(last) if last.end().checked_add(1) == Some(word) => *last = *last.start()..=word,
            _ => ranges.push(word..=word),
        }
    }
    if ranges.len() > most {
        let gap = |two: &[RangeInclusive<u32>]| {
            let gap = two[0].end() + 1..*two[1].start();
            (own.iter().any(|own| gap.contains(own)), gap.end - gap.start)
        };
        let mut gaps: Vec<_> = ranges.windows(2).map(gap).zip(1..).collect();
        gaps.sort_unstable();
        // The narrowest of them are closed.
        let closed: HashSet<usize> = gaps[..ranges.len() - most].iter().map(|(_, before)| *before).collect();
        let mut covering: Vec<RangeInclusive<u32>> = Vec::new();
        for (at, range) in ranges.into_iter().enumerate() {
            match covering.last_mut() {
                Some(last) if closed.contains(&at) => *last = *last.start()..=*range.end(),
                _ => covering.push(range),
            }
        }
        return covering;
    }
    ranges
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
            let program = program(&vips, &[]);
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
    fn scattered_vips_are_told_apart_from_everything_between_them() {
        for count in [1, 2, 3, 17, 50, MAX_RANGES as u32] {
            let v4 = |i: u32| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + i * 1009));
            let v6 = |i: u32| IpAddr::from(Ipv6Addr::from((0x2001_0db8 << 96) | u128::from(i * 77)));
            let vips: Vec<IpAddr> = (0..count).flat_map(|i| [v4(i), v6(i)]).collect();
            let program = program(&vips, &[]);
            for vip in vips {
                let (before, after, ethertype) = match vip {
                    IpAddr::V4(vip) => {
                        let word = u32::from(vip);
                        (Ipv4Addr::from(word - 1).into(), Ipv4Addr::from(word + 1).into(), ETHERTYPE_IPV4)
                    }
                    IpAddr::V6(vip) => {
                        let number = u128::from(vip);
                        (
                            Ipv6Addr::from(number.wrapping_sub(1)).into(),
                            Ipv6Addr::from(number + 1).into(),
                            ETHERTYPE_IPV6,
                        )
                    }
                };
                let taken = [vip, before, after].map(|address: IpAddr| accepts(&program, &frame(ethertype, address)));
                assert_eq!(taken, [true, false, false], "{vip} of {count}");
            }
        }
    }

    #[test]
    fn the_nodes_own_traffic_is_never_copied_however_many_vips_there_are() {
        let v4 = |i: u32| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + i * 257));
        let v6 = |i: u32| IpAddr::from(Ipv6Addr::from((0x2001_0db8 << 96) | u128::from(i * 2)));
        let vips: Vec<IpAddr> = (0..4096u32).flat_map(|i| [v4(i), v6(i)]).collect();
        let own: Vec<IpAddr> =
            ["10.0.0.2", "10.5.0.1", "2001:db8::1", "2001:db8::777"].map(|own| own.parse().unwrap()).into();
        let program = program(&vips, &own);
        assert!(program.len() < 1200, "{}", program.len());
        for (addresses, is_vip) in [(&vips, true), (&own, false)] {
            for address in addresses {
                let ethertype = if address.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
                assert_eq!(accepts(&program, &frame(ethertype, *address)), is_vip, "{address}");
            }
        }
        assert!(!accepts(&program, &frame(ETHERTYPE_IPV4, Ipv4Addr::new(192, 168, 0, 1).into())));
    }

    #[test]
    fn at_the_ends_of_all_numbers() {
        assert_eq!(cover(&[0, u32::MAX, 1, u32::MAX - 1, 1], &[], 2), [0..=1, u32::MAX - 1..=u32::MAX]);
        assert_eq!(cover(&[0, u32::MAX], &[7], 1), [0..=u32::MAX], "one range must do");
        assert_eq!(cover(&[1, 3, 9, 10, 100], &[2], 3), [1..=1, 3..=10, 100..=100]);
        assert_eq!(cover(&[], &[], 3), []);
    }
}
