//! Taking an IPv4 packet apart (RFC 791 3.2), as a router does with one that is larger than the way takes and may be
//! fragmented. The one case in which more than the MAC addresses change.

use super::{ETHERNET_HEADER_LEN, ETHERTYPE_IPV4, VnetHeader, be16, checksum, ethernet::ethertype};

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
const MIN_HEADER_LEN: usize = 20;
/// Of an option's type: it stands in every fragment (RFC 791 3.1).
const COPIED: u8 = 0x80;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;

/// Whether a router may take the packet in a frame apart: IPv4 without DF.
pub fn may_be_fragmented(frame: &[u8]) -> bool {
    let flags = be16(frame, ETHERNET_HEADER_LEN + 6).unwrap_or(DONT_FRAGMENT);
    ethertype(frame) == Some(ETHERTYPE_IPV4) && flags & DONT_FRAGMENT == 0
}

/// The bytes of a frame without what stands behind its IP packet: the padding of a short one, or a trailer.
pub fn len_without_trailer(frame: &[u8]) -> Option<usize> {
    let len = match ethertype(frame)? {
        ETHERTYPE_IPV4 => usize::from(be16(frame, ETHERNET_HEADER_LEN + 2)?),
        super::ETHERTYPE_IPV6 => 40 + usize::from(be16(frame, ETHERNET_HEADER_LEN + 4)?),
        _ => return None,
    };
    Some(ETHERNET_HEADER_LEN + len).filter(|len| *len <= frame.len())
}

