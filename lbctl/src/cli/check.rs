//! Health checks as they are written on the command line: `KIND[:[PORT][/PATH]][?KEY=VALUE&...]`, in which values are
//! percent-encoded (RFC 3986, section 2.1) where they must be.

use std::{borrow::Cow, fmt, str::FromStr};

use lb_proto::v1::{
    self, DnsProbe, DnsRecord, GrpcProbe, HttpProbe, IcmpProbe, TcpProbe, TlsProbe, UdpProbe, check::Probe,
};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};

use super::quoted;

/// `tcp`, `http:/healthz?status=200-299`, `none`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Check(pub(crate) Option<v1::Check>);

const LIKE: &str = "none, tcp, http:/PATH, https:/PATH, grpc, udp?send=TEXT, dns?name=NAME or icmp";
/// What a value must not have as it is.
const RESERVED: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'&').add(b'?').add(b'#').add(b'\'').add(b'"').add(0x7f);

/// Of the option.
pub(super) const HELP: &str = "What the owner of the VIP asks each backend, by the way that a client's packets take: none, \
    tcp[:PORT], icmp, http[s]:[PORT]/PATH[?host=NAME&status=200-299&body=TEXT&method=HEAD&query=QUERY&sni=NAME&verify=off], \
    grpc[:PORT][/SERVICE][?tls=on], udp[:PORT][?send=TEXT&expect=TEXT], dns[:PORT]?name=NAME[&type=AAAA]. Repeat it for \
    several: all must be answered well. Unless said, tcp for a service with a TCP port";

/// A text in its parts.
struct Parts<'a> {
    kind: &'a str,
    port: Option<u16>,
    path: Option<&'a str>,
    parameters: Vec<(&'a str, Cow<'a, [u8]>)>,
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Result<Self, String> {
        let (head, query) = text.split_once('?').unwrap_or((text, ""));
        let (kind, place) = head.split_once(':').unwrap_or((head, ""));
        let (port, path) = match place.find('/') {
            Some(at) => (&place[..at], Some(&place[at..])),
            None => (place, None),
        };
        let port = match port {
            "" => None,
            text => match text.parse::<u16>() {
                Ok(port @ 1..) => Some(port),
                _ => return Err(format!("{} is no port, and a path begins with /", quoted(text))),
            },
        };
        let mut parameters = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| format!("{} has no value: write KEY=VALUE", quoted(pair)))?;
            if parameters.iter().any(|(known, _)| *known == key) {
                return Err(format!("{key} is said twice"));
            }
            parameters.push((key, percent_decode_str(value).into()));
        }
        Ok(Self { kind, port, path, parameters })
    }

    fn bytes(&mut self, key: &str) -> Vec<u8> {
        let at = self.parameters.iter().position(|(known, _)| *known == key);
        at.map(|at| self.parameters.remove(at).1.into_owned()).unwrap_or_default()
    }

    fn text(&mut self, key: &str) -> Result<String, String> {
        String::from_utf8(self.bytes(key)).map_err(|_| format!("{key} is no text in UTF-8"))
    }

    fn switch(&mut self, key: &str, default: bool) -> Result<bool, String> {
        match self.text(key)?.as_str() {
            "" => Ok(default),
            "on" => Ok(true),
            "off" => Ok(false),
            other => Err(format!("{key} is on or off, not {}", quoted(other))),
        }
    }

    fn tls(&mut self) -> Result<TlsProbe, String> {
        Ok(TlsProbe { server_name: self.text("sni")?, skip_verify: !self.switch("verify", true)? })
    }

    fn http(&mut self, with_tls: bool) -> Result<HttpProbe, String> {
        let kind = self.kind;
        let path = self.path.ok_or_else(|| format!("it has no path: write {kind}:/PATH"))?;
        let status = self.text("status")?;
        let (first, last) = match status.split_once('-') {
            _ if status.is_empty() => (0, 0),
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(&status)?, number(&status)?),
        };
        if first > last {
            return Err(format!("the range of statuses {first}-{last} is reversed: write {last}-{first}"));
        }
        let query = self.text("query")?;
        Ok(HttpProbe {
            tls: if with_tls { Some(self.tls()?) } else { None },
            method: self.text("method")?,
            host: self.text("host")?,
            path: if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") },
            status_first: first,
            status_last: last,
            body: self.text("body")?,
        })
    }

    fn grpc(&mut self) -> Result<GrpcProbe, String> {
        let with_tls = self.switch("tls", false)?;
        Ok(GrpcProbe {
            tls: if with_tls { Some(self.tls()?) } else { None },
            service: self.path.take().map(|path| path[1..].to_owned()).unwrap_or_default(),
        })
    }

    fn dns(&mut self) -> Result<DnsProbe, String> {
        let name = self.text("name")?;
        if name.is_empty() {
            return Err("it has no name to ask for: write dns?name=www.example.org".to_owned());
        }
        let record = match self.text("type")?.to_ascii_uppercase().as_str() {
            "" | "A" => DnsRecord::A,
            "AAAA" => DnsRecord::Aaaa,
            "NS" => DnsRecord::Ns,
            "SOA" => DnsRecord::Soa,
            "MX" => DnsRecord::Mx,
            "TXT" => DnsRecord::Txt,
            other => return Err(format!("the type is A, AAAA, NS, SOA, MX or TXT, not {}", quoted(other))),
        };
        Ok(DnsProbe { name, record: record.into() })
    }

    /// What nobody has asked for is a mistake.
    fn rest(&self, takes_path: bool, takes_port: bool) -> Result<(), String> {
        let kind = self.kind;
        match (self.parameters.first(), self.path, self.port) {
            (Some((key, _)), ..) => Err(format!("a check by {kind} knows no {}", quoted(key))),
            (None, Some(path), _) if !takes_path => {
                Err(format!("a check by {kind} has no path such as {}", quoted(path)))
            }
            (None, _, Some(port)) if !takes_port => Err(format!("a check by {kind} has no port such as {port}")),
            _ => Ok(()),
        }
    }
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{} is no status: write 200 or 200-299", quoted(text)))
}

