//! Health checks as the API knows them, from and to the table's.

use lb_proto::v1;
use lb_raft_store::table::{Check, DnsProbe, DnsRecord, GrpcProbe, HttpProbe, Probe, TlsProbe, UdpProbe};
use tonic::Status;

use super::status::invalid;

/// The table's. What is not said gets its usual value here.
pub(super) fn checks(list: &v1::CheckList) -> Result<Vec<Check>, Status> {
    list.checks.iter().enumerate().map(|(number, check)| read(check, &format!("checks[{number}]"))).collect()
}

fn read(check: &v1::Check, field: &str) -> Result<Check, Status> {
    use v1::check::Probe as Wire;
    let port = u16::try_from(check.port)
        .map_err(|_| invalid(&format!("{field}.port"), format!("{} is not a port: 1 to 65535", check.port)))?;
    let probe = match check.probe.as_ref().ok_or_else(|| invalid(field, "what is asked is not said: tcp, http, ..."))? {
        Wire::Tcp(v1::TcpProbe {}) => Probe::Tcp,
        Wire::Icmp(v1::IcmpProbe {}) => Probe::Icmp,
        Wire::Http(probe) => Probe::Http(http(probe, field)?),
        Wire::Grpc(v1::GrpcProbe { tls, service }) => {
            Probe::Grpc(GrpcProbe { tls: tls.as_ref().map(|tls| self::tls(tls, "")), service: service.clone() })
        }
        Wire::Udp(v1::UdpProbe { payload, answer }) => {
            Probe::Udp(UdpProbe { payload: payload.clone(), answer: answer.clone() })
        }
        Wire::Dns(probe) => Probe::Dns(DnsProbe { name: probe.name.clone(), record: record(probe.record, field)? }),
    };
    Ok(Check { port, probe })
}

fn http(probe: &v1::HttpProbe, field: &str) -> Result<HttpProbe, Status> {
    let status = |name: &str, value: u32| {
        u16::try_from(value).map_err(|_| invalid(&format!("{field}.{name}"), format!("{value} is no status")))
    };
    let (first, last) = match (probe.status_first, probe.status_last) {
        (0, 0) => (200, 299),
        (first, last) => (status("status_first", first)?, status("status_last", last)?),
    };
    Ok(HttpProbe {
        tls: probe.tls.as_ref().map(|tls| self::tls(tls, &probe.host)),
        method: if probe.method.is_empty() { "GET".to_owned() } else { probe.method.clone() },
        host: probe.host.clone(),
        path: probe.path.clone(),
        status_first: first,
        status_last: last,
        body: probe.body.clone(),
    })
}

fn tls(tls: &v1::TlsProbe, host: &str) -> TlsProbe {
    let name = if tls.server_name.is_empty() { host } else { &tls.server_name };
    TlsProbe { server_name: name.to_owned(), verify: !tls.skip_verify }
}

fn record(number: i32, field: &str) -> Result<DnsRecord, Status> {
    Ok(match v1::DnsRecord::try_from(number) {
        Ok(v1::DnsRecord::Unspecified | v1::DnsRecord::A) => DnsRecord::A,
        Ok(v1::DnsRecord::Aaaa) => DnsRecord::Aaaa,
        Ok(v1::DnsRecord::Ns) => DnsRecord::Ns,
        Ok(v1::DnsRecord::Soa) => DnsRecord::Soa,
        Ok(v1::DnsRecord::Mx) => DnsRecord::Mx,
        Ok(v1::DnsRecord::Txt) => DnsRecord::Txt,
        Err(_) => return Err(invalid(&format!("{field}.record"), format!("{number} is unknown"))),
    })
}

/// The API's.
pub(super) fn shown(checks: &[Check]) -> v1::CheckList {
    v1::CheckList { checks: checks.iter().map(show).collect() }
}

fn show(check: &Check) -> v1::Check {
    use v1::check::Probe as Wire;
    let probe = match &check.probe {
        Probe::Tcp => Wire::Tcp(v1::TcpProbe {}),
        Probe::Icmp => Wire::Icmp(v1::IcmpProbe {}),
        Probe::Http(probe) => Wire::Http(v1::HttpProbe {
            tls: probe.tls.as_ref().map(show_tls),
            method: probe.method.clone(),
            host: probe.host.clone(),
            path: probe.path.clone(),
            status_first: probe.status_first.into(),
            status_last: probe.status_last.into(),
            body: probe.body.clone(),
        }),
        Probe::Grpc(GrpcProbe { tls, service }) => {
            Wire::Grpc(v1::GrpcProbe { tls: tls.as_ref().map(show_tls), service: service.clone() })
        }
        Probe::Udp(UdpProbe { payload, answer }) => {
            Wire::Udp(v1::UdpProbe { payload: payload.clone(), answer: answer.clone() })
        }
        Probe::Dns(DnsProbe { name, record }) => {
            let record = match record {
                DnsRecord::A => v1::DnsRecord::A,
                DnsRecord::Aaaa => v1::DnsRecord::Aaaa,
                DnsRecord::Ns => v1::DnsRecord::Ns,
                DnsRecord::Soa => v1::DnsRecord::Soa,
                DnsRecord::Mx => v1::DnsRecord::Mx,
                DnsRecord::Txt => v1::DnsRecord::Txt,
            };
            Wire::Dns(v1::DnsProbe { name: name.clone(), record: record.into() })
        }
    };
    v1::Check { port: check.port.into(), probe: Some(probe) }
}

fn show_tls(tls: &TlsProbe) -> v1::TlsProbe {
    v1::TlsProbe { server_name: tls.server_name.clone(), skip_verify: !tls.verify }
}
