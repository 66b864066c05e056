//! Health checks: what is asked of a service's backends to find out whether they serve.

use crate::codec::{DecodeError, Field, WRONG, numbered, record, recorded};

/// One question; all of a service's must be answered well.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Check {
    /// The port that is asked; 0 stands for the first one of the service.
    pub port: u16,
    /// What is asked.
    pub probe: Probe,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Probe {
    /// A TCP connection is accepted.
    Tcp,
    /// A request is answered as expected (RFC 9110).
    Http(HttpProbe),
    /// `grpc.health.v1.Health/Check` answers SERVING.
    Grpc(GrpcProbe),
    /// A datagram is answered.
    Udp(UdpProbe),
    /// A name server knows a name (RFC 1035).
    Dns(DnsProbe),
    /// An echo request is answered (RFC 792, RFC 4443).
    Icmp,
}

/// An HTTP request, and the response that is expected.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "they are called as RFC 9110 calls them")]
pub struct HttpProbe {
    pub tls: Option<TlsProbe>,
    pub method: String,
    /// The VIP where it is empty.
    pub host: String,
    /// With the query.
    pub path: String,
    pub status_first: u16,
    pub status_last: u16,
    /// What the content must contain; any will do where it is empty.
    pub body: String,
}

/// How a TLS server must identify itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TlsProbe {
    /// The name that is asked for (SNI, RFC 6066, section 3) and that the certificate must be for.
    pub server_name: String,
    /// The certificate must be one that the node's system trusts.
    pub verify: bool,
}

/// Of which service the health is asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrpcProbe {
    /// Whether the server speaks TLS.
    pub tls: Option<TlsProbe>,
    /// The gRPC service; empty for the server as a whole.
    pub service: String,
}

/// A datagram and its answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UdpProbe {
    /// What is sent.
    pub payload: Vec<u8>,
    /// What the answer must begin with; any will do where it is empty.
    pub answer: Vec<u8>,
}

/// A question for a name server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsProbe {
    /// The name.
    pub name: String,
    /// The type of the records that must be in the answer.
    pub record: DnsRecord,
}

/// Types of DNS records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "they are called as RFC 1035 and RFC 3596 call them")]
pub enum DnsRecord {
    A,
    Aaaa,
    Ns,
    Soa,
    Mx,
    Txt,
}

/// How often a backend is asked, and how many answers count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rhythm {
    /// From one question to the next.
    pub interval_ms: u32,
    /// For so long an answer is waited for.
    pub timeout_ms: u32,
    /// So many good answers in a row make a backend healthy.
    pub rise: u32,
    /// So many bad ones make it unhealthy.
    pub fall: u32,
    /// An interval is longer or shorter by up to so many percent, so that no two checks stay in step.
    pub jitter_percent: u32,
}

impl Rhythm {
    /// What most services want.
    pub(super) const DEFAULT: Self = Self { interval_ms: 1000, timeout_ms: 500, rise: 2, fall: 3, jitter_percent: 10 };
}

/// Bytes of one text in a check.
pub(super) const TEXT: usize = 1024;

impl Probe {
    /// Why it cannot work, if so: the field, and what is wrong with it.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Tcp | Self::Icmp => None,
            Self::Http(probe) => probe.problem(),
            Self::Grpc(probe) => of_tls(probe.tls.as_ref(), "").or_else(|| text("service", &probe.service)),
            Self::Udp(UdpProbe { payload, answer }) => [("payload", payload), ("answer", answer)]
                .into_iter()
                .find_map(|(field, bytes)| size(field, bytes.len())),
            Self::Dns(DnsProbe { name, .. }) => {
                let is_label = |label: &str| (1..=63).contains(&label.len());
                let name = name.strip_suffix('.').unwrap_or(name);
                let is_name = name.len() <= 253 && name.is_ascii() && name.split('.').all(is_label);
                (!is_name).then(|| ("name", format!("{name:?} is no domain name (RFC 1035, section 2.3)")))
            }
        }
    }
}

