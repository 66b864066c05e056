//! The values on the command line that have a form of their own. What is wrong with one is said, and how it is written.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
    time::Duration,
};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use lb_proto::{Label, v1};

/// `192.0.2.9:40000`, `[2001:db8::9]:40000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Endpoint(pub(crate) SocketAddr);

/// `192.0.2.1:80/tcp`, `[2001:db8::1]:53/udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Destination(pub(crate) SocketAddr, pub(crate) v1::Protocol);

/// `80/tcp`, `5000-5999/udp`, `any/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Port(pub(crate) v1::PortRange);

/// One of an enum of the API, by its label. Numbers begin at 1: 0 is what nobody has said.
pub(super) fn labelled<E: Label + Clone + Send + Sync + 'static>() -> impl TypedValueParser<Value = E> {
    let all = || (1..).map_while(|number| E::try_from(number).ok());
    PossibleValuesParser::new(all().map(Label::label))
        .try_map(move |text| all().find(|value| value.clone().label() == text).ok_or("it is none of them"))
}

/// What is quoted of an argument: all of it, unless it is long.
pub(crate) fn quoted(text: &str) -> String {
    const SHOWN: usize = 64;
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{:?}... ({} bytes)", &text[..at], text.len()),
        None => format!("{text:?}"),
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        socket_address(text, "192.0.2.9:40000 or [2001:db8::9]:40000").map(Self)
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const LIKE: &str = "192.0.2.1:80/tcp or [2001:db8::1]:53/udp";
        let Some((address, protocol)) = text.rsplit_once('/') else {
            return Err(format!("{} has no protocol: write {LIKE}", quoted(text)));
        };
        let protocol = self::protocol(protocol)?;
        Ok(Self(socket_address(address, LIKE)?, protocol))
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const LIKE: &str = "80/tcp, 5000-5999/udp or any/tcp";
        let Some((ports, protocol)) = text.split_once('/') else {
            return Err(format!("{} has no protocol: write {LIKE}", quoted(text)));
        };
        let protocol = self::protocol(protocol)?;
        let (first, last) = match (ports, ports.split_once('-')) {
            ("any", _) => (0, 0),
            (_, Some((first, last))) => (port(first, LIKE)?, port(last, LIKE)?),
            (single, None) => (port(single, LIKE)?, port(single, LIKE)?),
        };
        if first > last {
            return Err(format!("the range {first}-{last} is reversed: write {last}-{first}"));
        }
        Ok(Self(v1::PortRange { protocol: protocol.into(), first: first.into(), last: last.into() }))
    }
}

fn protocol(text: &str) -> Result<v1::Protocol, String> {
    match text {
        "tcp" => Ok(v1::Protocol::Tcp),
        "udp" => Ok(v1::Protocol::Udp),
        _ if ["tcp", "udp"].iter().any(|known| text.eq_ignore_ascii_case(known)) => {
            Err(format!("the protocol is written in lower case: {}", text.to_ascii_lowercase()))
        }
        _ => Err(format!("{} is not balanced: the protocol is tcp or udp", quoted(text))),
    }
}

fn port(text: &str, like: &str) -> Result<u16, String> {
    match text.parse::<u64>() {
        Ok(port @ 1..=65535) => Ok(port as u16),
        Ok(port) => Err(format!("{port} is no port: 1 to 65535")),
        Err(_) => Err(format!("{} is no port: write {like}", quoted(text))),
    }
}

fn socket_address(text: &str, like: &str) -> Result<SocketAddr, String> {
    if text.parse::<IpAddr>().is_ok() && !text.contains(':') {
        return Err(format!("{text} has no port: write {like}"));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(format!("{text} is an IPv6 address without brackets, or without a port: write [ADDRESS]:PORT"));
    }
    let Some((address, port)) = text.rsplit_once(':').filter(|(_, port)| !port.contains(']')) else {
        return Err(format!("{} has no port: write {like}", quoted(text)));
    };
    let port = self::port(port, like)?;
    let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
    let ip = match bare {
        Some(bare) => bare.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => address.parse::<std::net::Ipv4Addr>().ok().map(IpAddr::V4),
    };
    match ip {
        Some(ip) => Ok(SocketAddr::new(ip, port)),
        None if address.parse::<Ipv6Addr>().is_ok() => {
            Err(format!("{address} is an IPv6 address without brackets: write [{address}]:{port}"))
        }
        None => Err(format!("{} is no IP address: write {like}", quoted(address))),
    }
}

/// An address by itself.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| {
        let is_address = |bare: &&str| bare.parse::<IpAddr>().is_ok();
        let network = text.split_once('/').map(|(bare, _)| bare).filter(is_address);
        let port = text.rsplit_once(':').map(|(bare, _)| bare).filter(is_address);
        match (network, port) {
            (Some(bare), _) => format!("write {bare}: how long the network is say the interfaces of the nodes"),
            (_, Some(bare)) => {
                format!("write {bare}: with direct server return a backend serves the port that the client asks for")
            }
            _ => "it is no IPv4 or IPv6 address".to_owned(),
        }
    })
}

/// For how long an answer is waited for.
pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(86_400);
    let span =
        humantime::parse_duration(text).map_err(|_| format!("{} is no time such as 500ms or 10s", quoted(text)))?;
    match span {
        Duration::ZERO => Err("it is zero: nothing is answered in no time".to_owned()),
        span if span > LONGEST => Err("it is more than a day".to_owned()),
        span => Ok(span),
    }
}

