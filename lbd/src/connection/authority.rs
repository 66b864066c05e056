//! What gRPC clients on a Unix socket call the server. Those of the C core (Python, C++, Ruby, PHP) send the socket's path as
//! the `:authority`, with percent signs for its slashes: no authority by RFC 3986 3.2, and the HTTP/2 library refuses the
//! request for it. Nobody asks a Unix socket for its name, so the percent signs are replaced on their way in.
//!
//! Only that much of HTTP/2 (RFC 9113) and HPACK (RFC 7541) is read as finds the value: frames, and in header blocks the
//! lengths of fields. The compression's tables stay as they are, because no length changes and only values that are new stand
//! in the stream.

/// What every HTTP/2 connection begins with (RFC 9113 3.4).
const PREFACE_LEN: usize = 24;
const FRAME_HEADER_LEN: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;

/// Where in the stream of bytes the reading stands.
#[derive(Debug)]
pub(super) struct Authority {
    at: At,
    block: Block,
}

#[derive(Debug)]
enum At {
    /// So many bytes of no interest: then a frame.
    Skipping(usize),
    FrameHeader([u8; FRAME_HEADER_LEN], usize),
    /// The length of the padding, and behind it so many bytes of the frame.
    Padding(usize, u8),
    /// So many bytes of a stream's priority, and behind them the rest of the frame, of which so many are padding.
    Priority(usize, usize, usize),
    /// So many bytes of a header block, and behind them padding.
    Fields(usize, usize),
}

impl Default for Authority {
    fn default() -> Self {
        Self { at: At::Skipping(PREFACE_LEN), block: Block::default() }
    }
}

impl Authority {
    /// Reads on, and replaces what is no authority.
    pub(super) fn pass(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let taken = match &mut self.at {
                At::Skipping(left) => {
                    let taken = bytes.len().min(*left);
                    *left -= taken;
                    if *left == 0 {
                        self.at = At::FrameHeader([0; FRAME_HEADER_LEN], 0);
                    }
                    taken
                }
                At::FrameHeader(header, have) => {
                    header[*have] = bytes[0];
                    *have += 1;
                    if *have == FRAME_HEADER_LEN {
                        self.at = self.block.begin(*header);
                    }
                    1
                }
                At::Padding(left, flags) => {
                    let (padding, left) = (usize::from(bytes[0]), *left);
                    self.at = match *flags & PRIORITY {
                        0 => fields(left, padding),
                        _ => At::Priority(5, left, padding),
                    };
                    1
                }
                At::Priority(bytes_left, left, padding) => {
                    *bytes_left -= 1;
                    if *bytes_left == 0 {
                        self.at = fields(left.saturating_sub(5), *padding);
                    }
                    1
                }
                At::Fields(left, padding) => {
                    let taken = bytes.len().min(*left);
                    bytes[..taken].iter_mut().for_each(|byte| self.block.pass(byte));
                    *left -= taken;
                    if *left == 0 {
                        self.at = skipping(*padding);
                    }
                    taken
                }
            };
            bytes = &mut bytes[taken..];
        }
    }
}

fn skipping(len: usize) -> At {
    if len == 0 { At::FrameHeader([0; FRAME_HEADER_LEN], 0) } else { At::Skipping(len) }
}

/// Of a frame's rest, of which so much is padding; one that lies about it is for the library to refuse.
fn fields(len: usize, padding: usize) -> At {
    match len.checked_sub(padding) {
        Some(fields @ 1..) => At::Fields(fields, padding),
        _ => skipping(len),
    }
}

/// A header block, which may stand in several frames.
#[derive(Debug, Default)]
struct Block {
    state: State,
    /// The name of the present field is new, and as far as it was read.
    name: Vec<u8>,
    is_authority: bool,
}

/// The present field, as far as it was read (RFC 7541 5 and 6).
#[derive(Debug, Default, Clone, Copy)]
enum State {
    #[default]
    Start,
    /// More bytes of an integer, which began with so much and stands for this.
    Integer { value: usize, shift: u32, of: Of },
    /// The first byte of a string's length.
    Length(Part),
    /// So many bytes of a string, which is compressed or not.
    Text { left: usize, part: Part, is_plain: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Name,
    Value,
}

#[derive(Debug, Clone, Copy)]
enum Of {
    /// Something complete in itself.
    Whole,
    /// The index of a literal field's name.
    Index,
    /// A string's length.
    Length(Part, bool),
}

/// The index of `:authority` in the static table (RFC 7541 appendix A).
const AUTHORITY: usize = 1;
/// Its name, plain and compressed.
const AUTHORITY_NAMES: [&[u8]; 2] = [b":authority", &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f]];

impl Block {
    /// A frame begins. Where its reading goes on.
    fn begin(&mut self, header: [u8; FRAME_HEADER_LEN]) -> At {
        let [high, middle, low, kind, flags, ..] = header;
        let len = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        if kind == HEADERS {
            self.state = State::Start;
        }
        match (kind, len) {
            (HEADERS | CONTINUATION, 0) => skipping(0),
            (HEADERS, _) if flags & PADDED != 0 => At::Padding(len - 1, flags),
            (HEADERS, _) if flags & PRIORITY != 0 => At::Priority(5, len, 0),
            (HEADERS | CONTINUATION, _) => fields(len, 0),
            _ => skipping(len),
        }
    }