impl HttpProbe {
    fn problem(&self) -> Option<(&'static str, String)> {
        let is_token = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase());
        if !self.path.starts_with('/') {
            return Some(("path", format!("{:?} does not begin with /", self.path)));
        }
        if !is_token(&self.method) {
            return Some(("method", format!("{:?} is no method, as GET and HEAD are", self.method)));
        }
        let (first, last) = (self.status_first, self.status_last);
        if first > last || !(100..=599).contains(&first) || !(100..=599).contains(&last) {
            return Some(("status", format!("{first}-{last} is no range of statuses, as 200-299 is")));
        }
        if self.method == "HEAD" && !self.body.is_empty() {
            return Some(("body", "the response to HEAD has no content to look into".into()));
        }
        let visible = [("path", &self.path), ("host", &self.host)];
        let unfit = visible.into_iter().find(|(_, text)| !text.bytes().all(|byte| byte.is_ascii_graphic()));
        if let Some((field, value)) = unfit {
            return Some((
                field,
                format!("{value:?} has characters that a request cannot carry as they are: write them as %20"),
            ));
        }
        let sizes = || [("path", &self.path), ("host", &self.host), ("body", &self.body)];
        sizes()
            .into_iter()
            .find_map(|(field, value)| text(field, value))
            .or_else(|| of_tls(self.tls.as_ref(), &self.host))
    }
}

fn of_tls(tls: Option<&TlsProbe>, host: &str) -> Option<(&'static str, String)> {
    let tls = tls?;
    if tls.verify && tls.server_name.is_empty() && host.is_empty() {
        let problem = "whose certificate it shall be is not said: name the server (sni or host), or turn verify off";
        return Some(("tls.server_name", problem.into()));
    }
    text("tls.server_name", &tls.server_name)
}

fn text(field: &'static str, value: &str) -> Option<(&'static str, String)> {
    let control = value.chars().any(char::is_control);
    control.then(|| (field, format!("{value:?} has control characters"))).or_else(|| size(field, value.len()))
}

fn size(field: &'static str, len: usize) -> Option<(&'static str, String)> {
    (len > TEXT).then(|| (field, format!("{len} bytes; it may have {TEXT}")))
}

numbered!(DnsRecord: A, Aaaa, Ns, Soa, Mx, Txt);
recorded!(HttpProbe => HttpProbe { tls, method, host, path, status_first, status_last, body });
recorded!(TlsProbe => TlsProbe { server_name, verify });
recorded!(GrpcProbe => GrpcProbe { tls, service });
recorded!(UdpProbe => UdpProbe { payload, answer });
recorded!(DnsProbe => DnsProbe { name, record });

impl Field<record::Check> for Check {
    fn put(&self) -> record::Check {
        use record::check::Probe as Record;
        let probe = match &self.probe {
            Probe::Tcp => Record::Tcp(true),
            Probe::Http(probe) => Record::Http(probe.put()),
            Probe::Grpc(probe) => Record::Grpc(probe.put()),
            Probe::Udp(probe) => Record::Udp(probe.put()),
            Probe::Dns(probe) => Record::Dns(probe.put()),
            Probe::Icmp => Record::Icmp(true),
        };
        record::Check { port: self.port.put(), probe: Some(probe) }
    }

    fn read(record: record::Check) -> Result<Self, DecodeError> {
        use record::check::Probe as Record;
        // The tag of a kind that is not known was skipped.
        let probe = match record.probe.ok_or(DecodeError::too_new(0))? {
            Record::Tcp(true) => Probe::Tcp,
            Record::Http(probe) => Probe::Http(Field::read(probe)?),
            Record::Grpc(probe) => Probe::Grpc(Field::read(probe)?),
            Record::Udp(probe) => Probe::Udp(Field::read(probe)?),
            Record::Dns(probe) => Probe::Dns(Field::read(probe)?),
            Record::Icmp(true) => Probe::Icmp,
            Record::Tcp(false) | Record::Icmp(false) => return Err(WRONG),
        };
        Ok(Self { port: Field::read(record.port).map_err(|error: DecodeError| error.named("port"))?, probe })
    }
}

/// Where no entries are something else than no change.
impl Field<record::CheckList> for Vec<Check> {
    fn put(&self) -> record::CheckList {
        record::CheckList { checks: self.put() }
    }

    fn read(record: record::CheckList) -> Result<Self, DecodeError> {
        Field::read(record.checks)
    }
}
