//! Two small XDP programs, assembled by hand and loaded by bpf(2), so that no compiler is needed: one
//! makes frames in the kernel at a given rate, one swallows what comes back.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

const BPF_MAP_CREATE: i64 = 0;
const BPF_PROG_LOAD: i64 = 5;
const BPF_PROG_TEST_RUN: i64 = 10;
const BPF_LINK_CREATE: i64 = 28;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const LIVE_FRAMES: u32 = 1 << 1;
const XDP_DROP: i32 = 1;
const XDP_TX: i32 = 3;
/// Frames between two looks at the clock.
const BURST: i32 = 32;

/// One instruction: code, destination | source << 4, offset, immediate.
type Instruction = (u8, u8, i16, i32);

fn encode(program: &[Instruction]) -> Vec<u8> {
    let one = |&(code, registers, offset, immediate): &Instruction| {
        let mut bytes = [code, registers, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
        bytes[4..].copy_from_slice(&immediate.to_ne_bytes());
        bytes
    };
    program.iter().flat_map(one).collect()
}

/// A bpf_attr, field by field.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// # Safety
    /// Every address in the attributes must point at memory of the length that the command expects.
    unsafe fn call(mut self, command: i64) -> io::Result<i32> {
        self.0.resize(160, 0);
        // SAFETY: the attributes are valid for their length; what they point at is the caller's promise.
        let outcome = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        match i32::try_from(outcome) {
            Ok(fd) if fd >= 0 => Ok(fd),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: bpf(2) has just returned this descriptor, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let code = encode(program);
    let license = c"GPL";
    let attributes = Attributes::default()
        .u32(BPF_PROG_TYPE_XDP)
        .u32(program.len() as u32)
        .u64(code.as_ptr() as u64)
        .u64(license.as_ptr() as u64);
    // SAFETY: code and license live until the call returns.
    unsafe { attributes.call(BPF_PROG_LOAD) }.map(owned)
}

/// Whether programs may be loaded: not from within a user namespace. The error says so for people.
pub fn may_load() -> Result<(), String> {
    let nothing = load(&[(0xb7, 0, 0, XDP_DROP), (0x95, 0, 0, 0)]);
    nothing.map(drop).map_err(|error| format!("the kernel takes no XDP program from it ({error})"))
}

/// Has the driver of an interface of the calling thread's namespace run a program.
fn attach(program: &[Instruction], ifindex: u32) -> io::Result<OwnedFd> {
    let program = load(program)?;
    let attributes = Attributes::default()
        .u32(program.as_raw_fd().cast_unsigned())
        .u32(ifindex)
        .u32(BPF_XDP)
        .u32(XDP_FLAGS_DRV_MODE);
    // SAFETY: this command has no addresses.
    unsafe { attributes.call(BPF_LINK_CREATE) }.map(owned)
}

/// Swallows all frames that reach an interface, until it is dropped.
pub struct Sink(#[allow(dead_code, reason = "held for its effect")] OwnedFd);

impl Sink {
    /// Attaches to an interface of the calling thread's namespace.
    pub fn attach(ifindex: u32) -> io::Result<Self> {
        attach(&[(0xb7, 0, 0, XDP_DROP), (0x95, 0, 0, 0)], ifindex).map(Self)
    }
}

/// Sends all frames that reach an interface back to where they came from, until it is dropped.
pub struct Reflector(#[allow(dead_code, reason = "held for its effect")] OwnedFd);

impl Reflector {
    /// Attaches to an interface of the calling thread's namespace.
    pub fn attach(ifindex: u32) -> io::Result<Self> {
        let program = [
            (0x61, 0x12, 0, 0),        //  0 r2 = data
            (0x61, 0x13, 4, 0),        //  1 r3 = data_end
            (0xbf, 0x24, 0, 0),        //  2 r4 = r2
            (0x07, 0x04, 0, 14),       //  3 r4 += 14
            (0x2d, 0x34, 10, 0),       //  4 if r4 > r3 goto drop
            (0x61, 0x25, 0, 0),        //  5 r5, r0: the destination
            (0x69, 0x20, 4, 0),        //  6
            (0x61, 0x24, 6, 0),        //  7 r4, r3: the source
            (0x69, 0x23, 10, 0),       //  8
            (0x63, 0x42, 0, 0),        //  9 exchanged
            (0x6b, 0x32, 4, 0),        // 10
            (0x63, 0x52, 6, 0),        // 11
            (0x6b, 0x02, 10, 0),       // 12
            (0xb7, 0x00, 0, XDP_TX),   // 13 return XDP_TX
            (0x95, 0x00, 0, 0),        // 14
            (0xb7, 0x00, 0, XDP_DROP), // 15 drop: return XDP_DROP
            (0x95, 0x00, 0, 0),        // 16
        ];
        attach(&program, ifindex).map(Self)
    }
}

/// What tells the frames of a generator apart. A flow's number gives its source port, its source address and its
/// destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flows {
    /// How many; a power of two.
    pub count: u32,
    /// The first source address; the next one is used when its [`Self::PORTS`] are.
    pub source: Ipv4Addr,
    /// The first destination.
    pub destination: Ipv4Addr,
    /// How many follow each other.
    pub destinations: u32,
}

impl Flows {
    /// Source ports of one address.
    pub const PORTS: u32 = 1 << 14;
    /// The first of them.
    pub const FIRST_PORT: u16 = 1024;

    /// Source, source port and destination of a flow.
    pub fn tuple(&self, number: u32) -> (Ipv4Addr, u16, Ipv4Addr) {
        let port = Self::FIRST_PORT + (number % Self::PORTS) as u16;
        let add = |address: Ipv4Addr, offset: u32| Ipv4Addr::from(u32::from(address) + offset);
        (add(self.source, number / Self::PORTS), port, add(self.destination, number % self.destinations))
    }
}

/// Makes frames and sends them out of an interface.
pub struct Generator {
    program: OwnedFd,
    _state: OwnedFd,
    ifindex: u32,
}

impl Generator {
    /// Frames like this one leave at this rate, each of a random flow.
    pub fn new(ifindex: u32, packets_per_second: u64, flows: &Flows, frame: &[u8]) -> io::Result<Self> {
        let attributes = Attributes::default().u32(BPF_MAP_TYPE_ARRAY).u32(4).u32(16).u32(1);
        // SAFETY: this command has no addresses.
        let state = unsafe { attributes.call(BPF_MAP_CREATE) }.map(owned)?;
        let interval = (u64::from(BURST.cast_unsigned()) * 1_000_000_000 / packets_per_second) as i32;
        let mut addresses = [0; 3];
        for (word, bytes) in addresses.iter_mut().zip(frame.as_chunks().0) {
            *word = i32::from_ne_bytes(*bytes);
        }
        let program = load(&pacing_program(state.as_raw_fd(), interval, flows, addresses))?;
        Ok(Self { program, _state: state, ifindex })
    }

    /// Works through `turns` turns of the program; a turn sends a frame or waits.
    pub fn run(&self, frame: &[u8], turns: u32) -> io::Result<()> {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, frame.len() as u32, 0, self.ifindex, 0, 0];
        let attributes = Attributes::default()
            .u32(self.program.as_raw_fd().cast_unsigned())
            .u32(0)
            .u32(frame.len() as u32)
            .u32(0)
            .u64(frame.as_ptr() as u64)
            .u64(0)
            .u32(turns)
            .u32(0)
            .u32(size_of_val(&context) as u32)
            .u32(0)
            .u64(context.as_ptr() as u64)
            .u64(0)
            .u32(LIVE_FRAMES)
            .u32(0)
            .u32(64);
        // SAFETY: frame and context live until the call returns.
        match unsafe { attributes.call(BPF_PROG_TEST_RUN) } {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}

/// The state is the moment of the next burst and what is left of the present one.
fn pacing_program(map: i32, interval: i32, flows: &Flows, addresses: [i32; 3]) -> Vec<Instruction> {
    const PSEUDO_MAP_FD: u8 = 1;
    let number = |address: Ipv4Addr| u32::from(address).cast_signed();
    vec![
        (0xbf, 0x16, 0, 0),                                //  0 r6 = r1, the context
        (0x62, 0x0a, -4, 0),                               //  1 *(u32 *)(r10 - 4) = 0, the key
        (0xbf, 0xa2, 0, 0),                                //  2 r2 = r10
        (0x07, 0x02, 0, -4),                               //  3 r2 -= 4
        (0x18, PSEUDO_MAP_FD << 4 | 1, 0, map),            //  4 r1 = map
        (0x00, 0x00, 0, 0),                                //  5 (second half)
        (0x85, 0x00, 0, 1),                                //  6 r0 = map_lookup_elem
        (0x15, 0x00, 43, 0),                               //  7 if r0 == 0 goto drop
        (0xbf, 0x09, 0, 0),                                //  8 r9 = r0
        (0x79, 0x91, 8, 0),                                //  9 r1 = left
        (0x55, 0x01, 10, 0),                               // 10 if r1 != 0 goto take
        (0x85, 0x00, 0, 5),                                // 11 r0 = ktime_get_ns
        (0x79, 0x92, 0, 0),                                // 12 r2 = next
        (0xad, 0x20, 37, 0),                               // 13 if r0 < r2 goto drop
        (0x07, 0x02, 0, interval),                         // 14 r2 += interval
        (0xbf, 0x23, 0, 0),                                // 15 r3 = r2
        (0x07, 0x03, 0, 100_000),                          // 16 r3 += 100 us
        (0x3d, 0x03, 1, 0),                                // 17 if r3 >= r0 skip: not too far behind
        (0xbf, 0x02, 0, 0),                                // 18 r2 = r0
        (0x7b, 0x29, 0, 0),                                // 19 next = r2
        (0xb7, 0x01, 0, BURST),                            // 20 r1 = BURST
        (0x07, 0x01, 0, -1),                               // 21 take: r1 -= 1
        (0x7b, 0x19, 8, 0),                                // 22 left = r1
        (0x61, 0x67, 0, 0),                                // 23 r7 = data
        (0x61, 0x68, 4, 0),                                // 24 r8 = data_end
        (0xbf, 0x72, 0, 0),                                // 25 r2 = r7
        (0x07, 0x02, 0, 36),                               // 26 r2 += 36
        (0x2d, 0x82, 23, 0),                               // 27 if r2 > r8 goto drop
        (0x62, 0x07, 0, addresses[0]), // 28 the MAC addresses, which whoever had the page has changed
        (0x62, 0x07, 4, addresses[1]), // 29
        (0x62, 0x07, 8, addresses[2]), // 30
        (0x85, 0x00, 0, 7),            // 31 r0 = get_prandom_u32
        (0x57, 0x00, 0, (flows.count - 1).cast_signed()), // 32 r0 &= count - 1
        (0xbf, 0x09, 0, 0),            // 33 r9 = r0, the flow
        (0xbf, 0x91, 0, 0),            // 34 r1 = r9
        (0x57, 0x01, 0, (Flows::PORTS - 1).cast_signed()), // 35 r1 &= PORTS - 1
        (0x07, 0x01, 0, Flows::FIRST_PORT as i32), // 36 r1 += FIRST_PORT
        (0xdc, 0x01, 0, 16),           // 37 r1 = htobe16(r1)
        (0x6b, 0x17, 34, 0),           // 38 the UDP source port = r1
        (0xbf, 0x91, 0, 0),            // 39 r1 = r9
        (0x77, 0x01, 0, Flows::PORTS.ilog2() as i32), // 40 r1 /= PORTS
        (0x07, 0x01, 0, number(flows.source)), // 41 r1 += source
        (0xdc, 0x01, 0, 32),           // 42 r1 = htobe32(r1)
        (0x63, 0x17, 26, 0),           // 43 the source address = r1
        (0xbf, 0x91, 0, 0),            // 44 r1 = r9
        (0x97, 0x01, 0, flows.destinations.cast_signed()), // 45 r1 %= destinations
        (0x07, 0x01, 0, number(flows.destination)), // 46 r1 += destination
        (0xdc, 0x01, 0, 32),           // 47 r1 = htobe32(r1)
        (0x63, 0x17, 30, 0),           // 48 the destination address = r1
        (0xb7, 0x00, 0, XDP_TX),       // 49 r0 = XDP_TX
        (0x95, 0x00, 0, 0),            // 50 exit
        (0xb7, 0x00, 0, XDP_DROP),     // 51 drop: r0 = XDP_DROP
        (0x95, 0x00, 0, 0),            // 52 exit
    ]
}
