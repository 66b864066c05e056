//! How the backends of a service are checked.

use super::{
    check::{Check, Probe, Rhythm},
    service::{PortRange, Protocol, ServiceSettings},
};

/// Checks of one service.
const CHECKS: usize = 8;
const HOUR_MS: u32 = 3_600_000;

impl ServiceSettings {
    /// What is asked of a backend where nothing else is said: whether a TCP service accepts a connection.
    pub fn default_checks(ports: &[PortRange]) -> Vec<Check> {
        let single = ports.iter().find(|port| port.protocol == Protocol::Tcp && !port.is_any());
        single.map(|_| Check { port: 0, probe: Probe::Tcp }).into_iter().collect()
    }

    /// How its backends are asked; what is 0 there stands for what most services want.
    pub fn rhythm(&self) -> Rhythm {
        let or = |value: u32, default: u32| if value == 0 { default } else { value };
        let interval_ms = or(self.check_interval_ms, Rhythm::DEFAULT.interval_ms);
        Rhythm {
            interval_ms,
            // Of a service that is asked more often, the default is shorter, too.
            timeout_ms: or(self.check_timeout_ms, Rhythm::DEFAULT.timeout_ms.min(interval_ms)),
            rise: or(self.rise, Rhythm::DEFAULT.rise),
            fall: or(self.fall, Rhythm::DEFAULT.fall),
            jitter_percent: or(self.check_jitter_percent, Rhythm::DEFAULT.jitter_percent),
        }
    }

    /// The port that a check asks.
    pub fn port_of(&self, check: &Check) -> Option<u16> {
        if check.port > 0 {
            return Some(check.port);
        }
        let protocol = match check.probe {
            Probe::Tcp | Probe::Http(_) | Probe::Grpc(_) => Protocol::Tcp,
            Probe::Udp(_) | Probe::Dns(_) => Protocol::Udp,
            Probe::Icmp => return Some(0),
        };
        self.ports.iter().find(|port| port.protocol == protocol && !port.is_any()).map(|port| port.first)
    }

    /// Why its checks cannot work, if so: the field, and what is wrong with it.
    pub fn problem_of_checks(&self) -> Option<(String, String)> {
        let rhythm = self.rhythm();
        let between = |field: &str, value: u32, unit: &str, first: u32, last: u32| {
            let is_so = (first..=last).contains(&value);
            (!is_so).then(|| (field.to_owned(), format!("{value}{unit} is not between {first} and {last}{unit}")))
        };
        let of_rhythm = || {
            between("check_interval_ms", rhythm.interval_ms, " ms", 50, HOUR_MS)
                .or_else(|| between("check_timeout_ms", rhythm.timeout_ms, " ms", 10, HOUR_MS))
                .or_else(|| between("rise", rhythm.rise, "", 1, 100))
                .or_else(|| between("fall", rhythm.fall, "", 1, 100))
                .or_else(|| between("check_jitter_percent", rhythm.jitter_percent, " percent", 1, 50))
        };
        let (interval, timeout) = (rhythm.interval_ms, rhythm.timeout_ms);
        if self.checks.len() > CHECKS {
            return Some(("checks".into(), format!("{} checks; a service has {CHECKS} at most", self.checks.len())));
        }
        if let Some(problem) = of_rhythm() {
            return Some(problem);
        }
        if timeout > interval {
            let problem = format!(
                "{timeout} ms is longer than the interval of {interval} ms: a check would overtake the one before"
            );
            return Some(("check_timeout_ms".into(), problem));
        }
        self.checks.iter().enumerate().find_map(|(number, check)| {
            let (field, problem) = self.problem_of(check)?;
            Some((format!("checks[{number}].{field}"), problem))
        })
    }

