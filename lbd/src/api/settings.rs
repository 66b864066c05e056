//! Settings of the whole cluster, between the API's message and the table's values.

use lb_proto::v1;
use lb_raft_store::table::{ClusterSettings, FlowTimeouts, QuorumLoss, SettingsPatch, Timing};
use tonic::Status;

use super::status::invalid;

/// All settings as they are.
pub(super) fn shown(settings: &ClusterSettings) -> v1::ClusterSettings {
    let Timing { heartbeat_ms, lease_ms, withdraw_ms } = settings.timing;
    let FlowTimeouts { tcp_s, fin_s, udp_s } = settings.flow_timeouts;
    let on_quorum_loss = match settings.on_quorum_loss {
        QuorumLoss::Release => v1::QuorumLoss::Release,
        QuorumLoss::Hold => v1::QuorumLoss::Hold,
    };
    v1::ClusterSettings {
        timing: settings.timing.name().map(ToOwned::to_owned),
        heartbeat_ms: Some(heartbeat_ms),
        lease_ms: Some(lease_ms),
        withdraw_ms: Some(withdraw_ms),
        on_quorum_loss: Some(on_quorum_loss.into()),
        failback_s: Some(settings.failback_s),
        flow_tcp_s: Some(tcp_s),
        flow_fin_s: Some(fin_s),
        flow_udp_s: Some(udp_s),
    }
}

/// A change. Whether its values fit to the others is for the table to say.
pub(super) fn patch(change: Option<&v1::ClusterSettings>) -> Result<SettingsPatch, Status> {
    let nothing = || invalid("settings", "nothing to change");
    let change = change.filter(|change| **change != v1::ClusterSettings::default()).ok_or_else(nothing)?;
    let mut patch = SettingsPatch::default();
    if let Some(name) = &change.timing {
        let wrong = || invalid("timing", format!("{name:?} is none of default, relaxed, fast"));
        patch = patch.with_timing(Timing::named(name).ok_or_else(wrong)?);
    }
    let on_quorum_loss = match change.on_quorum_loss.map(v1::QuorumLoss::try_from) {
        None => None,
        Some(Ok(v1::QuorumLoss::Release)) => Some(QuorumLoss::Release),
        Some(Ok(v1::QuorumLoss::Hold)) => Some(QuorumLoss::Hold),
        Some(_) => return Err(invalid("on_quorum_loss", "it is none of release, hold")),
    };
    Ok(SettingsPatch {
        heartbeat_ms: change.heartbeat_ms.or(patch.heartbeat_ms),
        lease_ms: change.lease_ms.or(patch.lease_ms),
        withdraw_ms: change.withdraw_ms.or(patch.withdraw_ms),
        on_quorum_loss,
        failback_s: change.failback_s,
        flow_tcp_s: change.flow_tcp_s,
        flow_fin_s: change.flow_fin_s,
        flow_udp_s: change.flow_udp_s,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_set_and_faults_name_their_setting() {
        let all = ClusterSettings {
            timing: Timing::RELAXED,
            on_quorum_loss: QuorumLoss::Hold,
            failback_s: 600,
            flow_timeouts: FlowTimeouts { tcp_s: 60, fin_s: 2, udp_s: 5 },
        };
        assert_eq!(patch(Some(&shown(&all))).unwrap().of(ClusterSettings::default()), all);
        let fast = v1::ClusterSettings { timing: Some("fast".into()), lease_ms: Some(30), ..Default::default() };
        let timing = patch(Some(&fast)).unwrap().of(ClusterSettings::default()).timing;
        assert_eq!(timing, Timing { lease_ms: 30, ..Timing::FAST }, "a time of its own goes before the name");
        let custom = v1::ClusterSettings { timing: Some("custom".into()), ..Default::default() };
        let quorum = v1::ClusterSettings { on_quorum_loss: Some(9), ..Default::default() };
        for (name, change) in [("timing", Some(&custom)), ("on_quorum_loss", Some(&quorum)), ("settings", None)] {
            let error = patch(change).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().contains(name), "{error}");
        }
    }
}
