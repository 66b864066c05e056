//! What the two processes say to each other, a datagram each, so that none is cut.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use prost::Message as _;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// How often an obituary is sent, and with which pause: a datagram may be lost.
const TIMES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(3);
/// More than the datagrams of a cluster of nine, each with four addresses.
const MAX_BYTES: usize = 1 << 16;
/// To each interface that a dataplane may have.
pub(super) const MAX_LINKS: usize = 64;
/// As many descriptors come with one of them: the guard's, and the links.
const MAX_DESCRIPTORS: usize = MAX_LINKS + 1;

/// One of them.
#[derive(Clone, PartialEq, prost::Message)]
struct Word {
    #[prost(oneof = "Said", tags = "1, 2, 3")]
    said: Option<Said>,
}

/// What is said.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Said {
    /// This is to be sent when the child is dead.
    #[prost(message, tag = "1")]
    Obituary(Obituary),
    /// Descriptors come with it, by these names: they are the receiver's, too.
    #[prost(message, tag = "2")]
    Descriptors(Names),
    /// This one is not to be kept any more.
    #[prost(string, tag = "3")]
    LetGo(String),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Names {
    #[prost(string, repeated, tag = "1")]
    pub(super) names: Vec<String>,
}

/// What the others are told.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Obituary {
    #[prost(message, repeated, tag = "1")]
    datagrams: Vec<Datagram>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Datagram {
    /// IP:PORT.
    #[prost(string, tag = "1")]
    to: String,
    #[prost(bytes = "vec", tag = "2")]
    payload: Vec<u8>,
}

/// Says it, and gives these descriptors with it.
pub(super) fn say(to: impl AsFd, said: Said, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let message = Word { said: Some(said) }.encode_to_vec();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(to, &[IoSlice::new(&message)], &mut control, SendFlags::empty())?;
    Ok(())
}

/// What has been said, if something has, with its descriptors. Of what cannot be read nothing is heard.
pub(super) fn hear(from: impl AsFd) -> io::Result<(Option<Said>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = vec![0; MAX_BYTES];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(from, &mut [IoSliceMut::new(&mut buffer)], &mut control, flags)?;
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors = descriptors.flatten().collect();
    Ok((Word::decode(&buffer[..received.bytes]).unwrap_or_default().said, descriptors))
}

impl Obituary {
    pub(super) fn of(datagrams: &[(SocketAddr, Vec<u8>)]) -> Self {
        let datagram =
            |(to, payload): &(SocketAddr, Vec<u8>)| Datagram { to: to.to_string(), payload: payload.clone() };
        Self { datagrams: datagrams.iter().map(datagram).collect() }
    }

    pub(super) fn send(&self) {
        let sockets = [UdpSocket::bind("0.0.0.0:0"), UdpSocket::bind("[::]:0")];
        for round in 0..TIMES {
            for Datagram { to, payload } in &self.datagrams {
                let Ok(to) = to.parse::<SocketAddr>() else { continue };
                if let Ok(socket) = &sockets[usize::from(to.is_ipv6())] {
                    // Whoever cannot be reached learns it from the others, or by the clock.
                    let _ = socket.send_to(payload, to);
                }
            }
            if round + 1 < TIMES && !self.datagrams.is_empty() {
                std::thread::sleep(PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::net::UnixDatagram};

    use super::*;

    #[test]
    fn an_obituary_reaches_its_addressees() {
        let receivers = [UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap()];
        let address = |at: usize| receivers[at].local_addr().unwrap();
        let mut obituary = Obituary::of(&[(address(0), vec![0, 0xff, 0x10]), (address(1), vec![0xab])]);
        obituary.datagrams.push(Datagram { to: "nowhere".into(), payload: vec![1] });
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        say(&theirs, Said::Obituary(obituary), &[]).unwrap();
        let (Some(Said::Obituary(heard)), _) = hear(&ours).unwrap() else { panic!("no obituary") };
        heard.send();
        let mut buffer = [0; 16];
        for (receiver, expected) in receivers.iter().zip([&[0u8, 0xff, 0x10][..], &[0xab]]) {
            for _ in 0..TIMES {
                let len = receiver.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..len], expected);
            }
        }
    }

    #[test]
    fn descriptors_come_in_their_order_and_nothing_is_heard_of_what_is_cut() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let all: Vec<File> = (0..MAX_DESCRIPTORS).map(|_| tempfile::tempfile().unwrap()).collect();
        for (number, file) in (0..).zip(&all) {
            file.set_len(number).unwrap();
        }
        let names: Vec<String> = (0..MAX_DESCRIPTORS).map(|number| number.to_string()).collect();
        let borrowed: Vec<_> = all.iter().map(AsFd::as_fd).collect();
        say(&theirs, Said::Descriptors(Names { names: names.clone() }), &borrowed).unwrap();
        let (Some(Said::Descriptors(heard)), descriptors) = hear(&ours).unwrap() else { panic!("no descriptors") };
        assert_eq!(heard.names, names);
        let lens = descriptors.into_iter().map(|descriptor| File::from(descriptor).metadata().unwrap().len());
        assert!(lens.eq(0..MAX_DESCRIPTORS as u64));

        let whole = Word { said: Some(Said::LetGo("xdp-native-3".into())) }.encode_to_vec();
        theirs.send(&whole[..whole.len() - 1]).unwrap();
        assert_eq!(hear(&ours).unwrap().0, None, "half of a message is none");
        theirs.send(&whole).unwrap();
        assert_eq!(hear(&ours).unwrap().0, Some(Said::LetGo("xdp-native-3".into())));
        assert_eq!(hear(&ours).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
