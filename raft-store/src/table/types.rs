//! The small values of the table. Each is parsed once, at the edge, and cannot be invalid afterwards.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use crate::codec::{DecodeError, Field, WRONG};

/// A node's id: the index of the log entry that added it, so it is never used twice. The node that
/// bootstraps a cluster is 1, because entry 1 is always the first leader's blank entry.
pub type NodeId = u64;

/// The id of the node that bootstraps a cluster.
pub const BOOTSTRAP_NODE: NodeId = 1;

/// The log index of the last change to the table.
pub type Revision = u64;

/// The log index of the entry that opened a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// The log index of the grant of a VIP to its owner. It grows with every move of that VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// Why a text is not the value it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value} is not {expected}")]
pub struct ParseError {
    /// The text as it came, in quotation marks; of a long one the beginning.
    pub value: String,
    /// What it should have been, with an example.
    pub expected: &'static str,
}

impl ParseError {
    fn new(value: &str, expected: &'static str) -> Self {
        Self { value: quoted(value), expected }
    }
}

/// What a message quotes of a text that came from outside: all of it in quotation marks, unless it is long.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN: usize = 64;
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{:?}... ({} bytes)", &text[..at], text.len()),
        None => format!("{text:?}"),
    }
}

/// An Ethernet MAC address that a host can have: neither zero nor a group address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    const EXPECTED: &'static str = "a unicast MAC address such as 02:00:5e:10:00:01";

    /// The six octets in the order in which they are sent.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl TryFrom<[u8; 6]> for MacAddr {
    type Error = ParseError;

    fn try_from(octets: [u8; 6]) -> Result<Self, ParseError> {
        let mac = Self(octets);
        // IEEE 802-2014 8.2.2: the lowest bit of the first octet marks a group address.
        if octets == [0; 6] || octets[0] & 1 == 1 {
            return Err(ParseError::new(&mac.to_string(), Self::EXPECTED));
        }
        Ok(mac)
    }
}

impl FromStr for MacAddr {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError::new(text, Self::EXPECTED);
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Self::try_from(octets).map_err(|_| wrong())
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An IP network with its host bits cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    network: IpAddr,
    prefix_len: u8,
}

impl Cidr {
    /// The network that `address` is in, for a prefix of `prefix_len` bits; `None` if the prefix is
    /// longer than the address.
    pub fn containing(address: IpAddr, prefix_len: u8) -> Option<Self> {
        let network = match address {
            IpAddr::V4(a) if prefix_len <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix_len)).unwrap_or(0);
                IpAddr::from((u32::from(a) & mask).to_be_bytes())
            }
            IpAddr::V6(a) if prefix_len <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix_len)).unwrap_or(0);
                IpAddr::from((u128::from(a) & mask).to_be_bytes())
            }
            _ => return None,
        };
        Some(Self { network, prefix_len })
    }

    /// Whether no host may have `address` there: the network's own address (RFC 1122 3.2.1.3; in IPv6 that of any of its
    /// routers, RFC 4291 2.6.1), or in IPv4 its broadcast address (RFC 919 7). A link between two has neither (RFC 3021, RFC
    /// 6164). What it is called.
    pub fn reserves(&self, address: IpAddr) -> Option<&'static str> {
        let last = match self.network {
            IpAddr::V4(network) if self.prefix_len <= 30 => {
                Some(IpAddr::from((u32::from(network) | u32::MAX >> self.prefix_len).to_be_bytes()))
            }
            _ => None,
        };
        let is_link = self.prefix_len >= if self.network.is_ipv4() { 31 } else { 127 };
        match address {
            _ if is_link => None,
            address if address == self.network && address.is_ipv4() => Some("network address"),
            address if address == self.network => Some("subnet-router anycast address"),
            address if Some(address) == last => Some("broadcast address"),
            _ => None,
        }
    }

    /// Whether `address` is in this network.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.network.is_ipv4() == address.is_ipv4() && Self::containing(address, self.prefix_len) == Some(*self)
    }

    /// Whether it is a network of IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.network.is_ipv6()
    }

    /// The number of bits of the network's part.
    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }
}

impl FromStr for Cidr {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError::new(text, "a network such as 192.0.2.0/24");
        let (address, len) = text.split_once('/').ok_or_else(wrong)?;
        let address = address.parse().map_err(|_| wrong())?;
        Self::containing(address, len.parse().map_err(|_| wrong())?).ok_or_else(wrong)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_len)
    }
}

/// A backend's share of new flows, relative to the other backends of its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u16);

impl Weight {
    /// The weight of a backend that names none.
    pub const DEFAULT: Self = Self(1);

    /// The largest.
    pub const MAX: u16 = 1000;

