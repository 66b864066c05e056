//! The frame around a record of the journal. It proves by itself that it is what was written, by which store, and in which
//! place of the sequence; and it says up to which record everything was durable when it was written, so that a sound frame
//! behind a bad one tells damage from what a power cut leaves of the last group.

use uuid::Uuid;

/// In front of a body: its length, the checksum, the sequence, what was durable, the start, the kind.
pub(super) const HEADER: usize = 32;
/// Frames begin at multiples of this, so that a sound one behind a bad one is found.
pub(super) const ALIGNMENT: usize = 8;

/// A record in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    /// Its number; each record has the next one.
    pub(super) sequence: u64,
    /// When it was written, all records up to this one were durable: those behind it are of its own group.
    pub(super) durable: u64,
    /// In which start of the node it was written. What an earlier start has left behind the end is not taken for a record.
    pub(super) start: u32,
    /// What the body is.
    pub(super) kind: u32,
    pub(super) body: &'a [u8],
}

/// How many bytes the frame of a body has.
pub(super) fn frame_len(body: usize) -> usize {
    (HEADER + body).next_multiple_of(ALIGNMENT)
}

impl<'a> Frame<'a> {
    /// Appends it to what will be written.
    pub(super) fn write(&self, store: Uuid, out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend_from_slice(&(self.body.len() as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.durable.to_le_bytes());
        out.extend_from_slice(&self.start.to_le_bytes());
        out.extend_from_slice(&self.kind.to_le_bytes());
        out.extend_from_slice(self.body);
        let crc = checksum(store, &out[begin..]);
        out[begin + 4..begin + 8].copy_from_slice(&crc.to_le_bytes());
        out.resize(begin + frame_len(self.body.len()), 0);
    }

    /// The frame that `bytes` begin with, if it is sound.
    pub(super) fn read(store: Uuid, bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let body = rest.get(..word(0) as usize)?;
        let frame = Self { sequence: long(8), durable: long(16), start: word(24), kind: word(28), body };
        // Never written: a region of zeros has no frames.
        if frame.sequence == 0 || checksum(store, &bytes[..HEADER + body.len()]) != word(4) {
            return None;
        }
        Some(frame)
    }

    /// How many bytes it takes.
    pub(super) fn len(&self) -> usize {
        frame_len(self.body.len())
    }
}

/// The highest sequence up to which everything was durable, of all sound frames in `bytes` that are behind `sequence`.
pub(super) fn durable_behind(store: Uuid, bytes: &[u8], sequence: u64) -> Option<u64> {
    let number = |at: usize| {
        let bytes = bytes.get(at..at + 8)?;
        bytes.try_into().map(u64::from_le_bytes).ok()
    };
    let behind = |at: &usize| number(at + 8).is_some_and(|found| found > sequence);
    let sound = |at: usize| Frame::read(store, &bytes[at..]);
    (0..bytes.len()).step_by(ALIGNMENT).filter(behind).filter_map(sound).map(|frame| frame.durable).max()
}

/// Over everything but the checksum itself.
fn checksum(store: Uuid, frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(store.as_bytes());
    hasher.update(&frame[..4]);
    hasher.update(&frame[8..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: Uuid = Uuid::from_u128(7);
    const FRAME: Frame<'_> = Frame { sequence: 9, durable: 4, start: 2, kind: 1, body: b"some body" };

    fn written() -> Vec<u8> {
        let mut bytes = Vec::new();
        FRAME.write(STORE, &mut bytes);
        bytes
    }

    #[test]
    fn any_flipped_bit_any_cut_and_another_store_are_noticed() {
        let bytes = written();
        assert_eq!(bytes.len(), FRAME.len());
        assert_eq!(Frame::read(STORE, &bytes), Some(FRAME));
        assert_eq!(Frame::read(Uuid::from_u128(8), &bytes), None);
        let used = HEADER + FRAME.body.len();
        for bit in 0..used * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Frame::read(STORE, &flipped), None, "bit {bit}");
        }
        for len in 0..used {
            assert_eq!(Frame::read(STORE, &bytes[..len]), None, "cut at {len}");
        }
        assert_eq!(Frame::read(STORE, &[0; 64]), None);
    }

    #[test]
    fn a_sound_frame_is_found_behind_what_is_not() {
        let mut bytes = vec![0x5a; 3 * ALIGNMENT];
        bytes.extend(written());
        assert_eq!(durable_behind(STORE, &bytes, 8), Some(4));
        assert_eq!(durable_behind(STORE, &bytes, 9), None, "it is not behind itself");
        assert_eq!(durable_behind(STORE, &bytes[..bytes.len() - ALIGNMENT], 8), None);
    }

    /// A build that wrote another form would not find what this one has written.
    #[test]
    fn the_form_is_frozen() {
        let hex: String = written().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "09000000b12731b2090000000000000004000000000000000200000001000000736f6d6520626f647900000000000000"
        );
    }
}
