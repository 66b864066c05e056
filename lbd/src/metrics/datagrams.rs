//! What the kernel drops at the heartbeats' sockets (proc_net(5), udp).

use std::{fs, net::SocketAddr};

/// The column of what was dropped.
const DROPS: usize = 12;

/// At the sockets of these ports, since they were opened.
pub(super) fn dropped(addresses: &[SocketAddr]) -> u64 {
    let all = ["/proc/self/net/udp", "/proc/self/net/udp6"].map(|file| fs::read_to_string(file).unwrap_or_default());
    all.iter().flat_map(|text| text.lines()).filter_map(|line| dropped_at(line, addresses)).sum()
}

fn dropped_at(line: &str, addresses: &[SocketAddr]) -> Option<u64> {
    let mut fields = line.split_whitespace();
    let (_, port) = fields.nth(1)?.rsplit_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    addresses.iter().any(|address| address.port() == port).then_some(())?;
    fields.nth(DROPS - 2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use rustix::net::sockopt::set_socket_recv_buffer_size;

    use super::*;

    #[test]
    fn what_finds_no_room_is_counted() {
        let [one, other] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let address = one.local_addr().unwrap();
        assert_eq!(dropped(&[address]), 0);
        set_socket_recv_buffer_size(&one, 1).unwrap();
        for _ in 0..100 {
            other.send_to(&[0; 1000], address).unwrap();
        }
        assert!((1..100).contains(&dropped(&[address])));
        assert_eq!(dropped(&[other.local_addr().unwrap()]), 0);
    }
}