/// A number within bounds, which are named where it is not.
pub(super) fn number(within: RangeInclusive<u32>) -> impl Fn(&str) -> Result<u32, String> + Clone + Send + Sync {
    move |text| {
        let number = text.parse().ok().filter(|number| within.contains(number));
        let bounds = match within.clone().into_inner() {
            (first, u32::MAX) => format!("{first} or more"),
            (first, last) => format!("{first} to {last}"),
        };
        number.ok_or_else(|| format!("it is no number of {bounds}"))
    }
}

/// A time in whole milliseconds.
pub(super) fn milliseconds(text: &str) -> Result<u32, String> {
    let span = timeout(text)?;
    let is_whole = span.subsec_nanos().is_multiple_of(1_000_000);
    let whole = u32::try_from(span.as_millis()).ok().filter(|_| is_whole);
    whole.ok_or_else(|| format!("{} is no number of whole milliseconds", quoted(text)))
}

/// A time in whole seconds.
pub(super) fn seconds(text: &str) -> Result<u32, String> {
    let span = timeout(text)?;
    let whole = u32::try_from(span.as_secs()).ok().filter(|_| span.subsec_nanos() == 0);
    whole.ok_or_else(|| format!("{} is no number of whole seconds", quoted(text)))
}

/// The same, where none at all is meant, too.
pub(super) fn seconds_or_none(text: &str) -> Result<u32, String> {
    if humantime::parse_duration(text).is_ok_and(|span| span.is_zero()) { Ok(0) } else { seconds(text) }
}

/// A certificate's role.
pub(super) fn role(text: &str) -> Result<lb_proto::tls::Role, String> {
    text.parse().map_err(|_| "it is none of node, viewer, operator, admin".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem<T: FromStr<Err = String> + std::fmt::Debug>(text: &str) -> String {
        text.parse::<T>().unwrap_err()
    }

    #[test]
    fn destinations_and_clients_are_read() {
        let tcp = Destination("192.0.2.1:80".parse().unwrap(), v1::Protocol::Tcp);
        assert_eq!("192.0.2.1:80/tcp".parse(), Ok(tcp));
        assert_eq!("[2001:db8::1]:53/udp".parse::<Destination>().map(|to| to.1), Ok(v1::Protocol::Udp));
        assert_eq!("[2001:db8::9]:40000".parse(), Ok(Endpoint("[2001:db8::9]:40000".parse().unwrap())));
    }

    #[test]
    fn ports_are_read() {
        let range = |text: &str| text.parse::<Port>().map(|Port(range)| (range.first, range.last));
        assert_eq!(range("80/tcp"), Ok((80, 80)));
        assert_eq!(range("1-65535/udp"), Ok((1, 65535)));
        assert_eq!(range("any/tcp"), Ok((0, 0)));
    }

    #[test]
    fn every_mistake_has_its_own_message() {
        let all = [
            (problem::<Port>("80"), "has no protocol"),
            (problem::<Port>("0/tcp"), "0 is no port: 1 to 65535"),
            (problem::<Port>("65536/tcp"), "65536 is no port: 1 to 65535"),
            (problem::<Port>("80/sctp"), "\"sctp\" is not balanced"),
            (problem::<Port>("80/TCP"), "lower case: tcp"),
            (problem::<Port>("90-80/tcp"), "the range 90-80 is reversed: write 80-90"),
            (problem::<Port>("/tcp"), "\"\" is no port"),
            (problem::<Port>("1-/udp"), "\"\" is no port"),
            (problem::<Port>("http/tcp"), "\"http\" is no port"),
            (problem::<Destination>("192.0.2.1:80"), "has no protocol"),
            (problem::<Destination>("192.0.2.1/tcp"), "192.0.2.1 has no port"),
            (problem::<Destination>("[2001:db8::1]/tcp"), "has no port"),
            (problem::<Destination>("2001:db8::1:53/udp"), "without brackets"),
            (problem::<Destination>("192.0.2.1:65536/udp"), "65536 is no port"),
            (problem::<Destination>("192.0.2.1:80/Udp"), "lower case: udp"),
            (problem::<Destination>("example.net:80/tcp"), "\"example.net\" is no IP address"),
            (problem::<Endpoint>("192.0.2.9"), "has no port"),
            (problem::<Endpoint>("2001:db8::9"), "without brackets"),
            (problem::<Endpoint>("fe80:1:2:3:4:5:6:7:80"), "write [fe80:1:2:3:4:5:6:7]:80"),
        ];
        for (at, (message, expected)) in all.iter().enumerate() {
            assert!(message.contains(expected), "{at}: {message:?} and not {expected:?}");
        }
        let long = problem::<Port>(&"8".repeat(8000));
        assert!(long.len() < 200 && long.contains("(8000 bytes)"), "{long}");
        let long = problem::<Endpoint>(&"ü".repeat(50_000));
        assert!(long.len() < 300, "{long}");
    }

    #[test]
    fn numbers_have_their_bounds() {
        let (weight, rise) = (number(0..=1000), number(1..=u32::MAX));
        assert_eq!((weight("1000"), rise("7")), (Ok(1000), Ok(7)));
        for wrong in ["1001", "-1", "", "x", "99999999999"] {
            assert_eq!(weight(wrong).unwrap_err(), "it is no number of 0 to 1000", "{wrong}");
        }
        assert_eq!(rise("0").unwrap_err(), "it is no number of 1 or more");
    }

    #[test]
    fn times_have_their_ends() {
        assert_eq!(timeout("1ms"), Ok(Duration::from_millis(1)));
        assert_eq!(timeout("24h"), Ok(Duration::from_secs(86_400)));
        for wrong in ["0s", "0ms", "25h", "18446744073709551615s", "soon", "10", "-1s", ""] {
            assert!(timeout(wrong).is_err(), "{wrong}");
        }
    }
}
