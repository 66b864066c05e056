//! A TPACKET_V2 receive ring (packet_mmap in the kernel's documentation): the kernel writes frames
//! into shared slots, the worker rewrites them where they are, and the sends read them from there. Whose turn a slot is:
//! [`super::turn`].

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::AtomicU32,
};

use super::{
    socket::{PacketSocket, PortConfig, RingRequest, SocketError},
    turn::Turn,
};
use crate::packet::{FrameMeta, VLAN_NUMBER, VnetHeader};

const SLOTS: u32 = 4096;
/// Memory of one ring at most; with jumbo frames there are fewer slots.
const MAX_RING_BYTES: u32 = 32 << 20;
/// Blocks are physically contiguous: small enough to be found, large enough for jumbo slots.
const BLOCK_BYTES: u32 = 128 << 10;
/// Slot header, addresses, alignment, vnet header, Ethernet header and a VLAN tag: what the kernel
/// puts before the IP packet, rounded up.
const HEADROOM: u32 = 128;
const CACHE_LINE: u32 = 64;

/// linux/if_packet.h
const TP_STATUS_COPY: u32 = 1 << 1;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;

/// Whether a frame belongs to a VLAN, by what the kernel says beside it. One whose tag has the null identifier carries
/// only a priority (IEEE 802.1Q 9.6): it is treated as untagged, as the kernel does.
pub(in crate::io) fn is_vlan_tagged(status: u32, vlan_tci: u16) -> bool {
    status & TP_STATUS_VLAN_VALID != 0 && vlan_tci & VLAN_NUMBER != 0
}

/// struct tpacket2_hdr
#[repr(C)]
struct SlotHeader {
    status: AtomicU32,
    len: u32,
    captured_len: u32,
    mac_at: u16,
    net_at: u16,
    sec: u32,
    nsec: u32,
    vlan_tci: u16,
    vlan_tpid: u16,
    padding: [u8; 4],
}

const _: () = assert!(size_of::<SlotHeader>() == 32);

/// The ring and its socket.
pub(in crate::io) struct PacketRing {
    /// Unmapped before the socket is closed, by the order of these fields' use in `drop`.
    start: NonNull<u8>,
    bytes: usize,
    slot_size: usize,
    /// Where each slot begins: a block's end may stay empty.
    offsets: Box<[u32]>,
    turn: Turn,
    socket: PacketSocket,
}

/// A frame that stands in the ring, behind its vnet header.
pub(in crate::io) struct Whole<'a> {
    /// Vnet header and frame.
    pub(in crate::io) bytes: &'a mut [u8],
    /// What the kernel says beside them.
    pub(in crate::io) meta: FrameMeta,
}

/// A frame that was longer than a slot.
pub(in crate::io) enum Other {
    /// It waits, whole, in the socket's queue.
    Queued {
        /// Whether it carries a VLAN tag.
        vlan_tagged: bool,
    },
    /// The queue had no room.
    Truncated,
}

/// A slot that the kernel has filled.
struct Filled {
    slot: NonNull<SlotHeader>,
    status: u32,
    len: usize,
    captured_len: usize,
    mac_at: usize,
    vlan_tagged: bool,
}

impl Filled {
    fn is_whole(&self) -> bool {
        self.status & TP_STATUS_COPY == 0 && self.captured_len >= self.len && self.mac_at >= VnetHeader::LEN
    }
}

/// How a ring's memory is shared out.
struct Geometry {
    slot_size: u32,
    block_count: u32,
    /// Where each slot begins.
    offsets: Box<[u32]>,
}

impl Geometry {
    /// For frames of this MTU. A slot is an odd number of cache lines, so that the beginnings of slots, which are looked at
    /// most, share no sets of the caches; for the longest MTU it is a block.
    fn of(mtu: u32) -> Self {
        let lines = (mtu + HEADROOM).div_ceil(CACHE_LINE) | 1;
        let slot_size = (lines * CACHE_LINE).min(BLOCK_BYTES);
        let slots_per_block = BLOCK_BYTES / slot_size;
        let block_count = SLOTS.div_ceil(slots_per_block).min(MAX_RING_BYTES / BLOCK_BYTES);
        let offset = |slot| slot / slots_per_block * BLOCK_BYTES + slot % slots_per_block * slot_size;
        Self { slot_size, block_count, offsets: (0..block_count * slots_per_block).map(offset).collect() }
    }
}

impl PacketRing {
    /// The receive buffer that its socket needs: for GSO frames, which do not stand in the ring.
    pub(in crate::io) const RECEIVE_BUFFER: libc::c_int = 16 << 20;