    /// As a number from 0, for a backend that takes no new flows and keeps those it has, to [`Self::MAX`].
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<u32> for Weight {
    type Error = ParseError;

    fn try_from(weight: u32) -> Result<Self, ParseError> {
        match u16::try_from(weight) {
            Ok(weight @ 0..=Self::MAX) => Ok(Self(weight)),
            _ => Err(ParseError::new(
                &weight.to_string(),
                "a weight from 0 to 1000 (with 0 the backend takes no new flows and keeps those it has)",
            )),
        }
    }
}

/// A name of a service or a node: 1 to 63 of `a-z A-Z 0-9 . _ -`, not starting with a sign.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// Before every name.
    pub(super) const LOWEST: Self = Self(String::new());

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let sound = (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            && text.as_bytes()[0].is_ascii_alphanumeric();
        if sound {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseError::new(
                text,
                "a name: 1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit",
            ))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Field<u64> for LeaseId {
    fn put(&self) -> u64 {
        self.0
    }

    fn read(number: u64) -> Result<Self, DecodeError> {
        Ok(Self(number))
    }
}

impl Field<u64> for Epoch {
    fn put(&self) -> u64 {
        self.0
    }

    fn read(number: u64) -> Result<Self, DecodeError> {
        Ok(Self(number))
    }
}

impl Field<Vec<u8>> for MacAddr {
    fn put(&self) -> Vec<u8> {
        self.0.to_vec()
    }

    fn read(bytes: Vec<u8>) -> Result<Self, DecodeError> {
        let octets = <[u8; 6]>::try_from(bytes.as_slice()).map_err(|_| WRONG)?;
        Self::try_from(octets).map_err(|_| WRONG)
    }
}

/// Where no bytes stand for none.
impl Field<Vec<u8>> for Option<MacAddr> {
    fn put(&self) -> Vec<u8> {
        self.map(|mac| mac.0.to_vec()).unwrap_or_default()
    }

    fn read(bytes: Vec<u8>) -> Result<Self, DecodeError> {
        if bytes.is_empty() { Ok(None) } else { Field::read(bytes).map(Some) }
    }
}

impl Field<String> for Cidr {
    fn put(&self) -> String {
        self.to_string()
    }

    fn read(text: String) -> Result<Self, DecodeError> {
        text.parse().map_err(|_| WRONG)
    }
}

/// Where an empty text stands for none.
impl Field<String> for Option<Cidr> {
    fn put(&self) -> String {
        self.map(|network| network.to_string()).unwrap_or_default()
    }

    fn read(text: String) -> Result<Self, DecodeError> {
        if text.is_empty() { Ok(None) } else { Field::read(text).map(Some) }
    }
}

impl Field<u32> for Weight {
    fn put(&self) -> u32 {
        self.0.into()
    }

    fn read(number: u32) -> Result<Self, DecodeError> {
        // As stored, whatever may be asked for today: a parser that has become stricter must not make a log unreadable.
        u16::try_from(number).map(Self).map_err(|_| WRONG)
    }
}

impl Field<String> for Name {
    fn put(&self) -> String {
        self.0.clone()
    }

    fn read(text: String) -> Result<Self, DecodeError> {
        // As stored, too.
        if text.is_empty() { Err(WRONG) } else { Ok(Self(text)) }
    }
}

/// Whether a host can have this address on an interface, so that it can be a VIP or a backend.
pub fn is_host_address(address: IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    let reserved = match address {
        // RFC 6890: "this network" and class E, broadcast included.
        IpAddr::V4(a) => a.octets()[0] == 0 || a.octets()[0] >= 240,
        IpAddr::V6(a) => a.to_ipv4_mapped().is_some(),
    };
    !special && !reserved
}

/// Where a node is reached by the others: `HOST:PORT`, where HOST is a name (RFC 1123 2.1), an IPv4 address, or an IPv6
/// address in brackets.
pub fn check_cluster_address(text: &str) -> Result<(), String> {
    let form = "HOST:PORT, such as 10.77.1.1:7401, [2001:db8::1]:7401 or lb1.example:7401";
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(format!("{} is a URL: leave {scheme}:// out; the form is {form}", quoted(text)));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(format!("{text:?} is an IPv6 address without brackets or without a port; the form is {form}"));
    }
    let Some((host, port)) = text.rsplit_once(':').filter(|_| !text.ends_with(']')) else {
        return Err(format!("{} has no port; the form is {form}", quoted(text)));
    };
    if !port.bytes().all(|byte| byte.is_ascii_digit()) || port.parse::<u16>().map_or(true, |port| port == 0) {
        return Err(format!("{} is no port from 1 to 65535; the form is {form}", quoted(port)));
    }
    if let Some(rest) = host.strip_prefix('[') {
        let address = rest.strip_suffix(']').ok_or_else(|| format!("{host:?} lacks its closing bracket"))?;
        if address.contains('%') {
            return Err(format!("{address:?} has a scope, which means nothing to other machines: use another address"));
        }
        let address: Ipv6Addr = address.parse().map_err(|_| format!("{address:?} is no IPv6 address"))?;
        return check_host_ip(address.into());
    }
    if host.contains(':') {
        return Err(format!("{host:?} is an IPv6 address without brackets; the form is {form}"));
    }
    // What ends in a number is meant as an address (no such top-level domain can be, RFC 3696 2), in whatever base.
    let last = host.strip_suffix('.').unwrap_or(host).rsplit('.').next().unwrap_or_default();
    let digits = last.strip_prefix("0x").unwrap_or(last);
    let radix = if digits == last { 10 } else { 16 };
    if !last.is_empty() && digits.chars().all(|digit| digit.is_digit(radix)) {
        let address: Ipv4Addr = host.parse().map_err(|_| format!("{host:?} is no IPv4 address"))?;
        return check_host_ip(address.into());
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    match name.len() <= 253 && name.split('.').all(label) {
        true => Ok(()),
        false => Err(format!("{host:?} is no host name; the form is {form}")),
    }
}

fn check_host_ip(address: IpAddr) -> Result<(), String> {
    let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    match address {
        _ if address.is_unspecified() => Err(format!("{address} is every address and none: name one of this node's")),
        _ if address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) => {
            Err(format!("{address} is the address of no single machine"))
        }
        _ if link_local => Err(format!("{address} is valid on one link only: use another address")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_address_is_one_that_another_machine_can_dial() {
        for sound in ["10.77.1.4:7401", "[fd00::1]:7401", "lb1:7401", "lb-1.example.net.:1", "127.0.0.1:65535"] {
            assert_eq!(check_cluster_address(sound), Ok(()), "{sound}");
        }
        let wrong = [
            ("http://10.77.1.4:7401", "leave http:// out"),
            ("fd00::1:7401", "without brackets"),
            ("fd00::1", "without brackets"),
            ("[fd00::1:7401", "closing bracket"),
            ("[fe80::1%eth0]:7401", "scope"),
            ("[fe80::1]:7401", "one link"),
            ("[::]:7401", "every address"),
            ("0.0.0.0:7401", "every address"),
            ("224.0.0.1:7401", "no single machine"),
            ("10.77.1.5", "no port"),
            ("10.77.1:7401", "no IPv4 address"),
            ("10.77.1.256:7401", "no IPv4 address"),
            ("0x0a.1.1.1:7401", "no IPv4 address"),
            ("10.1.1.0xa:7401", "no IPv4 address"),
            ("lb1.7:7401", "no IPv4 address"),
            ("[fd00::1]", "no port"),
            ("lb1:65536", "no port from"),
            ("lb1:0", "no port from"),
            ("lb1:+7401", "no port from"),
            ("lb 1:7401", "no host name"),
            (":7401", "no host name"),
            ("lb1/x:7401", "no host name"),
            ("", "no port"),
        ];
        for (text, word) in wrong {
            let problem = check_cluster_address(text).unwrap_err();
            assert!(problem.contains(word), "{text}: {problem}");
        }
    }

    #[test]
    fn mac_addresses_are_read_and_written_alike() {
        let mac: MacAddr = "02:00:5E:10:00:fe".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:5e:10:00:fe");
        assert_eq!("02-00-5e-10-00-fe".parse(), Ok(mac));
    }

    #[test]
    fn group_zero_and_malformed_macs_are_refused() {
        for text in ["01:00:5e:00:00:01", "00:00:00:00:00:00", "02:00:00:00:00", "2:0:0:0:0:1", ""] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_network_contains_its_hosts_and_no_others() {
        let net: Cidr = "192.168.2.77/24".parse().unwrap();
        assert_eq!(net.to_string(), "192.168.2.0/24");
        assert!(net.contains("192.168.2.255".parse().unwrap()));
        assert!(!net.contains("192.168.3.1".parse().unwrap()));
        assert!(!net.contains("2001:db8::1".parse().unwrap()));
        let all: Cidr = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("203.0.113.9".parse().unwrap()));
        assert!("10.0.0.0/33".parse::<Cidr>().is_err());
        let six: Cidr = "2001:db8::/64".parse().unwrap();
        assert!(six.contains("2001:db8::ffff".parse().unwrap()));
    }

    #[test]
    fn names_that_a_shell_would_stumble_over_are_refused() {
        for name in ["", "-a", "a b", "ü", &"x".repeat(64)] {
            assert!(name.parse::<Name>().is_err(), "{name}");
        }
        assert!("web-1.eu_west".parse::<Name>().is_ok());
    }

    #[test]
    fn addresses_no_host_can_have_are_known() {
        for text in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "0.1.2.3", "::", "::1", "ff02::1"] {
            assert!(!is_host_address(text.parse().unwrap()), "{text}");
        }
        assert!(is_host_address("192.168.2.1".parse().unwrap()));
    }
}