    fn problem_of(&self, check: &Check) -> Option<(&'static str, String)> {
        if self.port_of(check).is_none() {
            let protocol = match check.probe {
                Probe::Udp(_) | Probe::Dns(_) => "UDP",
                _ => "TCP",
            };
            let problem = format!(
                "the service has no single {protocol} port to ask: name one in the check (as tcp:8080 does), or have nothing checked"
            );
            return Some(("port", problem));
        }
        check.probe.problem()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{DnsProbe, DnsRecord, HttpProbe, TlsProbe, check::TEXT};

    fn service(port: &str, probe: Probe) -> ServiceSettings {
        let protocol = if port.ends_with("tcp") { Protocol::Tcp } else { Protocol::Udp };
        let number = port.split('/').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        let ports = vec![PortRange { protocol, first: number, last: number }];
        let settings = ServiceSettings::new("web".parse().unwrap(), [192, 0, 2, 1].into(), ports);
        ServiceSettings { checks: vec![Check { port: 0, probe }], ..settings }
    }

    fn http() -> HttpProbe {
        HttpProbe {
            tls: None,
            method: "GET".into(),
            host: String::new(),
            path: "/".into(),
            status_first: 200,
            status_last: 299,
            body: String::new(),
        }
    }

    #[test]
    fn a_check_that_cannot_work_is_refused_by_its_field() {
        let field = |settings: &ServiceSettings| settings.problem_of_checks().map(|(field, _)| field);
        let of = |change: &dyn Fn(&mut HttpProbe)| {
            let mut probe = http();
            change(&mut probe);
            field(&service("80/tcp", Probe::Http(probe)))
        };
        assert_eq!(of(&|_| {}), None);
        assert_eq!(of(&|probe| probe.path = "healthz".into()).as_deref(), Some("checks[0].path"));
        assert_eq!(of(&|probe| probe.path = "/a b".into()).as_deref(), Some("checks[0].path"));
        assert_eq!(of(&|probe| probe.method = "get".into()).as_deref(), Some("checks[0].method"));
        assert_eq!(of(&|probe| probe.status_last = 199).as_deref(), Some("checks[0].status"));
        assert_eq!(of(&|probe| probe.status_last = 600).as_deref(), Some("checks[0].status"));
        assert_eq!(of(&|probe| probe.host = "a\r\nb".into()).as_deref(), Some("checks[0].host"));
        assert_eq!(of(&|probe| probe.body = "x".repeat(TEXT + 1)).as_deref(), Some("checks[0].body"));
        let head = |probe: &mut HttpProbe| (probe.method, probe.body) = ("HEAD".into(), "ok".into());
        assert_eq!(of(&head).as_deref(), Some("checks[0].body"));
        let tls = TlsProbe { server_name: String::new(), verify: true };
        assert_eq!(of(&|probe| probe.tls = Some(tls.clone())).as_deref(), Some("checks[0].tls.server_name"));
        let named = |probe: &mut HttpProbe| (probe.tls, probe.host) = (Some(tls.clone()), "a.example".into());
        assert_eq!(of(&named), None);

        // By a protocol of which the service has no single port.
        assert_eq!(field(&service("80/udp", Probe::Http(http()))).as_deref(), Some("checks[0].port"));
        assert_eq!(field(&service("any/tcp", Probe::Tcp)).as_deref(), Some("checks[0].port"));
        let dns = |name: &str| Probe::Dns(DnsProbe { name: name.into(), record: DnsRecord::A });
        assert_eq!(field(&service("53/tcp", dns("example.org"))).as_deref(), Some("checks[0].port"));
        assert_eq!(field(&service("53/udp", dns("example.org."))), None);
        assert_eq!(field(&service("53/udp", dns("example..org"))).as_deref(), Some("checks[0].name"));
        let mut elsewhere = service("any/tcp", Probe::Tcp);
        elsewhere.checks[0].port = 8080;
        assert_eq!(field(&elsewhere), None);
        assert_eq!(field(&service("any/tcp", Probe::Icmp)), None);

        let timed = |interval, timeout, jitter| {
            let settings = service("80/tcp", Probe::Tcp);
            let (check_interval_ms, check_timeout_ms, check_jitter_percent) = (interval, timeout, jitter);
            field(&ServiceSettings { check_interval_ms, check_timeout_ms, check_jitter_percent, ..settings })
        };
        assert_eq!(timed(0, 0, 0), None);
        assert_eq!(timed(200, 0, 0), None, "the default timeout is no longer than the interval");
        assert_eq!(timed(200, 201, 0).as_deref(), Some("check_timeout_ms"));
        assert_eq!(timed(10, 0, 0).as_deref(), Some("check_interval_ms"));
        assert_eq!(timed(0, 0, 51).as_deref(), Some("check_jitter_percent"));
        let many = ServiceSettings { checks: vec![Check { port: 0, probe: Probe::Tcp }; CHECKS + 1], ..elsewhere };
        assert_eq!(field(&many).as_deref(), Some("checks"));
    }

    #[test]
    fn a_service_with_a_single_tcp_port_is_checked_by_a_connection_unless_something_else_is_said() {
        let checks = |port: &str| ServiceSettings::default_checks(&service(port, Probe::Icmp).ports);
        assert_eq!(checks("80/tcp"), [Check { port: 0, probe: Probe::Tcp }]);
        assert_eq!(checks("any/tcp"), []);
        assert_eq!(checks("80/udp"), []);
    }
}
