//! keepalived.conf(5): virtual servers with their checkers, and the addresses of VRRP instances.

use std::net::{IpAddr, SocketAddr};

use lb_proto::v1::{self, check::Probe};

use super::{
    Imported,
    services::{self, PERSISTENCE, Real, Virtual},
};

/// A line, or a block with its lines.
#[derive(Debug)]
struct Statement {
    line: u64,
    words: Vec<String>,
    block: Option<Vec<Statement>>,
}

impl Statement {
    fn word(&self, at: usize) -> &str {
        self.words.get(at).map(String::as_str).unwrap_or_default()
    }

    fn inner(&self) -> &[Statement] {
        self.block.as_deref().unwrap_or_default()
    }

    fn number<T: std::str::FromStr>(&self) -> Option<T> {
        self.word(1).parse().ok()
    }
}

/// Reads a configuration; fails where its braces do not match.
pub(crate) fn keepalived(text: &str) -> Result<Imported, String> {
    let statements = parse(text)?;
    let mut reader = Reader::default();
    let groups: Vec<&Statement> = statements.iter().filter(|of| of.word(0) == "virtual_server_group").collect();
    for of in &statements {
        match of.word(0) {
            "virtual_server" => reader.virtual_server(of, &groups),
            "virtual_server_group" => {}
            "vrrp_instance" => reader.vrrp_instance(of),
            "vrrp_sync_group" | "vrrp_script" | "vrrp_track_process" | "track_file" | "vrrp_track_file" => {
                reader.note(of, "not needed: which node owns a VIP is agreed on by the nodes (docs/ownership.md)");
            }
            "global_defs"
            | "static_ipaddress"
            | "static_routes"
            | "static_rules"
            | "bfd_instance"
            | "garp_group"
            | "linkbeat_interfaces" => {
                reader.note(of, format!("'{}' says nothing of a table, and is left out", of.word(0)));
            }
            "include" => reader.note(of, format!("'{}' is not read: import it by itself", of.word(1))),
            word if word.starts_with('$') || word.starts_with('@') || word.starts_with('~') => {
                reader.note(of, "definitions and conditions are not evaluated: write out what they stand for");
            }
            word => reader.note(of, format!("'{word}' is not known, and is left out")),
        }
    }
    let Reader { found, notes, vips } = reader;
    let mut imported = services::rows(found, notes);
    services::add_vips(&mut imported, vips);
    Ok(imported)
}

/// Statements end with their line, or where a block begins or ends. Comments begin with # or !.
fn parse(text: &str) -> Result<Vec<Statement>, String> {
    let mut open: Vec<(u64, Vec<Statement>)> = vec![(0, Vec::new())];
    for (line, text) in (1..).zip(text.lines()) {
        let mut words = Vec::new();
        for word in split(text) {
            match word.as_str() {
                "{" => {
                    let all = &mut open.last_mut().ok_or("a block ends that has not begun")?.1;
                    // What it is of may stand in the line before.
                    if !words.is_empty() {
                        all.push(Statement { line, words: std::mem::take(&mut words), block: None });
                    }
                    open.push((line, Vec::new()));
                }
                "}" => {
                    let (_, mut block) = open.pop().ok_or("a block ends that has not begun")?;
                    if !words.is_empty() {
                        block.push(Statement { line, words: std::mem::take(&mut words), block: None });
                    }
                    let outer =
                        open.last_mut().ok_or_else(|| format!("line {line}: a block ends that has not begun"))?;
                    match outer.1.last_mut() {
                        Some(of) => of.block = Some(block),
                        None => return Err(format!("line {line}: a block of nothing")),
                    }
                }
                _ => words.push(word),
            }
        }
        if !words.is_empty()
            && let Some((_, all)) = open.last_mut()
        {
            all.push(Statement { line, words, block: None });
        }
    }
    match open.as_slice() {
        [_] => Ok(open.remove(0).1),
        [.., (line, _)] => Err(format!("line {line}: the block that begins here does not end")),
        [] => Err("a block ends that has not begun".to_owned()),
    }
}