impl FromStr for Check {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = Parts::of(text)?;
        let probe = match parts.kind {
            "none" => None,
            "tcp" => Some(Probe::Tcp(TcpProbe {})),
            "icmp" => Some(Probe::Icmp(IcmpProbe {})),
            "http" => Some(Probe::Http(parts.http(false)?)),
            "https" => Some(Probe::Http(parts.http(true)?)),
            "grpc" => Some(Probe::Grpc(parts.grpc()?)),
            "udp" => Some(Probe::Udp(UdpProbe { payload: parts.bytes("send"), answer: parts.bytes("expect") })),
            "dns" => Some(Probe::Dns(parts.dns()?)),
            other => return Err(format!("{} is no check: write {LIKE}", quoted(other))),
        };
        parts.rest(["http", "https"].contains(&parts.kind), !["none", "icmp"].contains(&parts.kind))?;
        Ok(Self(probe.map(|probe| v1::Check { port: parts.port.unwrap_or(0).into(), probe: Some(probe) })))
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(v1::Check { port, probe: Some(probe) }) = &self.0 else { return f.write_str("none") };
        let (mut path, mut query) = (String::new(), String::new());
        let mut say = |key: &str, value: &[u8]| {
            if !value.is_empty() {
                let separator = if query.is_empty() { '?' } else { '&' };
                query.push_str(&format!("{separator}{key}={}", percent_encode(value, RESERVED)));
            }
        };
        let kind = match probe {
            Probe::Tcp(_) => "tcp",
            Probe::Icmp(_) => "icmp",
            Probe::Http(probe) => {
                let (of_path, of_query) = probe.path.split_once('?').unwrap_or((&probe.path, ""));
                of_path.clone_into(&mut path);
                say("query", of_query.as_bytes());
                say("host", probe.host.as_bytes());
                say("method", if probe.method == "GET" { b"" } else { probe.method.as_bytes() });
                match (probe.status_first, probe.status_last) {
                    (200, 299) | (0, 0) => {}
                    (first, last) if first == last => say("status", first.to_string().as_bytes()),
                    (first, last) => say("status", format!("{first}-{last}").as_bytes()),
                }
                say("body", probe.body.as_bytes());
                say_tls(probe.tls.as_ref(), &probe.host, &mut say);
                if probe.tls.is_some() { "https" } else { "http" }
            }
            Probe::Grpc(probe) => {
                path = if probe.service.is_empty() { String::new() } else { format!("/{}", probe.service) };
                say("tls", if probe.tls.is_some() { b"on" } else { b"" });
                say_tls(probe.tls.as_ref(), "", &mut say);
                "grpc"
            }
            Probe::Udp(probe) => {
                say("send", &probe.payload);
                say("expect", &probe.answer);
                "udp"
            }
            Probe::Dns(probe) => {
                say("name", probe.name.as_bytes());
                let record = DnsRecord::try_from(probe.record).unwrap_or_default().as_str_name();
                say("type", record.trim_start_matches("DNS_RECORD_").as_bytes());
                "dns"
            }
        };
        match (port, path.as_str()) {
            (0, "") => write!(f, "{kind}{query}"),
            (0, path) => write!(f, "{kind}:{path}{query}"),
            (port, path) => write!(f, "{kind}:{port}{path}{query}"),
        }
    }
}