/// The fragments of an IPv4 packet for a link with this MTU, as whole frames. `None` for what cannot be taken apart.
pub fn fragments(frame: &[u8], vnet: &VnetHeader, mtu: u32) -> Option<Vec<Vec<u8>>> {
    let mut frame = frame.get(..len_without_trailer(frame)?).filter(|frame| may_be_fragmented(frame))?.to_vec();
    if let Some((start, offset)) = vnet.partial_checksum() {
        checksum::complete(&mut frame, start, offset);
    }
    let (ethernet, packet) = frame.split_at(ETHERNET_HEADER_LEN);
    let header_len = usize::from(packet.first()? & 0x0f) * 4;
    let (header, payload) = packet.split_at_checked(header_len).filter(|_| header_len >= MIN_HEADER_LEN)?;
    let of_later = header_of_later(header);
    let position = be16(header, 6)?;
    let (first_offset, more) = (position & FRAGMENT_OFFSET, position & MORE_FRAGMENTS);
    let mut all = Vec::new();
    let mut at = 0;
    while at < payload.len() {
        let header = if at == 0 { header } else { &of_later };
        let room = (mtu as usize).checked_sub(header.len())? & !7;
        let len = room.min(payload.len() - at);
        if len == 0 {
            return None;
        }
        let is_last = at + len == payload.len();
        let offset = Some(first_offset + u16::try_from(at / 8).ok()?).filter(|offset| *offset <= FRAGMENT_OFFSET)?;
        let mut fragment = [ethernet, header, &payload[at..at + len]].concat();
        let ip = &mut fragment[ETHERNET_HEADER_LEN..];
        let total = u16::try_from(ip.len()).ok()?;
        let position = offset | if is_last { more } else { MORE_FRAGMENTS };
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip[6..8].copy_from_slice(&position.to_be_bytes());
        ip[10..12].fill(0);
        let sum = checksum::internet(&ip[..header.len()]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        all.push(fragment);
        at += len;
    }
    Some(all)
}

/// The header of all fragments but the first, which has all options: only those that are to be copied.
fn header_of_later(header: &[u8]) -> Vec<u8> {
    let (fixed, mut options) = header.split_at(MIN_HEADER_LEN);
    let mut later = fixed.to_vec();
    while let [kind, rest @ ..] = options {
        let len = match *kind {
            END_OF_OPTIONS => break,
            NO_OPERATION => 1,
            _ => usize::from(rest.first().copied().unwrap_or(0)),
        };
        let Some((option, behind)) = options.split_at_checked(len).filter(|_| len > 0) else { break };
        if kind & COPIED != 0 {
            later.extend_from_slice(option);
        }
        options = behind;
    }
    later.resize(later.len().next_multiple_of(4), END_OF_OPTIONS);
    later[0] = 0x40 | (later.len() / 4) as u8;
    later
}

#[cfg(test)]
mod tests {
    use etherparse::{IpFragOffset, Ipv4HeaderSlice, Ipv4Slice, PacketBuilder};
    use proptest::prelude::*;

    use super::*;
    use crate::packet::{Mac, Packet, parse};

    fn datagram(len: usize, options: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([192, 0, 2, 1], [192, 0, 2, 9], 64);
        let payload: Vec<u8> = (0..len).map(|at| at as u8).collect();
        builder.udp(4000, 53).write(&mut frame, &payload).unwrap();
        frame.splice(34..34, options.iter().copied());
        frame[14] += (options.len() / 4) as u8;
        let total = (frame.len() - 14) as u16;
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        frame[18..22].copy_from_slice(&[0x12, 0x34, 0, 0]);
        frame
    }

    fn header(frame: &[u8]) -> Ipv4HeaderSlice<'_> {
        Ipv4HeaderSlice::from_slice(&frame[14..]).unwrap()
    }

    /// What a receiver puts together (RFC 815).
    fn together(parts: &[Vec<u8>]) -> Vec<u8> {
        let mut payload = Vec::new();
        for part in parts {
            let header = header(part);
            let at = usize::from(header.fragments_offset().byte_offset());
            assert_eq!(at, payload.len());
            payload.extend_from_slice(&part[14 + header.slice().len()..]);
        }
        payload
    }

    proptest! {
        #[test]
        fn any_packet_is_put_together_again_from_fragments_that_fit(len in 0usize..9000, mtu in 68u32..2000) {
            let frame = datagram(len, &[]);
            let parts = fragments(&frame, &VnetHeader::default(), mtu).unwrap();
            prop_assert_eq!(together(&parts), frame[34..].to_vec());
            for (number, part) in parts.iter().enumerate() {
                prop_assert!(part.len() <= 14 + mtu as usize);
                prop_assert_eq!(&part[..14], &frame[..14]);
                let header = header(part);
                prop_assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
                prop_assert_eq!(usize::from(header.total_len()), part.len() - 14);
                prop_assert_eq!(header.more_fragments(), number + 1 < parts.len());
                prop_assert_eq!((header.identification(), header.ttl(), header.dont_fragment()), (0x1234, 64, false));
            }
        }

        #[test]
        fn nothing_that_is_taken_apart_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), mtu in 0u32..200) {
            let frame = [&[0; 12][..], &[8, 0], &bytes].concat();
            fragments(&frame, &VnetHeader::default(), mtu);
        }
    }

    #[test]
    fn options_are_copied_as_they_say() {
        // Router alert (copied), a timestamp (not copied), no operation.
        let options = [0x94, 4, 0, 0, 0x44, 8, 5, 0, 0, 0, 0, 0, 1, 1, 1, 0];
        let frame = datagram(3000, &options);
        let parts = fragments(&frame, &VnetHeader::default(), 1500).unwrap();
        assert_eq!(header(&parts[0]).options(), options);
        for part in &parts[1..] {
            assert_eq!(header(part).options(), [0x94, 4, 0, 0]);
            assert!(Ipv4Slice::from_slice(&part[14..]).is_ok());
        }
        assert_eq!(together(&parts), frame[14 + 20 + 16..]);
    }

    #[test]
    fn a_fragment_is_taken_apart_where_it_stands() {
        let mut frame = datagram(2992, &[]);
        // The second of three.
        frame[20..22].copy_from_slice(&(0x2000u16 | 375).to_be_bytes());
        let parts = fragments(&frame, &VnetHeader::default(), 1500).unwrap();
        let offsets: Vec<u16> = parts.iter().map(|part| header(part).fragments_offset().value()).collect();
        assert_eq!(offsets, [375, 375 + 185, 375 + 370]);
        assert!(parts.iter().all(|part| header(part).more_fragments()));
        // Beyond what an offset can say.
        let end = IpFragOffset::MAX_U16;
        frame[20..22].copy_from_slice(&end.to_be_bytes());
        assert!(fragments(&frame, &VnetHeader::default(), 1500).is_none());
    }

    #[test]
    fn the_checksum_that_a_network_card_would_have_computed_is_there() {
        let sound = datagram(3001, &[]);
        let mut partial = sound.clone();
        // Of the pseudo-header: addresses, protocol, length.
        let mut pseudo = sound[26..34].to_vec();
        pseudo.extend([0, 17]);
        pseudo.extend_from_slice(&sound[38..40]);
        partial[40..42].copy_from_slice(&(!checksum::internet(&pseudo)).to_be_bytes());
        let [start, offset] = [34u16.to_ne_bytes(), 6u16.to_ne_bytes()];
        let vnet = VnetHeader([1, 0, 0, 0, 0, 0, start[0], start[1], offset[0], offset[1]]);
        let parts = fragments(&partial, &vnet, 1500).unwrap();
        assert_eq!(together(&parts), sound[34..].to_vec());
    }

    #[test]
    fn what_may_not_be_taken_apart_is_not() {
        let mut frame = datagram(3000, &[]);
        frame[20] = 0x40;
        assert!(!may_be_fragmented(&frame) && fragments(&frame, &VnetHeader::default(), 1500).is_none());
        let v6 = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([2; 16], [3; 16], 64).udp(1, 2);
        let mut frame = Vec::new();
        v6.write(&mut frame, &[0; 3000]).unwrap();
        assert!(!may_be_fragmented(&frame) && fragments(&frame, &VnetHeader::default(), 1500).is_none());
    }

    #[test]
    fn a_trailer_is_no_part_of_the_packet() {
        let frame = datagram(100, &[]);
        let with = [&frame[..], &[9; 6]].concat();
        assert_eq!(len_without_trailer(&with), Some(frame.len()));
        assert!(matches!(parse(&with), Packet::Flow(_)));
        assert_eq!(len_without_trailer(&frame[..frame.len() - 1]), None);
        let arp = crate::packet::arp::probe(Mac([2; 6]), [192, 0, 2, 1].into());
        assert_eq!(len_without_trailer(&arp), None);
    }
}
