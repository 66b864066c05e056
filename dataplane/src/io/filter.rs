//! The socket filter (classic BPF): ARP, and IPv4 for the VIPs. It spares the ring everything else on
//! the wire; the worker checks again, so a filter that lets too much by costs time and nothing more.

use std::net::Ipv4Addr;

use crate::packet::{ETHERTYPE_ARP, ETHERTYPE_IPV4};

/// One instruction, as the kernel wants it (struct sock_filter).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jump_true: u8,
    pub(crate) jump_false: u8,
    pub(crate) operand: u32,
}

/// Compared one after the other; more VIPs than this are covered by shorter prefixes.
const MAX_PREFIXES: usize = 16;

const LOAD_HALF: u16 = 0x28;
const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const WHOLE_FRAME: u32 = 0x40000;
const ETHERTYPE_AT: u32 = 12;
const IPV4_DESTINATION_AT: u32 = 30;

/// The filter for a set of VIPs.
pub(crate) fn program(vips: &[Ipv4Addr]) -> Vec<Instruction> {
    let op = |code, operand| Instruction { code, jump_true: 0, jump_false: 0, operand };
    let (mask, networks) = cover(vips);
    // Each comparison jumps over the rest of them, and over the rejection, to the acceptance.
    let to_accept = |at: usize| (networks.len() - at) as u8;
    let mut program = vec![
        op(LOAD_HALF, ETHERTYPE_AT),
        Instruction { jump_true: networks.len() as u8 + 4, ..op(JUMP_EQUAL, ETHERTYPE_ARP.into()) },
        Instruction { jump_false: networks.len() as u8 + 2, ..op(JUMP_EQUAL, ETHERTYPE_IPV4.into()) },
        op(LOAD_WORD, IPV4_DESTINATION_AT),
        op(AND, mask),
    ];
    for (at, network) in networks.iter().enumerate() {
        program.push(Instruction { jump_true: to_accept(at), ..op(JUMP_EQUAL, *network) });
    }
    program.push(op(RETURN, 0));
    program.push(op(RETURN, WHOLE_FRAME));
    program
}

/// The longest prefix length with which few networks cover all VIPs.
fn cover(vips: &[Ipv4Addr]) -> (u32, Vec<u32>) {
    for len in (0..=32).rev() {
        let mask = u32::MAX.checked_shl(32 - len).unwrap_or(0);
        let mut networks: Vec<u32> = vips.iter().map(|vip| u32::from(*vip) & mask).collect();
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
    use super::*;

    /// Runs a program on a frame as the kernel would.
    fn accepts(program: &[Instruction], frame: &[u8]) -> bool {
        let (mut at, mut a) = (0, 0u32);
        loop {
            let i = program[at];
            at += 1;
            let k = i.operand as usize;
            match i.code {
                LOAD_HALF => a = u16::from_be_bytes(frame[k..k + 2].try_into().unwrap()).into(),
                LOAD_WORD => a = u32::from_be_bytes(frame[k..k + 4].try_into().unwrap()),
                AND => a &= i.operand,
                JUMP_EQUAL => at += usize::from(if a == i.operand { i.jump_true } else { i.jump_false }),
                RETURN => return i.operand != 0,
                code => panic!("code {code:#x}"),
            }
        }
    }

    fn frame(ethertype: u16, destination: Ipv4Addr) -> Vec<u8> {
        let mut frame = vec![0; 60];
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        frame[30..34].copy_from_slice(&destination.octets());
        frame
    }

    #[test]
    fn vips_and_arp_pass_and_the_rest_does_not() {
        for count in [0, 1, 2, 16] {
            let vips: Vec<Ipv4Addr> = (1..=count).map(|i| Ipv4Addr::new(192, 168, 2, i)).collect();
            let program = program(&vips);
            for vip in &vips {
                assert!(accepts(&program, &frame(ETHERTYPE_IPV4, *vip)), "{vip} of {count}");
            }
            assert!(!accepts(&program, &frame(ETHERTYPE_IPV4, Ipv4Addr::new(192, 168, 2, 200))));
            assert!(!accepts(&program, &frame(0x86dd, vips.first().copied().unwrap_or(Ipv4Addr::LOCALHOST))));
            assert!(accepts(&program, &frame(ETHERTYPE_ARP, Ipv4Addr::UNSPECIFIED)));
        }
    }

    #[test]
    fn many_vips_are_covered_by_a_short_program() {
        let vips: Vec<Ipv4Addr> = (0..4096u32).map(|i| Ipv4Addr::from(0x0a00_0000 + i * 257)).collect();
        let program = program(&vips);
        assert!(program.len() < 32);
        assert!(vips.iter().all(|vip| accepts(&program, &frame(ETHERTYPE_IPV4, *vip))));
        assert!(!accepts(&program, &frame(ETHERTYPE_IPV4, Ipv4Addr::new(192, 168, 0, 1))));
    }
}
