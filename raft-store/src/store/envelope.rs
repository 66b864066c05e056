//! The envelope of every record: version, checksum over key and body, body. sled 0.34 opens a file
//! with flipped bits without a word, so each value proves by itself that it is what was written, and
//! that it stands where it was written.

use prost::Message;

/// The version of the envelope.
const VERSION: u8 = 1;
const HEADER: usize = 5;

/// Why a record cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("it has {0} bytes, too few for a record")]
    Short(usize),
    #[error("it is of version {0}, and this build reads version {VERSION}")]
    Version(u8),
    #[error("its checksum does not match")]
    Checksum,
    #[error("its body cannot be decoded: {0}")]
    Body(String),
}

/// A body in its envelope, ready to be stored under `key`.
pub(crate) fn seal(key: &[u8], body: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER + body.len());
    record.push(VERSION);
    record.extend_from_slice(&checksum(key, body).to_le_bytes());
    record.extend_from_slice(body);
    record
}

/// The body of what was read under `key`.
pub(crate) fn open<'a>(key: &[u8], record: &'a [u8]) -> Result<&'a [u8], RecordError> {
    let (header, body) = record.split_at_checked(HEADER).ok_or(RecordError::Short(record.len()))?;
    if header[0] != VERSION {
        return Err(RecordError::Version(header[0]));
    }
    if header[1..] != checksum(key, body).to_le_bytes() {
        return Err(RecordError::Checksum);
    }
    Ok(body)
}

/// A message in its envelope.
pub(crate) fn seal_message(key: &[u8], message: &impl Message) -> Vec<u8> {
    seal(key, &message.encode_to_vec())
}

/// The message that was stored under `key`.
pub(crate) fn open_message<M: Message + Default>(key: &[u8], record: &[u8]) -> Result<M, RecordError> {
    M::decode(open(key, record)?).map_err(|error| RecordError::Body(error.to_string()))
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[VERSION]);
    hasher.update(key);
    hasher.update(body);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed() {
        let record = seal(b"key", b"some body");
        assert_eq!(open(b"key", &record), Ok(&b"some body"[..]));
        for bit in 0..record.len() * 8 {
            let mut flipped = record.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(open(b"key", &flipped).is_err(), "bit {bit}");
        }
        for len in 0..record.len() {
            assert!(open(b"key", &record[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn a_record_under_another_key_is_noticed() {
        assert_eq!(open(b"kez", &seal(b"key", b"body")), Err(RecordError::Checksum));
    }
}