    /// The ring of a socket that receives nothing yet, with slots for the port's MTU.
    pub(in crate::io) fn map(socket: PacketSocket, port: &PortConfig) -> Result<Self, SocketError> {
        let Geometry { slot_size, block_count, offsets } = Geometry::of(port.mtu);
        let slot_count = offsets.len() as u32;
        socket.request_ring(RingRequest { block_size: BLOCK_BYTES, block_count, slot_size, slot_count })?;
        let bytes = (BLOCK_BYTES * block_count) as usize;
        // SAFETY: a new shared mapping of the ring just requested, at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                socket.as_raw_fd(),
                0,
            )
        };
        let mapped = if start == libc::MAP_FAILED { None } else { NonNull::new(start.cast::<u8>()) };
        let start = mapped.ok_or_else(|| socket.error("mapping the ring", io::Error::last_os_error()))?;
        Ok(Self { start, bytes, slot_size: slot_size as usize, offsets, turn: Turn::new(slot_count as usize), socket })
    }

    /// Takes the next frames that stand in the ring whole, up to one that does not. They are ours until
    /// [`Self::give_back`].
    pub(in crate::io) fn take_whole<'a>(&'a mut self, places: &mut [Option<Whole<'a>>]) -> usize {
        for (count, place) in places.iter_mut().enumerate() {
            // SAFETY: the slots are taken one after the other and none twice before `give_back`, which needs the ring
            // that is borrowed for 'a.
            match self.filled().and_then(|filled| unsafe { self.whole(&filled) }) {
                Some(whole) => *place = Some(whole),
                None => return count,
            }
            self.turn.take();
        }
        places.len()
    }

    /// Takes the next frame, if it does not stand in the ring whole.
    pub(in crate::io) fn take_other(&mut self) -> Option<Other> {
        let filled = self.filled().filter(|filled| !filled.is_whole())?;
        self.turn.take();
        let queued = Other::Queued { vlan_tagged: filled.vlan_tagged };
        Some(if filled.status & TP_STATUS_COPY != 0 { queued } else { Other::Truncated })
    }

    /// The next slot, if the kernel has filled it.
    fn filled(&self) -> Option<Filled> {
        let (index, status) = self.turn.filled(|index| self.status(index))?;
        let slot = self.slot(index);
        // SAFETY: the status was read with acquire and says that the slot is ours: the kernel has written these fields
        // before it, and leaves them alone until the slot is given back.
        let (len, captured_len, mac_at, vlan_tci) = unsafe {
            let header = slot.as_ptr();
            ((*header).len, (*header).captured_len, (*header).mac_at, (*header).vlan_tci)
        };
        let vlan_tagged = is_vlan_tagged(status, vlan_tci);
        let (len, captured_len, mac_at) = (len as usize, captured_len as usize, mac_at.into());
        Some(Filled { slot, status, len, captured_len, mac_at, vlan_tagged })
    }

    /// Frames that wait in it, and how many it has room for.
    pub(in crate::io) fn waiting(&self) -> (usize, usize) {
        (self.turn.waiting(|index| self.status(index)), self.offsets.len())
    }

    fn status(&self, index: usize) -> &AtomicU32 {
        // SAFETY: a slot header inside the mapping, aligned to a line of the cache; the status word is shared with the
        // kernel and therefore only touched atomically.
        unsafe { &(*self.slot(index).as_ptr()).status }
    }

    /// The frame in a slot.
    ///
    /// # Safety
    /// Nothing else refers to the slot's bytes during 'a, and it is not given back.
    unsafe fn whole<'a>(&self, filled: &Filled) -> Option<Whole<'a>> {
        // With PACKET_VNET_HDR the vnet header stands right before the frame.
        let from = filled.mac_at.checked_sub(VnetHeader::LEN).filter(|_| filled.is_whole())?;
        assert!(filled.mac_at + filled.len <= self.slot_size, "the kernel wrote past its slot");
        let start = filled.slot.as_ptr().cast::<u8>();
        // SAFETY: the range lies in the slot by the assertion above; the slot is ours alone, as the caller says.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start.add(from), VnetHeader::LEN + filled.len) };
        let meta = FrameMeta { vlan_tagged: filled.vlan_tagged, vnet: VnetHeader::read(bytes).unwrap_or_default() };
        Some(Whole { bytes, meta })
    }

    /// Gives the slots of all taken frames back to the kernel. Nobody may read them any more.
    pub(in crate::io) fn give_back(&mut self) {
        let mut turn = std::mem::replace(&mut self.turn, Turn::new(self.offsets.len()));
        turn.give_back(|index| self.status(index));
        self.turn = turn;
    }

    /// Takes the frame that [`Other::Queued`] spoke of.
    pub(in crate::io) fn receive_queued(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut receive = || rustix::net::recv(&self.socket, &mut *buffer, rustix::net::RecvFlags::DONTWAIT);
        let received = match receive() {
            // A pending error is told once, in place of a frame: the frame comes next.
            Err(error) if error != rustix::io::Errno::AGAIN => receive(),
            received => received,
        };
        received.map(|(received, _)| received).map_err(Into::into)
    }

    pub(in crate::io) fn socket(&self) -> &PacketSocket {
        &self.socket
    }

    pub(in crate::io) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn slot(&self, index: usize) -> NonNull<SlotHeader> {
        let offset = self.offsets[index] as usize;
        debug_assert!(offset + self.slot_size <= self.bytes);
        // SAFETY: `offsets` are those of slots inside the mapping, and the index is checked.
        unsafe { self.start.add(offset).cast() }
    }
}

impl Drop for PacketRing {
    fn drop(&mut self) {
        // SAFETY: the mapping of `open`, unmapped once, before the socket's descriptor is closed.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_hold_a_frame_and_lie_in_their_blocks() {
        for mtu in [68, 1280, 1500, 1504, 9000, 65_535, 65_536] {
            let Geometry { slot_size, block_count, offsets } = Geometry::of(mtu);
            assert!(slot_size >= mtu + HEADROOM && slot_size.is_multiple_of(CACHE_LINE), "{mtu}: {slot_size}");
            assert!(block_count * BLOCK_BYTES <= MAX_RING_BYTES && offsets.len() >= 256, "{mtu}: {block_count}");
            // As the kernel counts them (packet_set_ring): whole blocks.
            assert_eq!(offsets.len() as u32, BLOCK_BYTES / slot_size * block_count, "{mtu}");
            for (before, after) in offsets.iter().zip(&offsets[1..]) {
                assert!(before + slot_size <= *after, "{mtu}: {before}, {after}");
            }
            assert!(offsets.iter().all(|at| at % BLOCK_BYTES + slot_size <= BLOCK_BYTES), "{mtu}");
        }
    }
}
