//! Classic BPF, as the socket filter and the fanout speak it (Documentation/networking/filter.rst).

pub(in crate::io) mod checks;
pub(crate) mod filter;
pub(in crate::io) mod steering;

/// One instruction, as the kernel wants it (struct sock_filter).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jump_true: u8,
    pub(crate) jump_false: u8,
    pub(crate) operand: u32,
}

/// The ethertype, which is not in the bytes that a fanout program sees: they start with the IP header.
/// SKF_AD_OFF + SKF_AD_PROTOCOL.
pub(in crate::io) const PROTOCOL: u32 = 0xffff_f000;

/// Loads into the accumulator from a place in the packet.
pub(in crate::io) const LOAD_BYTE: u16 = 0x30;
pub(in crate::io) const LOAD_HALF: u16 = 0x28;
pub(in crate::io) const LOAD_WORD: u16 = 0x20;
/// The same, from that place behind the index register.
pub(in crate::io) const LOAD_WORD_AT_INDEX: u16 = 0x40;
pub(in crate::io) const LOAD_HALF_AT_INDEX: u16 = 0x48;
pub(in crate::io) const LOAD_BYTE_AT_INDEX: u16 = 0x50;
/// The index register becomes the length of the IPv4 header at a place.
pub(in crate::io) const INDEX_IPV4_HEADER: u16 = 0xb1;
/// Memory words.
pub(in crate::io) const LOAD_MEMORY: u16 = 0x60;
pub(in crate::io) const INDEX_MEMORY: u16 = 0x61;
pub(in crate::io) const STORE: u16 = 0x02;
/// The index register becomes the accumulator.
pub(in crate::io) const INDEX_ACCUMULATOR: u16 = 0x07;
pub(in crate::io) const MULTIPLY: u16 = 0x24;
pub(in crate::io) const SHIFT_RIGHT: u16 = 0x74;
pub(in crate::io) const XOR_INDEX: u16 = 0xac;
pub(in crate::io) const JUMP: u16 = 0x05;
pub(in crate::io) const JUMP_EQUAL: u16 = 0x15;
pub(in crate::io) const JUMP_ABOVE: u16 = 0x25;
pub(in crate::io) const JUMP_AT_LEAST: u16 = 0x35;
pub(in crate::io) const JUMP_ANY_BIT: u16 = 0x45;
pub(in crate::io) const RETURN: u16 = 0x06;
pub(in crate::io) const RETURN_ACCUMULATOR: u16 = 0x16;

/// One that does not jump.
pub(in crate::io) const fn instruction(code: u16, operand: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, operand }
}

/// Runs `part` only if the accumulator has this value. A conditional jump alone does not go over a long part.
pub(in crate::io) fn only_if(value: u32, part: Vec<Instruction>) -> Vec<Instruction> {
    let into = Instruction { jump_true: 1, ..instruction(JUMP_EQUAL, value) };
    [vec![into, instruction(JUMP, part.len() as u32)], part].concat()
}

/// Runs a program on a packet as the kernel would; `protocol` is what the kernel knows beside the bytes.
#[cfg(test)]
pub(in crate::io) fn run(program: &[Instruction], packet: &[u8], protocol: u16) -> u32 {
    let (mut at, mut a, mut x, mut memory) = (0, 0u32, 0u32, [0u32; 16]);
    loop {
        let i = program[at];
        at += 1;
        let k = i.operand as usize;
        let bytes = |from: usize, len: usize| {
            packet.get(from..from + len).map(|bytes| bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)))
        };
        // Beyond the packet's end the program ends.
        let mut load = |from: usize, len: usize| bytes(from, len).inspect(|word| a = *word).is_some();
        let goes_on = match i.code {
            LOAD_HALF if i.operand == PROTOCOL => {
                a = protocol.into();
                true
            }
            LOAD_BYTE => load(k, 1),
            LOAD_HALF => load(k, 2),
            LOAD_WORD => load(k, 4),
            LOAD_WORD_AT_INDEX => load(x as usize + k, 4),
            LOAD_HALF_AT_INDEX => load(x as usize + k, 2),
            LOAD_BYTE_AT_INDEX => load(x as usize + k, 1),
            INDEX_IPV4_HEADER => bytes(k, 1).inspect(|byte| x = (byte & 0xf) * 4).is_some(),
            LOAD_MEMORY => {
                a = memory[k];
                true
            }
            INDEX_MEMORY => {
                x = memory[k];
                true
            }
            STORE => {
                memory[k] = a;
                true
            }
            INDEX_ACCUMULATOR => {
                x = a;
                true
            }
            MULTIPLY => {
                a = a.wrapping_mul(i.operand);
                true
            }
            SHIFT_RIGHT => {
                a >>= i.operand;
                true
            }
            XOR_INDEX => {
                a ^= x;
                true
            }
            JUMP => {
                at += i.operand as usize;
                true
            }
            JUMP_EQUAL | JUMP_ABOVE | JUMP_AT_LEAST | JUMP_ANY_BIT => {
                let holds = match i.code {
                    JUMP_EQUAL => a == i.operand,
                    JUMP_ABOVE => a > i.operand,
                    JUMP_AT_LEAST => a >= i.operand,
                    _ => a & i.operand != 0,
                };
                at += usize::from(if holds { i.jump_true } else { i.jump_false });
                true
            }
            RETURN => return i.operand,
            RETURN_ACCUMULATOR => return a,
            code => panic!("code {code:#x}"),
        };
        if !goes_on {
            return 0;
        }
    }
}
