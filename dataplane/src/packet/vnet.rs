//! The header that PACKET_VNET_HDR puts before each frame (struct virtio_net_hdr): without it, a frame with a partial
//! checksum would be sent on broken, and a GSO frame could not be sent at all.

/// What the kernel says of a frame's checksum and segments. All zero: a whole frame, complete in itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader(pub [u8; Self::LEN]);

/// linux/virtio_net.h
const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;

impl VnetHeader {
    /// Bytes of it.
    pub const LEN: usize = 10;

    /// The header at the start of `bytes`.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().copied().map(Self)
    }

    /// The size of the segments that a GSO frame stands for. Its numbers are in the machine's byte order.
    pub fn gso_size(&self) -> Option<u16> {
        let [_, gso_type, _, _, low, high, ..] = self.0;
        (gso_type != GSO_NONE).then(|| u16::from_ne_bytes([low, high]))
    }

    /// Of a frame that stands for several TCP segments with so many bytes of payload each.
    pub fn tcp_segments_of(gso_size: u16) -> Self {
        let [low, high] = gso_size.to_ne_bytes();
        Self([0, GSO_TCPV4, 0, 0, low, high, 0, 0, 0, 0])
    }

    /// Whether the frame stands for several.
    pub fn is_gso(&self) -> bool {
        self.gso_size().is_some()
    }

    /// Where the bytes start whose checksum is not computed yet, and where behind that it belongs.
    pub fn partial_checksum(&self) -> Option<(usize, usize)> {
        let [flags, .., start_low, start_high, offset_low, offset_high] = self.0;
        let number = |low, high| u16::from_ne_bytes([low, high]).into();
        (flags & NEEDS_CHECKSUM != 0).then(|| (number(start_low, start_high), number(offset_low, offset_high)))
    }
}

/// What the kernel says about a frame beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrameMeta {
    /// It belongs to a VLAN, by a tag that the kernel has taken out of the frame.
    pub vlan_tagged: bool,
    /// What stands before it.
    pub vnet: VnetHeader,
}

/// A frame in memory of its own, behind its vnet header, as packet sockets take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedFrame(Vec<u8>);

impl OwnedFrame {
    /// A copy.
    pub fn new(vnet: &VnetHeader, frame: &[u8]) -> Self {
        Self([&vnet.0, frame].concat())
    }

    /// A copy of a header and its frame.
    pub fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// A frame that is complete in itself.
    pub fn whole(frame: &[u8]) -> Self {
        Self::new(&VnetHeader::default(), frame)
    }

    /// What stands before the frame.
    pub fn vnet(&self) -> VnetHeader {
        VnetHeader::read(&self.0).unwrap_or_default()
    }

    /// The frame.
    pub fn frame(&self) -> &[u8] {
        &self.0[VnetHeader::LEN..]
    }

    /// The frame, to be rewritten.
    pub fn frame_mut(&mut self) -> &mut [u8] {
        &mut self.0[VnetHeader::LEN..]
    }

    /// Leaves so many bytes out at the end.
    pub fn cut(&mut self, trailer: usize) {
        self.0.truncate(self.0.len().saturating_sub(trailer).max(VnetHeader::LEN));
    }

    /// Header and frame.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}
