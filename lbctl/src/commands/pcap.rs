//! The frames of a capture file, for `lbctl explain --pcap`.

use std::io::{ErrorKind, Read};

use pcap_file::{
    DataLink, PcapError,
    pcap::PcapReader,
    pcapng::{Block, PcapNgReader},
};

/// Of the block that every pcapng file begins with, in any byte order.
const SECTION_HEADER: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// The frames of a capture, or what is wrong with it.
pub(super) fn frames_of(mut capture: impl Read) -> Result<Vec<Vec<u8>>, String> {
    let mut bytes = Vec::new();
    capture.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    match bytes.starts_with(&SECTION_HEADER) {
        true => pcapng(&bytes),
        false => pcap(&bytes),
    }
}

/// As tcpdump -w writes it (pcap-savefile(5)).
fn pcap(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let foreign = |_| "it is neither a pcap nor a pcapng file, as tcpdump -w and Wireshark write them".to_owned();
    let mut reader = PcapReader::new(bytes).map_err(foreign)?;
    check_link(reader.header().datalink)?;
    let mut frames = Vec::new();
    // Raw: whether a frame was cut is for us to say.
    while let Some(packet) = reader.next_raw_packet() {
        let packet = packet.map_err(|error| unreadable(frames.len(), &error))?;
        check_whole(frames.len(), packet.data.len(), packet.orig_len)?;
        frames.push(packet.data.into_owned());
    }
    Ok(frames)
}

/// As Wireshark and dumpcap write it (draft-ietf-opsawg-pcapng).
fn pcapng(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut reader = PcapNgReader::new(bytes).map_err(|error| unreadable(0, &error))?;
    let mut frames: Vec<Vec<u8>> = Vec::new();
    loop {
        let (interface, original, data) = match reader.next_block() {
            None => return Ok(frames),
            Some(Err(error)) => return Err(unreadable(frames.len(), &error)),
            Some(Ok(Block::EnhancedPacket(packet))) => {
                (packet.interface_id, packet.original_len, packet.data.into_owned())
            }
            Some(Ok(Block::SimplePacket(packet))) => (0, packet.original_len, packet.data.into_owned()),
            Some(Ok(_)) => continue,
        };
        let link = usize::try_from(interface).ok().and_then(|at| reader.interfaces().get(at));
        check_link(link.map_or(DataLink::NULL, |link| link.linktype))?;
        check_whole(frames.len(), data.len(), original)?;
        frames.push(data);
    }
}

fn check_link(link: DataLink) -> Result<(), String> {
    match link {
        DataLink::ETHERNET => Ok(()),
        other => {
            Err(format!("its frames are {other:?}, not Ethernet: capture on an interface, such as tcpdump -i eth0"))
        }
    }
}

fn check_whole(before: usize, kept: usize, whole: u32) -> Result<(), String> {
    if usize::try_from(whole).is_ok_and(|whole| whole <= kept) {
        return Ok(());
    }
    Err(format!(
        "frame {} is truncated: only {kept} of its {whole} bytes were captured, and nobody can say what would become of the \
         whole; capture with tcpdump -s 0",
        before + 1
    ))
}

fn unreadable(before: usize, error: &PcapError) -> String {
    match error {
        PcapError::IncompleteBuffer => torn(before),
        PcapError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => torn(before),
        error => format!("frame {} cannot be read: {error}", before + 1),
    }
}

fn torn(before: usize) -> String {
    format!("the file ends in the middle of frame {}", before + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A capture of two frames, as tcpdump writes it: pcap-savefile(5).
    fn capture(snaplen: u32, whole: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, snaplen, 1] {
            bytes.extend(u32::to_le_bytes(word));
        }
        for frame in [[1u8; 60], [2; 60]] {
            for word in [1, 0, 60, whole] {
                bytes.extend(u32::to_le_bytes(word));
            }
            bytes.extend(frame);
        }
        bytes
    }

    /// The same in the other format: a section, an interface, packets.
    fn capture_ng(link: u16, whole: u32) -> Vec<u8> {
        let block = |kind: u32, body: &[u8]| {
            let len = (12 + body.len() as u32).to_le_bytes();
            [&kind.to_le_bytes()[..], &len, body, &len].concat()
        };
        let section = [&0x1a2b_3c4du32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat();
        let mut bytes = block(0x0a0d_0d0a, &section);
        bytes.extend(block(1, &[&link.to_le_bytes()[..], &[0; 2], &65_535u32.to_le_bytes()].concat()));
        for frame in [[1u8; 60], [2; 60]] {
            let header = [0u32, 0, 0, 60, whole].map(u32::to_le_bytes).concat();
            bytes.extend(block(6, &[&header[..], &frame].concat()));
        }
        bytes
    }

    #[test]
    fn both_formats_are_read_and_what_is_wrong_is_named() {
        let frames = Ok(vec![vec![1; 60], vec![2; 60]]);
        assert_eq!(frames_of(&capture(65_535, 60)[..]), frames);
        assert_eq!(frames_of(&capture_ng(1, 60)[..]), frames);
        // tcpdump -s 60: the frames were longer than what was to be kept.
        for cut in [capture(60, 1500), capture(65_535, 1500), capture_ng(1, 1500)] {
            let problem = frames_of(&cut[..]).unwrap_err();
            assert!(problem.starts_with("frame 1 is truncated") && problem.contains("tcpdump -s 0"), "{problem}");
        }
        for mut torn in [capture(65_535, 60), capture_ng(1, 60)] {
            torn.truncate(torn.len() - 5);
            assert_eq!(frames_of(&torn[..]).unwrap_err(), "the file ends in the middle of frame 2");
        }
        assert!(frames_of(&capture_ng(113, 60)[..]).unwrap_err().contains("not Ethernet"));
        assert!(frames_of(&b"nothing of that kind"[..]).unwrap_err().contains("neither a pcap nor a pcapng"));
        assert!(frames_of(&b""[..]).unwrap_err().contains("neither a pcap nor a pcapng"));
    }

    /// What a capture holds is read or refused, whatever it is. For longer:
    /// `cargo bolero test -p lbctl commands::pcap::tests::captures_are_read_or_refused`.
    #[test]
    fn captures_are_read_or_refused() {
        let sound = [capture(65_535, 60), capture_ng(1, 60)];
        bolero::check!().for_each(|input: &[u8]| {
            drop(frames_of(input));
            // And those in which some bytes are others.
            for mut changed in sound.clone() {
                for change in input.chunks_exact(2) {
                    let at = usize::from(change[0]) % changed.len();
                    changed[at] = change[1];
                }
                drop(frames_of(&changed[..]));
            }
        });
    }
}
