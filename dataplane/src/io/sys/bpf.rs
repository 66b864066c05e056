//! bpf(2): maps, programs and links, as far as the accelerator needs them (linux/bpf.h, union bpf_attr).

use std::{
    fmt, io,
    ops::Deref,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr::{self, NonNull},
    sync::atomic::AtomicU64,
};

use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget};

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
#[cfg(test)]
const PROG_TEST_RUN: libc::c_int = 10;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;

const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const MMAPABLE: u32 = 1 << 10;
/// An instruction is 8 bytes.
const INSTRUCTION: usize = 8;
/// The instruction that loads 64 bits (BPF_LD | BPF_IMM | BPF_DW).
const LOAD_64: u8 = 0x18;
/// In its source register: the value is a map's descriptor.
const PSEUDO_MAP_FD: u8 = 1;
/// A signal ends the verifier's work with EAGAIN: it is done again, so often at most.
const LOADS: usize = 5;
/// For what the verifier says.
const LOG_BYTES: usize = 1 << 20;

/// The kinds of maps (enum bpf_map_type).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum MapKind {
    /// Looked up by key.
    Hash = 1,
    /// Zeroed elements by index, in our memory too.
    Array = 2,
    /// Interfaces that frames can be redirected to.
    DevmapHash = 25,
}

/// What a map is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MapShape {
    pub(crate) name: &'static str,
    pub(crate) kind: MapKind,
    pub(crate) key_bytes: usize,
    pub(crate) value_bytes: usize,
    pub(crate) entries: usize,
}

/// How a program sees frames (XDP_FLAGS_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum XdpMode {
    /// In the kernel, before it looks at them.
    Generic = 1 << 1,
    /// In the driver.
    Native = 1 << 2,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Generic => "generic",
            Self::Native => "native",
        })
    }
}

/// A map. It is there as long as somebody has it: a process, or a program.
#[derive(Debug)]
pub(crate) struct Map {
    fd: OwnedFd,
    shape: MapShape,
}

/// A program that the kernel has found sound.
#[derive(Debug)]
pub(crate) struct Program(OwnedFd);

/// A program on an interface, as long as somebody has this or a copy of its descriptor.
#[derive(Debug)]
pub(crate) struct Link(OwnedFd);

fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is as long as is said, of the kernel's layout, and what it points at lives for the call.
    match unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attr), size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// For commands that answer with a descriptor.
fn bpf_open<T>(command: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel has just made it for us.
    bpf(command, attr).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// As the kernel has names: 15 bytes and a zero.
fn short(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

fn raw(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

impl Map {
    /// Makes an empty one.
    pub(crate) fn new(shape: MapShape) -> io::Result<Self> {
        #[repr(C)]
        struct Attr {
            map_type: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
            map_flags: u32,
            inner_map_fd: u32,
            numa_node: u32,
            name: [u8; 16],
        }
        let mut attr = Attr {
            map_type: shape.kind as u32,
            key_size: shape.key_bytes as u32,
            value_size: shape.value_bytes as u32,
            max_entries: shape.entries as u32,
            map_flags: if shape.kind == MapKind::Array { MMAPABLE } else { 0 },
            inner_map_fd: 0,
            numa_node: 0,
            name: short(shape.name),
        };
        Ok(Self { fd: bpf_open(MAP_CREATE, &mut attr)?, shape })
    }

    /// Sets an element.
    pub(crate) fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert!(key.len() == self.shape.key_bytes && value.len() == self.shape.value_bytes);
        self.element(MAP_UPDATE_ELEM, key, value.as_ptr() as u64)
    }

    /// Removes one, if it is there.
    pub(crate) fn remove(&self, key: &[u8]) -> io::Result<()> {
        assert_eq!(key.len(), self.shape.key_bytes);
        match self.element(MAP_DELETE_ELEM, key, 0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }

    fn element(&self, command: libc::c_int, key: &[u8], value: u64) -> io::Result<()> {
        #[repr(C)]
        struct Attr {
            map: u32,
            pad: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        bpf(command, &mut Attr { map: raw(&self.fd), pad: 0, key: key.as_ptr() as u64, value, flags: 0 }).map(drop)
    }

    /// The elements of an array, in our memory too.
    pub(crate) fn words(&self) -> io::Result<Words> {
        assert!(self.shape.kind == MapKind::Array && self.shape.value_bytes.is_multiple_of(8));
        let bytes = self.shape.entries * self.shape.value_bytes;
        let (access, share) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, access, share, self.fd.as_raw_fd(), 0) };
        match NonNull::new(start.cast()).filter(|_| start != libc::MAP_FAILED) {
            Some(start) => Ok(Words { start, len: bytes / 8 }),
            None => Err(io::Error::last_os_error()),
        }
    }
}

/// The words of a mapped array, which programs read and write meanwhile.
#[derive(Debug)]
pub(crate) struct Words {
    start: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: an address and a length; the words are atomic.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping of `Map::words`, page-aligned and so long, for as long as `self` is; it starts zeroed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: mapped once, unmapped once, and nobody refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len * 8) };
    }
}

/// What became of a frame in a test run.
#[cfg(test)]
pub(crate) struct Ran {
    pub(crate) verdict: u32,
    pub(crate) frame: Vec<u8>,
}