fn say_tls(tls: Option<&TlsProbe>, host: &str, say: &mut impl FnMut(&str, &[u8])) {
    let Some(tls) = tls else { return };
    say("sni", if tls.server_name == host { b"" } else { tls.server_name.as_bytes() });
    say("verify", if tls.skip_verify { b"off" } else { b"" });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_check_is_how_it_is_written() {
        let texts = [
            "none",
            "tcp",
            "tcp:8443",
            "icmp",
            "http:/",
            "http:8080/healthz?host=a.example&status=200&body=all%20is%20well",
            "http:/status?query=full=1%26x=2&method=HEAD&status=200-399",
            "https:/healthz?host=a.example&sni=b.example",
            "https:8443/healthz?verify=off",
            "grpc",
            "grpc:9000/a.v1.Service?tls=on&sni=a.example&verify=off",
            "udp:9000?send=%00%01ping&expect=pong",
            "dns?name=www.example.org&type=AAAA",
        ];
        for text in texts {
            let check: Check = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(check.to_string(), text);
        }
    }

    #[test]
    fn every_mistake_has_its_own_message() {
        let all = [
            ("", "is no check: write none, tcp, http:/PATH"),
            ("ftp:/", "\"ftp\" is no check"),
            ("http", "it has no path: write http:/PATH"),
            ("http:healthz", "\"healthz\" is no port, and a path begins with /"),
            ("http:0/", "\"0\" is no port"),
            ("http:65536/", "\"65536\" is no port"),
            ("http:/?status=ok", "\"ok\" is no status: write 200 or 200-299"),
            ("http:/?status=299-200", "reversed: write 200-299"),
            ("http:/?statsu=200", "a check by http knows no \"statsu\""),
            ("http:/?sni=a", "a check by http knows no \"sni\""),
            ("http:/?body", "\"body\" has no value"),
            ("http:/?body=a&body=b", "body is said twice"),
            ("https:/?verify=no", "verify is on or off, not \"no\""),
            ("tcp:/x", "a check by tcp has no path"),
            ("icmp:8", "a check by icmp has no port such as 8"),
            ("dns", "it has no name to ask for"),
            ("dns?name=a&type=PTR", "the type is A, AAAA, NS, SOA, MX or TXT, not \"PTR\""),
            ("http:/?host=%ff", "host is no text in UTF-8"),
        ];
        for (text, expected) in all {
            let message = text.parse::<Check>().unwrap_err();
            assert!(message.contains(expected), "{text}: {message:?} and not {expected:?}");
        }
    }
}
