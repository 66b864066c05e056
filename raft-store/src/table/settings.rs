//! What holds for the whole cluster.

use crate::codec::{DecodeError, Field, numbered, record, recorded, required};

/// What owners do when no majority of the voters can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QuorumLoss {
    /// They fall silent when their leases run out: never two owners, and no service without a majority.
    #[default]
    Release,
    /// They go on answering, announce nothing, and fall silent at the first claim of another station: service
    /// before the promise of one owner.
    Hold,
}

/// What holds for the whole cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterSettings {
    /// How fast a silent node is noticed.
    pub timing: Timing,
    /// What owners do without a majority.
    pub on_quorum_loss: QuorumLoss,
    /// A VIP goes back to the node that it prefers when that has been able for so long; 0 for never.
    pub failback_s: u32,
    /// For how long flows are remembered.
    pub flow_timeouts: FlowTimeouts,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            timing: Timing::DEFAULT,
            on_quorum_loss: QuorumLoss::Release,
            failback_s: 0,
            flow_timeouts: FlowTimeouts::default(),
        }
    }
}

impl ClusterSettings {
    /// The same where the feature level rises from one to another: what nobody has chosen becomes what is chosen now for all.
    pub(super) fn at_level(mut self, from: u32, to: u32) -> Self {
        let fin_s = &mut self.flow_timeouts.fin_s;
        if from < FIN_LEVEL && to >= FIN_LEVEL && *fin_s == FlowTimeouts::default().fin_s {
            *fin_s = FlowTimeouts::FIN_S;
        }
        self
    }
}

/// The feature level from which [`FlowTimeouts::FIN_S`] holds.
const FIN_LEVEL: u32 = 5;

/// For how long a flow is remembered after its last packet. In seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowTimeouts {
    /// An open TCP connection.
    pub tcp_s: u32,
    /// A TCP connection of which a FIN was seen.
    pub fin_s: u32,
    /// A flow of UDP.
    pub udp_s: u32,
}

impl Default for FlowTimeouts {
    /// Of a table that is new: [`Self::FIN_S`] comes with feature level 5, which a new cluster reaches at once.
    fn default() -> Self {
        Self { tcp_s: 7200, fin_s: 10, udp_s: 30 }
    }
}

impl FlowTimeouts {
    /// How long a connection is remembered of which a FIN was seen (as IPVS does in FIN_WAIT): the other side may send for
    /// as long as it likes.
    pub const FIN_S: u32 = 120;
    /// A week; a flow that is silent for longer is not one.
    pub const MAX_S: u32 = 7 * 86_400;

    /// Why they cannot be used, if so: the setting, and what is wrong with it.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let all = [("flow_tcp_s", self.tcp_s), ("flow_fin_s", self.fin_s), ("flow_udp_s", self.udp_s)];
        let (name, value) = all.into_iter().find(|(_, value)| !(1..=Self::MAX_S).contains(value))?;
        Some((name, format!("{value} is not between 1 and {} seconds", Self::MAX_S)))
    }
}

/// How fast a silent node is noticed. In milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats (p).
    pub heartbeat_ms: u32,
    /// How long a heartbeat that a majority acknowledged lets its sender answer (D).
    pub lease_ms: u32,
    /// For how long an acknowledgement promises to say nothing against the sender (W).
    pub withdraw_ms: u32,
}

impl Timing {
    /// Takeover in about 0.16 s.
    pub const DEFAULT: Self = Self { heartbeat_ms: 20, lease_ms: 146, withdraw_ms: 150 };
    /// Four times slower, for noisy machines and stretched networks.
    pub const RELAXED: Self = Self { heartbeat_ms: 80, lease_ms: 584, withdraw_ms: 600 };
    /// Four times faster, for dedicated machines with real-time priority.
    pub const FAST: Self = Self { heartbeat_ms: 5, lease_ms: 36, withdraw_ms: 38 };
    /// The longest promise that can be set.
    pub const MAX_WITHDRAW_MS: u32 = 10_000;

    /// Its name, if it has one.
    pub fn name(&self) -> Option<&'static str> {
        [("default", Self::DEFAULT), ("relaxed", Self::RELAXED), ("fast", Self::FAST)]
            .into_iter()
            .find_map(|(name, timing)| (timing == *self).then_some(name))
    }

    /// The inverse of [`Self::name`].
    pub fn named(name: &str) -> Option<Self> {
        [Self::DEFAULT, Self::RELAXED, Self::FAST].into_iter().find(|timing| timing.name() == Some(name))
    }

    /// How long a promise of `withdraw_ns` may be used by a holder whose clock, like the supporter's, may be
    /// off by [`CLOCK_DRIFT_PPM`].
    pub fn usable_ns(withdraw_ns: u64) -> u64 {
        let drift = CLOCK_DRIFT_PPM;
        (u128::from(withdraw_ns) * u128::from(1_000_000 - drift) / u128::from(1_000_000 + drift)) as u64
    }

    /// What is wrong with it, if anything.
    pub fn problem(&self) -> Option<String> {
        let Self { heartbeat_ms, lease_ms, withdraw_ms } = *self;
        let ns = |ms: u32| u64::from(ms) * 1_000_000;
        if heartbeat_ms == 0 || heartbeat_ms.saturating_mul(4) > lease_ms {
            return Some(format!(
                "heartbeat_ms = {heartbeat_ms} with lease_ms = {lease_ms}: a lease must outlast 4 heartbeats"
            ));
        }
        if ns(lease_ms) > Self::usable_ns(ns(withdraw_ms)) {
            return Some(format!(
                "withdraw_ms = {withdraw_ms} with lease_ms = {lease_ms}: it must be longer by the clocks' drift (0.2 %)"
            ));
        }
        (withdraw_ms > Self::MAX_WITHDRAW_MS)
            .then(|| format!("withdraw_ms = {withdraw_ms}: at most {} is taken", Self::MAX_WITHDRAW_MS))
    }
}