impl Program {
    /// Loads a function of an object that clang has made. Its maps are ours: where the object has the address of a symbol
    /// with a map's name, the map's descriptor comes in its place.
    pub(crate) fn load(object: &[u8], function: &str, maps: &[Map]) -> io::Result<Self> {
        #[repr(C)]
        struct Attr {
            prog_type: u32,
            insn_cnt: u32,
            insns: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log_buf: u64,
            kern_version: u32,
            prog_flags: u32,
            name: [u8; 16],
            ifindex: u32,
            attach_type: u32,
        }
        let code = linked(object, function, maps).map_err(io::Error::other)?;
        let mut attr = Attr {
            prog_type: PROG_TYPE_XDP,
            insn_cnt: (code.len() / INSTRUCTION) as u32,
            insns: code.as_ptr() as u64,
            license: c"Dual MIT/GPL".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kern_version: 0,
            prog_flags: 0,
            name: short(function),
            ifindex: 0,
            attach_type: ATTACH_XDP,
        };
        let mut outcome = bpf_open(PROG_LOAD, &mut attr);
        for _ in 1..LOADS {
            match outcome {
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => outcome = bpf_open(PROG_LOAD, &mut attr),
                _ => break,
            }
        }
        match outcome {
            Ok(fd) => Ok(Self(fd)),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Err(error),
            Err(_) => {
                // Once more, to hear why.
                let mut log = vec![0u8; LOG_BYTES];
                (attr.log_level, attr.log_size, attr.log_buf) = (1, LOG_BYTES as u32, log.as_mut_ptr() as u64);
                bpf_open(PROG_LOAD, &mut attr).map(Self).map_err(|error| {
                    let said = String::from_utf8_lossy(&log);
                    let last = said.trim_end_matches('\0').lines().rev().take(3).collect::<Vec<_>>();
                    io::Error::new(error.kind(), format!("{error}: {}", last.join("; ")))
                })
            }
        }
    }

    /// Has it see the frames that come in by an interface.
    pub(crate) fn attach(&self, ifindex: u32, mode: XdpMode) -> io::Result<Link> {
        #[repr(C)]
        struct Attr {
            prog_fd: u32,
            target_ifindex: u32,
            attach_type: u32,
            flags: u32,
            rest: [u64; 4],
        }
        let mut attr = Attr {
            prog_fd: raw(&self.0),
            target_ifindex: ifindex,
            attach_type: ATTACH_XDP,
            flags: mode as u32,
            rest: [0; 4],
        };
        bpf_open(LINK_CREATE, &mut attr).map(Link)
    }

    /// Runs it on a frame as if it came in by an interface.
    #[cfg(test)]
    pub(crate) fn run(&self, frame: &[u8], ifindex: u32) -> io::Result<Ran> {
        #[repr(C)]
        #[derive(Default)]
        struct Attr {
            prog_fd: u32,
            retval: u32,
            data_size_in: u32,
            data_size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            ctx_size_in: u32,
            ctx_size_out: u32,
            ctx_in: u64,
            ctx_out: u64,
            flags: u32,
            cpu: u32,
            batch_size: u32,
            pad: u32,
        }
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, frame.len() as u32, 0, ifindex, 0, 0];
        let mut out = vec![0; frame.len() + 256];
        let mut attr = Attr {
            prog_fd: raw(&self.0),
            data_size_in: frame.len() as u32,
            data_size_out: out.len() as u32,
            data_in: frame.as_ptr() as u64,
            data_out: out.as_mut_ptr() as u64,
            repeat: 1,
            ctx_size_in: size_of_val(&context) as u32,
            ctx_in: context.as_ptr() as u64,
            ..Attr::default()
        };
        bpf(PROG_TEST_RUN, &mut attr)?;
        out.truncate(attr.data_size_out as usize);
        Ok(Ran { verdict: attr.retval, frame: out })
    }
}

impl Link {
    /// One that was made before.
    pub(crate) fn of(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Has another program see the frames, from one to the next.
    pub(crate) fn update(&self, program: &Program) -> io::Result<()> {
        #[repr(C)]
        struct Attr {
            link_fd: u32,
            new_prog_fd: u32,
            flags: u32,
            old_prog_fd: u32,
        }
        let mut attr = Attr { link_fd: raw(&self.0), new_prog_fd: raw(&program.0), flags: 0, old_prog_fd: 0 };
        bpf(LINK_UPDATE, &mut attr).map(drop)
    }

    /// Takes the program off, whoever has a copy.
    pub(crate) fn detach(&self) -> io::Result<()> {
        #[repr(C)]
        struct Attr {
            link_fd: u32,
        }
        bpf(LINK_DETACH, &mut Attr { link_fd: raw(&self.0) }).map(drop)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The instructions of a function, with maps in place of symbols.
fn linked(object: &[u8], function: &str, maps: &[Map]) -> Result<Vec<u8>, String> {
    let unsound = |error: object::Error| format!("the object of the accelerator: {error}");
    let file = object::File::parse(object).map_err(unsound)?;
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(function)).ok_or("no such function")?;
    let section = symbol.section_index().ok_or("a function without a section")?;
    let section = file.section_by_index(section).map_err(unsound)?;
    let start = symbol.address() as usize;
    let end = start + symbol.size() as usize;
    let mut code = section.data().map_err(unsound)?.get(start..end).ok_or("a function of no bytes")?.to_vec();
    for (at, relocation) in section.relocations() {
        let Some(at) = (at as usize).checked_sub(start).filter(|at| at + INSTRUCTION <= code.len()) else { continue };
        let RelocationTarget::Symbol(target) = relocation.target() else { return Err("an odd relocation".into()) };
        let name = file.symbol_by_index(target).and_then(|symbol| symbol.name()).map_err(unsound)?;
        let map = maps.iter().find(|map| map.shape.name == name).ok_or_else(|| format!("there is no map {name}"))?;
        if code[at] != LOAD_64 {
            return Err(format!("{name} is called, and is a map"));
        }
        code[at + 1] = code[at + 1] & 0xf | PSEUDO_MAP_FD << 4;
        code[at + 4..at + 8].copy_from_slice(&map.fd.as_fd().as_raw_fd().to_ne_bytes());
    }
    Ok(code)
}