/// Words, of which some are in quotes; braces are words of their own.
fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut is_quoted = false;
    for c in text.chars() {
        match c {
            '"' | '\'' if is_quoted || word.is_none() => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            _ if is_quoted => word.get_or_insert_default().push(c),
            '#' | '!' if word.is_none() => break,
            c if c.is_whitespace() => words.extend(word.take()),
            '{' | '}' => {
                words.extend(word.take());
                words.push(c.to_string());
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[derive(Default)]
struct Reader {
    found: Vec<Virtual>,
    notes: Vec<(u64, String)>,
    vips: Vec<IpAddr>,
}

impl Reader {
    fn note(&mut self, of: &Statement, note: impl Into<String>) {
        self.notes.push((of.line, note.into()));
    }

    fn vrrp_instance(&mut self, of: &Statement) {
        for inner in of.inner() {
            match inner.word(0) {
                "virtual_ipaddress" | "virtual_ipaddress_excluded" => {
                    for address in inner.inner() {
                        let text = address.word(0).split('/').next().unwrap_or_default();
                        match text.parse() {
                            Ok(vip) => self.vips.push(vip),
                            Err(_) => {
                                self.note(address, format!("'{}' is no address, and is left out", address.word(0)))
                            }
                        }
                    }
                }
                "virtual_routes" | "virtual_rules" => {
                    self.note(inner, format!("'{}' is left out: routes are not moved with a VIP", inner.word(0)));
                }
                word if word.starts_with("notify") => {
                    self.note(inner, format!("'{word}' is left out: 'lbctl events --follow' tells what happens"));
                }
                _ => {}
            }
        }
        self.note(of, "VRRP is not needed: the nodes agree on who owns a VIP; its addresses are VIPs here (prefer: NODE for a master)");
    }

    fn virtual_server(&mut self, of: &Statement, groups: &[&Statement]) {
        let addresses = match (of.word(1), of.word(2)) {
            ("fwmark", mark) => {
                self.note(
                    of,
                    format!("left out: the firewall mark {mark} has no address of its own: declare each VIP and port"),
                );
                return;
            }
            ("group", name) => match groups.iter().find(|group| group.word(1) == name) {
                Some(group) => self.group(group),
                None => {
                    self.note(of, format!("left out: there is no virtual_server_group {name}"));
                    return;
                }
            },
            (address, port) => match address_and_port(address, port) {
                Some(address) => vec![address],
                None => {
                    self.note(of, format!("left out: '{address} {port}' is no address and port"));
                    return;
                }
            },
        };
        let name = (of.word(1) == "group").then(|| of.word(2).to_owned());
        let mut server = Server { host: host(of).unwrap_or_default(), ..Server::default() };
        for inner in of.inner() {
            self.setting(inner, &mut server);
        }
        let Server { mut service, protocols, backends, checks, .. } = server;
        // A virtual server without checkers keeps all its real servers.
        service.checks = Some(v1::CheckList { checks: checks.unwrap_or_default() });
        for address in addresses {
            for protocol in if protocols.is_empty() { &[v1::Protocol::Tcp][..] } else { &protocols } {
                self.found.push(Virtual {
                    line: of.line,
                    name: name.clone(),
                    address,
                    protocol: *protocol,
                    service: service.clone(),
                    backends: backends.clone(),
                });
            }
        }
    }

    /// The addresses of a group: `ADDRESS PORT`, `ADDRESS-LAST PORT`, `fwmark N`.
    fn group(&mut self, group: &Statement) -> Vec<SocketAddr> {
        let mut all = Vec::new();
        for of in group.inner() {
            let (first, last) = of.word(0).split_once('-').unwrap_or((of.word(0), ""));
            match (address_and_port(first, of.word(1)), last.parse::<u8>()) {
                (Some(address), _) if last.is_empty() => all.push(address),
                (Some(SocketAddr::V4(address)), Ok(last)) if last >= address.ip().octets()[3] => {
                    let [a, b, c, first] = address.ip().octets();
                    all.extend((first..=last).map(|d| SocketAddr::new(IpAddr::from([a, b, c, d]), address.port())));
                }
                _ => self.note(of, format!("left out: '{}' is no address and port", of.words.join(" "))),
            }
        }
        all
    }

    fn setting(&mut self, of: &Statement, server: &mut Server) {
        let service = &mut server.service;
        match of.word(0) {
            "delay_loop" | "retry" => self.timing(of, service),
            "lb_algo" | "lvs_sched" => {
                let (affinity, said) = services::scheduler(of.word(1));
                service.affinity = affinity.into();
                if let Some(said) = said {
                    self.note(of, said);
                }
            }
            "lb_kind" | "lvs_method" => {
                if let Some(said) = services::method(of.word(1)) {
                    self.note(of, said);
                }
            }
            "persistence_timeout" => {
                service.affinity = v1::Affinity::Source.into();
                self.note(of, PERSISTENCE);
            }
            "protocol" => match of.word(1).to_ascii_uppercase().as_str() {
                "TCP" => server.protocols.push(v1::Protocol::Tcp),
                "UDP" => server.protocols.push(v1::Protocol::Udp),
                other => self.note(of, format!("'protocol {other}' is left out: TCP and UDP are balanced")),
            },
            "quorum" => {
                self.note(
                    of,
                    "'quorum' is left out: what becomes of a service without good backends is its on_all_down",
                );
            }
            "sorry_server" => match address_and_port(of.word(1), of.word(2)) {
                Some(address) => {
                    server.backends.push(Real { line: of.line, address, weight: 1, is_spare: true });
                    self.note(of, "the sorry server becomes a backend of tier 2; it is checked like the others");
                }
                None => self.note(of, "left out: the sorry server has no address"),
            },
            "real_server" => self.real_server(of, server),
            // Read before.
            "virtualhost" => {}
            "delay_before_retry"
            | "warmup"
            | "alpha"
            | "omega"
            | "hysteresis"
            | "ha_suspend"
            | "inhibit_on_failure"
            | "lvs_flags"
            | "hashed"
            | "flag-1"
            | "flag-2"
            | "flag-3"
            | "smtp_alert"
            | "ops"
            | "persistence_granularity"
            | "persistence_engine"
            | "quorum_up"
            | "quorum_down" => {
                self.note(of, format!("'{}' is left out: there is nothing like it here", of.word(0)));
            }
            word => self.note(of, format!("'{word}' is not known, and is left out")),
        }
    }

    fn real_server(&mut self, of: &Statement, server: &mut Server) {
        let Some(address) = address_and_port(of.word(1), of.word(2)) else {
            return self.note(of, format!("left out: '{} {}' is no address and port", of.word(1), of.word(2)));
        };
        let host = host(of).unwrap_or_else(|| server.host.clone());
        let mut weight = 1;
        let mut checks = Vec::new();
        for inner in of.inner() {
            match inner.word(0) {
                "weight" => match inner.number() {
                    Some(number) => weight = number,
                    None => self.note(inner, format!("'{}' is no weight: it is 1", inner.word(1))),
                },
                "lvs_method" | "lb_kind" => {
                    if let Some(said) = services::method(inner.word(1)) {
                        self.note(inner, said);
                    }
                }
                "retry" | "delay_before_retry" | "delay_loop" => self.timing(inner, &mut server.service),
                "inhibit_on_failure" | "notify_up" | "notify_down" | "uthreshold" | "lthreshold" | "alpha"
                | "warmup" | "smtp_alert" | "snet" => {
                    self.note(inner, format!("'{}' is left out: there is nothing like it here", inner.word(0)));
                }
                "virtualhost" => {}
                _ => checks.extend(self.checker(inner, &host, &mut server.service)),
            }
        }
        server.backends.push(Real { line: of.line, address, weight, is_spare: false });
        match &server.checks {
            None => server.checks = Some(checks),
            Some(known) if *known != checks => {
                self.note(of, "its checkers differ from those of the first real server, which all are asked by here");
            }
            Some(_) => {}
        }
    }

    /// What says how often, and for how long.
    fn timing(&mut self, of: &Statement, service: &mut v1::Service) {
        let seconds = of.word(1).parse::<f64>().ok().filter(|seconds| (0.0..=3600.0).contains(seconds));
        match (of.word(0), seconds) {
            ("connect_timeout", Some(seconds)) => service.check_timeout_ms = (seconds * 1000.0) as u32,
            ("delay_loop", Some(seconds)) if seconds >= 0.1 => service.check_interval_ms = (seconds * 1000.0) as u32,
            ("retry", Some(retries)) => service.fall = retries as u32 + 1,
            ("delay_before_retry" | "warmup", Some(_)) => {
                self.note(of, format!("'{}' is left out: each interval is as the others", of.word(0)));
            }
            (name, _) => self.note(of, format!("'{name}' is left out: '{}' is none that can be kept", of.word(1))),
        }
        // An answer is waited for no longer than the next question.
        if service.check_timeout_ms > service.check_interval_ms.max(1000) {
            service.check_interval_ms = service.check_timeout_ms;
            self.note(of, "backends are asked no more often than the time that an answer is waited for");
        }
    }

    /// One of a real server's checkers, as checks of the service.
    fn checker(&mut self, of: &Statement, outer_host: &str, service: &mut v1::Service) -> Vec<v1::Check> {
        let mut port = 0;
        let host = host(of).unwrap_or_else(|| outer_host.to_owned());
        let (mut urls, mut name, mut record) = (Vec::new(), String::new(), String::new());
        let (mut payload, mut answer) = (Vec::new(), Vec::new());
        for inner in of.inner() {
            match inner.word(0) {
                "connect_port" => port = inner.number().unwrap_or_default(),
                "virtualhost" => {}
                "name" => inner.word(1).clone_into(&mut name),
                "type" => inner.word(1).clone_into(&mut record),
                "payload" => payload = inner.word(1).as_bytes().to_vec(),
                "require_reply" => answer = inner.word(1).as_bytes().to_vec(),
                "url" => urls.push(inner),
                "connect_timeout" | "retry" | "nb_get_retry" | "delay_before_retry" | "delay_loop" | "warmup" => {
                    self.timing(inner, service);
                }
                word => self.note(inner, format!("'{word}' of a checker is left out: there is nothing like it here")),
            }
        }
        let tls = (of.word(0) == "SSL_GET").then(|| v1::TlsProbe { skip_verify: true, ..v1::TlsProbe::default() });
        let probes = match of.word(0) {
            "TCP_CHECK" => vec![Probe::Tcp(v1::TcpProbe {})],
            "PING_CHECK" => vec![Probe::Icmp(v1::IcmpProbe {})],
            "SMTP_CHECK" => {
                self.note(of, "SMTP_CHECK becomes a check that a connection is accepted: no HELO is said");
                vec![Probe::Tcp(v1::TcpProbe {})]
            }
            "HTTP_GET" | "SSL_GET" => {
                let probes = urls.into_iter().map(|url| self.url(url, &host, tls.clone()));
                probes.map(Probe::Http).collect()
            }
            "DNS_CHECK" => {
                let known =
                    ["a", "aaaa", "ns", "soa", "mx", "txt"].iter().position(|known| record.eq_ignore_ascii_case(known));
                if known.is_none() {
                    // keepalived asks for SOA unless told otherwise.
                    self.note(of, "DNS_CHECK asks for SOA here");
                }
                let record = known.map_or(v1::DnsRecord::Soa as i32, |at| at as i32 + 1);
                let name = if name.is_empty() { ".".to_owned() } else { name };
                vec![Probe::Dns(v1::DnsProbe { name, record })]
            }
            "UDP_CHECK" => vec![Probe::Udp(v1::UdpProbe { payload, answer })],
            "MISC_CHECK" => {
                self.note(of, "MISC_CHECK is left out: no program is started; see the checks in docs/health.md");
                return Vec::new();
            }
            word => {
                self.note(of, format!("'{word}' is left out: there is nothing like it here"));
                return Vec::new();
            }
        };
        probes.into_iter().map(|probe| v1::Check { port, probe: Some(probe) }).collect()
    }

    fn url(&mut self, url: &Statement, host: &str, tls: Option<v1::TlsProbe>) -> v1::HttpProbe {
        let mut probe = v1::HttpProbe { tls, host: host.to_owned(), path: "/".to_owned(), ..v1::HttpProbe::default() };
        for of in url.inner() {
            match of.word(0) {
                "path" => of.word(1).clone_into(&mut probe.path),
                "virtualhost" => of.word(1).clone_into(&mut probe.host),
                "status_code" => {
                    let (first, last) = of.word(1).split_once('-').unwrap_or((of.word(1), of.word(1)));
                    match (first.parse(), last.parse()) {
                        (Ok(first), Ok(last)) => (probe.status_first, probe.status_last) = (first, last),
                        _ => self.note(of, format!("'{}' is no status, and 200 to 299 are expected", of.word(1))),
                    }
                    if of.words.len() > 2 {
                        self.note(of, "one range of statuses is expected: the first");
                    }
                }
                "digest" => self.note(of, "'digest' is left out: 'body' of a check says what the content must contain"),
                "regex" => self.note(of, "'regex' is left out: 'body' of a check says what the content must contain"),
                word => self.note(of, format!("'{word}' of a url is left out: there is nothing like it here")),
            }
        }
        probe
    }
}

/// What a virtual server says.
#[derive(Default)]
struct Server {
    service: v1::Service,
    protocols: Vec<v1::Protocol>,
    backends: Vec<Real>,
    /// Those of the first real server.
    checks: Option<Vec<v1::Check>>,
    /// What HTTP checks ask for, unless their own `virtualhost` or that of their real server says otherwise.
    host: String,
}

fn host(of: &Statement) -> Option<String> {
    of.inner().iter().rfind(|inner| inner.word(0) == "virtualhost").map(|inner| inner.word(1).to_owned())
}

/// A port that is left out is any.
fn address_and_port(address: &str, port: &str) -> Option<SocketAddr> {
    let port = if port.is_empty() { 0 } else { port.parse().ok()? };
    Some(SocketAddr::new(address.parse().ok()?, port))
}