/// By how much a node's clock may run fast or slow, in parts per million.
pub const CLOCK_DRIFT_PPM: u64 = 1000;

/// A change of the cluster's settings; `None` leaves a value as it is, also one that another change has just set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the fields are those of the settings that they change")]
pub struct SettingsPatch {
    pub heartbeat_ms: Option<u32>,
    pub lease_ms: Option<u32>,
    pub withdraw_ms: Option<u32>,
    pub on_quorum_loss: Option<QuorumLoss>,
    pub failback_s: Option<u32>,
    pub flow_tcp_s: Option<u32>,
    pub flow_fin_s: Option<u32>,
    pub flow_udp_s: Option<u32>,
}

impl SettingsPatch {
    /// All three times of a timing.
    pub fn with_timing(self, Timing { heartbeat_ms, lease_ms, withdraw_ms }: Timing) -> Self {
        Self { heartbeat_ms: Some(heartbeat_ms), lease_ms: Some(lease_ms), withdraw_ms: Some(withdraw_ms), ..self }
    }

    /// One that makes all settings these.
    pub fn to(settings: ClusterSettings) -> Self {
        let ClusterSettings { timing, on_quorum_loss, failback_s, flow_timeouts } = settings;
        let FlowTimeouts { tcp_s, fin_s, udp_s } = flow_timeouts;
        Self {
            on_quorum_loss: Some(on_quorum_loss),
            failback_s: Some(failback_s),
            flow_tcp_s: Some(tcp_s),
            flow_fin_s: Some(fin_s),
            flow_udp_s: Some(udp_s),
            ..Self::default()
        }
        .with_timing(timing)
    }

    /// The settings with the change made.
    pub fn of(&self, before: ClusterSettings) -> ClusterSettings {
        let flows = before.flow_timeouts;
        ClusterSettings {
            timing: Timing {
                heartbeat_ms: self.heartbeat_ms.unwrap_or(before.timing.heartbeat_ms),
                lease_ms: self.lease_ms.unwrap_or(before.timing.lease_ms),
                withdraw_ms: self.withdraw_ms.unwrap_or(before.timing.withdraw_ms),
            },
            on_quorum_loss: self.on_quorum_loss.unwrap_or(before.on_quorum_loss),
            failback_s: self.failback_s.unwrap_or(before.failback_s),
            flow_timeouts: FlowTimeouts {
                tcp_s: self.flow_tcp_s.unwrap_or(flows.tcp_s),
                fin_s: self.flow_fin_s.unwrap_or(flows.fin_s),
                udp_s: self.flow_udp_s.unwrap_or(flows.udp_s),
            },
        }
    }
}

numbered!(QuorumLoss: Release, Hold);
recorded!(Timing => Timing { heartbeat_ms, lease_ms, withdraw_ms });
recorded!(FlowTimeouts => FlowTimeouts { tcp_s, fin_s, udp_s });
recorded!(SettingsPatch => SettingsPatch {
    heartbeat_ms, lease_ms, withdraw_ms, on_quorum_loss, failback_s, flow_tcp_s, flow_fin_s, flow_udp_s,
});

impl Field<record::Settings> for ClusterSettings {
    fn put(&self) -> record::Settings {
        record::Settings {
            timing: self.timing.put(),
            hold_on_quorum_loss: self.on_quorum_loss == QuorumLoss::Hold,
            failback_s: self.failback_s,
            flow_timeouts: self.flow_timeouts.put(),
        }
    }

    fn read(record: record::Settings) -> Result<Self, DecodeError> {
        Ok(Self {
            timing: Field::read(record.timing).map_err(|error| error.named("timing"))?,
            on_quorum_loss: if record.hold_on_quorum_loss { QuorumLoss::Hold } else { QuorumLoss::Release },
            failback_s: record.failback_s,
            // Absent in tables from before there were such settings.
            flow_timeouts: <Option<FlowTimeouts>>::read(record.flow_timeouts)?.unwrap_or_default(),
        })
    }
}

required!(ClusterSettings => Settings);