    fn pass(&mut self, byte: &mut u8) {
        self.state = match self.state {
            State::Start => {
                let (prefix, of) = match *byte {
                    0x80.. => (7, Of::Whole),
                    0x40.. => (6, Of::Index),
                    0x20.. => (5, Of::Whole),
                    _ => (4, Of::Index),
                };
                self.integer(*byte, prefix, of)
            }
            State::Integer { value, shift, of } => {
                let value = value.saturating_add(usize::from(*byte & 0x7f).checked_shl(shift).unwrap_or(usize::MAX));
                match *byte & 0x80 {
                    0 => self.read(value, of),
                    _ => State::Integer { value, shift: shift + 7, of },
                }
            }
            State::Length(part) => self.integer(*byte, 7, Of::Length(part, *byte & 0x80 == 0)),
            State::Text { left, part, is_plain } => {
                match part {
                    Part::Name if self.name.len() < AUTHORITY_NAMES[0].len() + 1 => self.name.push(*byte),
                    Part::Value if self.is_authority && is_plain && *byte == b'%' => *byte = b'-',
                    _ => {}
                }
                match left - 1 {
                    0 => self.text_read(part),
                    left => State::Text { left, part, is_plain },
                }
            }
        };
    }

    /// An integer begins with so many bits of a byte (RFC 7541 5.1).
    fn integer(&mut self, byte: u8, prefix: u32, of: Of) -> State {
        let most = (1u8 << prefix).wrapping_sub(1);
        match byte & most {
            value if value == most => State::Integer { value: value.into(), shift: 0, of },
            value => self.read(value.into(), of),
        }
    }

    fn read(&mut self, value: usize, of: Of) -> State {
        match of {
            Of::Whole => State::Start,
            Of::Index => {
                self.is_authority = value == AUTHORITY;
                self.name.clear();
                State::Length(if value == 0 { Part::Name } else { Part::Value })
            }
            Of::Length(part, _) if value == 0 => self.text_read(part),
            Of::Length(part, is_plain) => State::Text { left: value, part, is_plain },
        }
    }

    fn text_read(&mut self, part: Part) -> State {
        match part {
            Part::Name => {
                self.is_authority = AUTHORITY_NAMES.contains(&&*self.name);
                State::Length(Part::Value)
            }
            Part::Value => State::Start,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END_HEADERS: u8 = 0x04;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let [_, high, middle, low] = (payload.len() as u32).to_be_bytes();
        [&[high, middle, low, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
        [&[0x40, name.len() as u8], name, &[value.len() as u8], value].concat()
    }

    /// As Python sends it.
    const PATH: &[u8] = b"run%2Flbd%2Flbd.sock";
    const REPLACED: &[u8] = b"run-2Flbd-2Flbd.sock";

    fn block(authority: &[u8]) -> Vec<u8> {
        let by_index = [&[0x41, authority.len() as u8], authority].concat();
        let long = vec![b'%'; 300];
        [
            literal(b":path", b"/a%2Fb"),
            literal(b":authority", authority),
            vec![0x83, 0x86],
            by_index,
            // A length of more than one byte, and a name of the dynamic table.
            [&[0x7f, 0x80, 0x01, 0x7f, 0xad, 0x01][..], &long].concat(),
            // The tables' size, and a field that is not to be remembered.
            vec![0x3f, 0xe1, 0x1f, 0x10, 0x01, b'%', 0x01, b'%'],
            literal(AUTHORITY_NAMES[1], b"is no name when it is not compressed: %"),
        ]
        .concat()
    }

    /// A connection with a block in one frame, in several, and with padding and a priority.
    fn connection(authority: &[u8]) -> Vec<u8> {
        let block = block(authority);
        let (first, rest) = block.split_at(13);
        let padded = [&[3, 0, 0, 0, 1, 9][..], &block, b"%%%"].concat();
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, &[0, 2, 0, 0, 0, 0]),
            frame(HEADERS, END_HEADERS, &block),
            frame(0, 1, b"data with :authority\x05%%%%%"),
            frame(HEADERS, 0, first),
            frame(CONTINUATION, 0, b""),
            frame(CONTINUATION, END_HEADERS, rest),
            frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &padded),
            frame(HEADERS, END_HEADERS | PRIORITY, &[&[0, 0, 0, 1, 9][..], &block].concat()),
            frame(HEADERS, END_HEADERS, b""),
            frame(HEADERS, END_HEADERS, &block),
        ]
        .concat()
    }

    #[test]
    fn only_a_path_in_the_place_of_an_authority_is_replaced_however_the_bytes_come() {
        // The name that looks compressed but is not does count as the name: its value is nobody's.
        let expected = |authority: &[u8]| {
            let text = connection(authority);
            let odd: &[u8] = b"not compressed: %";
            let mut out = text.clone();
            for at in 0..=text.len() - odd.len() {
                if text[at..].starts_with(odd) {
                    out[at + odd.len() - 1] = b'-';
                }
            }
            out
        };
        for piece in [1, 2, 7, 64, 10_000] {
            let (mut reader, mut bytes) = (Authority::default(), connection(PATH));
            bytes.chunks_mut(piece).for_each(|piece| reader.pass(piece));
            let differs = bytes.iter().zip(&expected(REPLACED)).position(|(one, other)| one != other);
            assert_eq!(differs, None, "in pieces of {piece}");
            let (mut reader, mut bytes) = (Authority::default(), connection(b"localhost"));
            bytes.chunks_mut(piece).for_each(|piece| reader.pass(piece));
            assert!(bytes == expected(b"localhost"));
        }
    }

    /// Whatever comes: it never panics, and changes nothing but percent signs.
    #[test]
    fn any_bytes_pass() {
        bolero::check!().for_each(|input: &[u8]| {
            for before in [&b""[..], &connection(PATH)] {
                let whole = [before, input].concat();
                let (mut reader, mut bytes) = (Authority::default(), whole.clone());
                bytes.chunks_mut(11).for_each(|piece| reader.pass(piece));
                let same = |(old, new): (&u8, &u8)| old == new || (*old, *new) == (b'%', b'-');
                assert!(whole.iter().zip(&bytes).all(same));
            }
        });
    }
}
