//! `lbctl cluster`.

use std::{collections::BTreeMap, time::Duration};

use lb_proto::v1::{self, cluster_service_client::ClusterServiceClient};

use crate::{
    cli::{ClusterCommand, quoted},
    exit::Failure,
    output::{self, Change, views},
    session::Session,
};

pub(super) async fn run(session: &Session, command: ClusterCommand) -> Result<(), Failure> {
    let mut client = ClusterServiceClient::new(session.channel.clone());
    match command {
        ClusterCommand::Show => {
            let request = v1::GetSettingsRequest {};
            let answer = session.read(request, |request| async move { client.get_settings(request).await }).await?;
            let settings: BTreeMap<String, String> = shown(&answer.settings.unwrap_or_default()).into();
            match session.format() {
                format if format.is_data() => output::object(format, &BTreeMap::from([("settings", settings)])),
                format => {
                    let rows: Vec<views::Setting> = settings.into_iter().map(Into::into).collect();
                    output::list(format, "settings", &rows)
                }
            }
        }
        ClusterCommand::Set { settings } => {
            let what: Vec<String> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let (request_id, expected_revision) = (session.request_id.clone(), 0);
            let settings = Some(parsed(&settings)?);
            let request = v1::UpdateSettingsRequest { request_id: request_id.clone(), expected_revision, settings };
            let set = session.write(request, |request| async move { client.update_settings(request).await }).await?;
            let (revision, unchanged) = (set.revision, set.unchanged);
            output::change(
                session.format(),
                &Change { what: what.join(" "), revision, unchanged, request_id, ..Change::default() },
            )
        }
    }
}

/// The names of all settings.
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

/// All settings, as they may be set.
fn shown(settings: &v1::ClusterSettings) -> [(String, String); NAMES.len()] {
    let number = |value: Option<u32>| value.unwrap_or_default().to_string();
    let values = [
        settings.timing.clone().unwrap_or_else(|| "custom".to_owned()),
        number(settings.heartbeat_ms),
        number(settings.lease_ms),
        number(settings.withdraw_ms),
        match settings.on_quorum_loss() {
            v1::QuorumLoss::Hold => "hold".to_owned(),
            v1::QuorumLoss::Release | v1::QuorumLoss::Unspecified => "release".to_owned(),
        },
        match settings.failback_s() {
            0 => "never".to_owned(),
            seconds => humantime::format_duration(Duration::from_secs(seconds.into())).to_string(),
        },
        number(settings.flow_tcp_s),
        number(settings.flow_fin_s),
        number(settings.flow_udp_s),
    ];
    let mut values = values.into_iter();
    NAMES.map(|name| (name.to_owned(), values.next().unwrap_or_default()))
}

/// What `KEY=VALUE ...` changes.
fn parsed(changes: &[(String, String)]) -> Result<v1::ClusterSettings, Failure> {
    let mut settings = v1::ClusterSettings::default();
    for (name, text) in changes {
        let number = |unit: &str| {
            let wrong = |_| Failure::Refused(format!("{name}: {} is no number of {unit}", quoted(text)));
            text.parse().map(Some).map_err(wrong)
        };
        match name.as_str() {
            "timing" => settings.timing = Some(text.clone()),
            "heartbeat_ms" => settings.heartbeat_ms = number("milliseconds")?,
            "lease_ms" => settings.lease_ms = number("milliseconds")?,
            "withdraw_ms" => settings.withdraw_ms = number("milliseconds")?,
            "on_quorum_loss" => settings.on_quorum_loss = Some(quorum_loss(text)?.into()),
            "failback" => settings.failback_s = Some(failback_s(text)?),
            "flow_tcp_s" => settings.flow_tcp_s = number("seconds")?,
            "flow_fin_s" => settings.flow_fin_s = number("seconds")?,
            "flow_udp_s" => settings.flow_udp_s = number("seconds")?,
            _ => {
                return Err(Failure::Refused(format!(
                    "{}: there is no such setting; there are: {}",
                    quoted(name),
                    NAMES.join(", ")
                )));
            }
        }
    }
    Ok(settings)
}

fn quorum_loss(text: &str) -> Result<v1::QuorumLoss, Failure> {
    match text {
        "release" => Ok(v1::QuorumLoss::Release),
        "hold" => Ok(v1::QuorumLoss::Hold),
        _ => Err(Failure::Refused(format!("on_quorum_loss: {} is none of release, hold", quoted(text)))),
    }
}

fn failback_s(text: &str) -> Result<u32, Failure> {
    if text == "never" {
        return Ok(0);
    }
    let wrong = |what: &str| Failure::Refused(format!("failback: {} is {what}", quoted(text)));
    let neither = "neither \"never\" nor a time such as 10m";
    let span = humantime::parse_duration(text).map_err(|_| wrong(neither))?;
    if span.subsec_nanos() != 0 {
        return Err(wrong("not of whole seconds"));
    }
    match u32::try_from(span.as_secs()) {
        Ok(0) => Err(wrong(neither)),
        Ok(seconds) => Ok(seconds),
        Err(_) => Err(wrong("longer than the 136 years that it can be")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_set_and_every_fault_names_its_setting() {
        let settings = v1::ClusterSettings {
            timing: Some("relaxed".into()),
            heartbeat_ms: Some(80),
            lease_ms: Some(584),
            withdraw_ms: Some(600),
            on_quorum_loss: Some(v1::QuorumLoss::Hold.into()),
            failback_s: Some(600),
            flow_tcp_s: Some(60),
            flow_fin_s: Some(2),
            flow_udp_s: Some(5),
        };
        let all = shown(&settings);
        assert!(all.contains(&("failback".into(), "10m".into())));
        assert_eq!(parsed(&all).unwrap(), settings);
        let wrong = [
            ("lease_ms", "soon"),
            ("flow_udp_s", "-1"),
            ("colour", "blue"),
            ("on_quorum_loss", "pray"),
            ("failback", "0s"),
        ];
        for (name, value) in wrong {
            let error = parsed(&[(name.into(), value.into())]).unwrap_err();
            assert!(matches!(&error, Failure::Refused(text) if text.contains(name)), "{name}");
        }
    }
}
