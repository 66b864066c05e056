//! The header that PACKET_VNET_HDR puts before each frame (struct virtio_net_hdr): without it, a frame with a partial
//! checksum would be sent on broken, and a super-frame could not be sent at all.

/// What the kernel says of a frame's checksum and segments. All zero: a whole frame, complete in itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader(pub [u8; Self::LEN]);

const GSO_NONE: u8 = 0;

impl VnetHeader {
    /// Bytes of it.
    pub const LEN: usize = 10;

    /// The header at the start of `bytes`.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().copied().map(Self)
    }

    /// The size of the segments that a super-frame stands for. Its numbers are in the machine's byte order.
    pub fn gso_size(&self) -> Option<u16> {
        let [_, gso_type, _, _, low, high, ..] = self.0;
        (gso_type != GSO_NONE).then(|| u16::from_ne_bytes([low, high]))
    }

    /// Whether the frame stands for several.
    pub fn is_super(&self) -> bool {
        self.gso_size().is_some()
    }
}
