//! What the heartbeat's sockets take: the kernel drops a datagram that does not begin with the number of a known key, so that a
//! flood costs this process nothing and takes no room from what other nodes say.

use std::{io, net::UdpSocket};

use socket2::{SockFilter, SockRef};

/// Classic BPF (Linux, Documentation/networking/filter.rst).
const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// A UDP socket's filter sees the UDP header first.
const PAYLOAD: u32 = 8;

/// Takes only datagrams that begin with the first half of one of the numbers.
pub(super) fn admit_only(socket: &UdpSocket, ids: impl Iterator<Item = u64>) -> io::Result<()> {
    // What is too short to be loaded is dropped.
    let mut program = vec![SockFilter::new(LOAD_WORD, 0, 0, PAYLOAD)];
    for id in ids {
        program.push(SockFilter::new(JUMP_IF_EQUAL, 0, 1, (id >> 32) as u32));
        program.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    }
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    SockRef::from(socket).attach_filter(&program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_drops_what_begins_with_no_known_number() {
        let [one, other] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        other.connect(one.local_addr().unwrap()).unwrap();
        let known = [0x0102_0304_0506_0708, 0xa1a2_a3a4_0000_0000];
        admit_only(&one, known.into_iter()).unwrap();
        for wrong in [&b""[..], b"\x01\x02\x03", b"\x01\x02\x03\x05abcd", &[0; 1000]] {
            other.send(wrong).unwrap();
        }
        let sound = [&b"\xa1\xa2\xa3\xa4rest"[..], b"\x01\x02\x03\x04"];
        sound.iter().for_each(|sound| drop(other.send(sound)));
        let mut buffer = [0; 100];
        for sound in sound {
            let len = one.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], sound);
        }
        // Without a key nothing is taken.
        admit_only(&one, std::iter::empty()).unwrap();
        other.send(sound[0]).unwrap();
        one.set_nonblocking(true).unwrap();
        assert_eq!(one.recv(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
