//! Settings of the whole cluster, as names and values.

use std::{collections::HashMap, time::Duration};

use lb_raft_store::table::{ClusterSettings, QuorumLoss, Rejection, Timing};
use tonic::Status;

use super::status;

const NAMES: [&str; 9] = [
    "timing",
    "heartbeat_ms",
    "lease_ms",
    "withdraw_ms",
    "on_quorum_loss",
    "failback",
    "flow_tcp_s",
    "flow_fin_s",
    "flow_udp_s",
];

/// All settings as they are.
pub(super) fn shown(settings: &ClusterSettings) -> HashMap<String, String> {
    let Timing { heartbeat_ms, lease_ms, withdraw_ms } = settings.timing;
    let values = [
        settings.timing.name().unwrap_or("custom").to_owned(),
        heartbeat_ms.to_string(),
        lease_ms.to_string(),
        withdraw_ms.to_string(),
        match settings.on_quorum_loss {
            QuorumLoss::Release => "release".to_owned(),
            QuorumLoss::Hold => "hold".to_owned(),
        },
        match settings.failback_s {
            0 => "never".to_owned(),
            seconds => humantime::format_duration(Duration::from_secs(seconds.into())).to_string(),
        },
        settings.flow_timeouts.tcp_s.to_string(),
        settings.flow_timeouts.fin_s.to_string(),
        settings.flow_timeouts.udp_s.to_string(),
    ];
    NAMES.into_iter().map(ToOwned::to_owned).zip(values).collect()
}

/// The present ones with changes: first a named timing, then the rest. Whether they fit together is for the table
/// to say.
pub(super) fn merged(
    mut settings: ClusterSettings,
    changes: &HashMap<String, String>,
) -> Result<ClusterSettings, Status> {
    if changes.is_empty() {
        return invalid("settings", &format!("nothing to change; there are: {}", NAMES.join(", ")));
    }
    if let Some(name) = changes.keys().find(|name| !NAMES.contains(&name.as_str())) {
        return invalid(name, &format!("there is no such setting; there are: {}", NAMES.join(", ")));
    }
    if let Some(name) = changes.get("timing") {
        match Timing::named(name) {
            Some(timing) => settings.timing = timing,
            None => return invalid("timing", &format!("{name:?} is none of default, relaxed, fast")),
        }
    }
    for (name, text) in changes {
        let (timing, flows) = (&mut settings.timing, &mut settings.flow_timeouts);
        match name.as_str() {
            "heartbeat_ms" => timing.heartbeat_ms = number(name, text, "milliseconds")?,
            "lease_ms" => timing.lease_ms = number(name, text, "milliseconds")?,
            "withdraw_ms" => timing.withdraw_ms = number(name, text, "milliseconds")?,
            "flow_tcp_s" => flows.tcp_s = number(name, text, "seconds")?,
            "flow_fin_s" => flows.fin_s = number(name, text, "seconds")?,
            "flow_udp_s" => flows.udp_s = number(name, text, "seconds")?,
            "on_quorum_loss" => {
                settings.on_quorum_loss = match text.as_str() {
                    "release" => QuorumLoss::Release,
                    "hold" => QuorumLoss::Hold,
                    _ => return invalid(name, &format!("{text:?} is none of release, hold")),
                }
            }
            "failback" => settings.failback_s = failback_s(text)?,
            _ => {}
        }
    }
    Ok(settings)
}

fn number(name: &str, text: &str, unit: &str) -> Result<u32, Status> {
    text.parse().or_else(|_| invalid(name, &format!("{text:?} is no number of {unit}")))
}

fn failback_s(text: &str) -> Result<u32, Status> {
    if text == "never" {
        return Ok(0);
    }
    let seconds = humantime::parse_duration(text).ok().and_then(|span| u32::try_from(span.as_secs()).ok());
    match seconds.filter(|seconds| *seconds > 0) {
        Some(seconds) => Ok(seconds),
        None => invalid("failback", &format!("{text:?} is neither \"never\" nor a time such as 10m")),
    }
}

fn invalid<T>(name: &str, problem: &str) -> Result<T, Status> {
    Err(status::rejected(&Rejection::invalid(name, problem)))
}

#[cfg(test)]
mod tests {
    use lb_raft_store::table::FlowTimeouts;

    use super::*;

    #[test]
    fn what_is_shown_can_be_set_and_every_fault_names_its_setting() {
        let relaxed = ClusterSettings {
            timing: Timing::RELAXED,
            on_quorum_loss: QuorumLoss::Hold,
            failback_s: 600,
            flow_timeouts: FlowTimeouts { tcp_s: 60, fin_s: 2, udp_s: 5 },
        };
        let all = shown(&relaxed);
        assert_eq!((all["timing"].as_str(), all["failback"].as_str()), ("relaxed", "10m"));
        assert_eq!(merged(ClusterSettings::default(), &all).unwrap(), relaxed);
        let one =
            |name: &str, value: &str| merged(ClusterSettings::default(), &HashMap::from([(name.into(), value.into())]));
        assert_eq!(one("heartbeat_ms", "10").unwrap().timing, Timing { heartbeat_ms: 10, ..Timing::DEFAULT });
        let wrong = [
            ("timing", "custom"),
            ("lease_ms", "soon"),
            ("flow_udp_s", "-1"),
            ("colour", "blue"),
            ("on_quorum_loss", "pray"),
            ("failback", "0s"),
        ];
        for (name, value) in wrong {
            let error = one(name, value).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().contains(name), "{error}");
        }
        assert!(merged(ClusterSettings::default(), &HashMap::new()).is_err());
    }
}
